"""Diagnosis.fix(): what it applies, in which order, what it leaves, and that its undo restores all."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from tests.diagnostics.test_check import codes, faulty
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gammabeta as gb
from gammabeta.cli import formats
from gammabeta.diagnostics.description import advice, faults
from gammabeta.diagnostics.findings import Diagnosis, Finding, Fix
from gammabeta.diagnostics.fixes import where
from gammabeta.introspection.norms import is_batch_norm


def test_fixing_all_is_one_change_and_its_undo_restores_all():
    model, optimizer = faulty()
    classes = [type(module) for module in model.modules()]
    diagnosis = gb.check(model, optimizer=optimizer)
    change = diagnosis.fix()
    assert sorted(set(change.changed)) == ["body.1", "stem.1"]
    assert codes(gb.check(model, optimizer=optimizer)) == []
    change.undo()
    assert [type(module) for module in model.modules()] == classes
    assert codes(gb.check(model, optimizer=optimizer)) == codes(diagnosis)


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError])
def test_where_one_fix_raises_the_others_are_applied_and_it_is_left_with_the_reason(error):
    model, optimizer = faulty()
    findings = gb.check(model, optimizer=optimizer).findings
    state, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]

    def fail():
        raise error("in the middle")

    broken = Finding("GB102", "poisoned-statistics", "error", "stem.1", "broken", fix=Fix("mend it", fail))
    change = Diagnosis((broken, *findings)).fix()
    assert change.left == {
        "stem.1": f"GB102 poisoned-statistics: could not be applied ({error.__name__}: in the middle); by hand: mend it"
    }
    assert codes(gb.check(model, optimizer=optimizer)) == []
    change.undo()
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_interrupt_leaves_everything_as_it_was():
    model, optimizer = faulty()
    findings = gb.check(model, optimizer=optimizer).findings

    def interrupt():
        raise KeyboardInterrupt

    broken = Finding("GB403", "dead-scale", "warning", "stem.1", "broken", fix=Fix("mend it", interrupt))
    with pytest.raises(KeyboardInterrupt):
        Diagnosis((*findings, broken)).fix()
    assert codes(gb.check(model, optimizer=optimizer)) == [(finding.code, finding.where) for finding in findings]


def test_stale_layers_are_recalibrated_in_one_pass_over_the_batches():
    class Batches(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(5)))
    for norm in model:
        norm.running_var[1] = float("inf")
    loader = Batches(torch.randn(16, 4) for _ in range(3))
    diagnosis = gb.check(model, loader=loader, select="GB102")
    assert len(diagnosis.findings) == 5
    loader.passes = 0
    diagnosis.fix()
    assert loader.passes == 1
    assert not gb.check(model, select="GB102").findings


def bits(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def poisoned(**options):
    """Return a model in evaluation with a NaN in one running mean, and a loader."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    loader = [torch.randn(16, 4) for _ in range(3)]
    for batch in loader:
        model[4](model[3](batch @ torch.randn(4, 8)))
    model[1].running_mean[2] = float("nan")
    return model.eval(), loader


def test_statistics_that_a_nan_hid_are_said_to_be_unseen_and_mended_in_the_same_fix():
    model, loader = poisoned()
    before = bits(model)
    diagnosis = gb.check(model, loader=loader)
    assert [finding.code for finding in diagnosis.errors + diagnosis.warnings] == ["GB102"]
    assert diagnosis.unseen == ("4",)
    assert "  the input of 1 norm is not finite and was not looked at: mend that, check again" in str(diagnosis)
    assert json.loads(diagnosis.to_json())["unseen"] == ["4"]
    change = diagnosis.fix()
    assert change.changed == ["1", "4"]
    after = gb.check(model, loader=loader)
    assert (after.errors, after.warnings, after.unseen) == ((), (), ())
    change.undo()
    assert bits(model) == before


def test_without_the_rule_on_the_gap_nothing_further_is_recalibrated():
    model, loader = poisoned()
    assert gb.check(model, loader=loader, select="GB102").fix().changed == ["1"]
    model, loader = poisoned()
    assert gb.check(model, loader=loader, ignore="GB109").fix().changed == ["1"]


def test_a_forward_that_raises_after_the_fixes_takes_none_of_them_back():
    """The inputs ran in the check; after the statistics are mended they do not."""
    model, loader = poisoned()
    diagnosis = gb.check(model, torch.cat(loader), loader=loader)

    def refuse(module, args):
        if len(args[0]) > 16:
            raise RuntimeError("too many")

    model.register_forward_pre_hook(refuse)
    assert diagnosis.fix().changed == ["1"]
    assert model[1].running_mean.isfinite().all()


