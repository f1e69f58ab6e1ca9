"""GB104: what ε does to a channel with a smaller variance, and float16 to one beyond its range."""

import pytest
import torch
from torch import nn

import gammabeta as gb


def test_a_variance_of_a_hundredth_of_epsilon_gives_an_output_of_a_hundredth_of_the_variance():
    norm = nn.BatchNorm1d(3, eps=1e-5, dtype=torch.float64).eval()
    norm.running_var[1] = 1e-7
    x = torch.randn(4096, 3, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0) * norm.running_var.sqrt()
    # σ²/(σ² + ε) = 1/101; the other channels differ from 1 only by ε.
    assert norm(x).var(0, correction=0).tolist() == pytest.approx([1, 1 / 101, 1], rel=2e-5)
    (finding,) = gb.check(norm, select="GB104").findings
    assert finding.message == "variance below ε (1e-05) in 1 of 3 channels, down to 1e-07: 1; ε decides their output"


def test_a_variance_that_float16_cannot_hold_gives_zeros():
    norm = nn.BatchNorm1d(2).eval()
    norm.running_var[0] = 1e5
    x = torch.randn(64, 2) * norm.running_var.sqrt()
    (finding,) = gb.check(norm, select="GB104").findings
    assert finding.message == "statistics beyond float16's 65504 in 1 of 2 channels, up to 1e+05: 0"
    assert norm(x)[:, 0].std() > 0.5
    half = norm.half()
    assert half(x.half())[:, 0].abs().max() == 0


def test_poisoned_variances_are_another_rule_s():
    norm = nn.BatchNorm1d(3)
    norm.running_var.copy_(torch.tensor([-1.0, float("inf"), float("nan")]))
    assert not gb.check(norm, select="GB104").findings
