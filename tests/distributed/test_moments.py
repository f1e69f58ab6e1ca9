"""Moments.all_reduce."""

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import once

from gammabeta import Moments
from gammabeta.statistics import groups

PROCESSES = 3
SIZES = (5, 0, 7)


def values(offset=0.0):
    generator = torch.Generator().manual_seed(5)
    shape = (sum(SIZES), 4)
    return torch.randn(shape, dtype=torch.float64, generator=generator) + offset


def own(tensor):
    start = sum(SIZES[: dist.get_rank()])
    return tensor[start : start + SIZES[dist.get_rank()]]


def job():
    found = {}
    for offset in (0.0, 1e6):
        found["float64", offset] = Moments.of(own(values(offset)), 0).all_reduce()
        found["float32", offset] = Moments.of(own(values(offset).float()), 0).all_reduce()
    mask = own(torch.rand(sum(SIZES), 4, generator=torch.Generator().manual_seed(6)) > 0.4)
    found["counts of their own"] = Moments.of(own(values()), 0, mask).all_reduce()
    large = torch.tensor(2**24 + 1 + dist.get_rank())
    found["large count"] = Moments(large, torch.zeros(()), torch.zeros(())).all_reduce().count
    x = own(values()).requires_grad_()
    moments = Moments.of(x, 0).all_reduce()
    (moments.mean.sum() + moments.var(correction=1).log().sum()).backward()
    found["gradient"] = x.grad
    found["ranks"] = Moments.of(own(values()), 0).all_reduce(range(3))
    pair = groups(2)
    found["pair"] = Moments.of(own(values()), 0).all_reduce(pair)
    found["one's own"] = Moments.of(own(values()), 0)
    return found


def found():
    return once("tests.distributed.test_moments:job", PROCESSES)


def same(ours, expected, rtol):
    assert torch.equal(ours.count, expected.count)
    torch.testing.assert_close(ours.mean, expected.mean, rtol=rtol, atol=rtol)
    torch.testing.assert_close(ours.m2, expected.m2, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_they_are_those_of_all_values(offset):
    for results in found():
        # 1e6 has a spacing of 1e-10 in float64, which deviations of 1 lose: 1e-9 in m2.
        same(results["float64", offset], Moments.of(values(offset), 0), 1e-12 if offset == 0 else 1e-9)


def test_the_variance_survives_a_large_mean():
    """Sums of squares would lose it all in float32: 1e12 has a spacing of 65536."""
    for results in found():
        # A mean of 1e6 is kept to 0.03, and the processes' means lie some tenths apart.
        ours, exact = results["float32", 1e6], Moments.of(values(1e6).float().double(), 0)
        torch.testing.assert_close(ours.var().double(), exact.var(), rtol=5e-2, atol=0)


def test_each_set_may_have_a_count_of_its_own():
    mask = torch.rand(sum(SIZES), 4, generator=torch.Generator().manual_seed(6)) > 0.4
    whole = Moments.of(values(), 0, mask)
    assert len(whole.count.unique()) > 1
    for results in found():
        same(results["counts of their own"], whole, 1e-12)


def test_counts_above_what_float32_holds_are_exact():
    assert [results["large count"].item() for results in found()] == [3 * (2**24 + 1) + 3] * PROCESSES


def test_gradients_are_those_of_one_process_with_all_values():
    x = values().requires_grad_()
    moments = Moments.of(x, 0)
    # Each process has the same loss, and the gradient is that of their sum.
    (PROCESSES * (moments.mean.sum() + moments.var(correction=1).log().sum())).backward()
    ours = torch.cat([results["gradient"] for results in found()])
    torch.testing.assert_close(ours, x.grad, rtol=1e-12, atol=1e-12)


def test_ranks_and_groups_say_who_takes_part():
    x = values()
    for rank, results in enumerate(found()):
        same(results["ranks"], Moments.of(x, 0), 1e-12)
        if rank < 2:
            same(results["pair"], Moments.of(x[:5], 0), 1e-12)
        else:
            same(results["pair"], results["one's own"], 0)


def test_without_a_process_group_they_stay_as_they_are():
    moments = Moments.of(values(), 0)
    assert moments.all_reduce() is moments
