"""What importing and using gammabeta loads, counted in modules: nothing of torch's compiler, and little else.

Every script runs in a process of its own. A time would be that of the machine.
"""

import ast
import inspect
import json
import os
import pickle
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import gammabeta as gb
from gammabeta.benchmarks.subjects import SUBJECTS
from gammabeta.cli import main as cli
from gammabeta.diagnostics.rule_page import RulePage
from gammabeta.diagnostics.rules import CODES, RULES
from gammabeta.lab.claims import CLAIMS
from gammabeta.layers.integrations.libraries import LIBRARIES

ROOT = Path(__file__).parents[1]
# The compiler and what it loads, and what only other programs or several processes need.
FORBIDDEN = (
    "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.distributed.tensor",
    "torch.distributed.fsdp", "torch.onnx", "torch.testing", "sympy", "mpmath", "triton", "networkx", "typer", "rich",
    "sklearn", "scipy", "plotly", "jinja2", "joblib",
)  # fmt: skip


def run(script, *words):
    """Run a script in a process of its own, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# By name, in order and in one process: what people do with a model, without training it by an optimizer of torch, which
# loads the compiler itself.
USES = {
    "import": "import gammabeta as gb",
    "layers": """
x = torch.randn(4, 6, 5, requires_grad=True)
for layer in (gb.BatchNorm1d(6), gb.GroupNorm(2, 6), gb.InstanceNorm1d(6), gb.LayerNorm(5), gb.RMSNorm(5)):
    layer(x, residual=x).sum().backward()
    layer.eval()(x)
for layer in (gb.BatchNorm2d(6), gb.InstanceNorm2d(6)):
    layer(x[..., None]).sum().backward()
mask = gb.lengths_to_mask([5, 3, 2, 1], 5)
gb.BatchNorm1d(6, activation="gelu")(x, mask=mask).sum().backward()
""",
    "functions": """
gb.functional.batch_norm(x, None, None, training=True)
gb.functional.add_layer_norm(x, x, (5,))
gb.Moments.of(x, axes=(0, 2)).var()
""",
    "sources": """
for source in (gb.statistics.Ghost(2), gb.statistics.Renorm(), gb.statistics.Synced(), gb.statistics.Running()):
    gb.BatchNorm1d(6, statistics=source)(x)
""",
    "a network": """
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Block(8), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 2))
images, model = torch.randn(4, 3, 12, 12), network()
model(images).sum().backward()
""",
    "adopt": "gb.adopt(model); model(images).sum().backward()",
    "release": "gb.release(model); gb.adopt(model)",
    "freeze": "gb.freeze(model); model(images); gb.unfreeze(model)",
    "set_statistics": "gb.set_statistics(model, gb.statistics.Ghost(2)).undo()",
    "contexts": """
with gb.frozen_statistics(model): model(images)
with gb.accumulate_statistics(model): model(images)
""",
    "copies": "import copy, pickle; pickle.loads(pickle.dumps(copy.deepcopy(model)))(images)",
    "fuse": "gb.fuse(network(), images)",
    "fold": "gb.fold(network().eval(), images)",
    "recalibrate": "gb.recalibrate(model, [images, images])",
    "convert": "gb.convert(network(), 'group'); gb.convert(network(), 'group', batches=[images])",
    "parameter_groups": "gb.parameter_groups(model, weight_decay=0.1)",
    "check": "gb.check(network()); gb.check(network(), images)",
    "train_eval_gap": "gb.train_eval_gap(model, [images, images])",
    "watch": "with gb.watch(model): model(images).sum().backward()",
}  # fmt: skip
SCRIPT = """
import json, os, sys
import torch
from torch import nn
before, environment, found = set(sys.modules), dict(os.environ), {}
for name, use in json.loads(sys.argv[1]).items():
    exec(use, globals())
    found[name] = sorted(set(sys.modules) - before)
