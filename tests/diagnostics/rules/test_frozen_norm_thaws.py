"""GB101: what a frozen BatchNorm in training mode does to its running statistics."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import frozen_norm_thaws


def step_ten_times(model):
    for _ in range(10):
        model(torch.randn(16, 3, 8, 8) + 3)


def test_ten_steps_move_the_statistics_by_deviations_and_after_the_fix_by_nothing():
    torch.manual_seed(0)
    model = frozen_norm_thaws.flagged().model
    norm = model[0][1]
    # As trained on data of mean 0.
    gb.recalibrate(model, [torch.randn(64, 3, 8, 8)])
    mean, deviation = norm.running_mean.clone(), norm.running_var.sqrt()
    frozen = gb.check(model, select="GB101").fix()
    step_ten_times(model)
    assert torch.equal(norm.running_mean, mean)
    frozen.undo()
    step_ten_times(model)
    moved = ((norm.running_mean - mean).abs() / deviation).mean().item()
    # The mean moves by 1 − 0.9¹⁰ = 0.65 of the distance between the means, 3·|Σ weights|/√(Σ weights²), which is
    # near 3·0.5.
    assert moved == pytest.approx(1.0, abs=0.2)


def test_it_is_a_warning_where_the_weights_before_train():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].requires_grad_(False)
    (finding,) = gb.check(model, select="GB101").findings
    assert (finding.severity, finding.where) == ("warning", "1")


def test_a_norm_without_affine_on_frozen_features_before_a_head_that_trains_is_meant():
    backbone = nn.Linear(4, 4).requires_grad_(False)
    model = nn.Sequential(backbone, nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    assert not gb.check(model, select="GB101").findings


def test_a_norm_without_affine_among_frozen_weights_is_found():
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)).requires_grad_(False)
    diagnosis = gb.check(nn.Sequential(block, nn.Linear(4, 2)), select="GB101")
    assert [finding.where for finding in diagnosis.errors] == ["0.1"]


@pytest.mark.parametrize("change", [lambda m: m.eval(), gb.freeze, lambda m: m.requires_grad_(False)])
def test_what_is_in_evaluation_or_frozen_or_has_no_gradients_at_all_is_not_found(change):
    model = frozen_norm_thaws.flagged().model
    change(model)
    assert not gb.check(model, select="GB101").findings


class LinearProbe:
    """A backbone and a head; `no_grad` says whether the backbone's forward runs without gradients."""

    def __init__(self, no_grad=False, detach=False):
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 36, 4)

        class Model(nn.Module):
            def forward(inner, x):  # noqa: N805
                with torch.set_grad_enabled(not no_grad):
                    x = inner.backbone(x)
                return inner.head(x.detach() if detach else x)

        self.model = Model()
        self.model.backbone, self.model.head = self.backbone, self.head

    def watch(self, parameters, steps=12):
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        with gb.watch(self.model, optimizer) as watch:
            for _ in range(steps):
                optimizer.zero_grad()
                self.model(torch.randn(8, 3, 8, 8)).square().mean().backward()
                optimizer.step()
        return watch.diagnosis(select="GB101").findings


class TestLinearProbes:
    def test_a_backbone_that_the_optimizer_leaves_out_is_found_with_it_and_frozen_it_is_not(self):
        probe = LinearProbe()
        optimizer = torch.optim.SGD(probe.head.parameters(), lr=0.01)
        assert not gb.check(probe.model, select="GB101").findings
        diagnosis = gb.check(probe.model, optimizer=optimizer, select=["GB101", "GB402"])
        assert [(f.code, f.severity, f.where) for f in diagnosis.findings] == [("GB101", "warning", "backbone.1")]
        diagnosis.fix()
        assert not gb.check(probe.model, optimizer=optimizer, select=["GB101", "GB402"]).findings
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
            id(p) for p in probe.head.parameters()
        ]

    @pytest.mark.parametrize("style", [{"no_grad": True}, {"detach": True}])
    def test_a_backbone_that_no_backward_reaches_is_found_while_watching(self, style):
        probe = LinearProbe(**style)
        (finding,) = probe.watch(probe.head.parameters())
        assert (finding.severity, finding.where) == ("warning", "backbone.1")
        # With all parameters in the optimizer, only the training itself tells.
        (finding,) = LinearProbe(**style).watch(probe.model.parameters())
        assert "it does not train, but every forward moved its running statistics" in finding.message

    def test_ten_steps_of_a_linear_probe_move_the_statistics(self):
        probe = LinearProbe(no_grad=True)
        before = probe.backbone[1].running_var.clone()
        probe.watch(probe.head.parameters())
        assert ((probe.backbone[1].running_var / before).log().abs() > 0.3).all()

    def test_a_model_that_trains_whole_is_not_found(self):
        probe = LinearProbe()
        assert not probe.watch(probe.model.parameters())

    def test_in_a_deep_network_the_first_norm_is_not_named_for_the_optimizer(self):
        """The smallest module around `bn1` is the whole model, whose head is in the optimizer."""
        torch.manual_seed(0)
        model = nn.Module()
        model.conv1, model.bn1 = nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64)
        model.layer1 = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))
        model.fc = nn.Linear(64, 10)
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.01)
        diagnosis = gb.check(model, optimizer=optimizer, select=["GB101", "GB402"])
        assert [(f.code, f.where) for f in diagnosis.findings] == [("GB101", "bn1"), ("GB101", "layer1.1")]


class TestAForwardWithoutGradients:
    """What `check` sees of it on inputs, where all requires gradients and is in the optimizer, if there is one."""

    def found(self, model, x=None, **options):
        x = torch.randn(8, 3, 8, 8) if x is None else x
        return [(f.severity, f.where) for f in gb.check(model, x, select="GB101", **options).findings]

    def test_a_backbone_under_no_grad_is_found_on_inputs(self):
        model = LinearProbe(no_grad=True).model
        assert not gb.check(model, select="GB101").findings
        assert self.found(model) == [("warning", "backbone.1")]
        assert self.found(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)) == [("warning", "backbone.1")]
        assert self.found(LinearProbe().model) == []
        assert self.found(model.eval()) == []
        assert all(p.grad is None for p in model.parameters())

    def test_the_message_says_what_was_seen_and_its_fix_mends_it(self):
        model = LinearProbe(no_grad=True).model
        diagnosis = gb.check(model, torch.randn(8, 3, 8, 8), select="GB101")
        assert diagnosis.findings[0].message.startswith("the forward runs it with gradients off, yet it is in training")
        diagnosis.fix()
        assert self.found(model) == []

    def test_a_model_of_which_nothing_requires_gradients_on_these_inputs_is_not_found(self):
        class Predicts(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = LinearProbe().model

            @torch.no_grad()
            def forward(self, x):
                return self.net(x)

        assert self.found(Predicts()) == []

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_a_recomputed_part_is_not_found(self, reentrant):
        class Recomputes(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.body = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

            def forward(self, x):
                return torch.utils.checkpoint.checkpoint(self.body, self.stem(x), use_reentrant=reentrant)

        assert self.found(Recomputes()) == []

    def test_a_part_that_runs_once_without_and_once_with_gradients_is_not_found(self):
        class Guesses(LinearProbe().model.__class__):
            def forward(self, x):
                with torch.no_grad():
                    guess = self.head(self.backbone(x))
                return self.head(self.backbone(x)) - guess

        model = Guesses()
        model.backbone, model.head = LinearProbe().backbone, LinearProbe().head
        assert self.found(model) == []
