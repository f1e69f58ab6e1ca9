"""gammabeta check, explain and rules: exit codes, what is passed on, what is printed, and how they fail."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from tests.counted import Counted
from torch import nn
from typer.testing import CliRunner

from gammabeta.benchmarks.networks import load_timm
from gammabeta.cli import main as cli
from gammabeta.diagnostics.check import check
from gammabeta.diagnostics.rules import RULES

SOURCE = """
import torch
from torch import nn

print("imported")

def good(width=4):
    print("built")
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width)).eval()

def bad():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.99))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    return nn.Sequential(model, nn.Linear(4, 2))

def optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad or True])

def sample():
    return torch.randn(8, 3)

def wrong_sample():
    return torch.randn(8, 5)

loader = [torch.randn(8, 3)]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine_for_cli.py").write_text(SOURCE)
    (tmp_path / "pyproject.toml").write_text("[tool.gammabeta]\n")
    yield tmp_path
    sys.modules.pop("mine_for_cli", None)


def run(*words):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, list(words))


def test_exit_codes_are_0_without_and_1_with_findings_as_grave_as_asked(folder):
    assert run("check", "mine_for_cli.py:good").exit_code == 0
    found = run("check", "mine_for_cli.py:bad")
    assert found.exit_code == 1
    assert "GB101 frozen-norm-thaws  error, 1 module" in found.stdout
    assert "0.1" in found.stdout
    assert run("check", "mine_for_cli.py:bad", "--ignore", "GB101").exit_code == 0  # a warning remains
    assert run("check", "mine_for_cli.py:bad", "--ignore", "GB101", "--fail-on", "warning").exit_code == 1
    ignored = "GB101,GB113,tensorflow-momentum"
    assert run("check", "mine_for_cli.py:bad", "--ignore", ignored, "--fail-on", "note").exit_code == 0


def test_the_mode_can_be_chosen(folder):
    assert run("check", "mine_for_cli.py:bad", "--eval", "--select", "GB101").exit_code == 0
    assert run("check", "mine_for_cli.py:bad", "--train", "--select", "GB101").exit_code == 1


def test_pyproject_says_what_options_do_not(folder):
    (folder / "pyproject.toml").write_text('[tool.gammabeta]\nignore = ["GB101"]\nfail-on = "warning"\n')
    assert run("check", "mine_for_cli.py:bad").exit_code == 1
    assert "GB101" not in run("check", "mine_for_cli.py:bad").stdout
    assert run("check", "mine_for_cli.py:bad", "--fail-on", "error").exit_code == 0
    assert "GB101" in run("check", "mine_for_cli.py:bad", "--ignore", "GB305").stdout


def test_inputs_optimizer_and_loader_are_loaded_and_handed_on(folder):
    words = ("--inputs", "mine_for_cli.py:sample", "--optimizer", "mine_for_cli.py:optimizer")
    result = run("check", "mine_for_cli.py:good", *words, "--loader", "mine_for_cli.py:loader", "--format", "json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [(found["code"], found["where"]) for found in content["findings"] if found["code"] == "GB401"] == [
        ("GB401", "1")
    ]
    assert "the optimizer" not in content["not run"]


