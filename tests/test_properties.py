"""Properties that hold for every shape and setting, tested by Hypothesis."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gammabeta as gb
from gammabeta import functional as gf
from gammabeta.activations import activate

# The fixture route is set once and holds for all examples of a test.
many = settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

sizes = st.integers(1, 6)
positions = st.lists(st.integers(1, 5), max_size=3)
eps = st.sampled_from([1e-8, 1e-5, 1e-2, 1.0])
activations = st.sampled_from([None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"])
seeds = st.integers(0, 2**16)

# In float64 only rounding differs: 1e-9 is far above it and far below any mistake.
CLOSE: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


def normal(seed: int, *shape: int, mean: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5 + mean


@st.composite
def channel_inputs(draw: st.DrawFn) -> Tensor:
    """(N, C, *positions) with at least two values per channel."""
    shape = [draw(sizes), draw(sizes), *draw(positions)]
    assume(torch.Size(shape).numel() // shape[1] > 1)
    return normal(draw(seeds), *shape, mean=draw(st.floats(-20, 20)))


def over_channels(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(1, -1, *(1,) * (x.ndim - 2))


@many
@given(channel_inputs(), eps)
def test_batch_norm_standardizes(route: str, x: Tensor, eps: float) -> None:
    """Every channel has mean 0 and variance σ²/(σ² + ε)."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    y, var = gf.batch_norm(x, None, None, training=True, eps=eps), x.var(axes, correction=0)
    torch.testing.assert_close(y.mean(axes), torch.zeros_like(var), **CLOSE)
    torch.testing.assert_close(y.var(axes, correction=0), var / (var + eps), **CLOSE)


@many
@given(sizes, sizes, st.lists(st.integers(1, 5), min_size=1, max_size=3), sizes, eps, seeds)
def test_group_and_instance_norm_standardize(
    route: str, n: int, groups: int, positions: list[int], size: int, eps: float, seed: int
) -> None:
    x = normal(seed, n, groups * size, *positions, mean=3.0)
    assume(x.numel() > groups)
    grouped = x.reshape(n, groups, -1)
    var = grouped.var(2, correction=0)
    y = gf.group_norm(x, groups, eps=eps).reshape(n, groups, -1)
    torch.testing.assert_close(y.mean(2), torch.zeros_like(var), **CLOSE)
    torch.testing.assert_close(y.var(2, correction=0), var / (var + eps), **CLOSE)
    if torch.Size(positions).numel() > 1:
        by_instance, by_groups = gf.instance_norm(x, eps=eps), gf.group_norm(x, groups * size, eps=eps)
        torch.testing.assert_close(by_instance, by_groups, **CLOSE)


@many
@given(st.lists(sizes, max_size=2), st.lists(sizes, min_size=1, max_size=2), eps, seeds)
def test_layer_and_rms_norm_standardize(
    route: str, samples: list[int], shape: list[int], eps: float, seed: int
) -> None:
    x = normal(seed, *samples, *shape, mean=3.0)
    axes = list(range(len(samples), x.ndim))
    y, var = gf.layer_norm(x, shape, eps=eps), x.var(axes, correction=0)
    torch.testing.assert_close(y.mean(axes), torch.zeros_like(var), **CLOSE)
    torch.testing.assert_close(y.var(axes, correction=0), var / (var + eps), **CLOSE)
    square = x.square().mean(axes)
    torch.testing.assert_close(
        gf.rms_norm(x, shape, eps=eps).square().mean(axes), square / (square + eps), **CLOSE
    )  # fmt: skip


