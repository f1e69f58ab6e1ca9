"""The halves of the channel norm, between which processes synchronize: moments and apply, reduce and apply."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from tests.kernels.cpu.op_call import (
    Results,
    assert_equals_reference,
    finish_of,
    mask_of,
    named,
    op_call,
    ops,
)
from torch import Tensor

from gammabeta.moments import Moments
from gammabeta.proof.call import ACTIVATIONS, Call
from gammabeta.proof.operations import DTYPES


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def by_halves(ranks: Sequence[Call]) -> Results:
    """Compute the channel norm of all samples by the halves, each rank's share separately.

    Between the halves it does what synchronization does: it merges moments, and adds up the two sums of backward.
    """
    merged = Moments.merge_all([moments(*ops.channel_moments(c.input, mask_of(c))) for c in ranks])
    var = merged.m2 / merged.count.clamp(min=1)
    shares = []
    for call in ranks:
        weight, bias, residual = (call.tensor(name) for name in ("weight", "bias", "residual"))
        shares.append((weight, bias, residual, mask_of(call), merged.mean, var))
    outputs = [
        ops.channel_apply_forward(c.input, merged.mean, var, *share[:4], *finish_of(c))
        for c, share in zip(ranks, shares, strict=True)
    ]
    sums = [
        ops.channel_backward_reduce(c.gradients[0], c.input, *share, *finish_of(c))
        for c, share in zip(ranks, shares, strict=True)
    ]
    sum_g, sum_g_xhat = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
    gradients = [
        ops.channel_backward_apply(
            c.gradients[0], c.input, *share, sum_g, sum_g_xhat, merged.count, *finish_of(c)
        )
        for c, share in zip(ranks, shares, strict=True)
    ]  # fmt: skip
    g_x, g_residual = (torch.cat(part) for part in zip(*gradients, strict=True))
    weight, bias = ranks[0].tensor("weight"), ranks[0].tensor("bias")
    parameters = [None if t is None else s.to(t.dtype) for t, s in ((weight, sum_g_xhat), (bias, sum_g))]
    compared = {"output": torch.cat(outputs), **named(ranks[0], (g_x, *parameters, g_residual))}
    return Results(compared, (merged.mean, var, merged.count.clone()))


def moments(mean: Tensor, m2: Tensor, count: Tensor) -> Moments:
    return Moments(count, mean, m2)


def split(call: Call, sizes: Sequence[int]) -> list[Call]:
    """Deal out the samples of a call."""
    ranks = []
    for start, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):

        def share(t: Tensor, start: int = start, size: int = size) -> Tensor:
            return t.narrow(0, start, size)

        mask = mask_of(call)
        own = {name: share(t) for name in ("input", "residual") if (t := call.tensor(name)) is not None}
        tensors = {**call.tensors, **own, "mask": None if mask is None else share(mask)}
        ranks.append(Call(call.op, tensors, call.settings, tuple(map(share, call.gradients))))
    return ranks


SHAPES = [(6, 5, 37), (5, 6, 7, 7), (33, 17), (4, 3, 2, 5, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_rank_equals_the_fused_norm(activation: str | None, dtype: torch.dtype) -> None:
    for shape, residual, masked, layout in itertools.product(
        SHAPES, (False, True), (False, True), (Tensor.contiguous, channels_last)
    ):
        mask = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
        call = op_call(
            "channel_norm", shape, dtype, residual=residual, mask=mask, activation=activation, activation_slope=0.2,
            scale=3.0, layout=layout,
        )  # fmt: skip
        assert_equals_reference(call, f"by halves, residual {residual} mask {masked}", by_halves([call]))


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (6, 0), (0, 6), (2, 1, 3), (1,) * 6], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_ranks_together_equal_the_whole_batch(masked: bool, sizes: tuple[int, ...]) -> None:
    """Uneven shares, an empty one, one that is masked out as a whole."""
    mask = None
    if masked:
        mask = torch.rand(6, 33, generator=torch.Generator().manual_seed(1)) < 0.7
        mask[: sizes[0]] = sizes[0] == 6
    for dtype, layout in itertools.product(DTYPES, (Tensor.contiguous, channels_last)):
        for residual, activation in ((False, None), (True, "silu")):
            call = op_call(
                "channel_norm", (6, 5, 33), dtype, residual=residual, activation=activation, mask=mask, layout=layout
            )
            assert_equals_reference(call, f"on {len(sizes)} ranks", by_halves(split(call, sizes)))


def test_ranks_far_from_each_other() -> None:
    """Each rank has its own mean, 10⁴ standard deviations apart: almost all variance is between them."""
    for layout in (Tensor.contiguous, channels_last):
        call = op_call("channel_norm", (6, 5, 129), layout=layout)
        x = call.input.clone()
        x[:2] += 1e4
        x[2:4] -= 3e4
        call = call.with_tensors(input=x)
        assert_equals_reference(call, "far ranks", by_halves(split(call, (2, 2, 2))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(dtype: torch.dtype) -> None:
    """Shapes, dtypes and values of the first half; 0 where nothing counts."""
    for shape, layout in itertools.product(SHAPES, (Tensor.contiguous, channels_last)):
        call = op_call("channel_norm", shape, dtype, layout=layout, mean=100.0)
        mean, m2, count = ops.channel_moments(call.input, None)
        n = call.input.numel() // shape[1]
        assert count.dtype == torch.int64
        assert count.tolist() == [n] * shape[1]
        assert mean.dtype == m2.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        flat = call.input.double().movedim(1, 0).flatten(1)
        precision = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(mean.double(), flat.mean(1), rtol=precision, atol=0)
        torch.testing.assert_close(m2.double(), flat.var(1, correction=0) * n, rtol=precision, atol=0)
        nothing = ops.channel_moments(call.input, torch.zeros(shape[0], *shape[2:], dtype=torch.bool))
        assert not any(statistic.any() for statistic in nothing)
        empty = ops.channel_moments(call.input[:0], None)
        assert [t.shape for t in empty] == [(shape[1],)] * 3
        assert not any(statistic.any() for statistic in empty)


def test_gradient_of_a_residual_that_is_not_there_is_empty() -> None:
    call = op_call("channel_norm", (6, 5, 33))
    zeros = torch.zeros(5)
    _, g_residual = ops.channel_backward_apply(
        call.gradients[0], call.input, None, None, None, None, zeros, zeros + 1, zeros, zeros,
        torch.full((5,), 198), 1e-5, "none", 0.0,
    )  # fmt: skip
    assert g_residual.numel() == 0
