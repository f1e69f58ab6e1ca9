"""fuse: an activation goes into the norm where that is safe, with equal outputs in both modes, and undo."""

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb

ACTIVATIONS = {
    "relu": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.3),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
}


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2, generator=generator)
    return model.double()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_absorbed_in_both_modes_and_given_back(name):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), gb.BatchNorm2d(4), ACTIVATIONS[name]))
    before, act = copy.deepcopy(model), model[2]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    change = gb.fuse(model, x)
    assert change.changed == ["1"]
    assert model[1].activation == name
    assert type(model[2]) is nn.Identity
    for training in (True, False):
        model.train(training)
        before.train(training)
        # float64; the kernel sums in another order than torch.
        torch.testing.assert_close(model(x), before(x), rtol=1e-12, atol=1e-12)
    change.undo()
    assert model[2] is act
    assert model[1].activation is None


class Block(nn.Module):
    def __init__(self, run, **modules):
        super().__init__()
        self.run, self.norm, self.act = run, gb.BatchNorm1d(3), nn.ReLU()
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def hooked():
    model = Block(lambda m, x: m.act(m.norm(x)))
    model.norm.register_forward_hook(lambda *_: None)
    return model


LEFT = {
    "torch's": (
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()),
        "it is torch.nn.modules.batchnorm.BatchNorm1d, not ours: gammabeta.adopt first",
    ),
    "shared activation": (
        lambda: Block(lambda m, x: m.act(m.act(m.norm(x)) + x)), "act is called 2 times in a forward"
    ),
    "two readers": (
        lambda: Block(lambda m, x: m.act(y := m.norm(x)) + y.sin()), "its output is read by act, the model"
    ),
    "residual between": (
        lambda: Block(lambda m, x: m.act(m.norm(x) + x)), "its output is read by aten.add in the model (Block)"
    ),
    "dropout between": (
        lambda: Block(lambda m, x: m.act(m.drop(m.norm(x))), drop=nn.Dropout(0.5)).eval(),
        "drop (Dropout) stands between it and act",
    ),
    "tanh gelu": (
        lambda: nn.Sequential(gb.BatchNorm1d(3), nn.GELU("tanh")),
        "1 is an approximate gelu (tanh); a norm's is exact",
    ),
    "hook": (hooked, "it has hooks, which would see the activation's output"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_safe_is_left_with_its_reason(case):
    build, reason = LEFT[case]
    model = build()
    change = gb.fuse(model, torch.randn(4, 3))
    assert list(change.left.values()) == [reason]
    assert not change.changed


def test_a_part_frozen_by_torchscript_has_no_mode_and_does_not_hinder():
    """A module from torch.jit.freeze has neither `training` nor `train`."""
    torch.manual_seed(0)
    part = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)).eval()))
    model = nn.Sequential(nn.Linear(8, 8), gb.BatchNorm1d(8), nn.ReLU(), part)
    x = torch.randn(16, 8)
    expected = model(x)
    assert gb.fuse(model, x).changed == ["1"]
    # Another order of the same float32 operations.
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