print(json.dumps({"torch": len(before), "added": found, "environment": dict(os.environ) == environment}))
"""


@pytest.fixture(scope="module")
def used():
    """What the uses have added to the modules of torch, each with those before it."""
    return json.loads(run(SCRIPT, json.dumps(USES)).splitlines()[-1])


def forbidden(names):
    return [name for name in names if name.startswith(FORBIDDEN)]


@pytest.mark.parametrize("use", USES)
def test_no_use_loads_the_compiler(used, use):
    assert forbidden(used["added"][use]) == []


def test_importing_and_adopting_add_less_than_a_tenth_of_torch_s_modules(used):
    assert len(used["added"]["import"]) <= used["torch"] / 20
    assert len(used["added"]["set_statistics"]) <= used["torch"] / 10


def test_no_environment_variable_is_set(used):
    assert used["environment"]


def test_of_other_libraries_only_python_s_own_are_added(used):
    def others(use):
        roots = {name.partition(".")[0] for name in used["added"][use]}
        return roots - {*sys.stdlib_module_names, "gammabeta", "torch"}

    assert others("import") == set()
    assert others("watch") - {"numpy", "cython_runtime"} == {
        name for name in others("watch") if name.startswith("_cython")
    }


# What the extras install beside torch. numpy is no dependency of torch either.
EXTRAS = (
    "typer", "rich", "tomli", "numpy", "scipy", "sklearn", "joblib", "plotly", "jinja2", "PIL", "triton", "safetensors",
)  # fmt: skip


def test_layers_surgery_check_and_watch_need_torch_alone():
    without = f"import sys\nsys.modules |= dict.fromkeys({EXTRAS!r})\n"
    used = json.loads(run(without + SCRIPT, json.dumps(USES)).splitlines()[-1])
    assert used["added"].keys() == USES.keys()


# The command line.


COMMAND = """
import sys
import gammabeta_command
sys.argv = ["gammabeta", *sys.argv[1:]]
try:
    gammabeta_command.main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
NAMES = [command.callback.__name__ for command in cli.app.registered_commands]


def test_the_command_without_its_extra_says_what_to_install():
    for missing in ("typer", "rich"):
        without = f"import sys\nsys.modules[{missing!r}] = None\n"
        for command in (COMMAND, "import runpy; runpy.run_module('gammabeta', run_name='__main__', alter_sys=True)"):
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", without + command, "--help"],
                capture_output=True, text=True, timeout=240, cwd=ROOT,
            )  # fmt: skip
            assert done.stderr == (
                f"gammabeta: the command needs {missing}, which is not installed: "
                'pip install "gammabeta[cli]", in a clone ".[cli]".\n'
            )
            assert done.stdout == ("2 False\n" if command is COMMAND else "")


@pytest.mark.parametrize(
    "words",
    [(), ("--help",), ("--version",), ("rules",), ("explain", "GB101"), *((name, "--help") for name in NAMES)],
    ids=" ".join,
)
def test_a_text_needs_no_torch(words):
    *text, end = run(COMMAND, *words).splitlines()
    assert len(text) > 0
    assert end.split()[1] == "False"
    assert end.split()[0] == ("2" if words == () else "0")


def test_a_command_finds_what_it_needs(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch, gammabeta as gb\nassert torch.ops.gammabeta.channel_norm_forward\n"
        "def build(): return torch.nn.Sequential(gb.LayerNorm(3))\n"
    )
    *text, end = run(COMMAND, "check", f"{tmp_path}/model.py:build").splitlines()
    assert "1 norm" in " ".join(text)
    assert end == "0 True"