def test_inputs_unlike_the_loader_s_batches_are_told_and_not_called_mended():
    model, batches = trained()
    shifted = batches[0] * 5 + 3
    diagnosis = gb.check(model.eval(), shifted, loader=batches, select="GB109")
    change = diagnosis.fix()
    assert change.left["1"] == (
        "GB109 train-eval-gap: its statistics are those of the loader's batches now: the inputs differ from these"
    )
    model.train()
    assert gb.check(model, batches[0], loader=batches, select="GB109").findings == ()


def test_a_norm_among_new_ones_gets_no_statistics_of_its_own():
    """They would look like the trace of a training that the others lost."""
    torch.manual_seed(0)
    linear = [nn.Linear(width, 8, bias=False) for width in (4, 8)]
    model = nn.Sequential(linear[0], nn.BatchNorm1d(8), nn.ReLU(), linear[1], nn.BatchNorm1d(8))
    nn.init.uniform_(model[1].weight)
    model[4].track_running_stats = False
    loader = [torch.randn(16, 4) for _ in range(3)]
    diagnosis = gb.check(model, loader=loader)
    assert codes(diagnosis) == [("GB106", "4")]
    assert diagnosis.fix().changed == ["4"]
    assert model[4].track_running_stats
    assert (model[4].running_mean == 0).all()
    assert codes(gb.check(model, loader=loader)) == []


def test_an_epsilon_of_zero_in_evaluation_stops_nothing():
    model, loader = poisoned()
    model[1].eps = 0.0
    change = gb.check(model, loader=loader).fix()
    assert change.changed == ["1", "4"]
    assert change.left["1"].startswith("GB306 unusual-epsilon: by hand: keep what the model was trained with")
    assert model[1].eps == 0.0
    expected = torch.cat(loader) @ model[0].weight.T + model[0].bias
    # Exact moments of float32 values.
    torch.testing.assert_close(model[1].running_mean, expected.mean(0), rtol=0, atol=1e-6)


def unusual_norms():
    norm = nn.BatchNorm1d(8)
    norm.weight.requires_grad_(False)
    frozen = nn.Sequential(norm)
    gb.freeze(frozen)
    return {"an InstanceNorm": nn.InstanceNorm1d(8, track_running_stats=True), "a frozen one": frozen[0]}


@pytest.mark.parametrize("which", ["an InstanceNorm", "a frozen one"])
def test_norms_that_recalibrate_does_not_take_are_left_and_the_others_recalibrated(which):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), unusual_norms()[which]).eval()
    model[1].running_var[3] = model[2].running_var[3] = float("nan")
    diagnosis = gb.check(model, loader=[torch.randn(8, 4, 5)], select="GB102")
    change = diagnosis.fix()
    assert change.changed == ["1"]
    assert change.left["2"].startswith(
        "GB102 poisoned-statistics: by hand: load right statistics from a checkpoint; gammabeta.recalibrate does not "
        "take it: "
    )
    assert model[1].running_var.isfinite().all()


def test_channels_that_are_never_finite_are_told():
    model, loader = poisoned()

    def checked():
        """Check while the weights are finite: otherwise the check does not offer to recalibrate."""
        model[0].weight.data[3] = 1.0
        diagnosis = gb.check(model, loader=loader, select="GB102")
        model[0].weight.data[3] = float("nan")
        return diagnosis

    change = checked().fix()
    assert change.entries[-1].what == "recalibrated but for 1 channel that was never finite"
    model[1].running_mean[2:4] = float("nan")
    change = checked().fix()
    assert change.left["1"] == "GB102 poisoned-statistics: no batch gives some of its channels a finite input"
    model[1].requires_grad_(False)
    model[1].running_mean[3] = float("nan")
    diagnosis, before = checked(), bits(model)
    change = diagnosis.fix()
    assert change.changed == []
    assert change.left["1"] == (
        "GB102 poisoned-statistics: no batch gives a finite input to the channels whose statistics are not finite: "
        "hand a loader whose batches give it finite inputs"
    )
    assert bits(model) == before
    model[1].running_mean[2] = float("inf")
    change = checked().fix()
    assert change.entries[-1].what == "recalibrated in 1 of 8 channels; no batch gives the other 1 a finite input"


