"""How running statistics move, and when they do not."""

import math

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta import functional as gf


def batches(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 4, generator=generator) * (i + 1) + i for i in range(count)]


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_torch_s_over_many_batches(momentum, dtype, route):
    ours, theirs = gb.BatchNorm1d(3, momentum=momentum).to(dtype), nn.BatchNorm1d(3, momentum=momentum).to(dtype)
    for x in batches(12):
        ours(x.to(dtype))
        theirs(x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=tolerance, atol=tolerance)
    assert ours.num_batches_tracked == 12


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_is_skipped_channel_by_channel(momentum, value, route):
    layer, clean, rest = (gb.BatchNorm1d(3, momentum=momentum) for _ in range(3))
    for i, x in enumerate(batches(5)):
        spoilt = x.clone()
        if i in (0, 3):
            spoilt[2, 1, 3] = value
        else:
            rest(x)
        layer(spoilt)
        clean(x)
    clean.running_mean[1], clean.running_var[1] = rest.running_mean[1], rest.running_var[1]
    torch.testing.assert_close(layer.running_mean, clean.running_mean)
    torch.testing.assert_close(layer.running_var, clean.running_var)
    assert layer.skipped_updates.tolist() == [0, 2, 0]
    assert layer.num_batches_tracked == 5


def test_a_first_batch_of_nan_does_not_count_in_the_average(route):
    layer = gb.BatchNorm1d(1, momentum=None)
    layer(torch.full((4, 1), math.nan))
    layer(torch.tensor([[3.0], [5.0]]))
    assert layer.running_mean.item() == 4.0
    assert layer.running_var.item() == pytest.approx(2.0)


def test_skipped_updates_are_not_in_the_state_dict_and_are_reset():
    layer = gb.BatchNorm1d(2)
    layer(torch.tensor([[1.0, math.nan], [2.0, 0.0]]))
    assert layer.skipped_updates.tolist() == [0, 1]
    assert "skipped_updates" not in layer.state_dict()
    layer.reset_running_stats()
    assert layer.skipped_updates.tolist() == [0, 0]


def test_the_functional_form_skips_too(route):
    x = batches(1)[0]
    x[0, 2, 0] = math.inf
    mean, var = torch.full((3,), 5.0), torch.full((3,), 7.0)
    gf.batch_norm(x, mean, var, training=True, momentum=0.5)
    torch.testing.assert_close(mean, torch.tensor([2.5 + x[:, 0].mean() / 2, 2.5 + x[:, 1].mean() / 2, 5.0]))
    torch.testing.assert_close(var, torch.tensor([3.5 + x[:, 0].var() / 2, 3.5 + x[:, 1].var() / 2, 7.0]))


@pytest.mark.parametrize("valid", [0, 1])
def test_a_masked_batch_with_too_few_values_is_skipped(valid):
    layer = gb.BatchNorm1d(3, activation="relu")
    mask = torch.zeros(16, 4, dtype=torch.bool)
    mask.view(-1)[:valid] = True
    y = layer(batches(1)[0], residual=torch.ones(16, 3, 4), mask=mask)
    assert y[~mask.unsqueeze(1).expand_as(y)].abs().max() == 0
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.running_var.tolist() == [1, 1, 1]
    assert layer.skipped_updates.tolist() == [1, 1, 1]


def test_instance_norm_skips_and_averages_over_what_counts(route):
    x = batches(1)[0]
    mean, var = torch.zeros(3), torch.ones(3)
    mask = torch.ones(16, 4, dtype=torch.bool)
    mask[5] = False
    mask[6, 1:] = False
    gf.instance_norm(x, mean, var, momentum=1.0, mask=mask)
    rest = torch.cat([x[:5], x[7:]])
    torch.testing.assert_close(mean, rest.mean(2).mean(0))
    torch.testing.assert_close(var, rest.var(2).mean(0))
    spoilt = x.clone()
    spoilt[3, 1, 1] = math.nan
    before = mean.clone()
    gf.instance_norm(spoilt, mean, var, momentum=0.5)
    assert mean[1] == before[1]
    assert mean[0] != before[0]


def test_an_empty_batch_moves_nothing(route):
    layer = gb.BatchNorm2d(3)
    assert layer(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.running_var.tolist() == [1, 1, 1]


def test_a_training_forward_after_an_evaluating_one_is_noticed_by_autograd(route):
    """The buffers that evaluation saved have moved: torch continues with their present values, and we raise."""
    layer = gb.BatchNorm1d(3).eval()
    x = torch.randn(8, 3, requires_grad=True)
    y = layer(x)
    layer.train()(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_large_mean_and_small_spread(route):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 2, generator=generator) + 1e6
    layer = gb.BatchNorm1d(2, momentum=1.0)
    layer(x)
    torch.testing.assert_close(layer.running_var.double(), x.double().var(0), rtol=1e-5, atol=0)
