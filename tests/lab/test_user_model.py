"""The user's model: what it is given, what makes it another one, and the rehearsal before anything is trained."""

import importlib
import random
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.training import train
from gammabeta.lab.images.user_network import impossible_arms, user_network
from gammabeta.lab.sources import load
from gammabeta.lab.task import TaskError
from gammabeta.target import _LOADED

DIGITS = {"data": "digits", "fingerprint": "scikit-learn"}
NET = """
from torch import nn
{imports}

def build(input_shape, classes, norm, width=4, **options):
    {begin}
    return nn.Sequential(nn.Conv2d(input_shape[0], width, 3), norm(width), nn.ReLU(), nn.Flatten(),
                         nn.Linear(width * 36, classes))
"""


@pytest.fixture(autouse=True)
def imports(tmp_path, monkeypatch):
    """Remove what imports leave behind; a changed file of the same size and second must not be taken from a cache."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    yield
    forget(tmp_path)


def forget(folder):
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        if name == "other" or str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    # A file is kept here where another test's module has its name: it would not import its helpers again.
    for path in [path for path in _LOADED if path.startswith(str(folder))]:
        del _LOADED[path]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def net(imports="", begin="pass"):
    return NET.format(imports=imports, begin=begin)


def identity(folder, target):
    """Return the fingerprint as a new process would."""
    forget(folder)
    return user_network(target, load(DIGITS))["fingerprint"]


# --- which changes make it another model ---

PACKAGES = {
    "a helper in the package": (
        {"pkg/__init__.py": "", "pkg/net.py": net("from pkg import sizes"), "pkg/sizes.py": "a = 1"},
        "pkg.net:build",
        "pkg/sizes.py",
    ),
    "the module that build is exported from": (
        {"pkg/__init__.py": "from pkg.net import build", "pkg/net.py": net()},
        "pkg:build",
        "pkg/net.py",
    ),
    "the package's own __init__": (
        {"pkg/__init__.py": "a = 1", "pkg/net.py": net()},
        "pkg.net:build",
        "pkg/__init__.py",
    ),
    "a relative import": (
        {"pkg/__init__.py": "", "pkg/net.py": net("from . import sizes"), "pkg/sizes.py": "a = 1"},
        "pkg.net:build",
        "pkg/sizes.py",
    ),
    "a helper beside the file": (
        {"net.py": net("import sizes"), "sizes.py": "a = 1"},
        "net.py:build",
        "sizes.py",
    ),
    "a helper of a helper": (
        {"net.py": net("import sizes"), "sizes.py": "import deeper", "deeper.py": "a = 1"},
        "net.py:build",
        "deeper.py",
    ),
    "a helper that is imported by name": (
        {"net.py": net("import importlib\nsizes = importlib.import_module('sizes')"), "sizes.py": "a = 1"},
        "net.py:build",
        "sizes.py",
    ),
    "a helper that is imported when build runs": (
        {"net.py": net(begin="import sizes"), "sizes.py": "a = 1"},
        "net.py:build",
        "sizes.py",
    ),
    "another package of the user's": (
        {"net.py": net("from other.sizes import a"), "other/__init__.py": "", "other/sizes.py": "a = 1"},
        "net.py:build",
        "other/sizes.py",
    ),
    "a namespace package": (
        {"net.py": net("from other import sizes"), "other/sizes.py": "a = 1"},
        "net.py:build",
        "other/sizes.py",
    ),
}


@pytest.mark.parametrize("taken", [False, True], ids=["its name is free", "another module has its name"])
@pytest.mark.parametrize("which", PACKAGES)
def test_a_change_of_any_module_that_the_model_rests_on_makes_another(tmp_path, monkeypatch, which, taken):
    if taken:
        monkeypatch.setitem(sys.modules, "net", ModuleType("net"))
    files, text, changed = PACKAGES[which]
    write(tmp_path, files)
    first = identity(tmp_path, text)
    assert identity(tmp_path, text) == first
    write(tmp_path, {changed: files[changed] + "\n# changed"})
    assert identity(tmp_path, text) != first


def test_a_module_that_was_not_imported_does_not_count(tmp_path):
    write(tmp_path, {"pkg/__init__.py": "", "pkg/net.py": net(), "pkg/other.py": "a = 1", "beside.py": "a = 1"})
    first = identity(tmp_path, "pkg.net:build")
    write(tmp_path, {"pkg/other.py": "a = 2", "beside.py": "a = 2"})
    assert identity(tmp_path, "pkg.net:build") == first


@pytest.mark.parametrize(
    "begin",
    [
        "width = read()",
        "return Scaled(super_build(input_shape, classes, norm), read())",
        "torch.manual_seed(read())",
    ],
)
def test_a_file_that_changes_structure_attributes_or_weights_makes_another(tmp_path, begin):
    imports = """
