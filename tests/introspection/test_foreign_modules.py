"""Models with parts that are no plain modules: scripted, traced, frozen, loaded, exported, traced by fx, quantized."""

import copy
import io

import pytest
import torch
import torch.ao.quantization
from tests.zoo import outputs, randomize_norms, relative_error
from torch import nn

import gammabeta as gb
from gammabeta.introspection.observe import observe
from gammabeta.introspection.unchanged import unchanged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class Part(nn.Module):
    """The part that becomes something else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Model(nn.Module):
    """A convolution, norm and activation of its own before the part, and a linear layer and norm behind it."""

    def __init__(self, part):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.part = part
        self.fc = nn.Linear(4, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.last(self.fc(self.part(self.relu(self.norm(self.conv(x)))).mean((2, 3))))


def part():
    torch.manual_seed(0)
    made = Part().eval()
    randomize_norms(made)
    return made


def loaded():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(part()), file)
    file.seek(0)
    return torch.jit.load(file)


def quantized():
    made = torch.ao.quantization.QuantWrapper(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())).eval()
    made.qconfig = torch.ao.quantization.get_default_qconfig()
    torch.ao.quantization.prepare(made, inplace=True)
    made(torch.randn(2, 4, 5, 5))
    return torch.ao.quantization.convert(made, inplace=True)


IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5))
FOREIGN = {
    "scripted": lambda: torch.jit.script(part()),
    "traced": lambda: torch.jit.trace(part(), IMAGES),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(part())),
    "loaded": loaded,
    "scripted around traced": lambda: torch.jit.script(nn.Sequential(torch.jit.trace(part(), IMAGES), nn.ReLU())),
    "scripted norm": lambda: torch.jit.script(part().norm),
    "scripted convolution": lambda: nn.Sequential(torch.jit.script(part().conv), part().norm),
    "traced by fx": lambda: torch.fx.symbolic_trace(part()),
    "exported": lambda: torch.export.export(
        part(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    ).module(),
    "quantized": quantized,
}


def images(batch=2):
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def in_evaluation(kind):
    made = Model(FOREIGN[kind]())
    # An exported module has no modes.
    for module in made.modules():
        if "train" not in vars(module):
            module.training = False
    randomize_norms(made.norm)
    randomize_norms(made.last)
    return made


@pytest.fixture(params=FOREIGN)
def foreign(request):
    return in_evaluation(request.param)


def test_the_forward_is_observed_around_the_part(foreign):
    expected = outputs(foreign, images())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in foreign.modules()]
    seen = observe(foreign, images())
    called = [call.module for call in seen.calls if "." not in call.module]
    assert called == ["", "conv", "norm", "relu", "part", "fc", "last"]
    assert torch.equal(outputs(foreign, images())[0], expected[0])
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in foreign.modules()] == hooks


def test_the_operations_of_a_scripted_part_are_seen():
    seen = observe(in_evaluation("scripted"), images())
    (call,) = seen.calls_of("part")
    inside = [op.name for op in seen.operations if seen.is_within(op, call)]
    assert "aten.convolution" in inside
    assert any("batch_norm" in name for name in inside)


def test_fold_folds_what_is_outside_and_says_why_not_inside(foreign):
    before = {name: value.clone() for name, value in foreign.state_dict().items() if isinstance(value, torch.Tensor)}
    result = gb.fold(foreign, images())
    sites = {site.norm: site for site in result.sites}
    assert (sites["norm"].layer, sites["last"].layer) == ("conv", "fc")
    for name, site in sites.items():
        if isinstance(foreign.get_submodule(name), torch.jit.ScriptModule):
            assert site.reason == "it is scripted: fold before torch.jit.script or torch.jit.trace"
    assert relative_error(outputs(result.model, images(3)), outputs(foreign, images(3))) < 1e-4
    after = foreign.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_fold_takes_where_elsewhere(foreign):
    (site,) = gb.fold(foreign, images(), where="norm").sites
    assert site.layer == "conv"


def test_fuse_fuses_what_is_outside(foreign):
    expected = outputs(foreign, images())
    gb.adopt(foreign, where=["norm"])
    change = gb.fuse(foreign, images())
    assert "norm" in change.changed
    for name, reason in change.left.items():
        if isinstance(foreign.get_submodule(name), torch.jit.ScriptModule):
            assert reason == "it is scripted: fuse before torch.jit.script or torch.jit.trace"
    assert relative_error(outputs(foreign, images()), expected) < 1e-5
    change.undo()
    assert relative_error(outputs(foreign, images()), expected) < 1e-5


def test_the_gap_and_the_check_run(foreign):
    gap = gb.train_eval_gap(foreign, [images(8), images(8)])
    assert {"norm", "last"} <= {layer.name for layer in gap.layers if layer.gap is not None}
    for layer in gap.layers:
        if layer.gap is None:
            assert layer.why == "inside a scripted module, whose calls cannot be seen"
    modes = [module.training for module in foreign.modules()]
    gb.check(foreign, images(4))
    assert [module.training for module in foreign.modules()] == modes


@pytest.mark.parametrize("kind", ["scripted", "traced", "loaded", "scripted norm"])
def test_modes_and_statistics_of_a_scripted_part_are_restored(kind):
    model = Model(FOREIGN[kind]()).eval()
    statistics = [buffer.clone() for buffer in model.buffers()]
    with unchanged(model):
        model.train()
        model(images())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), statistics, strict=True))
    copy.deepcopy(model)(images())


def test_recalibrate_and_watch_work_around_the_part(foreign):
    change = gb.recalibrate(foreign, [images(8), images(8) + 1])
    assert {"norm", "last"} <= set(change.changed)
    if "_guards_fn" not in dict(foreign.part.named_modules()):  # an exported part has no training mode
        foreign.train()
    optimizer = torch.optim.SGD(foreign.parameters(), 0.01)
    with gb.watch(foreign, optimizer) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            foreign(images(8)).square().mean().backward()
            optimizer.step()
    assert monitor is not None


@pytest.mark.parametrize("operation", [
    gb.adopt,
    gb.freeze,
    lambda model: gb.freeze(model, affine=True),
    lambda model: gb.set_statistics(model, gb.statistics.Ghost(2)),
    lambda model: gb.convert(model, "group"),
    lambda model: gb.convert(model, "group", batches=[images()]),
    lambda model: gb.parameter_groups(model, weight_decay=0.1),
])  # fmt: skip
def test_operations_change_what_is_outside(foreign, operation):
    change = operation(foreign)
    if isinstance(change, gb.Change):
        assert "norm" in change.changed
        change.undo()