@many
@given(channel_inputs(), st.floats(0.1, 10), st.floats(-10, 10))
def test_invariances(route: str, x: Tensor, scale: float, shift: float) -> None:
    """a·x + b with ε scaled by a² gives the same y; RMSNorm is not invariant to the shift."""
    assume(x.ndim > 2 and torch.Size(x.shape[2:]).numel() > 1)
    channel = torch.linspace(0.5, 2.0, x.shape[1], dtype=torch.float64)
    moved, per_channel = x * scale + shift, x + over_channels(channel, x)
    small = 1e-5 * scale**2
    norms: dict[str, Any] = {
        "batch": lambda x, eps=1e-5: gf.batch_norm(x, None, None, training=True, eps=eps),
        "instance": lambda x, eps=1e-5: gf.instance_norm(x, eps=eps),
        "group": lambda x, eps=1e-5: gf.group_norm(x, 1, eps=eps),
        "layer": lambda x, eps=1e-5: gf.layer_norm(x, x.shape[1:], eps=eps),
    }
    for norm in norms.values():
        torch.testing.assert_close(norm(moved, small), norm(x), rtol=1e-7, atol=1e-7)
    for name in ("batch", "instance"):
        torch.testing.assert_close(norms[name](per_channel), norms[name](x), rtol=1e-7, atol=1e-7)
    rms = gf.rms_norm(x * scale, x.shape[1:], eps=small)
    torch.testing.assert_close(rms, gf.rms_norm(x, x.shape[1:], eps=1e-5), rtol=1e-7, atol=1e-7)
    # Other samples of the batch: norms of each sample do not depend on them, and no norm depends on their order.
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(0))
    for name, norm in norms.items():
        torch.testing.assert_close(norm(x[order]), norm(x)[order], **CLOSE)
        if name != "batch":
            torch.testing.assert_close(norm(x[:1]), norm(x)[:1], **CLOSE)


@many
@given(channel_inputs(), activations, st.booleans(), st.floats(0.01, 0.5), seeds)
def test_residual_and_activation_are_applied_in_that_order(
    route: str, x: Tensor, activation: str | None, with_residual: bool, slope: float, seed: int
) -> None:
    residual = normal(seed, *x.shape) if with_residual else None
    weight, bias = normal(seed + 1, x.shape[1]), normal(seed + 2, x.shape[1])
    mean, var = normal(seed + 3, x.shape[1]), normal(seed + 4, x.shape[1]).square() + 0.1
    last = x.shape[-1:]
    by_last = normal(seed + 5, *last)
    norms: list[Any] = [
        lambda **k: gf.batch_norm(x, None, None, weight, bias, training=True, **k),
        lambda **k: gf.batch_norm(x, mean, var, weight, bias, **k),
        lambda **k: gf.group_norm(x, 1, weight, bias, **k),
        lambda **k: gf.layer_norm(x, last, by_last, by_last, **k),
        lambda **k: gf.rms_norm(x, last, by_last, **k),
    ]
    if torch.Size(x.shape[2:]).numel() > 1:
        norms.append(lambda **k: gf.instance_norm(x, None, None, weight, bias, **k))
    for norm in norms:
        z = norm() if residual is None else norm() + residual
        wanted = activate(z, activation or "none", slope)
        y = norm(residual=residual, activation=activation, activation_slope=slope)
        torch.testing.assert_close(y, wanted, **CLOSE)


@many
@given(channel_inputs(), activations, seeds)
def test_a_mask_of_true_is_no_mask(route: str, x: Tensor, activation: str | None, seed: int) -> None:
    residual = normal(seed, *x.shape)
    every = torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool)
    rows = torch.ones(x.shape[:-1], dtype=torch.bool)
    given: dict[str, Any] = {"residual": residual, "activation": activation}
    pairs = [
        (every, lambda **k: gf.batch_norm(x, None, None, training=True, **given, **k)),
        (every, lambda **k: gf.group_norm(x, 1, **given, **k)),
        (rows, lambda **k: gf.layer_norm(x, x.shape[-1:], **given, **k)),
        (rows, lambda **k: gf.rms_norm(x, x.shape[-1:], **given, **k)),
    ]
    for mask, norm in pairs:
        torch.testing.assert_close(norm(mask=mask), norm(), **CLOSE)


@many
@given(channel_inputs(), st.data())
def test_a_mask_is_the_norm_of_the_rest(route: str, x: Tensor, data: st.DataObject) -> None:
    """A masked BatchNorm is that of the unmasked values, and does not depend on the masked ones."""
    mask = torch.rand(x.shape[0], *x.shape[2:], generator=torch.Generator().manual_seed(data.draw(seeds))) < 0.7
    assume(mask.sum() > 1)
    running = [normal(0, x.shape[1]), normal(1, x.shape[1]).square() + 0.1]
    rest = [t.clone() for t in running]
    y = gf.batch_norm(x, *running, training=True, mask=mask)
    gathered = x.movedim(1, -1)[mask]
    torch.testing.assert_close(y.movedim(1, -1)[mask], gf.batch_norm(gathered, *rest, training=True), **CLOSE)
    assert not y.movedim(1, -1)[~mask].any()
    for masked, plain in zip(running, rest, strict=True):
        torch.testing.assert_close(masked, plain, **CLOSE)
    other = torch.where(mask.unsqueeze(1), x, data.draw(st.sampled_from([torch.nan, torch.inf, 1e30, 0.0])))
    assert torch.equal(gf.batch_norm(other, None, None, training=True, mask=mask), y)


