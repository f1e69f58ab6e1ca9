"""Rules that look at the norms' inputs: the harm that each one's evidence states, and edge cases."""

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.rules import (
    bias_before_norm,
    degenerate_group,
    norm_after_norm,
    one_value_per_channel,
    shared_norm,
    small_last_batch,
    tiny_batch,
    train_eval_gap,
)


def codes(diagnosis):
    return [finding.code for finding in diagnosis.findings]


class TestOneValuePerChannel:
    def test_torch_raises_on_the_one_and_not_on_the_other(self):
        flagged, clean = one_value_per_channel.flagged(), one_value_per_channel.clean()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            flagged.model(flagged.inputs)
        clean.model(clean.inputs)

    @pytest.mark.parametrize(("batch_size", "found"), [(None, []), (1, ["GB201"]), (2, [])])
    def test_a_model_in_evaluation_is_judged_by_the_batch_size_alone(self, batch_size, found):
        example = one_value_per_channel.clean()
        diagnosis = gb.check(example.model.eval(), example.inputs[:1], batch_size=batch_size, select="GB201")
        assert codes(diagnosis) == found

    def test_the_model_is_left_as_it_was_though_its_forward_raises(self):
        example = one_value_per_channel.flagged()
        before = copy.deepcopy(example.model.state_dict())
        gb.check(example.model, example.inputs)
        assert example.model.training
        assert all(torch.equal(before[name], value) for name, value in example.model.state_dict().items())


def test_a_degenerate_group_gives_its_bias_whatever_comes_in():
    for example, constant in ((degenerate_group.flagged(), True), (degenerate_group.clean(), False)):
        norm = example.model[2]
        nn.init.normal_(norm.bias)
        y = example.model(example.inputs).flatten(1)
        # x − x leaves a rounding error, enlarged by 1/√ε.
        assert torch.allclose(y, norm.bias.expand_as(y), atol=1e-3) is constant


def test_a_degenerate_layer_norm_is_found():
    model = nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1))
    for inputs in (None, torch.randn(3, 4)):
        (finding,) = gb.check(model, inputs, select="GB303").findings
        assert finding.message == "each of its groups has 1 value: the output is β for every input"


def test_an_rms_norm_of_one_value_leaves_the_sign():
    model = nn.Sequential(nn.Linear(4, 1), nn.RMSNorm(1, elementwise_affine=False))
    (finding,) = gb.check(model, select="GB303").findings
    assert finding.message == "each of its groups has 1 value: only the input's sign is left"
    y = model(torch.randn(64, 4) * 100)
    torch.testing.assert_close(y.abs(), torch.ones_like(y), rtol=1e-3, atol=0)  # ε is 1e-7 of inputs of 1 and more


