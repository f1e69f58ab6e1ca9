"""Properties of all rules: their pages, their examples, their fixes."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import RULES

ROOT = Path(__file__).parents[3]
# Rules whose examples need several processes.
SEVERAL = ("GB112", "GB502", "GB503")
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)


@pytest.fixture(autouse=True)
def _in_one_process(request):
    rule = getattr(request.node, "callspec", None) and request.node.callspec.params.get("rule")
    if rule is not None and not request.node.name.startswith("test_evidence") and rule.code in SEVERAL:
        pytest.skip("tests/distributed/test_watch.py and test_local_statistics.py run them in several processes")


def findings(example, rule):
    if example.train is None:
        return gb.check(example.model, select=rule.code, **example.options)
    with gb.watch(example.model, example.optimizer) as watch:
        example.train()
    return watch.diagnosis(select=rule.code)


@every_rule
def test_the_flagged_example_is_found_at_the_right_module_and_nowhere_else(rule):
    torch.manual_seed(0)
    example = rule.flagged()
    diagnosis = findings(example, rule)
    assert {finding.where for finding in diagnosis.findings} == set(example.where)
    assert example.where, "a flagged example names the modules that are found"
    for finding in diagnosis.findings:
        assert (finding.code, finding.name) == (rule.code, rule.name)
        assert finding.message


@every_rule
def test_the_severity_of_the_rule_is_that_of_its_example(rule):
    torch.manual_seed(0)
    assert rule.severity in {finding.severity for finding in findings(rule.flagged(), rule).findings}


@every_rule
def test_the_clean_example_is_not_found(rule):
    torch.manual_seed(0)
    assert findings(rule.clean(), rule).findings == ()


@every_rule
def test_a_fix_removes_the_finding_and_its_undo_brings_it_back(rule):
    torch.manual_seed(0)
    example = rule.flagged()
    if example.train is not None:
        pytest.skip("a watched training cannot be fixed afterwards")
    diagnosis = findings(example, rule)
    if not any(finding.fix is not None and finding.fix.mends for finding in diagnosis.findings):
        pytest.skip("it is fixed by hand")
    before = copy.deepcopy(example.model.state_dict())
    change = diagnosis.fix(notes=True, keep_checkpoints=False)
    assert change.changed
    assert findings(example, rule).findings == ()
    change.undo()
    after = example.model.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        assert torch.equal(after[key].nan_to_num(7.0), value.nan_to_num(7.0)), key
    assert [finding.message for finding in findings(example, rule).findings] == [
        finding.message for finding in diagnosis.findings
    ]


# What is to be done has no call: the architecture changes, or an earlier checkpoint is loaded.
BY_HAND = ("GB302", "GB404", "GB603")
# A call, an argument, or a `with` block.
CODE = re.compile(r"\w\(|\w=\S|`with ")


@every_rule
def test_advice_has_code_to_copy(rule):
    torch.manual_seed(0)
    fixes = [finding.fix.what for finding in findings(rule.flagged(), rule).findings if finding.fix is not None]
    assert fixes
    for what in fixes:
        assert bool(CODE.search(what)) == (rule.code not in BY_HAND), what


def test_advice_for_several_norms_of_tiny_batches_is_one_call_that_can_be_copied():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8)))).train()
    diagnosis = gb.check(model, torch.randn(64, 8), batch_size=4, select="GB202")
    assert len(diagnosis.findings) == 5
    (line,) = [line for line in str(diagnosis).splitlines() if "fix:" in line]
    assert line == (
        '  fix: gammabeta.convert(model, to="group") before training; '
        "gammabeta.set_statistics(model, gammabeta.statistics.Renorm()) in a training that goes on; or a larger batch"
    )
    calls = re.findall(r"gammabeta\.[\w.]+\(.*?\)(?= before| in )", line)
    assert len(calls) == 2
    for call in calls:
        changed = eval(call, {"gammabeta": gb, "model": copy.deepcopy(model)})
        assert len(changed.changed) == 5
    diagnosis = gb.check(
        nn.Sequential(model, nn.BatchNorm1d(8).eval()), torch.randn(64, 8), batch_size=4, select="GB202"
    )
    assert "where='0.*'" in str(diagnosis) or len(diagnosis.findings) == 6


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_page_says_what_makes_the_rule_run(rule):
    ways = {
        "S": "`gammabeta.check(model)` (`gammabeta check my_model.py:build`)",
        "F": "`gammabeta check weights.safetensors`",
        "D": "`gammabeta.check(model, inputs)` (`--inputs`)",
        "W": "`with gammabeta.watch(model, optimizer):`",
        "O": "`gammabeta.check(model, optimizer=optimizer)` (`--optimizer`)",
        "L": "`gammabeta.check(model, loader=loader)` (`--loader`)",
    }
    assert f"\n\nRuns with {' or '.join(ways[letter] for letter in rule.sees)}.\n\n" in rule.page()


# Recalibrating changes statistics, and GB306's fix changes ε: outputs are meant to change.
CHANGE_OUTPUTS = ("GB102", "GB103", "GB106", "GB108", "GB306")


@pytest.mark.parametrize(
    "rule",
    [rule for rule in RULES if set(rule.sees) <= set("SFO") and rule.code not in CHANGE_OUTPUTS],
    ids=lambda rule: rule.code,
)
def test_a_fix_leaves_the_outputs_in_evaluation_as_they_were(rule):
    torch.manual_seed(0)
    example = rule.flagged()
    diagnosis = findings(example, rule)
    if not any(finding.fix is not None and finding.fix.mends for finding in diagnosis.findings):
        pytest.skip("it is fixed by hand")
    weight = next(parameter for parameter in example.model.parameters() if parameter.ndim > 1)
    x = torch.randn(4, weight.shape[1], *[8] * (weight.ndim - 2), dtype=weight.dtype)
    with torch.no_grad():
        for norm in (module for module in example.model.modules() if getattr(module, "running_mean", None) is not None):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        before = copy.deepcopy(example.model).eval()(x)
        diagnosis.fix(notes=True)
        after = copy.deepcopy(example.model).eval()(x)
    assert after.dtype == before.dtype
    # gammabeta's and torch's kernels round differently: a few units in the last place of values of size 5.
    unit = torch.finfo(before.dtype).eps
    torch.testing.assert_close(after, before, rtol=8 * unit, atol=20 * unit)


def test_codes_and_names_are_there_once_and_in_order():
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_every_file_is_in_the_list():
    files = {path.stem for path in (ROOT / "src" / "gammabeta" / "diagnostics" / "rules").glob("[!_]*.py")}
    assert files == {rule.name.replace("-", "_") for rule in RULES}


def test_every_rule_is_in_the_documentation():
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f"\n## {rule.code} {rule.name}\n" in page
        assert f"[{rule.code}](#{rule.code.lower()}-{rule.name})" in page


@every_rule
def test_evidence_names_a_claim_or_a_test_that_is_there(rule):
    evidence = rule.line("Evidence")
    tests = re.findall(r"tests/[\w/]+\.py", evidence)
    claims = re.findall(r"claim (\w+)", evidence)
    assert tests or claims, evidence
    for test in tests:
        assert (ROOT / test).is_file(), test
    for claim in claims:
        assert (ROOT / "src" / "gammabeta" / "lab" / "claims" / f"{claim}.py").is_file(), claim
