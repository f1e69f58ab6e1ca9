"""What a call leaves behind: no kernel keeps memory of its own after a call."""

import gc

import pytest
import torch
from tests.malloc import in_use
from tests.threads import one_thread

import gammabeta as gb
from gammabeta import functional as gf

CALLS = 400


def channel(layer, **more):
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    return lambda: layer(x, **more).sum().backward()


def sample(layer, *shape, **more):
    x = torch.randn(*shape, requires_grad=True)
    return lambda: layer(x, **more).sum().backward()


def added(function):
    x, residual, weight = torch.randn(6, 8), torch.randn(6, 8), torch.ones(8)
    return lambda: function(x, residual, (8,), weight)


def moments():
    x = torch.randn(4, 8, 5, 5)
    return lambda: gb.Moments.of(x, (0, 2, 3))


CASES = {
    "BatchNorm": lambda: channel(gb.BatchNorm2d(8)),
    "BatchNorm, silu": lambda: channel(gb.BatchNorm2d(8, activation="silu")),
    "BatchNorm, residual": lambda: channel(gb.BatchNorm2d(8), residual=torch.randn(4, 8, 5, 5)),
    "BatchNorm, evaluation": lambda: channel(gb.BatchNorm2d(8).eval()),
    "BatchNorm, mask": lambda: channel(gb.BatchNorm2d(8), mask=torch.ones(4, 5, 5, dtype=torch.bool)),
    "BatchNorm, ghost": lambda: channel(gb.BatchNorm2d(8, statistics=gb.statistics.Ghost(2))),
    "BatchNorm, renorm": lambda: channel(gb.BatchNorm2d(8, statistics=gb.statistics.Renorm())),
    "InstanceNorm": lambda: channel(gb.InstanceNorm2d(8, affine=True)),
    "GroupNorm": lambda: channel(gb.GroupNorm(2, 8)),
    "LayerNorm": lambda: sample(gb.LayerNorm(8), 6, 8),
    "RMSNorm": lambda: sample(gb.RMSNorm(8), 6, 8),
    "add_layer_norm": lambda: added(gf.add_layer_norm),
    "add_rms_norm": lambda: added(gf.add_rms_norm),
    "Moments": moments,
}


@pytest.mark.parametrize("case", CASES)
def test_calls_leave_nothing_behind(case):
    """Bytes that stay after a call also lie between the activations, whose memory is then not joined and used again."""
    torch.manual_seed(0)
    call = CASES[case]()
    with one_thread():
        for _ in range(100):
            call()
        gc.collect()
        before = in_use()
        for _ in range(CALLS):
            call()
        gc.collect()
        assert in_use() - before < 8 * CALLS
