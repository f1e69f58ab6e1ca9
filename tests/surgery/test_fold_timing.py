"""What `fold` says about time: the median over pairs, its interval, and nothing where that does not tell."""

import math
import time

import pytest
import torch
from scipy import stats
from torch import nn

import gammabeta as gb
from gammabeta.surgery.folding.timing import Timing, time_pairs


def timing(*ratios):
    """Timings of pairs with these ratios, whose forward after takes 2 ms."""
    return Timing([(2e-3 * ratio, 2e-3) for ratio in ratios])


def test_the_ratio_has_its_spread():
    # Of 15 pairs, the 4th and the 12th in order hold the median at 96.5 %.
    told = timing(*(1 + 0.01 * i for i in range(1, 16)))
    assert told.spread == pytest.approx((1.04, 1.12))
    assert str(told) == "a forward takes 2.00 ms instead of 2.16 ms: 1.08 times as fast (1.04 to 1.12 in 15 pairs)"
    assert str(timing(*[0.5] * 6)) == (
        "a forward takes 2.00 ms instead of 1.00 ms: 0.50 times as fast (0.50 to 0.50 in 6 pairs)"
    )


def test_nothing_is_claimed_where_the_spread_includes_1():
    told = timing(0.9, 0.95, 1.02, 1.1, 1.2, 1.3, 1.4, 1.1, 1.2)
    assert not told.differs
    assert str(told) == "a forward takes 2.00 ms, before 2.20 ms: no difference seen (ratios 0.95 to 1.30 in 9 pairs)"


@pytest.mark.parametrize(("count", "said"), [(1, "1 pair"), (5, "5 pairs")])
def test_nothing_is_claimed_from_too_few_pairs(count, said):
    told = timing(*[2.0] * count)
    assert not told.differs
    assert str(told).endswith(f"no difference seen (ratios 2.00 to 2.00 in {said})")


@pytest.mark.parametrize("count", range(1, 31))
def test_the_spread_is_the_sign_test_s_interval(count):
    low, high = timing(*range(1, count + 1)).spread
    low, high = round(low), round(high)
    assert low + high == count + 1
    if count < 6:
        assert low == 1
        return
    coin = stats.binom(count, 0.5)
    assert 2 * coin.cdf(low - 1) <= 0.05 < 2 * coin.cdf(low)


def test_pairs_are_measured_by_turns():
    calls = []

    def of(name, seconds):
        def call():
            calls.append(name)
            time.sleep(seconds)

        return call

    told = time_pairs(of("before", 6e-3), of("after", 3e-3))
    assert len(told.pairs) == 15
    assert told.differs
    assert told.spread[0] <= told.speedup <= told.spread[1]
    assert 1.2 < told.speedup < 2.5
    turns = calls[4:]  # after the warm-up
    assert turns[:4] == ["before", "after", "after", "before"]
    assert math.isclose(told.seconds[0] / told.seconds[1], told.speedup, rel_tol=0.5)


def test_a_short_forward_is_repeated():
    calls = []
    time_pairs(lambda: calls.append(0), lambda: calls.append(1))
    assert len(calls) > 100


def test_a_folded_model_prints_it():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)).eval()
    result = gb.fold(model, torch.randn(2, 4, 5))
    assert str(result).splitlines()[2] == f"  {result.timing}"
    low, high = result.timing.spread
    assert low <= result.speedup <= high
    assert result.seconds == result.timing.seconds