import torch
def read():
    return int(open("number.txt").read())
class Scaled(nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale
    def forward(self, x):
        return self.inner(x) * self.scale
def super_build(input_shape, classes, norm):
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.Flatten(), nn.Linear(144, classes))
"""
    write(tmp_path, {"net.py": net(imports, begin), "number.txt": "2"})
    first = identity(tmp_path, "net.py:build")
    assert identity(tmp_path, "net.py:build") == first
    write(tmp_path, {"number.txt": "3"})
    assert identity(tmp_path, "net.py:build") != first


def test_what_differs_in_every_process_does_not_count(tmp_path):
    imports = """
import time, uuid
class Named(nn.Flatten):
    def __init__(self):
        super().__init__()
        self.born, self.key, self.rule, self.holder = time.time_ns(), uuid.uuid4().hex, len, object()
"""
    text = net(imports).replace("nn.Flatten()", "Named()")
    write(tmp_path, {"net.py": text})
    assert identity(tmp_path, "net.py:build") == identity(tmp_path, "net.py:build")


def test_weights_drawn_with_numpy_and_random_follow_the_seed_and_leave_the_callers_draws_alone(tmp_path):
    begin = """
    import random, numpy, torch
    layer = nn.Linear(64, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(numpy.random.randn(classes, 64)) + random.random())
    return nn.Sequential(nn.Flatten(), layer, norm(classes, 0))"""
    write(tmp_path, {"net.py": net(begin=begin)})
    task = load(DIGITS)
    random.seed(5)
    np.random.seed(5)
    expected = random.Random(5).random(), np.random.RandomState(5).rand()
    network = user_network("net.py:build", task)
    assert (random.random(), np.random.rand()) == expected
    one, same, other = (build(task, network, "batch", seed)[1].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- arguments ---


def test_arguments_reach_the_function_and_are_part_of_the_model(tmp_path):
    write(tmp_path, {"net.py": net()})
    task = load(DIGITS)
    plain, wide, same, deeper = (
        user_network(f"net.py:build{arguments}", task)
        for arguments in ("()", "(width=6, depth='a:b')", "( depth = 'a:b',width=6 )", "(width=6, depth='a:c')")
    )
    assert build(task, wide, "group", 0)[0].out_channels == 6
    assert build(task, plain, "group", 0)[0].out_channels == 4
    assert plain == user_network("net.py:build", task)
    assert wide == same
    assert wide["model"] == f"{tmp_path / 'net.py'}:build(depth='a:b', width=6)"
    assert len({network["model"] for network in (plain, wide, deeper)}) == 3
    assert describe(wide) == "net.py:build(depth='a:b', width=6)"
    result = train(task=DIGITS, network=wide, norm="batch", rate=0.1, batch_size=8, steps=2, seed=0)
    assert result["diverged"] is None


def test_a_third_argument_that_the_target_gives_is_not_norm(tmp_path):
    text = "def build(input_shape, classes, width):\n" + net().split("norm, width=4, **options):")[1]
    write(tmp_path, {"net.py": "from torch import nn\n" + text.replace("norm(width)", "nn.BatchNorm2d(width)")})
    network = user_network("net.py:build(width=3)", load(DIGITS))
    assert build(load(DIGITS), network, "batch", 0)[0].out_channels == 3


def test_a_method_of_a_class_can_be_the_function(tmp_path):
    text = net() + "\nclass Models:\n    small = staticmethod(build)\n"
    write(tmp_path, {"net.py": text})
    assert user_network("net.py:Models.small(width=2)", load(DIGITS))["model"].endswith("Models.small(width=2)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("(64)", "expected arguments with names, as build(width=64), got (64): the others are given by the study."),
        ("(width=read())", "expected literals in parentheses, as (18, pretrained=False), got (width=read())."),
        ("(width=__import__('os').getpid())", "expected literals in parentheses, as (18, pretrained=False), got "
                                              "(width=__import__('os').getpid())."),
        ("(classes=3)", "expected arguments that the study does not give, got classes: leave it out, or write another "
                        "function that sets it."),
        ("(norm=3)", "expected arguments that the study does not give, got norm: leave it out, or write another "
                     "function that sets it."),
        ("(widht=3)", "build has no argument widht: it has input_shape, classes, norm, width."),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(tmp_path, arguments, said):
    write(tmp_path, {"net.py": net().replace(", **options", "")})
    with pytest.raises(TaskError) as refused:
        user_network(f"net.py:build{arguments}", load(DIGITS))
    assert str(refused.value) == f"--model net.py:build{arguments}: {said}"


# --- the rehearsal ---

FORWARD = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes, norm):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 4, 3), norm(4), nn.Linear(144, classes)
        self.calls = 0
    def forward(self, x):
        {body}
def build(input_shape, classes, norm):
    model = Net(classes, norm)
    {after}
    return model
"""
ALL = "self.last(self.norm(self.conv(x)).flatten(1))"
BROKEN = {
    "raises": (
        "raise RuntimeError('no way')",
        "",
        "does not take a batch of shape (8, 1, 8, 8): RuntimeError: no way.",
    ),
    "leaves": ("raise SystemExit(3)", "", "does not take a batch of shape (8, 1, 8, 8): SystemExit: 3."),
    "batches of 8": (
        "return self.last(self.norm(self.conv(x)).reshape(8, -1))",
        "",
        "does not take a batch of shape (5, 1, 8, 8): RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x90 "
        "and 144x10); a batch of 8 it takes: write forward for every size.",
    ),
    "only in evaluation": (
        f"assert self.training\n        return {ALL}",
        "",
        "does not take a batch of shape (5, 1, 8, 8) in evaluation: AssertionError.",
    ),
    "frozen": (
        f"return {ALL}",
        "model.requires_grad_(False)",
        "expected parameters that can be trained, got none whose requires_grad is True",
    ),
    "detached": (f"return {ALL}.detach()", "", "expected scores that depend on parameters, got none with a gradient"),
    "without gradients": (f"with torch.no_grad():\n            return {ALL}", "", "expected scores that depend on"),
    "NaN": (f"return {ALL} * float('nan')", "", "expected finite scores before training, got NaN or infinity"),
    "infinite gradient": (
        f"return {ALL} + (0 * self.last.bias).sqrt()",
        "model.last.bias.data.fill_(1.0)",
        "expected finite gradients before training, got NaN or infinity in that of last.bias",
    ),
    "backward raises": (
        f"z = {ALL}.exp()\n        z.mul_(2)\n        return z",
        "",
        "the backward pass raised RuntimeError: one of the variables needed for gradient computation",
    ),
    "changes its input": (
        f"x.add_(1)\n        return {ALL}",
        "",
        "expected a forward that leaves its inputs as they are",
    ),
    "other weights each time": (
        f"return {ALL}",
        "model.last.weight.data.fill_(float(len(COUNT)))\n    COUNT.append(0)",
        "expected the same weights whenever torch, numpy and random are seeded alike",
    ),
}


