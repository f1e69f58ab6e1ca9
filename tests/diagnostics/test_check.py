"""The check: what runs, what is ignored, what it prints, and that the model stays as it was."""

import copy
import pickle

import pytest
import torch
from tests.counted import Counted
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.check import ForwardError, diagnose
from gammabeta.diagnostics.record import record_model
from gammabeta.diagnostics.rules import RULES
from gammabeta.introspection.norms import kind_of


def faulty():
    """Return a model with a frozen stem in training mode, TensorFlow's momentum, and weight decay on everything."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).requires_grad_(False)
    model.stem[1].running_mean.fill_(0.1)  # as trained before
    model.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=0.99))
    return model, torch.optim.AdamW(model.parameters(), weight_decay=0.1)


def codes(diagnosis):
    return [(finding.code, finding.where) for finding in diagnosis.findings]


def test_errors_come_first_and_what_was_not_run_is_said():
    model, optimizer = faulty()
    diagnosis = gb.check(model, optimizer=optimizer)
    assert codes(diagnosis) == [("GB101", "stem.1"), ("GB305", "body.1"), ("GB401", "body.1")]
    assert [finding.code for finding in diagnosis.errors] == ["GB101"]
    assert [finding.code for finding in diagnosis.warnings] == ["GB305", "GB401"]
    assert diagnosis.notes == ()
    assert diagnosis.norms == 2
    assert "GB401" in gb.check(model).idle["the optimizer"]


def test_it_prints_by_rule_with_modules_numbers_and_fixes():
    model, optimizer = faulty()
    diagnosis = gb.check(model, optimizer=optimizer, select=["GB101", "GB305", "GB401"])
    assert str(diagnosis) == (
        "GB101 frozen-norm-thaws (error, 1 module)\n"
        "  stem.1  γ and β require no gradient and neither do the weights before it, yet it is in training mode: every "
        "forward moves its running statistics 0.1 of the way to the batch's\n"
        "  fix: gammabeta.freeze(model, where='stem.1')\n\n"
        "GB305 tensorflow-momentum (warning, 1 module)\n"
        "  body.1  momentum 0.99: 0.99 of the running statistics come from the last batch; in TensorFlow's convention "
        "that would be torch's 0.01\n"
        "  fix: momentum=0.01, then gammabeta.recalibrate(model, batches)\n\n"
        "GB401 decay-on-norm (warning, 1 module)\n"
        "  body.1  weight decay of 0.1 on weight and 0.1 on bias\n"
        "  fix: build the optimizer with gammabeta.parameter_groups(model, weight_decay=0.1), before its scheduler\n\n"
        "1 error, 2 warnings at 2 modules: 3 rules, 2 norms\n"
        "  diagnosis.fix() mends GB101, GB305, GB401"
    )
    assert repr(diagnosis) == str(diagnosis)
    assert str(diagnosis.errors[0]).startswith("stem.1: GB101 frozen-norm-thaws: γ and β")


def test_a_model_without_findings_says_so():
    diagnosis = gb.check(nn.Linear(2, 2), select="GB1")
    assert str(diagnosis).splitlines()[0] == "nothing found, as there are no norms: 8 of 14 rules"


def test_what_differs_only_in_modules_and_numbers_is_one_line_and_one_fault():
    model = nn.Sequential(*(nn.BatchNorm2d(2, momentum=0.9 + i / 1000) for i in range(20)))
    diagnosis = gb.check(model, select="GB305")
    text = str(diagnosis)
    assert "GB305 tensorflow-momentum (warning, 20 modules)" in text
    assert "  0, 1 and 18 more  momentum 0.9 to 0.919: 0.9 to 0.919 of the running statistics come from" in text
    assert "1 warning at 20 modules: 1 rule, 20 norms" in text
    assert text.splitlines()[2:5] == [
        "  fix: momentum=0.1, then gammabeta.recalibrate(model, batches)",
        "  fix: momentum=0.099, then gammabeta.recalibrate(model, batches)",
        "  fix: … and 18 more like these",
    ]
    assert len(text.splitlines()) == 8


def test_what_was_not_run_is_one_line_for_each_thing_to_give():
    lines = str(gb.check(nn.BatchNorm2d(3))).splitlines()[1:]
    assert len(lines) == 4
    assert lines[0].endswith(" rules skipped without inputs: gammabeta.check(model, inputs)")
    assert lines[3] == "  2 rules skipped without the optimizer: gammabeta.check(model, optimizer=optimizer)"


def test_select_and_ignore_take_codes_beginnings_names_and_globs():
    model, optimizer = faulty()
    assert codes(gb.check(model, optimizer=optimizer, select="GB4")) == [("GB401", "body.1")]
    assert codes(gb.check(model, optimizer=optimizer, select=["frozen-norm-thaws"])) == [("GB101", "stem.1")]
    assert codes(gb.check(model, optimizer=optimizer, ignore=["GB1", "GB305:body.*"])) == [("GB401", "body.1")]
    ignored = gb.check(model, optimizer=optimizer, ignore="*:body*").ignored
    assert [(finding.code, reason) for finding, reason in ignored] == [
        ("GB305", "by ignore=*:body*"),
        ("GB401", "by ignore=*:body*"),
    ]


def test_a_module_is_ignored_with_a_reason_also_in_copies_and_pickles():
    model, _ = faulty()
    gb.ignore(model.stem, "frozen-norm-thaws", reason="adapts to the domain")
    for version in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        diagnosis = gb.check(version, select="GB101")
        assert diagnosis.findings == ()
        ((finding, reason),) = diagnosis.ignored
        assert (finding.where, reason) == ("stem.1", "adapts to the domain")
        assert str(diagnosis).startswith("nothing found (1 ignored)")
    clone = copy.deepcopy(model)
    gb.ignore(clone.stem, "GB305", reason="of the copy alone")
    assert gb.check(clone, select="GB101").ignored
    assert "GB305" not in vars(model.stem)["_gammabeta_ignored"]


def test_the_model_is_left_exactly_as_it_was():
    model, optimizer = faulty()
    model.body[1].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    attributes = [{key: id(value) for key, value in vars(module).items()} for module in model.modules()]
    groups = copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()
    gb.check(model, torch.randn(2, 3, 8, 8), optimizer=optimizer)
    random_after = torch.get_rng_state()
    torch.set_rng_state(random)
    torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), random_after), "only the test itself drew random numbers"
    assert [{key: id(value) for key, value in vars(module).items()} for module in model.modules()] == attributes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(optimizer.state_dict()) == str(groups)


def test_a_forward_that_raises_is_told_with_the_shapes_and_leaves_the_model():
    model, _ = faulty()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ForwardError) as caught:
        gb.check(model, torch.randn(2, 4, 8, 8))
    assert str(caught.value).startswith(
        "check: expected inputs that the model takes, got tensors of shapes (2, 4, 8, 8), on which its forward raised "
        "RuntimeError: Given groups=1"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((nn.ReLU,), {}, "check: expected model as a torch.nn.Module, got the class ReLU: pass an instance."),
        ((3,), {}, "check: expected model as a torch.nn.Module, got a int."),
        ((nn.ReLU(),), {"batch_size": 0}, "check: expected batch_size of 1 or more, got 0."),
        ((nn.ReLU(),), {"batch_size": 2.0}, "check: expected batch_size as a number of samples, got a float."),
        (
            (nn.ReLU(),),
            {"batch_size": 2},
            "check: expected inputs or a loader beside batch_size=2, got neither: only a forward shows how many values "
            "of a sample each norm sees.",
        ),
        (
            (nn.ReLU(),),
            {"intent": "fun"},
            "check: expected intent as one of contrastive, gradient-penalty, private, memory, got 'fun'.",
        ),
        (
            (nn.ReLU(),),
            {"optimizer": [1]},
            "check: expected optimizer as a torch.optim.Optimizer or a list of them, got a int.",
        ),
        (
            (nn.ReLU(),),
            {"select": "GB40l"},
            "select: expected codes or names of rules, or prefixes of codes, got 'GB40l': did you mean GB40",
        ),
        (
            (nn.ReLU(),),
            {"ignore": "decay-on-norms:x"},
            "ignore: expected codes or names of rules, or prefixes of codes, got 'decay-on-norms': did you mean "
            "decay-on-norm",
        ),
    ],
)
def test_what_it_cannot_do_with_is_refused(arguments, options, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        gb.check(*arguments, **options)
    assert str(caught.value).startswith(message)


def test_ignoring_needs_a_rule_and_a_reason():
    module = nn.ReLU()
    with pytest.raises(ValueError, match=r"^ignore: expected a reason for ignoring GB101, got '': say why it is right"):
        gb.ignore(module, "GB101", reason="")
    with pytest.raises(
        ValueError, match=r"^ignore: expected the code or name of a rule, such as GB101 or frozen-norm-thaws"
    ):
        gb.ignore(module, "GB999", reason="x")
    assert "_gammabeta_ignored" not in vars(module)


class LlamaRMSNorm(nn.Module):
    """A norm as transformers defines it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = 1e-6


class NormalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.BatchNorm1d(2), "batch"), (nn.SyncBatchNorm(2), "batch"), (gb.BatchNorm2d(2), "batch"),
        (nn.InstanceNorm2d(2), "instance"), (nn.GroupNorm(1, 2), "group"), (nn.LayerNorm(2), "layer"),
        (nn.RMSNorm(2), "rms"), (LlamaRMSNorm(2), "rms"), (NormalHead(), None), (nn.Linear(2, 2), None),
        (nn.LocalResponseNorm(2), None),
    ],
)  # fmt: skip
def test_norms_are_told_by_class_or_by_name_and_size(module, kind):
    assert kind_of(module) == kind
    record = record_model(nn.Sequential(module))
    assert [norm.kind for norm in record.norms] == ([kind] if kind else [])


def test_a_shared_norm_is_one_norm_with_two_names():
    norm = nn.LayerNorm(2)
    (found,) = record_model(nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})).norms
    assert found.names == ("a", "b.0")


def test_lazy_parametrized_and_scripted_models_can_be_checked():
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    parametrized = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    nn.utils.parametrizations.spectral_norm(parametrized[0])
    nn.utils.parametrize.register_parametrization(parametrized[1], "weight", nn.ReLU())
    meta = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.BatchNorm1d(4, device="meta"))
    for model in (lazy, parametrized, meta, torch.jit.script(nn.Sequential(nn.BatchNorm1d(4)))):
        assert gb.check(model).errors == ()