def test_kernels_that_are_asked_for_and_missing_are_said_by_the_command_that_needs_them():
    hook = (
        "import sys, importlib.abc\n"
        "class Hook(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'gammabeta.kernels._cpu':\n"
        "            raise ImportError('undefined symbol')\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hook + COMMAND, "check", "model.py:build"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "GAMMABETA_KERNELS": "1"},
    )  # fmt: skip
    assert done.stdout == "2 True\n"
    expected = "gammabeta: GAMMABETA_KERNELS=1 requires the native CPU kernels, which are built, but do not load with "
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_the_console_script_lies_outside_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '\ngammabeta = "gammabeta_command:main"\n' in text
    assert '\npy-modules = ["gammabeta_command", "gammabeta_pytest"]\n' in text
    imported = [
        node
        for node in ast.parse((ROOT / "src" / "gammabeta_command.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imported]
    assert names == ["__future__", "sys"]


def test_names_read_from_files_are_those_of_the_registries():
    from gammabeta.cli.options import _names_in

    assert _names_in("lab/claims").split(", ") == sorted(claim.name for claim in CLAIMS)
    assert _names_in("benchmarks/subjects").split(", ") == sorted(subject.name for subject in SUBJECTS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_s_page_is_that_of_its_module(rule):
    page = RulePage.of(rule.code, CODES[rule.code])
    for name in ("code", "name", "severity", "sees", "title", "sections"):
        assert getattr(page, name) == getattr(rule, name)
    for builder in ("flagged", "clean"):
        source = inspect.getsource(getattr(rule, builder))
        assert all(line in source for line in getattr(page, builder).splitlines())
    assert page.text() == rule.page()


# The ops and the tables of other libraries.


@pytest.mark.parametrize("order", ["import torch, gammabeta", "import gammabeta, torch"])
def test_importing_the_package_registers_the_ops(order):
    script = f"{order}\nfrom gammabeta import ops, running_statistics\nprint(gammabeta.kernels.missing is None)\n" + (
        "for name in (*ops.DEFAULTS, 'update_running_statistics_', 'move_running_statistics_', 'gather_moments_'):\n"
        "    getattr(torch.ops.gammabeta, name).default\n"
    )
    bare = f"{order}\ntorch.ops.gammabeta.channel_norm_forward.default\ntorch.ops.gammabeta.gather_moments_.default"
    run(bare)
    assert run(script) == f"{gb.kernels.missing is None}\n"


def test_an_exported_program_needs_only_the_import(tmp_path):
    layer = gb.BatchNorm1d(3).eval()
    x, mask = torch.randn(2, 3, 5), gb.lengths_to_mask([5, 2], 5)
    program = torch.export.export(layer, (x,), {"mask": mask})
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((x, mask, layer(x, mask=mask)), tmp_path / "values.pt")
    run(
        "import gammabeta, sys, torch\n"
        "program = torch.export.load(sys.argv[1] + '/program.pt2').module()\n"
        "x, mask, y = torch.load(sys.argv[1] + '/values.pt')\n"
        "torch.testing.assert_close(program(x, mask=mask), y)\n",
        str(tmp_path),
    )


def test_a_pickle_brings_what_it_needs(tmp_path):
    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(3), gb.LayerNorm(5), gb.BatchNorm1d(3, activation="relu"))
    gb.adopt(model)
    gb.freeze(model, where=lambda name, module: name == "2")
    x = torch.randn(2, 3, 5)
    torch.save((model, x, model.eval()(x)), tmp_path / "model.pt")
    run(
        "import sys, torch\n"
        "model, x, y = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.ops.gammabeta.channel_norm_forward\n"
        "torch.testing.assert_close(model(x), y)\n"
        "assert not [name for name in sys.modules if name.startswith(('torch._dynamo', 'gammabeta.diagnostics'))]\n",
        str(tmp_path / "model.pt"),
    )


def test_every_library_that_our_modules_register_with_is_listed():
    script = (
        "import sys, gammabeta\n"
        "from gammabeta.layers.integrations import on_import, libraries\n"
        "listed = set(on_import._actions)\n"
        "assert listed == set(libraries.LIBRARIES), listed\n"
        "import gammabeta.layers.integrations.opacus, gammabeta.layers.integrations.timm\n"
        "import gammabeta.layers.integrations.class_tables\n"
        "print({name: len(actions) for name, actions in on_import._actions.items()})\n"
    )
    assert ast.literal_eval(run(script)) == dict.fromkeys(LIBRARIES, 2)


@pytest.mark.parametrize("order", ["import gammabeta, thop.profile", "import thop.profile, gammabeta"])
def test_a_library_knows_our_layers_whether_or_not_anything_else_was_used(tmp_path, order):
    (tmp_path / "thop").mkdir()
    (tmp_path / "thop" / "__init__.py").write_text("")
    (tmp_path / "thop" / "profile.py").write_text("from torch import nn\nregister_hooks = {nn.LayerNorm: 1}\n")
    script = f"import sys\nsys.path.insert(0, sys.argv[1])\n{order}\nimport thop.profile\n"
    assert run(script + "print(thop.profile.register_hooks[gammabeta.LayerNorm])", str(tmp_path)) == "1\n"


# Names that are loaded at their first use.


def test_the_lists_of_public_names_agree():
    tree = ast.parse((ROOT / "src" / "gammabeta" / "__init__.py").read_text(encoding="utf-8"))
    imported = {}
    for block in (node for node in tree.body if isinstance(node, ast.If)):
        for node in block.body:
            for alias in node.names:
                place = node.module.partition(".")[2] or alias.name
                imported[alias.name] = place
    assert imported == gb._PLACES
    assert sorted(imported) == gb.__all__


def test_every_public_name_is_where_the_table_says():
    for name, place in gb._PLACES.items():
        value = getattr(gb, name)
        assert inspect.ismodule(value) or value is getattr(sys.modules[f"gammabeta.{place}"], name)
        assert getattr(gb, name) is value
        if not inspect.ismodule(value):
            assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize(
    "script",
    [
        "from gammabeta import *\nassert adopt and BatchNorm2d and functional.batch_norm and statistics.Ghost",
        "import gammabeta\nassert set(gammabeta.__all__) <= set(dir(gammabeta))",
        "import inspect, gammabeta\nassert {*gammabeta.__all__} <= {name for name, _ in inspect.getmembers(gammabeta)}",
        "import pydoc, gammabeta\ntext = pydoc.plain(pydoc.render_doc(gammabeta))\nassert 'parameter_groups' in text",
        "import gammabeta as gb\nassert gb.fold is gb.fold\nassert 'fold' in vars(gb)",
        "from gammabeta import fold, statistics\nassert fold.__module__ == 'gammabeta.surgery.fold'",
        "from gammabeta.surgery.fold import fold\nimport gammabeta\nassert gammabeta.fold is fold",
        "import gammabeta, unittest.mock\nunittest.mock.patch('gammabeta.fold', 1).start()\nassert gammabeta.fold == 1",
        "import gammabeta\nassert not hasattr(gammabeta, '__wrapped__')",
    ],
)  # fmt: skip
def test_a_fresh_process_finds_the_names(script):
    run(script)


def test_a_name_that_is_not_there_is_an_error_with_a_hint():
    with pytest.raises(AttributeError, match=r"^module 'gammabeta' has no attribute 'BachNorm2d'$") as caught:
        gb.BachNorm2d  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("BachNorm2d", gb)
    with pytest.raises(ImportError, match="cannot import name 'adapt' from 'gammabeta'"):
        from gammabeta import adapt  # noqa: F401


def test_type_hints_of_public_functions_are_found():
    for name in gb.__all__:
        # verify takes a console of rich, which only the command line imports.
        if inspect.isfunction(getattr(gb, name)) and name != "verify":
            assert "return" in typing.get_type_hints(getattr(gb, name)), name


# The compiler, where it comes later.


COMPILED = """
import gammabeta as gb
import torch
assert "torch._dynamo" not in __import__("sys").modules
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph
x = torch.randn(4, 3, 5)
@torch.compile(fullgraph=True, backend=backend)
def function(x, weight):
    return {value}
weight = torch.rand(3, requires_grad=True)
y = function(x, weight)
y.sum().backward()
assert len(graphs) == 1
expected = (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
torch.testing.assert_close(y, expected * weight[:, None])
print(sum("has_kernel" in str(node) for graph in graphs for node in graph.graph.nodes))
"""


@pytest.mark.parametrize(
    "value",
    [
        "gb.functional.batch_norm(x, None, None, weight, training=True)",
        "gb.functional.batch_norm(x, None, None, weight, training=True, "
        "mask=gb.lengths_to_mask(torch.tensor([5, 5, 5, 5]), 5))",
    ],
    ids=["function", "mask"],
)
def test_first_used_inside_a_compiled_function(value):
    assert run(COMPILED.format(value=value)) == "0\n"


def test_a_layer_and_a_lazy_context_first_used_inside_a_compiled_function():
    run(
        "import torch\n"
        "import gammabeta as gb\n"
        "norm = gb.BatchNorm1d(3)\n"
        "x = torch.randn(4, 3)\n"
        "@torch.compile(fullgraph=True, backend='eager')\n"
        "def function(x):\n"
        "    return norm(x), isinstance(norm, gb.LayerNorm), gb.Change is None\n"
        "y, layer, lazy = function(x)\n"
        "assert (layer, lazy) == (False, False)\n"
        "torch.testing.assert_close(y, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())\n"
        "assert norm.num_batches_tracked == 1\n"
        "function(x)\n"
        "assert norm.num_batches_tracked == 2\n"
    )


def test_a_forward_that_is_the_first_to_compile_is_observed_whole():
    # What is compiled hides its operations and calls no hooks, so a pass that observes runs it eagerly.
    script = """
import sys, torch
from torch import nn
import gammabeta as gb
from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.observe import observe
class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.compiled = gb.BatchNorm1d(3), None
    def forward(self, x):
        if self.compiled is None:
            self.compiled = torch.compile(self.norm, backend="eager", fullgraph=True)
        return torch.relu(self.compiled(x))
x = torch.randn(4, 3)
assert "torch._dynamo" not in sys.modules
first = observe(Late(), x)
assert "torch._dynamo" in sys.modules
second = observe(Late(), x)
names = [operation.name for operation in first.operations]
assert names == [operation.name for operation in second.operations]
assert "aten.relu" in names and len(names) > 1, names
assert [call.module for call in first.calls] == ["", "norm"], first.calls
stances = []
import torch._dynamo.eval_frame as frames
with eagerly():
    stances.append(frames._stance.stance)
stances.append(frames._stance.stance)
print(stances)
"""
    assert run(script) == "['force_eager', 'default']\n"