def test_of_a_frozen_norm_s_statistics_only_the_poisoned_channels_change():
    model, loader = poisoned()
    model[1].requires_grad_(False)
    model[1].running_mean[3:].normal_()
    model[1].running_var[5] = -1.0
    before = copy.deepcopy(model.state_dict())
    change = gb.check(model, loader=loader, select="GB102").fix()
    assert change.entries[0].what == "recalibrated in 2 of 8 channels"
    kept = [0, 1, 3, 4, 6, 7]
    for key, value in model.state_dict().items():
        same = value[kept] if key in ("1.running_mean", "1.running_var") else value
        assert torch.equal(same, before[key][kept] if same is not value else before[key]), key
    expected = torch.cat(loader) @ model[0].weight.T + model[0].bias
    # Exact moments of float32 values.
    torch.testing.assert_close(model[1].running_var[5], expected.var(0)[5], rtol=1e-5, atol=0)
    change.undo()
    after = model.state_dict()
    assert all(torch.equal(after[key].nan_to_num(7.0), value.nan_to_num(7.0)) for key, value in before.items())


def test_batches_that_the_model_does_not_take_are_told_and_nothing_changes():
    model, _ = poisoned()
    before = copy.deepcopy(model.state_dict())
    change = gb.check(model, torch.randn(16, 4), loader=[torch.randn(16, 5)], select="GB102").fix()
    assert change.changed == []
    assert change.left["1"].startswith("GB102 poisoned-statistics: could not be applied (RuntimeError: mat1 and mat2")
    assert all(torch.equal(v.nan_to_num(7.0), before[k].nan_to_num(7.0)) for k, v in model.state_dict().items())


def test_a_layer_that_a_single_sample_reaches_does_not_stop_the_others():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.BatchNorm1d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.one(x), self.two(x[:1, :, None, None].expand(1, 4, 2, 2))

    torch.manual_seed(0)
    model = Two().eval()
    model.one.running_mean[0] = model.two.running_mean[0] = float("nan")
    change = gb.check(model, loader=[torch.randn(16, 4)], select="GB102").fix()
    assert change.changed == ["one"]
    assert change.left["two"].startswith("GB102 poisoned-statistics: a single sample reached it")


def test_statistics_that_are_attached_and_cannot_be_estimated_are_taken_away_again():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False)).eval()
    change = gb.check(model, torch.randn(16, 4), loader=[torch.randn(16, 5)], select="GB106").fix(
        keep_checkpoints=False
    )
    assert change.changed == []
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert not model[1].track_running_stats


def test_a_norm_that_is_poisoned_and_thaws_is_recalibrated_and_then_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False), nn.Linear(8, 2))
    model[0][1].running_var[0] = float("inf")
    loader = [torch.randn(16, 4) for _ in range(3)]
    diagnosis = gb.check(model, loader=loader)
    assert [finding.code for finding in diagnosis.errors] == ["GB101", "GB102"]
    change = diagnosis.fix()
    assert change.changed == ["0.1", "0.1"]
    assert gb.check(model, loader=loader).errors == ()


def test_notes_are_fixed_on_demand_and_fixes_that_break_checkpoints_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    average = AveragedModel(model)
    state = copy.deepcopy(model.state_dict())
    diagnosis = gb.check(model, torch.randn(8, 3, 8, 8), select="GB301")
    assert diagnosis.fix().left["0"] == (
        "GB301 bias-before-norm: a note, which fix(notes=True) mends: bias=False in a new model"
    )
    assert "that changes the keys of the state_dict" in diagnosis.fix(notes=True).left["0"]
    model.load_state_dict(state)
    average.update_parameters(model)
    assert str(diagnosis).splitlines()[-1] == ("  diagnosis.fix(notes=True, keep_checkpoints=False) mends GB301 too")
    assert diagnosis.fix(notes=True, keep_checkpoints=False).changed == ["0"]
    assert model[0].bias is None


def test_the_entries_of_a_part_have_the_names_of_the_whole():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    student(torch.randn(16, 4))
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher[0].weight.mul_(0.9)
    both = nn.ModuleDict({"student": student, "ema": teacher})
    diagnosis = gb.check(both, loader=[torch.randn(16, 4)], select="GB108")
    assert "fix: gammabeta.recalibrate(model.get_submodule('ema'), loader, where='1')" in str(diagnosis)
    assert diagnosis.fix().changed == ["ema.1"]


def named(names):
    model = nn.Module()
    for name in names:
        parent = model
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(last, nn.BatchNorm2d(2))
    return model