@pytest.mark.parametrize("output", ["json", "sarif"])
def test_what_targets_print_does_not_stand_in_the_output(folder, output):
    done = subprocess.run(
        [sys.executable, "-m", "gammabeta", "check", "mine_for_cli.py:good(5)", "--format", output],
        capture_output=True, text=True, timeout=120, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "built" in done.stderr


def test_github_s_format_names_the_file(folder):
    lines = run("check", "mine_for_cli.py:bad", "--format", "github").stdout.splitlines()
    assert lines[0].startswith("::error file=mine_for_cli.py,line=11,title=GB101 frozen-norm-thaws::0.1: γ and β")


def test_a_checkpoint_is_checked_by_its_keys(folder):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].running_var[0] = -1
    torch.save(model.state_dict(), folder / "weights.pt")
    result = run("check", "weights.pt")
    assert result.exit_code == 1
    assert "GB102 poisoned-statistics  error" in result.stdout
    sarif = json.loads(run("check", "weights.pt", "--format", "sarif").stdout)
    place = sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "weights.pt", "uriBaseId": "%SRCROOT%"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "nothing: expected package.module:name or file.py:name, either with literal arguments in "
                       "parentheses, or a checkpoint file."),
        (("absent.pt",), "absent.pt: there is no such file."),
        (("mine_for_cli.py:nothing",), "mine_for_cli.py:nothing: mine_for_cli has no nothing."),
        (("mine_for_cli.py:good", "--select", "XY9"), "select: expected codes or names of rules, or prefixes of "
                                                      "codes, got 'XY9': `gammabeta rules` lists all rules."),
        (("mine_for_cli.py:good", "--fail-on", "fatal"), "--fail-on: expected error, warning or note, got 'fatal'."),
        (("mine_for_cli.py:good", "--format", "xml"), "--format: expected text, json, sarif, github, got 'xml'."),
        (("mine_for_cli.py:good", "--batch-size", "0"), "check: expected batch_size of 1 or more, got 0."),
        (
            ("mine_for_cli.py:good", "--batch-size", "2"),
            "check: expected --inputs or --loader beside --batch-size 2, got neither: only a forward shows how many "
            "values of a sample each norm sees.",
        ),
        (("mine_for_cli.py:good", "--intent", "fun"), "check: expected intent as one of contrastive, gradient-penalty, "
                                                      "private, memory, got 'fun'."),
        (("mine_for_cli.py:good", "--optimizer", "mine_for_cli.py:sample"), "check: expected optimizer as a "
         "torch.optim.Optimizer or a list of them, got a Tensor."),
        (("mine_for_cli.py:good", "--inputs", "mine_for_cli.py:wrong_sample"), "check: expected inputs that the model "
         "takes, got tensors of shapes (8, 5), on which its forward raised RuntimeError: mat1 and mat2 shapes cannot "
         "be multiplied (8x5 and 3x4)"),
        (("weights.bin", "--inputs", "mine_for_cli.py:sample"), "weights.bin: a checkpoint has no model that --inputs "
                                                                "could be for."),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_one_sentence_and_exit_code_2(folder, words, message):
    result = run("check", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert [line for line in result.stderr.splitlines() if line not in ("imported", "built")] == [
        f"gammabeta: {message}"
    ]


def test_a_wrong_table_is_one_sentence_too(folder):
    (folder / "pyproject.toml").write_text("[tool.gammabeta]\nselekt = []\n")
    result = run("check", "mine_for_cli.py:good")
    assert result.exit_code == 2
    assert "has an unknown key selekt: did you mean select?" in result.stderr


def test_a_bug_of_the_check_is_not_dressed_up_as_the_user_s_mistake(folder, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("gammabeta.cli.inspection.check", broken)
    result = run("check", "mine_for_cli.py:good")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("gammabeta: this should not have happened (ZeroDivisionError): ")
    for words in (("check", "mine_for_cli.py:good", "--debug"), ("--debug", "check", "mine_for_cli.py:good")):
        result = run(*words)
        assert result.exit_code == 3
        assert "Traceback" in result.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_is_explained_with_its_examples(rule):
    text = run("explain", rule.code).stdout
    assert f"{rule.code} {rule.name}" in text
    for heading in ("What it does", "Why it matters", "Use instead", "Evidence", "Limits"):
        assert heading in text
    assert "nn." in text
    assert run("explain", rule.name).stdout == text


def test_a_rule_that_there_is_not():
    result = run("explain", "frozen-norm-thaw")
    assert result.exit_code == 2
    assert result.stderr.endswith("got 'frozen-norm-thaw': did you mean frozen-norm-thaws?\n")


@pytest.mark.parametrize("text", ["GB1", "gb1", "GB60"])
def test_the_beginning_of_a_code_proposes_the_codes_that_begin_so(text):
    result = run("explain", text)
    assert result.exit_code == 2
    codes = [rule.code for rule in RULES if rule.code.startswith(text.upper())]
    shown = ", ".join(codes[:12]) + (f" and {len(codes) - 12} more" if len(codes) > 12 else "")
    assert result.stderr.endswith(f"got {text!r}, with which {shown} begin: name one of them.\n")


def test_rules_lists_every_rule():
    lines = run("rules").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [[rule.code, rule.name, rule.severity] for rule in RULES]


def test_help_names_the_commands_and_their_options():
    text = run("--help").stdout
    assert all(name in text for name in ("check", "explain", "rules"))
    text = run("check", "--help").stdout
    for option in (
        "--inputs",
        "--loader",
        "--optimizer",
        "--batch-size",
        "--intent",
        "--select",
        "--ignore",
        "--fail-on",
    ):
        assert option in text


def test_a_resnet_50_is_checked_with_a_few_operations_for_each_norm():
    if any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")):
        pytest.skip("timm and torchvision are not installed")
    model = load_timm().create_model("resnet50")
    with Counted() as counted:
        assert check(model).norms == 53
    assert counted.operations < 53 * 150