class TestBiasBeforeNorm:
    def test_its_gradient_is_zero_but_for_rounding(self):
        example = bias_before_norm.flagged()
        example.model(example.inputs).square().sum().backward()
        conv = example.model[0]
        assert conv.bias.grad.abs().max() < 1e-6 * conv.weight.grad.abs().max() * conv.weight[0].numel()

    @pytest.mark.parametrize("training", [False, True])
    def test_the_fix_changes_no_output(self, training):
        example = bias_before_norm.flagged()
        model = example.model.train(training)
        with torch.no_grad():
            model[1].running_mean.normal_()
            model[1].running_var.uniform_(0.5, 2)
        before = copy.deepcopy(model)(example.inputs)
        gb.check(model, example.inputs, select="GB301").fix(notes=True, keep_checkpoints=False)
        assert model[0].bias is None
        # The bias is added and subtracted in another order: a few units in the last place of values of size 5.
        torch.testing.assert_close(copy.deepcopy(model)(example.inputs), before, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("case", ["frozen", "read twice", "called twice", "activation between"])
    def test_a_bias_that_counts_is_not_found(self, case):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

            def forward(self, x):
                z = self.linear(x)
                if case == "read twice":
                    return self.norm(z) + z
                if case == "called twice":
                    return self.norm(z) + self.linear(x * 2)
                return self.norm(torch.relu(z) if case == "activation between" else z)

        model = Model()
        if case == "frozen":
            gb.freeze(model)
        assert codes(gb.check(model, torch.randn(8, 4), select="GB301")) == []


def test_a_norm_after_a_norm_undoes_its_scale_and_shift():
    example = norm_after_norm.flagged()
    before = example.model(example.inputs)
    with torch.no_grad():
        example.model[1].weight.uniform_(0.5, 2)
        example.model[1].bias.normal_()
    # ε changes a variance of at least 0.25 in the fifth digit.
    torch.testing.assert_close(example.model(example.inputs), before, rtol=1e-3, atol=1e-3)


class TestTrainEvalGap:
    def test_training_and_evaluation_differ_and_the_fix_brings_them_together(self):
        example = train_eval_gap.flagged()
        model, x = example.model, example.inputs

        def distance():
            training, evaluation = (copy.deepcopy(model).train(mode)[:2](x) for mode in (True, False))
            return float((training - evaluation).square().mean().sqrt() / training.std())

        assert distance() > 1
        gb.check(model, x, loader=example.loader, select="GB109").fix()
        assert distance() < 0.1

    def test_the_first_layer_in_the_order_of_the_data_is_named(self):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=None)) for _ in range(4)))
        x = torch.randn(512, 8)
        model(x)
        nn.init.constant_(model[1][1].running_mean, 4.0)
        (finding,) = gb.check(model.eval(), x, select="GB109").findings
        assert finding.where == "1.1"

    @staticmethod
    def deep(momentum):
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU()) for _ in range(20)]
        model = nn.Sequential(*layers)
        batches = [3 * torch.randn(64, 16) + 2 for _ in range(8)]
        for batch in batches:
            model(batch)
        return model, batches

    def test_one_fix_mends_all_layers_whose_statistics_are_wrong(self):
        model, batches = self.deep(momentum=1e-3)
        diagnosis = gb.check(model.eval(), batches[0], loader=batches, select="GB109")
        (finding,) = diagnosis.findings
        assert finding.where == "0.1"
        assert finding.message.endswith("; nor do those of 19 other layers")
        assert finding.evidence["layers"] == [f"{i}.1" for i in range(20)]
        assert finding.evidence["follow"] == []
        assert "  fix: gammabeta.recalibrate(model, loader)\n" in str(diagnosis)
        change = diagnosis.fix()
        assert change.changed == finding.evidence["layers"]
        assert gb.check(model, batches[0], select="GB109").findings == ()

    def test_layers_that_only_follow_are_told_apart_and_stay(self):
        model, batches = self.deep(momentum=None)
        state = copy.deepcopy(model.state_dict())
        model[2][1].running_mean.add_(model[2][1].running_var.sqrt())
        diagnosis = gb.check(model.eval(), batches[0], loader=batches, select="GB109")
        (finding,) = diagnosis.findings
        assert finding.where == "2.1"
        assert finding.evidence["layers"] == ["2.1"]
        assert len(finding.evidence["follow"]) > 5
        assert "further layers are only given other inputs than in training" in finding.message
        assert diagnosis.fix().changed == ["2.1"]
        # The same eight batches, averaged by the batch and merged: nothing else moved.
        torch.testing.assert_close(model.state_dict()["2.1.running_mean"], state["2.1.running_mean"], rtol=0, atol=1e-2)
        assert gb.check(model, batches[0], select="GB109").findings == ()

    def test_one_layer_behind_is_one_layer(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
        model[0].running_mean.fill_(3)
        model[1].running_mean.fill_(3)
        (finding,) = gb.check(model.eval(), torch.randn(64, 4), select="GB109").findings
        assert finding.message.endswith("; nor do those of 1 other layer")

    @pytest.mark.parametrize("style", ["freeze", "evaluation", "track_running_stats"])
    def test_frozen_layers_have_no_gap_between_training_and_evaluation(self, style):
        model, batches = self.deep(momentum=None)
        model = nn.Sequential(model, nn.Linear(16, 2))
        model[0].requires_grad_(False)
        if style == "freeze":
            gb.freeze(model)
        for norm in (m for m in model[0].modules() if isinstance(m, nn.BatchNorm1d)):
            norm.track_running_stats = style != "track_running_stats"
            norm.train(style == "track_running_stats")
        before = copy.deepcopy(model.state_dict())
        shifted = [batch + 5 for batch in batches]
        diagnosis = gb.check(model, shifted[0], loader=shifted)
        assert "GB109" not in codes(diagnosis)
        diagnosis.fix()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_where_nothing_trains_a_person_decides(self):
        model, batches = self.deep(momentum=None)
        model.requires_grad_(False).eval()
        shifted = [batch + 5 for batch in batches]
        diagnosis = gb.check(model, shifted[0], loader=shifted, select="GB109")
        assert diagnosis.fix().changed == []
        (finding,) = diagnosis.findings
        assert finding.fix.what.startswith("if its statistics may change, gammabeta.recalibrate(model, loader")

    @staticmethod
    def young(batches, momentum):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(),
            nn.Linear(16, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        for _ in range(batches):
            x = 3 * torch.randn(64, 8) + 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
            optimizer.step()
        return model, 3 * torch.randn(64, 8) + 2

    @pytest.mark.parametrize(("batches", "momentum"), [(1, 0.1), (3, 0.1), (8, 0.1), (30, 0.01)])
    def test_what_few_batches_leave_of_the_initial_values_is_no_finding_in_training(self, batches, momentum):
        model, x = self.young(batches, momentum)
        assert gb.check(model, x, select="GB109").findings == ()
        (finding,) = gb.check(model.eval(), x, select="GB109").findings
        assert finding.severity == "warning"

    @pytest.mark.parametrize(("batches", "momentum"), [(1, 0.1), (3, 0.1), (8, 0.1), (30, 0.01)])
    def test_between_steps_an_evaluation_has_a_note_on_what_training_will_forget(self, batches, momentum):
        model, x = self.young(batches, momentum)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        (finding,) = gb.check(model.eval(), x, optimizer=optimizer, select="GB109").findings
        assert finding.severity == "note"
        assert f"{(1 - momentum) ** batches:.0%} of its running statistics are still the initial 0 and 1" in str(
            finding
        )
        model[1].running_mean.add_(30)  # which the initial values do not explain
        (finding,) = gb.check(model, x, optimizer=optimizer, select="GB109").warnings
        assert finding.evidence["layers"][0] == "1"

    def test_what_no_optimizer_has_does_not_grow_up(self):
        model, x = self.young(3, 0.1)
        head = torch.optim.SGD(model[6].parameters(), lr=0.02)
        diagnosis = gb.check(model, x, optimizer=head, loader=[3 * torch.randn(64, 8) + 2 for _ in range(8)])
        assert [f.evidence["layers"] for f in diagnosis.findings if f.code == "GB109"] == [["1", "4"]]
        diagnosis.fix()
        assert codes(gb.check(model, x, optimizer=head, select=["GB101", "GB109"])) == []

    def test_a_very_small_momentum_is_a_note_in_training_and_a_warning_in_evaluation(self):
        model, x = self.young(30, 0.0003)
        (finding,) = gb.check(model, x, select="GB109").findings
        assert (finding.severity, finding.where) == ("note", "1")
        assert finding.message == (
            "after 30 batches with momentum 0.0003, 99% of its running statistics are still the initial 0 and 1; so "
            "are those of 1 other layer: recalibrate before an evaluation"
        )
        assert [f.severity for f in gb.check(model.eval(), x, select="GB109").findings] == ["warning"]

    def test_statistics_that_the_initial_values_do_not_explain_are_found_in_training_too(self):
        model, x = self.young(3, 0.1)
        model[1].running_mean.add_(30)
        (finding,) = gb.check(model, x, select="GB109").findings
        assert (finding.severity, finding.where, finding.evidence["layers"]) == ("warning", "1", ["1"])
        model, x = self.young(3, 0.1)
        model[4].running_var.mul_(20)
        (finding,) = gb.check(model, x, select="GB109").findings
        assert (finding.severity, finding.where) == ("warning", "4")

    def test_one_sample_says_nothing(self):
        example = train_eval_gap.flagged()
        assert codes(gb.check(example.model, example.inputs[:1], select="GB109")) == []

    def test_sampling_error_is_no_gap(self):
        """200 models with right statistics and small batches have no finding."""
        found = 0
        for seed in range(200):
            torch.manual_seed(seed)
            norm = nn.BatchNorm1d(4)
            norm.running_mean.fill_(1.0)
            norm.running_var.fill_(4.0)
            norm.num_batches_tracked.fill_(100)
            found += len(gb.check(norm.eval(), 1 + 2 * torch.randn(8, 4), select="GB109").findings)
        assert found == 0


class TestEffectiveNumberOfValues:
    def test_independent_positions_count_all(self):
        x = torch.randn(64, 32, 6, 6, generator=torch.Generator().manual_seed(0))
        # Var(mean of a sample) is estimated from 64 samples and 32 channels: to 2 %.
        assert Given.of(x).effective == pytest.approx(64 * 36, rel=0.1)

    def test_positions_that_are_alike_count_once(self):
        x = torch.randn(64, 32, 1, 1, generator=torch.Generator().manual_seed(0)).expand(64, 32, 6, 6)
        assert Given.of(x).effective == pytest.approx(64, rel=0.05)

    @pytest.mark.parametrize("rho", [0.5, 0.9])
    def test_an_autoregressive_row_counts_as_theory_says(self, rho):
        """AR(1): n_eff of a long row is n·(1 − ρ)/(1 + ρ)."""
        generator = torch.Generator().manual_seed(0)
        length = 400
        x = torch.empty(64, 16, length, dtype=torch.float64)
        x[..., 0] = torch.randn(64, 16, generator=generator, dtype=torch.float64)
        for t in range(1, length):
            noise = torch.randn(64, 16, generator=generator, dtype=torch.float64)
            x[..., t] = rho * x[..., t - 1] + (1 - rho**2) ** 0.5 * noise
        assert Given.of(x).effective == pytest.approx(64 * length * (1 - rho) / (1 + rho), rel=0.15)

    def test_the_standard_error_is_the_spread_of_batch_means(self):
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(4096, 8, 1, generator=generator) + 0.5 * torch.randn(4096, 8, 9, generator=generator)
        given = Given.of(base)
        batches = base.reshape(1024, 4, 8, 9)
        spread = batches.mean((1, 3)).std(0).mean() / base.std()
        expected = (given.effective / given.samples * 4) ** -0.5
        assert expected == pytest.approx(float(spread), rel=0.05)

    def test_a_single_sample_tells_nothing(self):
        assert Given.of(torch.randn(1, 3, 4, 4)).effective is None


def test_a_tiny_batch_is_judged_by_what_it_is_worth():
    example = tiny_batch.flagged()
    (finding,) = gb.check(example.model, example.inputs, batch_size=4, select="GB202").findings
    assert finding.evidence["standard_error"] == pytest.approx(0.5, rel=0.05)
    gb.set_statistics(example.model, gb.statistics.Synced())
    assert codes(gb.check(example.model, example.inputs, batch_size=4, select="GB202")) == []
    gb.set_statistics(example.model, gb.statistics.Ghost(2))
    assert codes(gb.check(example.model, example.inputs, batch_size=64, select="GB202")) == ["GB202"]


def test_a_shared_norm_evaluates_otherwise_than_it_trains():
    torch.manual_seed(0)
    x = torch.randn(4096, 8)

    def distance(model):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = None
        model.train()(x)
        training, evaluation = model(x), model.eval()(x)
        return float((training - evaluation).square().mean().sqrt() / training.std())

    class Apart(shared_norm.Twice):
        def __init__(self):
            super().__init__()
            self.other = nn.BatchNorm1d(8)

        def forward(self, x):
            return torch.cat([self.norm(x), self.other(3 * x + 1)], 1)

    assert distance(shared_norm.Twice()) > 0.4
    assert distance(Apart()) < 0.01


def test_a_small_last_batch_is_off_by_the_standard_error_of_its_size():
    x = torch.randn(33 * 400, generator=torch.Generator().manual_seed(0)).reshape(400, 33)
    last, others = x[:, 32:].mean(1).std(), x[:, :32].mean(1).std()
    assert float(last / others) == pytest.approx(32**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("samples", "batch", "found"), [(33, 32, True), (36, 32, False), (64, 32, False), (35, 32, True)]
)
def test_which_last_batches_are_small(samples, batch, found):
    example = small_last_batch.flagged()
    data = torch.utils.data.TensorDataset(torch.randn(samples, 4))
    loader = torch.utils.data.DataLoader(data, batch_size=batch)
    assert bool(gb.check(example.model, loader=loader, select="GB203").findings) is found


def test_a_loader_for_evaluation_needs_its_last_samples():
    example = small_last_batch.flagged()
    (finding,) = gb.check(example.model.train(), loader=example.loader, select="GB203").findings
    assert finding.message == "the loader's last batch has 1 sample, the others 32"
    assert codes(gb.check(example.model.eval(), loader=example.loader, select="GB203")) == []


def test_inputs_alone_are_no_batch_of_training():
    """Two example images do not say that training has batches of two: a note says what would be."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.BatchNorm1d(16))
    x = torch.randn(4, 8)
    (finding,) = gb.check(model, x, select="GB202").findings
    assert (finding.severity, finding.evidence["layers"]) == ("note", ["1", "3"])
    assert finding.message == (
        "if batches in training are as large as the inputs: a batch of 4 is worth 4.0 values per channel: from batch "
        "to batch its mean is off by 0.50 standard deviations, its variance by 71% (and for 1 more layer)"
    )
    data = torch.utils.data.TensorDataset(torch.randn(64, 8))
    for options in ({"batch_size": 4}, {"loader": torch.utils.data.DataLoader(data, batch_size=4)}):
        assert [f.severity for f in gb.check(model, x, select="GB202", **options).findings] == ["warning"] * 2
    assert codes(gb.check(model, x, loader=torch.utils.data.DataLoader(data, batch_size=32), select="GB202")) == []


@pytest.mark.parametrize(
    ("norm", "left"),
    [(nn.LayerNorm(1, bias=False), "0"), (nn.LayerNorm(1), "β"), (nn.GroupNorm(4, 4, affine=False), "0")],
)
def test_a_degenerate_norm_without_a_shift_leaves_0(norm, left):
    width = 4 if isinstance(norm, nn.GroupNorm) else 1
    (finding,) = gb.check(nn.Sequential(nn.Linear(4, width), norm), torch.randn(3, 4), select="GB303").findings
    assert finding.message.endswith(f"the output is {left} for every input")