@pytest.mark.parametrize(
    ("names", "chosen", "text"),
    [
        (["a.x", "a.y", "b.x"], ["a.x", "a.y", "b.x"], ""),
        (["a.x", "a.y", "b.x"], ["a.x"], ", where='a.x'"),
        (["a.x", "a.y", "b.x"], ["a.x", "a.y"], ", where='a.*'"),
        (["a.x", "a.y.z", "a.y.w", "b.x"], ["a.y.z", "a.y.w", "b.x"], ", where=['a.y.*', 'b.x']"),
        (["bn1", "bn2", "body.bn"], ["bn1", "body.bn"], ", where=['bn1', 'body.bn']"),
    ],
)
def test_the_call_that_is_printed_is_about_these_modules_and_no_others(names, chosen, text):
    model = named(names)
    assert where(model, chosen) == text
    if text:
        change = eval(f"gb.freeze(model{text})", {"gb": gb, "model": model})
        assert sorted(change.changed) == sorted(chosen)
    assert is_batch_norm(model.get_submodule(names[0]))


def finding(where, message, what):
    return Finding("GB101", "frozen-norm-thaws", "error", where, message, fix=Fix(what))


def test_fixes_of_rules_that_name_one_module_each_are_one_call():
    group = [finding(f"l.{i}.bn", "it moves", f"gammabeta.adopt(model, where='l.{i}.bn')") for i in range(3)]
    assert advice(group) == ["gammabeta.adopt(model, where=['l.0.bn', 'l.1.bn', 'l.2.bn'])"]
    many = [finding(f"l.{i}.bn", "it moves", f"gammabeta.adopt(model, where='l.{i}.bn')") for i in range(30)]
    assert advice(many) == ['gammabeta.adopt(model, where=[f.where for f in diagnosis.findings if f.code == "GB101"])']
    assert advice([*group, finding("x", "it moves", "something else")])[1] == "something else"


def test_messages_are_put_together_up_to_numbers_lists_and_names():
    messages = [
        "NaN in 1 of 8 channels: 3; 0.5 of net.1.bn in float16 at 1e-05",
        "NaN in 2 of 16 channels: 3; 0.25 of net.2.bn in float16 at 2e-05",
    ]
    (fault,) = faults([finding(f"l.{i}.bn", message, "") for i, message in enumerate(messages)])
    assert fault.message == (
        "NaN in 1 to 2 of 8 to 16 channels: 3; 0.25 to 0.5 of net.1.bn … in float16 at 1e-05 to 2e-05"
    )
    lists = ["channels: 1, 2, 3 and 4 more", "channels: 5, 6"]
    (fault,) = faults([finding(f"l.{i}", message, "") for i, message in enumerate(lists)])
    assert fault.message == "channels: 1, 2, 3 and 4 more …"
    assert len(faults([finding("a", "NaN in float16", ""), finding("b", "NaN in bfloat16", "")])) == 2
    assert len(faults([finding("a", "momentum 0.5", ""), finding("b", "momentum 0.25", "")])) == 1


def test_the_command_line_s_json_is_to_json():
    model, loader = poisoned()
    diagnosis = gb.check(model, loader=loader)
    assert formats.as_json(diagnosis, "m.py:build") == diagnosis.to_json("m.py:build")
    content = json.loads(diagnosis.to_json())
    assert content["target"] is None
    assert content["findings"][0]["code"] == "GB102"


def test_a_fix_that_changes_nothing_is_left_with_its_reasons():
    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), Own(4)).requires_grad_(False), nn.Linear(4, 2))
    change = gb.check(model, select="GB101").fix()
    assert change.changed == []
    assert change.left["0.1"] == (
        "GB101 frozen-norm-thaws: could not be applied (Own has a forward of its own, which would be lost); by hand: "
        "gammabeta.freeze(model, where='0.1')"
    )


