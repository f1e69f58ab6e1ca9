"""GB306: how little an ε of 0.8 standardizes."""

import pytest
import torch
from torch import nn

import gammabeta as gb


@pytest.mark.parametrize(("eps", "variance"), [(0.8, 0.1 / 0.9), (1e-5, 1.0)])
def test_the_output_s_variance_under_a_large_epsilon(eps, variance):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, eps)
    x = torch.randn(512, 3)
    x = x / x.std(0, correction=0) * 0.1**0.5
    # σ²/(σ² + ε), up to float32's rounding and the ratio 10⁻⁴ of ε = 10⁻⁵ to 0.1.
    assert norm(x).var(0, correction=0).tolist() == pytest.approx([variance] * 3, rel=2e-4)


@pytest.mark.parametrize(
    ("norm", "severity", "message"),
    [
        (nn.BatchNorm2d(4, 0.8), "warning", "ε is 0.8: inputs with a variance below that are not standardized"),
        (nn.BatchNorm2d(4, 0.0), "warning", "ε is 0: a constant input gives NaN"),
        (nn.BatchNorm2d(4, 1e-7), "note", "ε is 1e-07: below 1e-06"),
        (nn.LayerNorm(4, 1e-12), "note", "ε is 1e-12: below 1e-06, and 0 in float16"),
    ],
)
def test_messages(norm, severity, message):
    (finding,) = gb.check(norm, select="GB306").findings
    assert (finding.severity, finding.message) == (severity, message)


def test_different_epsilons_in_one_model_are_a_note_on_the_model():
    model = nn.Sequential(*(nn.BatchNorm2d(2, eps) for eps in (1e-5, 1e-3, 1e-5, 1e-3, 1e-3, 1e-4)))
    (finding,) = gb.check(model, select="GB306").findings
    assert (finding.severity, finding.where) == ("note", "")
    assert finding.message == "BatchNorm2d has an ε of 0.001 in 3 of its layers and 1e-05 in 0, 2, 0.0001 in 5"


def test_small_ones_are_one_note_a_class():
    model = nn.Sequential(*(nn.LayerNorm(4, 1e-12) for _ in range(3)))
    (finding,) = gb.check(model, select="GB306").findings
    assert finding.message == "ε is 1e-12: below 1e-06, and 0 in float16 (in 3 layers of class LayerNorm)"
    assert finding.evidence["layers"] == ["0", "1", "2"]


def test_in_evaluation_a_trained_epsilon_is_left():
    model = nn.BatchNorm2d(4, 0.8).eval()
    change = gb.check(model, select="GB306").fix()
    assert not change.changed
    assert model.eps == 0.8


@pytest.mark.parametrize(
    "norm", [nn.RMSNorm(4), nn.BatchNorm2d(4, 1e-3), nn.LayerNorm(4, 1e-6), nn.BatchNorm1d(4, 0.01)]
)
def test_usual_ones_are_not_found(norm):
    assert not gb.check(norm, select="GB306").findings
