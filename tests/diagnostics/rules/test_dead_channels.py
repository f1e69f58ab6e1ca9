"""GB310: channels that do not vary, in the check and in `train_eval_gap`."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import dead_channels


def found(model, inputs, **options):
    return [(f.severity, f.where) for f in gb.check(model, inputs, select="GB310", **options).findings]


def test_dead_channels_differ_between_training_and_evaluation_until_recalibrated():
    example = dead_channels.flagged()
    for fixed in (False, True):
        if fixed:
            gb.check(example.model, example.inputs, loader=example.loader, select="GB310").fix()
        with torch.no_grad(), gb.frozen_statistics(example.model):
            x = example.model[0](example.inputs)
            norm = example.model[1]
            apart = (norm.train()(x) - norm.eval()(x))[:, :2].abs().amax((0, 2, 3))
        assert bool((apart < 1e-4).all()) if fixed else float(apart.max()) > 1


def test_the_message_names_the_channels_and_their_filters():
    example = dead_channels.flagged()
    (finding,) = gb.check(example.model, example.inputs, select="GB310").findings
    assert finding.message.startswith(
        "2 of 8 channels of its input do not vary on the inputs: 0, 1; the filters of 2 of them are zero; in training "
        "they did, with a variance of "
    )


def test_channels_behind_a_relu_that_passes_nothing_are_a_note():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
    for _ in range(4):
        model(torch.randn(16, 3, 8, 8))
    x = torch.randn(16, 3, 8, 8)
    assert found(model.eval(), x) == []
    with torch.no_grad():
        model[0].bias[3] = -50
    assert found(model, x) == [("note", "2")]
    assert found(model, x[:1, :, :4, :4].expand(2, -1, -1, -1)) == []  # eight values say nothing


@pytest.mark.parametrize("momentum", [0.1, 0.02])
def test_what_is_left_of_the_initial_variance_is_no_trace_of_training(momentum):
    """The channels have never varied: the running variance of 1 has only shrunk, by (1 − momentum) per batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8, momentum=momentum))
    with torch.no_grad():
        model[0].bias[:3] = -100
    for _ in range(20):
        model(torch.randn(64, 4))
    (finding,) = gb.check(model, torch.randn(64, 4), select="GB310").findings
    assert finding.message == "3 of 8 channels of its input do not vary on the inputs: 0, 1, 2"


def test_fresh_models_and_layers_that_start_at_0_are_not_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
    with torch.no_grad():
        model[0].bias[3] = -50
    assert found(model, torch.randn(16, 3, 8, 8)) == []
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.zeros_(model[0].weight)
    assert found(model, torch.randn(16, 3, 8, 8)) == []


def test_a_constant_column_of_the_models_own_inputs_is_not_found():
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    for _ in range(4):
        model(x)
    x[:, 1] = 3
    assert found(model.eval(), x) == []


class TestTrainEvalGap:
    def gap(self, dead):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None),
        )  # fmt: skip
        data = [torch.randn(16, 3, 10, 10) for _ in range(8)]
        for _ in range(2):
            for module in model:
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
            gb.recalibrate(model, data)
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter[:dead] = 0
        return gb.train_eval_gap(model.eval(), data)

    def test_a_layer_with_dead_channels_is_the_first_and_in_the_table(self):
        gap = self.gap(3)
        assert [layer.still for layer in gap.layers] == [3, 0]
        assert gap.first.name == "1"
        lines = str(gap).splitlines()
        assert lines[1].endswith("3 channels without variance  <- first")
        assert "1 of 2 layers with channels that no longer vary, the first being 1: everything before it" in lines[-1]

    def test_a_layer_whose_channels_are_all_dead_is_said(self):
        gap = self.gap(8)
        assert gap.layers[0].gap is None
        assert gap.layers[0].still == 8
        assert gap.first.name == "1"
        assert "8 channels without variance  <- first" in str(gap)

    @pytest.mark.parametrize("dead", [0])
    def test_without_dead_channels_nothing_is_said(self, dead):
        gap = self.gap(dead)
        assert gap.first is None
        assert "without variance" not in str(gap)
