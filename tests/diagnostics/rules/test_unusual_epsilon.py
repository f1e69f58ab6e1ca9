"""GB306: how little an ε of 0.8 standardizes."""

import pytest
import torch
from torch import nn

import gammabeta as gb


class OwnRMSNorm(nn.Module):
    """A norm that adds ε in the input's dtype."""

    def __init__(self, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def own(eps):
    return OwnRMSNorm(eps).half()


def test_an_epsilon_of_zero_in_float16_gives_nan_where_it_is_added_there_and_not_in_torch_s():
    zeros = torch.zeros(2, 4, dtype=torch.float16)
    assert own(1e-8)(zeros).isnan().all()
    assert nn.LayerNorm(4, 1e-8).half()(zeros).isfinite().all()


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
        (nn.BatchNorm2d(4, 0.0), "error", "ε is 0: its forward in training raises"),
        (own(1e-8), "note", "ε is 1e-08, which is 0 in float16, the dtype of its weight"),
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
    model = nn.Sequential(*(own(1e-12) for _ in range(3)))
    (finding,) = gb.check(model, select="GB306").findings
    assert finding.message == (
        "ε is 1e-12, which is 0 in float16, the dtype of its weight (in 3 layers of class OwnRMSNorm)"
    )
    assert finding.evidence["layers"] == ["0", "1", "2"]


def test_in_evaluation_a_trained_epsilon_is_left():
    model = nn.BatchNorm2d(4, 0.8).eval()
    change = gb.check(model, select="GB306").fix()
    assert not change.changed
    assert model.eps == 0.8


@pytest.mark.parametrize(
    "norm",
    [
        nn.RMSNorm(4), nn.BatchNorm2d(4, 1e-3), nn.LayerNorm(4, 1e-6), nn.BatchNorm1d(4, 0.01), nn.LayerNorm(4, 1e-12),
        nn.LayerNorm(4, 1e-12).half(), gb.LayerNorm(4, 1e-12).half(), own(1e-12).float(),
    ],
)  # fmt: skip
def test_usual_ones_are_not_found(norm):
    assert not gb.check(norm, select="GB306").findings


def test_a_trained_model_s_epsilon_is_left_in_training_mode_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, 0.1))
    assert gb.check(model, select="GB306").fix().changed == ["1"]
    model[1].eps = 0.1
    nn.init.normal_(model[1].bias)
    assert gb.check(model, select="GB306").fix().changed == []
    assert model[1].eps == 0.1


def test_the_fix_brings_no_other_finding():
    model = nn.Sequential(nn.BatchNorm2d(4, 1e-3), nn.BatchNorm2d(4, 0.8), nn.BatchNorm2d(4, 1e-3))
    gb.check(model, select="GB306").fix()
    assert model[1].eps == 1e-3
    assert gb.check(model, select="GB306").findings == ()


@pytest.mark.parametrize(("eps", "message"), [
    (0, "ε is 0: its forward in training raises"),
    (0.0, "ε is 0: its forward in training raises"),
    (1, "ε is 1: inputs with a variance below that are not standardized"),
])  # fmt: skip
def test_integers_are_seen_and_an_epsilon_that_makes_training_raise_is_an_error(eps, message):
    model = nn.Sequential(nn.BatchNorm1d(4, eps=eps))
    (finding,) = gb.check(model, select="GB306").findings
    assert (finding.message, finding.severity) == (message, "warning" if eps else "error")
    if not eps:
        with pytest.raises(ValueError, match="eps must be positive"):
            model(torch.randn(8, 4))
    gb.check(model, select="GB306").fix()
    model(torch.randn(8, 4))
    assert model[0].eps == 1e-5