def layer(source: Any, channels: int, seed: int) -> gb.BatchNorm1d:
    norm = gb.BatchNorm1d(channels, statistics=source).double()
    with torch.no_grad():
        norm.weight.copy_(normal(seed, channels))
        norm.bias.copy_(normal(seed + 1, channels))
        norm.running_mean.copy_(normal(seed + 2, channels))
        norm.running_var.copy_(normal(seed + 3, channels).square() + 0.1)
    return norm


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    return normal(
        draw(seeds), draw(st.integers(2, 9)), draw(sizes), draw(st.integers(2, 5)), mean=draw(st.floats(-9, 9))
    )


@many
@given(batches(), st.integers(0, 5), seeds)
def test_ghosts_as_large_as_the_batch_are_the_batch(route: str, x: Tensor, more: int, seed: int) -> None:
    """Bit by bit: outputs, gradients, running statistics."""
    ghost = layer(gb.statistics.Ghost(x.shape[0] + more), x.shape[1], seed)
    batch = layer(gb.statistics.Batch(), x.shape[1], seed)
    results = []
    for norm in (ghost, batch):
        own = x.clone().requires_grad_()
        y = norm(own)
        gradients = torch.autograd.grad(y.square().sum() + y.sum(), (own, norm.weight, norm.bias))
        results.append((y, *gradients, norm.running_mean, norm.running_var))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@many
@given(batches(), st.integers(1, 8), seeds)
def test_ghosts_move_running_statistics_as_the_whole_batch(route: str, x: Tensor, size: int, seed: int) -> None:
    ghost = layer(gb.statistics.Ghost(size), x.shape[1], seed)
    batch = layer(gb.statistics.Batch(), x.shape[1], seed)
    y = ghost(x)
    batch(x)
    torch.testing.assert_close(ghost.running_mean, batch.running_mean, **CLOSE)
    torch.testing.assert_close(ghost.running_var, batch.running_var, **CLOSE)
    parts = [copy.deepcopy(batch)(part) for part in x.split(size)]
    torch.testing.assert_close(y, torch.cat(parts), **CLOSE)


@many
@given(batches(), seeds)
def test_renorm_without_reach_is_the_batch(route: str, x: Tensor, seed: int) -> None:
    """r_max = 1, d_max = 0: r is 1 and d is 0 whatever the running statistics are."""
    renorm = layer(gb.statistics.Renorm(1.0, 0.0), x.shape[1], seed)
    batch = layer(gb.statistics.Batch(), x.shape[1], seed)
    results = []
    for norm in (renorm, batch):
        own = x.clone().requires_grad_()
        y = norm(own)
        gradients = torch.autograd.grad(y.square().sum() + y.sum(), (own, norm.weight, norm.bias))
        results.append((y, *gradients, norm.running_mean, norm.running_var))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@many
@given(channel_inputs(), st.floats(0, 1), seeds)
def test_running_statistics_move_by_the_share_of_the_batch(route: str, x: Tensor, momentum: float, seed: int) -> None:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, var = normal(seed, x.shape[1]), normal(seed + 1, x.shape[1]).square()
    wanted = (1 - momentum) * mean + momentum * x.mean(axes), (1 - momentum) * var + momentum * x.var(axes)
    gf.batch_norm(x, mean, var, training=True, momentum=momentum)
    torch.testing.assert_close((mean, var), wanted, **CLOSE)


@many
@given(channel_inputs(), seeds)
def test_sum_and_norm_are_those_apart(route: str, x: Tensor, seed: int) -> None:
    residual, last = normal(seed, *x.shape), x.shape[-1:]
    weight, bias = normal(seed + 1, *last), normal(seed + 2, *last)
    y, total = gf.add_layer_norm(x, residual, last, weight, bias)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, gf.layer_norm(x + residual, last, weight, bias), **CLOSE)
    y, total = gf.add_rms_norm(x, residual, last, weight)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, gf.rms_norm(x + residual, last, weight), **CLOSE)


@pytest.mark.parametrize("size", [0, -1])
def test_a_ghost_has_samples(size: int) -> None:
    with pytest.raises(ValueError, match=r"^Ghost") as error:
        gb.statistics.Ghost(size)
    assert str(error.value) == f"Ghost: expected size of at least 1 sample, got {size}."