def trained(count=3):
    """Return convolutions with BatchNorms in training, after some forwards, and batches."""
    torch.manual_seed(0)
    layers = []
    for i in range(count):
        layers += [nn.Conv2d(8 if i else 3, 8, 3, bias=False, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for _ in range(30):
        model(torch.randn(16, 3, 8, 8))
    return model, [torch.randn(16, 3, 8, 8) for _ in range(4)]


def test_statistics_that_are_not_finite_are_not_frozen_and_training_goes_on():
    model, batches = trained()
    model[:6].requires_grad_(False)
    model[1].running_var[0] = float("nan")
    diagnosis = gb.check(model)
    assert "diagnosis.fix() mends GB101; by hand: the rest of GB101, GB102" in str(diagnosis)
    change = diagnosis.fix()
    assert change.changed == ["4"]
    assert change.left["1"].endswith(
        "GB101 frozen-norm-thaws: mend GB102 poisoned-statistics first: gammabeta.recalibrate(model, batches, "
        "where='1'); then gammabeta.freeze(model, where='1')"
    )
    assert model(batches[0]).isfinite().all()
    gb.recalibrate(model, batches, where="1")
    assert gb.check(model).fix().changed == ["1"]
    assert gb.check(model).errors == ()


def test_a_norm_behind_which_nothing_passes_is_not_frozen_and_what_is_behind_it_not_recalibrated():
    model, batches = trained()
    model[:6].requires_grad_(False)
    model[1].running_mean += 5
    before = model[7].running_var.clone()
    diagnosis = gb.check(model, batches[0], loader=batches)
    assert {"GB101", "GB309", "GB109"} <= {finding.code for finding in diagnosis.findings}
    diagnosis = Diagnosis(tuple(by_hand(finding) for finding in diagnosis.findings))
    change = diagnosis.fix()
    assert change.changed == ["4"]
    assert (
        "GB101 frozen-norm-thaws: mend GB309 constant-output first: by a person; then gammabeta.fr" in change.left["1"]
    )
    assert change.left["7"].startswith(
        "GB109 train-eval-gap: it is behind 1: mend GB309 constant-output first: by a person; then gammabeta.recalibr"
    )
    assert torch.equal(model[7].running_var, before)


def by_hand(finding):
    return replace(finding, fix=Fix("by a person")) if finding.code == "GB309" else finding


def test_a_backbone_that_is_as_constructed_is_not_frozen():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model = nn.Sequential(backbone.requires_grad_(False), nn.Flatten(), nn.Linear(128, 5))
    batch = torch.randn(16, 3, 8, 8) + 3
    change = gb.check(model, batch[..., :8, :8], select=["GB101", "GB113"]).fix()
    assert change.changed == []
    for name in ("0.1", "0.3"):
        assert "GB101 frozen-norm-thaws: mend GB113 frozen-at-initial first: load the checkpoint" in change.left[name]
    gb.recalibrate(model, [batch])
    assert sorted(gb.check(model, batch, select=["GB101", "GB113"]).fix().changed) == ["0.1", "0.3"]


def test_advice_with_other_numbers_is_another_line():
    model = nn.Sequential(nn.Linear(4, 4), *(nn.BatchNorm1d(4, momentum=m) for m in (0.99, 0.9, 0.9)))
    lines = str(gb.check(model, select="GB305")).splitlines()
    assert [line for line in lines if "fix:" in line] == [
        "  fix: momentum=0.01, then gammabeta.recalibrate(model, batches)",
        "  fix: momentum=0.1, then gammabeta.recalibrate(model, batches)",
    ]


def test_a_second_fix_of_a_diagnosis_says_what_is_done_already_and_does_it_again_after_an_undo():
    model, optimizer = faulty()
    diagnosis = gb.check(model, optimizer=optimizer)
    first = diagnosis.fix()
    again = diagnosis.fix()
    assert again.changed == []
    assert [entry.what for entry in again.entries] == [
        "GB101 frozen-norm-thaws: already done",
        "GB305 tensorflow-momentum: already done",
        "GB401 decay-on-norm: already done",
    ]
    first.undo()
    assert sorted(set(diagnosis.fix().changed)) == ["body.1", "stem.1"]


def test_a_layer_without_a_finite_input_is_left_as_it_is_with_the_finding():
    model, loader = poisoned()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    before = bits(model)
    change = gb.check(model, loader=loader, select="GB102").fix()
    assert change.left["1"].startswith("GB102 poisoned-statistics: by hand: mend GB404 first")
    assert bits(model) == before


def test_the_fix_draws_no_random_numbers_from_a_loader_that_shuffles():
    model, loader = poisoned()
    shuffling = torch.utils.data.DataLoader(torch.cat(loader), batch_size=16, shuffle=True)
    diagnosis = gb.check(model, loader=shuffling, select="GB102")
    before = torch.get_rng_state()
    assert diagnosis.fix().changed == ["1"]
    assert torch.equal(torch.get_rng_state(), before)


def test_many_modules_that_no_glob_takes_are_not_listed_in_a_call():
    model = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(40)))
    for i in range(0, 40, 2):
        model[i].requires_grad_(False)
    (line,) = [line for line in str(gb.check(model, select="GB101")).splitlines() if "fix:" in line and "where" in line]
    call = line.partition("fix: ")[2]
    assert call == 'gammabeta.freeze(model, where=[f.where for f in diagnosis.findings if f.code == "GB101"])'