@pytest.mark.parametrize("which", BROKEN)
def test_what_would_fail_in_every_trial_is_found_before_the_first(tmp_path, which):
    body, after, said = BROKEN[which]
    write(tmp_path, {"net.py": "COUNT = []\n" + FORWARD.format(body=body, after=after or "pass")})
    with pytest.raises(TaskError) as refused:
        user_network("net.py:build", load(DIGITS))
    assert str(refused.value).startswith("--model net.py:build: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_rehearsal_leaves_data_and_draws_as_they_are(tmp_path):
    write(tmp_path, {"net.py": FORWARD.format(body=f"return {ALL}", after="pass")})
    task = load(DIGITS)
    before, drawn = task.train.x_nchw.clone(), torch.get_rng_state()
    user_network("net.py:build", task)
    assert torch.equal(task.train.x_nchw, before)
    assert torch.equal(torch.get_rng_state(), drawn)


LAZY = """
from torch import nn
def build(input_shape, classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))
"""


def test_lazy_layers_get_their_shapes_before_norms_are_exchanged_and_bytes_counted(tmp_path):
    from gammabeta.lab.images.comparison import saved_bytes

    write(tmp_path, {"net.py": LAZY})
    task = load(DIGITS)
    network = user_network("net.py:build", task)
    assert impossible_arms(network, task) == {}
    assert isinstance(build(task, network, "group", 0)[1], nn.GroupNorm)
    assert torch.equal(build(task, network, "batch", 3)[4].weight, build(task, network, "group", 3)[4].weight)
    assert not torch.equal(build(task, network, "batch", 3)[4].weight, build(task, network, "batch", 4)[4].weight)
    assert saved_bytes(task=DIGITS, network=network, norm="batch", batch_size=8)["bytes"] > 0
    for arm in ("batch", "none", "layer"):
        assert train(task=DIGITS, network=network, norm=arm, rate=0.1, batch_size=8, steps=2, seed=0)["loss"]


def test_a_lazy_layer_that_is_never_called_is_refused(tmp_path):
    text = LAZY.replace("    return nn.Sequential(", "    model = nn.Sequential(") + (
        "    class Beside(nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.used, self.unused = model, nn.LazyLinear(3)\n"
        "        def forward(self, x):\n"
        "            return self.used(x)\n"
        "    return Beside()\n"
    )
    write(tmp_path, {"net.py": text})
    with pytest.raises(TaskError, match=r"expected every lazy layer to be called in forward.*unused\.weight"):
        user_network("net.py:build", load(DIGITS))


@pytest.mark.parametrize("claim", ["smoother_landscape", "covariate_shift"])
@pytest.mark.parametrize("frozen", ["conv", "last"])
def test_frozen_and_unused_layers_do_not_stop_the_claims_that_take_gradients(tmp_path, claim, frozen):
    after = f"model.{frozen}.requires_grad_(False)\n    model.unused = nn.Linear(3, 3)"
    write(tmp_path, {"net.py": FORWARD.format(body=f"return {ALL}", after=after)})
    network = user_network("net.py:build", load(DIGITS))
    module = importlib.import_module(f"gammabeta.lab.claims.{claim}")
    settings = {"task": DIGITS, "network": network, "norm": "batch", "rate": 0.2, "seed": 1}
    if claim == "smoother_landscape":
        assert module.landscape(**settings, levels=(2.0,))["levels"]["2"]["walk"]["losses"]
    else:
        assert module.shift(**settings)["input"]


def test_a_relative_import_is_told_the_way_out(tmp_path):
    write(tmp_path, {"top/pkg/__init__.py": "", "top/pkg/net.py": net("from . import sizes"), "top/pkg/sizes.py": ""})
    target = "top/pkg/net.py:build(width=3)"
    with pytest.raises(TaskError) as refused:
        user_network(target, load(DIGITS))
    assert str(refused.value) == (
        f"--model {target}: it imports relatively, which a file on its own cannot: name it as a module, "
        f"pkg.net:build(width=3), and run the command in {tmp_path / 'top'}."
    )


def test_a_package_that_an_installed_one_hides_is_not_taken_for_it(tmp_path):
    write(tmp_path, {"joblib/__init__.py": net()})
    with pytest.raises(TaskError, match=r"expected joblib of the working directory, got .*joblib/__init__\.py, which"):
        user_network("joblib:build", load(DIGITS))


def test_the_folder_of_the_model_comes_last(tmp_path):
    write(tmp_path, {"net.py": net("import queue\nassert not hasattr(queue, 'mine')"), "queue.py": "mine = 1"})
    user_network("net.py:build", load(DIGITS))
    assert sys.path[-1] == str(tmp_path)