def test_rules_are_functions_of_the_record_alone():
    model, optimizer = faulty()
    record = record_model(model, optimizers=(optimizer,))
    first = [str(finding) for finding in diagnose(record).findings]
    assert first == [str(finding) for finding in diagnose(record).findings]


def test_fifty_norms_are_checked_with_a_few_operations_each():
    """Check a model of the size of a ResNet-50: 53 norms, 25 million weights."""
    layers = []
    for i in range(53):
        layers += [nn.Conv2d(256, 256, 3 if i % 3 else 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    with Counted() as counted:
        diagnosis = gb.check(model, optimizer=optimizer)
    assert counted.operations < 53 * 150  # 100 of each were counted
    assert len(diagnosis.findings) == 53


def test_every_rule_that_sees_a_model_survives_an_empty_one():
    for rule in RULES:
        assert gb.check(nn.Module(), select=rule.code).findings == ()


def test_an_optimizer_of_another_model_is_refused():
    model, other = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="none of which is the model's") as error:
        gb.check(model, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    assert str(error.value) == (
        "check: expected an optimizer of the model's parameters, got 2 parameters, none of which is the model's: was "
        "it made from another model, or before this one was copied? It trains nothing here."
    )
    both = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, other)]
    assert gb.check(model, optimizer=both).errors == ()


@pytest.mark.parametrize("error", [MemoryError("no room"), FileNotFoundError("table.bin")])
def test_a_forward_that_lacks_memory_or_a_file_is_no_fault_of_its_inputs(error):
    class Lacking(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(3)

        def forward(self, x):
            raise error

    with pytest.raises(RuntimeError, match="expected a forward that runs, got one that raised") as caught:
        gb.check(Lacking(), torch.randn(2, 3))
    assert str(error) in str(caught.value)
