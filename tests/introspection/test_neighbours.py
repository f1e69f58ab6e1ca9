"""Neighbours of a norm: who alone feeds it and who alone reads it, for fold, fuse and several rules."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.introspection.neighbours import Neighbours, Refusal, feature_axis
from gammabeta.introspection.observe import observe


class Two(nn.Module):
    """A convolution, `between` on its output, a norm behind that, and `also` as a second reader or output."""

    def __init__(self, between=lambda y: y, also=lambda y: None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.between, self.also = between, also

    def forward(self, x):
        y = self.conv(x)
        also = self.also(y)
        z = self.norm(self.between(y))
        return z if also is None else (z, also)


def neighbours(model):
    model.eval()
    found = Neighbours(dict(model.named_modules()), observe(model, torch.randn(2, 3, 4, 4)))
    return found, found.only_call("norm", "it")


def test_a_producer_is_found_through_views_and_copies():
    for between, viewed in (
        (lambda y: y, True),
        (lambda y: y.view(y.shape), True),
        (lambda y: y.clone(), False),
        (lambda y: y.flatten(2).unflatten(2, (4, 4)), True),
    ):
        found, call = neighbours(Two(between))
        producer = found.producer(call.inputs[0], 1)
        assert (producer.call.module, producer.axis, producer.features) == ("conv", 1, 1)
        assert producer.is_viewed is viewed
        found.check_alone(producer, call)


def test_no_producer_behind_a_computation():
    found, call = neighbours(Two(lambda y: y + 1))
    assert found.producer(call.inputs[0], 1) is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Two(also=lambda y: y), "the output of conv is also an output of the model"),
        (Two(also=lambda y: y.flatten(1)), "the output of conv is also an output of the model"),
        (Two(also=lambda y: y.relu()), "the output of conv is also read by aten.relu in the model"),
        (
            Two(lambda y: y.clone(), also=lambda y: y.relu()),
            "the output of conv is also read by aten.relu in the model",
        ),
    ],
)
def test_who_else_reads_what_a_producer_gives(model, reason):
    found, call = neighbours(model)
    with pytest.raises(Refusal) as caught:
        found.check_alone(found.producer(call.inputs[0], 1), call)
    assert str(caught.value) == reason


def test_a_hook_sees_what_a_producer_gives():
    model = Two()
    model.conv.register_forward_hook(lambda *_: None)
    found, call = neighbours(model)
    with pytest.raises(Refusal, match="the output of conv is seen by the hooks of conv"):
        found.check_alone(found.producer(call.inputs[0], 1), call)


def test_calls_that_are_not_one():
    found, _ = neighbours(Two())
    with pytest.raises(Refusal, match="it was not called on the example inputs"):
        found.only_call("nowhere", "it")


def test_features_are_on_the_last_axis_of_linear_layers_and_before_positions_of_convolutions():
    _, call = neighbours(Two())
    seen = call.inputs[0]
    assert feature_axis(nn.Conv2d(3, 4, 1), seen) == 1
    assert feature_axis(nn.Linear(3, 4), seen) == 3


class TestWhereTheWaysDisagreed:
    """Four mechanisms found neighbours before, and disagreed. Each of these cases has one answer now."""

    def test_a_bias_that_a_view_hands_out_is_of_use(self):
        """A view of the convolution's output shows its bias outside the model, as the output itself does."""
        for also in (lambda y: y, lambda y: y.flatten(1)):
            model = Two(also=also).eval()
            diagnosis = gb.check(model, torch.randn(4, 3, 4, 4), select="bias-before-norm")
            assert not diagnosis.findings
        found = gb.check(Two().eval(), torch.randn(4, 3, 4, 4), select="bias-before-norm").findings
        assert [finding.where for finding in found] == ["conv"]
