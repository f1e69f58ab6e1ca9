"""Rules that look at further forwards or at the flow of data: the harm that each one's evidence states."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import gammabeta as gb
from gammabeta.diagnostics.padding import padded_lengths
from gammabeta.diagnostics.probe import probe
from gammabeta.diagnostics.rules import (
    batch_leak,
    foldable,
    padding_in_statistics,
    unfused_mixed_dtype,
    unsafe_fold,
    wrong_axis,
)
from gammabeta.introspection.observe import observe


def codes(diagnosis):
    return [finding.code for finding in diagnosis.findings]


def random_norms(model):
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if module.__class__.__name__.endswith("Norm") or getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def share_of_companions(model, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[0].sum(), x)
    return float(g[1:].norm() / g.norm())


class TestBatchLeak:
    def test_companions_get_a_twentieth_of_a_sample_s_gradient_or_nothing(self):
        torch.manual_seed(0)
        flagged, clean = batch_leak.flagged(), batch_leak.clean()
        assert share_of_companions(flagged.model.train(), flagged.inputs) > 0.05
        assert share_of_companions(clean.model.train(), clean.inputs) == 0

    def test_without_an_intent_nothing_is_said(self):
        example = batch_leak.flagged()
        assert codes(gb.check(example.model, example.inputs, select="GB207")) == []

    @pytest.mark.parametrize("intent", ["contrastive", "gradient-penalty", "private"])
    def test_frozen_statistics_keep_samples_apart(self, intent):
        example = batch_leak.flagged()
        gb.freeze(example.model)
        assert codes(gb.check(example.model, example.inputs, intent=intent, select="GB207")) == []

    def test_the_share_told_is_that_of_the_layer(self):
        torch.manual_seed(0)
        example = batch_leak.flagged()
        (finding,) = gb.check(example.model, example.inputs, intent="private", select="GB207").findings
        norm = copy.deepcopy(example.model[1]).train()
        x = example.model[0](example.inputs)[:4].detach().requires_grad_()
        y = norm(x)
        direction = torch.randn(y[0].shape, generator=torch.Generator().manual_seed(0))
        (g,) = torch.autograd.grad((y[0] * direction).sum(), x)
        assert finding.evidence["companions"] == pytest.approx(float(g[1:].norm() / g.norm()), rel=1e-4)


class AlwaysTheBatch(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


def test_a_layer_that_takes_the_batch_in_evaluation_by_a_forward_of_its_own_is_found_by_its_gradient():
    model = random_norms(nn.Sequential(nn.Conv2d(3, 8, 3), AlwaysTheBatch(8), nn.ReLU())).eval()
    assert codes(gb.check(model, select="GB106")) == []
    (finding,) = gb.check(model, torch.randn(4, 3, 8, 8), select="GB106").findings
    assert (finding.where, finding.severity) == ("1", "error")
    assert finding.evidence["companions"] > 0.01


class PutsItIntoEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).requires_grad_(False)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        self.backbone.eval()
        return self.head(self.backbone(x).mean((2, 3)))


def test_frozen_layers_that_no_forward_moves_are_not_found_given_inputs():
    model = PutsItIntoEvaluation().train()
    assert codes(gb.check(model, select="GB101")) == ["GB101"]
    assert codes(gb.check(model, torch.randn(4, 3, 8, 8), select="GB101")) == []


class TestPadding:
    def test_more_padding_moves_the_output_of_the_one_and_not_of_the_other(self):
        flagged, clean = padding_in_statistics.flagged(), padding_in_statistics.clean()
        random_norms(flagged.model).train()
        random_norms(clean.model).train()
        more = F.pad(flagged.inputs, (0, 20))
        x, mask = clean.inputs
        real = mask[:, None].expand(-1, 16, -1)
        # The convolution sees the same zeros beyond the end.
        a, b = flagged.model(flagged.inputs)[real], flagged.model(more)[:, :, :20][real]
        assert (a - b).square().mean() > 0.01 * a.square().mean()
        a, b = clean.model(x, mask)[real], clean.model(more, F.pad(mask, (0, 20)))[:, :, :20][real]
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # float32 sums of 85 values in another order

    def test_the_numbers_are_those_of_the_two_statistics(self):
        example = padding_in_statistics.flagged()
        (finding,) = gb.check(example.model, example.inputs, select="GB205").findings
        y = example.model[0](example.inputs).detach().double()
        mask = gb.lengths_to_mask([20, 5, 8, 12, 6, 17, 10, 7], 20)
        inner = y.movedim(1, 0)[:, mask]
        shift = (y.mean((0, 2)) - inner.mean(1)) / inner.std(1, correction=0)
        ratio = y.var((0, 2), correction=0) / inner.var(1, correction=0)
        assert finding.evidence["mean_shift"] == pytest.approx(float(shift.square().mean().sqrt()), rel=1e-6)
        assert finding.evidence["variance_ratio"] == pytest.approx(float(ratio.log().mean().exp()), rel=1e-6)
        assert finding.evidence["share"] == pytest.approx(1 - 85 / 160)

    @pytest.mark.parametrize(
        "norm",
        [nn.GroupNorm(1, 16), nn.GroupNorm(4, 16), nn.InstanceNorm1d(16), nn.LayerNorm((16, 20)), gb.GroupNorm(4, 16)],
        ids=repr,
    )
    def test_norms_of_one_sample_over_positions_are_found_by_their_own_statistics(self, norm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1), norm)
        x = padding_in_statistics.sequences()
        (finding,) = gb.check(model, x, select="GB205").findings
        assert finding.where == "1"
        # Against the definition, and what it does to the output: twice the padding, or none of it.
        lengths = [20, 5, 8, 12, 6, 17, 10, 7]
        y = model[0](x).detach().double()
        groups = getattr(norm, "num_groups", 1)
        shifts = []
        if isinstance(norm, nn.InstanceNorm1d):
            return
        for sample, length in zip(y, lengths, strict=True):
            if length < 20:
                grouped = sample.reshape(groups, -1, 20)
                inner = grouped[..., :length].flatten(1)
                shifts.append((grouped.flatten(1).mean(1) - inner.mean(1)) / inner.std(1, correction=0))
        assert finding.evidence["mean_shift"] == pytest.approx(
            float(torch.cat(shifts).square().mean().sqrt()), rel=1e-6
        )
        if isinstance(norm, nn.LayerNorm):
            return  # it takes one length only
        a, b = model(x[1:2])[..., :4], model(x[1:2, :, :5])[..., :4]  # the last position also sees what follows it
        assert (a - b).square().mean() > 0.01 * b.square().mean()

    def test_positions_on_another_axis_of_a_map_are_found(self):
        torch.manual_seed(0)
        x = padding_in_statistics.sequences().mT  # (8, 20, 16): time, then frequency

        class Maps(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)

            def forward(self, x):
                return self.norm(self.conv(x[:, None]))

        assert [f.where for f in gb.check(Maps(), x, select="GB205").findings] == ["norm"]

    def test_norms_over_the_channels_of_one_position_are_not_found(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = nn.LayerNorm(16)

            def forward(self, x):
                return self.norm(x.mT)

        assert gb.check(Positions(), padding_in_statistics.sequences(), select="GB205").findings == ()

    @pytest.mark.parametrize(
        ("inputs", "found"),
        [
            (torch.randn(4, 3, 20), {}),
            (torch.tensor([[5, 2, 0, 0, 0], [1, 0, 3, 2, 0]]), {5: [2, 4]}),
            (torch.ones(2, 8, 6).tril(2), {}),  # both end at the same place
            (torch.randn(4, 3, 8, 8).relu(), {}),
            (torch.tensor([[5, 2, 0, 0, 0], [0, 0, 0, 0, 0]]), {}),
        ],
    )
    def test_where_sequences_end(self, inputs, found):
        assert padded_lengths(inputs) == found

    @pytest.mark.parametrize("axis", [2, 3])
    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, functools.partial(nn.GroupNorm, 2), nn.InstanceNorm2d])
    def test_spectrograms_end_too(self, norm, axis):
        torch.manual_seed(0)
        ends = [20, 12, 6, 4]
        x = torch.randn(4, 4, 20, 6) + 1
        for sample, end in zip(x, ends, strict=True):
            sample[:, end:] = 0
        x = x if axis == 2 else x.transpose(2, 3)
        assert padded_lengths(x) == {20: ends}
        assert gb.check(nn.Sequential(norm(4)), x, select="GB205").findings
        full = torch.randn(4, 4, 20, 6) + 1
        assert not gb.check(nn.Sequential(norm(4)), full, select="GB205").findings

    def test_images_with_borders_are_no_sequences(self):
        torch.manual_seed(0)
        x = torch.zeros(8, 1, 28, 28)
        for i, image in enumerate(x):
            image[:, i : i + 12, 2 * i : 2 * i + 14] = torch.rand(12, 14)
        assert padded_lengths(x) == {}
        letterbox = torch.zeros(4, 3, 16, 16)
        for i, image in enumerate(letterbox):
            image[:, i : 16 - i] = torch.rand(3, 16 - 2 * i, 16)
        assert padded_lengths(letterbox) == {}


def test_a_norm_over_the_wrong_axis_gives_a_step_another_output_elsewhere():
    torch.manual_seed(0)
    for example, moved in ((wrong_axis.flagged(), True), (wrong_axis.clean(), False)):
        model = random_norms(example.model).train()
        y, later = model(example.inputs), model(example.inputs.roll(7, 1)).roll(-7, 1)
        assert bool((y - later).norm() > 0.1 * y.norm()) is moved
    flagged = wrong_axis.flagged()
    (finding,) = gb.check(flagged.model, flagged.inputs, select="GB304").findings
    assert (finding.evidence["axis"], finding.evidence["features"]) == (1, 2)


@pytest.mark.parametrize(
    ("model", "shape", "found"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(6)), (2, 3, 8, 8), ["GB304"]),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm((8, 6, 6))), (2, 3, 8, 8), []),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (2, 3, 8, 8), []),
        (nn.Sequential(nn.Linear(8, 20), nn.GroupNorm(4, 20)), (2, 20, 8), ["GB304"]),
        (nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20)), (2, 8), []),
        (nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.BatchNorm1d(20)), (2, 20, 8), []),
    ],
)
def test_which_axes_are_wrong(model, shape, found):
    assert codes(gb.check(model, torch.randn(shape), select="GB304")) == found


def test_torch_says_that_an_rms_norm_of_two_dtypes_is_not_fused_and_adopted_it_is_one_operation():
    def operations(model, x):
        seen = observe(model, x)
        call = seen.calls_of("1")[0]
        return [op.name for op in seen.operations if seen.is_within(op, call)]

    flagged, clean = unfused_mixed_dtype.flagged(), unfused_mixed_dtype.clean()
    torch.set_warn_always(True)  # otherwise torch warns once per process
    try:
        with pytest.warns(UserWarning, match="Cannot dispatch to fused implementation"):
            flagged.model(flagged.inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clean.model(clean.inputs)
    finally:
        torch.set_warn_always(False)
    assert len(operations(flagged.model, flagged.inputs)) > 4
    gb.check(flagged.model, flagged.inputs, select="GB601").fix()
    assert flagged.model(flagged.inputs).dtype is torch.bfloat16
    assert len(operations(flagged.model, flagged.inputs)) <= 2  # the kernel, and perhaps a detach


def test_as_many_norms_as_are_told_are_folded_and_the_outputs_stay():
    torch.manual_seed(0)
    example = foldable.flagged()
    random_norms(example.model)
    (finding,) = gb.check(example.model, example.inputs, select="GB602").findings
    folded = gb.fold(example.model, example.inputs)
    assert finding.evidence["norms"] == len(folded.folded) == 2
    assert finding.evidence["seconds"] > 0
    y = example.model(example.inputs)
    # Folded weights are rounded again: a few units in the last place of the largest output.
    torch.testing.assert_close(folded.model(example.inputs), y, rtol=0, atol=2e-5 * float(y.abs().max()))


def test_folding_a_convolution_that_is_used_twice_is_wrong_by_pattern_and_right_by_flow():
    torch.manual_seed(0)
    example = unsafe_fold.flagged()
    random_norms(example.model)
    y = example.model(example.inputs)
    pattern = copy.deepcopy(example.model)
    pattern.conv, pattern.norm = fuse_conv_bn_eval(pattern.conv, pattern.norm), nn.Identity()
    assert (pattern(example.inputs) - y).abs().max() > 0.1 * y.abs().max()
    torch.testing.assert_close(gb.fold(example.model, example.inputs).model(example.inputs), y, rtol=1e-4, atol=1e-4)
    (finding,) = gb.check(example.model, example.inputs, select="GB603").findings
    assert finding.message == "it must not be folded into conv: conv is called 2 times in a forward"


def test_what_makes_a_site_foldable_belongs_to_the_reason():
    x = torch.randn(4, 3, 8, 8)

    def fix(model):
        (finding,) = gb.check(model.eval(), x, select="GB603").findings
        return finding.fix.what

    kept = "gammabeta.fold leaves it unfolded"
    assert fix(unsafe_fold.flagged().model) == f"{kept}; a separate layer for each call makes it foldable"
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[1].bias.data[2] = float("nan")  # which other rules report
    assert gb.check(model.eval(), x, select="GB603").findings == ()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[0].register_forward_hook(lambda *_: None)
    assert fix(model) == f"{kept}; without the hooks it is foldable"
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))
    model[2].weight = model[0].weight
    assert fix(model) == f"{kept}; a weight of its own makes it foldable"


def test_a_model_in_training_is_not_looked_at_for_folding():
    example = foldable.flagged()
    assert codes(gb.check(example.model.train(), example.inputs, select="GB60")) == []


def test_probing_leaves_the_model_and_the_random_numbers_as_they_were():
    model = random_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.ReLU())).train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = probe(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert found.moved == {"1"}
    assert found.companions["1"].evaluation == 0
    assert found.companions["1"].training > 0.01
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class TestLeaksByTheModelAlone:
    """Which norms a model for an intent must not have, without inputs."""

    def found(self, norm, intent="private", mode=True):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU()).train(mode)
        return [(f.severity, f.where) for f in gb.check(model, intent=intent, select="GB207").findings]

    @pytest.mark.parametrize(
        "norm",
        [
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8, track_running_stats=False),
            nn.BatchNorm2d(8, affine=False).requires_grad_(False),
            nn.SyncBatchNorm(8),
            gb.BatchNorm2d(8),
            gb.BatchNorm2d(8, statistics=gb.statistics.Ghost(4)),
            nn.InstanceNorm2d(8, track_running_stats=True),
        ],
        ids=repr,
    )
    def test_private_training_refuses_them_in_either_mode(self, norm):
        assert self.found(norm) == self.found(norm, mode=False) == [("error", "1")]
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for intent in ("contrastive", "gradient-penalty"):
                assert self.found(norm, intent) == [("error", "1")]

    @pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Identity()], ids=repr)
    def test_norms_of_one_sample_are_not_found(self, norm):
        assert self.found(norm) == []

    def test_frozen_norms_are_not_found(self):
        frozen = nn.BatchNorm2d(8)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), frozen)
        gb.freeze(model)
        assert gb.check(model, intent="private", select="GB207").findings == ()
        still = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        still[1].eval()
        assert gb.check(still, intent="private", select="GB207").findings == ()

    def test_opacus_refuses_the_same(self):
        validator = pytest.importorskip("opacus.validators").ModuleValidator
        norms = nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.GroupNorm(2, 8)
        for norm in norms:  # it looks at modules with parameters only
            model = nn.Sequential(nn.Conv2d(3, 8, 3), norm).train()
            assert validator.is_valid(model) is not bool(self.found(norm)), norm


def test_an_axis_that_was_moved_on_purpose_is_not_reported():
    """A token mixer, as in GroupViT: a linear layer over the tokens, then a LayerNorm over the features."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.norm = nn.Linear(10, 6), nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(self.mix(x.transpose(1, 2)).transpose(1, 2))

    assert codes(gb.check(Mixer(), torch.randn(4, 10, 8), select="GB304")) == []


def test_all_unsafe_sites_are_one_note():
    model = nn.Sequential(unsafe_fold.Twice(), nn.Conv2d(8, 3, 1), unsafe_fold.Twice()).eval()
    (finding,) = gb.check(model, torch.randn(2, 3, 8, 8), select="GB603").findings
    assert finding.where == "0.norm"
    assert finding.message.endswith("(and 1 more such BatchNorm)")
    assert finding.evidence["layers"] == ["0.norm", "2.norm"]


def test_one_norm_and_two_are_counted_in_english():
    x = torch.randn(2, 3, 8, 8)
    for count, words in ((1, "it could"), (2, "it and 1 more BatchNorm could"), (3, "it and 2 more BatchNorms could")):
        model = nn.Sequential(
            *(layer for _ in range(count) for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        ).eval()
        (finding,) = gb.check(model, x, select="GB602").findings
        assert finding.message.startswith(f"{words} be folded")
