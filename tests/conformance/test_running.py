"""Running statistics: how far they move, and when they do not."""

from __future__ import annotations

import math

import pytest
import torch

import gammabeta as gb
from gammabeta.proof.operations import DTYPES


def test_a_variance_that_overflows_is_not_finite(route: str) -> None:
    """Values whose square is beyond float32: their variance is infinite, and the running ones stay."""
    x = torch.tensor([[1e30, 1.0], [-1e30, 2.0], [3e30, 4.0]])
    mean, var = torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])
    gb.functional.batch_norm(x, mean, var, training=True, momentum=0.5)
    assert mean[0] == 0.5
    assert var[0] == 2.0
    torch.testing.assert_close(mean[1], 0.25 + x[:, 1].mean() / 2)
    torch.testing.assert_close(var[1], 1 + x[:, 1].var() / 2)


@pytest.mark.parametrize("spoilt", [(), (0,), (1, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cumulative_average_over_the_batches_that_counted(
    dtype: torch.dtype, spoilt: tuple[int, ...], route: str
) -> None:
    """momentum=None: the plain average, in each channel over its finite batches; every forward is tracked."""
    generator = torch.Generator().manual_seed(0)
    layer = gb.BatchNorm1d(4, momentum=None).to(dtype)
    batches = torch.randn(5, 6, 4, 3, generator=generator, dtype=torch.float64).to(dtype) * 2 + 1
    for i in spoilt:
        batches[i, 2, 1, 0] = math.nan
    for x in batches:
        layer(x)
    assert layer.num_batches_tracked == 5
    wide = batches.double()
    means, variances = wide.mean((1, 3)), wide.var((1, 3), correction=1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(layer.running_mean.double(), means.nanmean(0), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.running_var.double(), variances.nanmean(0), rtol=tolerance, atol=tolerance)


def test_batches_are_counted(route: str) -> None:
    for layer, x in (
        (gb.BatchNorm1d(3), torch.randn(4, 3)),
        (gb.BatchNorm2d(3, momentum=None), torch.randn(1, 3, 2, 2)),
    ):
        for expected in (1, 2):
            layer.train()(x)
            assert layer.num_batches_tracked == expected
            layer.eval()(x)
            assert layer.num_batches_tracked == expected
        layer.train()(x[:0])
        layer(x * math.nan)
        assert layer.num_batches_tracked == 2  # a batch that moves no channel does not count
