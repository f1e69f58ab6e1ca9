"""Output formats of a diagnosis."""

import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

import gammabeta as gb
from gammabeta.cli import formats
from gammabeta.diagnostics.findings import Diagnosis, Finding, Fix
from gammabeta.diagnostics.rules import CODES


@pytest.fixture
def diagnosis():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.99), nn.BatchNorm2d(4, 0.5))
    model[1].running_mean[1] = float("nan")
    gb.ignore(model[2], "GB306", reason="ported, as it was")
    return gb.check(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), ignore="GB4")


def test_text_has_rules_modules_numbers_and_what_to_do(diagnosis):
    out = io.StringIO()
    formats.show(diagnosis, Console(file=out, width=120, no_color=True))
    text = out.getvalue()
    assert "GB102 poisoned-statistics  error, 1 module\n" in text
    assert "running mean NaN in 1 of 4 channels: 1" in text
    assert "fix  gammabeta.recalibrate(model, batches, where='1')" in text
    assert "ignored: 2 GB306 unusual-epsilon: ported, as it was" in text
    able = sum(not code.startswith("GB4") for code in CODES)
    assert f"1 error, 1 warning at 1 module (1 ignored): {len(diagnosis.rules)} of {able} rules, 2 norms" in text
    assert text.index("GB102") < text.index("GB305")


def test_text_of_module_names_is_no_markup():
    finding = Finding("GB101", "frozen-norm-thaws", "error", "[bold]x[/]", "message [red]", fix=Fix("f[0]"))
    out = io.StringIO()
    formats.show(Diagnosis((finding,)), Console(file=out, width=120))
    assert "[bold]x[/]  message [red]" in out.getvalue()


def test_json_has_everything_and_is_json(diagnosis):
    content = json.loads(formats.as_json(diagnosis, "m.py:build"))
    assert content["target"] == "m.py:build"
    assert content["norms"] == 2
    first = content["findings"][0]
    assert first == {
        "code": "GB102",
        "name": "poisoned-statistics",
        "severity": "error",
        "where": "1",
        "message": "running mean NaN in 1 of 4 channels: 1",
        "evidence": {"running mean NaN": 1},
        "fix": "gammabeta.recalibrate(model, batches, where='1'); given loader=, the fix does it",
    }
    assert [(found["code"], found["reason"]) for found in content["ignored"]] == [("GB306", "ported, as it was")]
    assert content["rules"] == list(diagnosis.rules)


def test_json_of_numbers_that_json_has_not():
    finding = Finding("GB101", "n", "error", "", "m", {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": None})
    content = json.loads(formats.as_json(Diagnosis((finding,)), "t"), parse_constant=pytest.fail)
    assert content["findings"][0]["evidence"] == {"a": "nan", "b": "inf", "c": 1.5, "d": None}


def test_sarif_says_what_the_standard_requires(diagnosis):
    content = json.loads(formats.as_sarif(diagnosis, "src/m.py", 12))
    assert content["version"] == "2.1.0"
    (run,) = content["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(diagnosis.rules)
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in rules)
    results = run["results"]
    for result in results:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        (location,) = result["locations"]
        assert location["physicalLocation"] == {
            "artifactLocation": {"uri": "src/m.py", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 12, "startColumn": 1, "endLine": 12, "endColumn": 1},
        }
    assert [(r["ruleId"], r["level"], "suppressions" in r) for r in results] == [
        ("GB102", "error", False),
        ("GB305", "warning", False),
        ("GB306", "warning", True),
    ]
    assert results[0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "1"
    assert results[0]["message"]["text"].startswith("1: running mean NaN in 1 of 4 channels: 1. Fix: gammabeta.recal")


def test_github_s_commands_are_escaped():
    finding = Finding("GB101", "a-name", "note", "x", "50 % of\nall: it, is", fix=None)
    lines = formats.as_github(Diagnosis((finding,)), "a,b:c.py", 3).splitlines()
    assert lines[0] == "::notice file=a%2Cb%3Ac.py,line=3,title=GB101 a-name::x: 50 %25 of%0Aall: it, is."
    assert lines[1] == "1 note at 1 module: 0 rules, 0 norms"
