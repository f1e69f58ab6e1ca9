"""SARIF: the standard's schema, GitHub's rules for what it takes, and where in a repository a finding is shown.

`sarif-2.1.0-rtm.5.json` is the OASIS SARIF committee's schema as SchemaStore publishes it (Apache-2.0), taken from the
npm package @microsoft/jest-sarif 1.0.0-beta.0 (MIT). GitHub's rules are those of "SARIF support for code scanning" in
its documentation, and of the errors that its upload gives.
"""

import json
import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gammabeta as gb
from gammabeta.cli import formats, sarif
from gammabeta.cli import main as cli
from gammabeta.cli.places import place_of
from gammabeta.diagnostics.findings import Diagnosis, Finding
from gammabeta.diagnostics.rules import RULES

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8"))
MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.99), nn.BatchNorm2d(4, 0.5))
"""


def complaints(text):
    """What the standard's schema and GitHub's upload would say against a document."""
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    jsonschema.validate(content, SCHEMA, cls=jsonschema.Draft4Validator)
    found = []
    if content["version"] != "2.1.0" or not content["$schema"] or not 1 <= len(content["runs"]) <= 20:
        found.append("log")
    for run in content["runs"]:
        driver = run["tool"]["driver"]
        found += [f"driver without {key}" for key in ("name", "rules") if key not in driver]
        found += [f"{len(run['results'])} results"] * (len(run["results"]) > 25_000)
        found += [text for rule in driver["rules"] for text in _against_rule(rule)]
        ids = [rule["id"] for rule in driver["rules"]]
        for result in run["results"]:
            found += _against_result(result)
            if ids[result["ruleIndex"]] != result["ruleId"]:
                found.append("ruleIndex")
        hashes = [result["partialFingerprints"]["primaryLocationLineHash"] for result in run["results"]]
        found += ["two results that GitHub takes for one"] * (len(set(hashes)) < len(hashes))
    return found


def _against_rule(rule):
    for name in ("shortDescription", "fullDescription", "help"):
        if not rule[name]["text"]:
            yield f"rule without {name}"
        if name != "help" and len(rule[name]["text"]) > 1024:
            yield f"long {name}"
    if not rule["id"] or len(rule["name"]) > 255 or len(rule["properties"]["tags"]) > 10:
        yield "rule"
    if rule["properties"]["precision"] not in ("very-high", "high", "medium", "low"):
        yield "precision"
    if rule["properties"]["problem.severity"] not in ("error", "warning", "recommendation"):
        yield "problem.severity"
    if rule["defaultConfiguration"]["level"] not in ("note", "warning", "error"):
        yield "level of a rule"


def _against_result(result):
    if not result["message"]["text"] or result["level"] not in ("note", "warning", "error"):
        yield "result"
    if not 1 <= len(result["locations"]) <= 10:
        yield "expected at least one location"
    for location in result["locations"]:
        if "physicalLocation" not in location:
            yield "expected a physical location"
            continue
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        region = location["physicalLocation"]["region"]
        if not re.fullmatch(r"(?:[A-Za-z0-9\-._~/]|%[0-9A-F]{2})+", uri):
            yield f"URI {uri} is not encoded"
        parts = PurePosixPath(urllib.parse.unquote(uri)).parts
        if uri.startswith("/") or ".." in parts or "." in parts or urllib.parse.urlsplit(uri).scheme:
            yield f"URI {uri} is not relative to the root"
        if any(region[key] < 1 for key in ("startLine", "startColumn", "endLine", "endColumn")):
            yield "region"
        if (region["endLine"], region["endColumn"]) < (region["startLine"], region["startColumn"]):
            yield "region that ends before it begins"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with a model in it, as the working directory."""
    root = tmp_path / "a repo"
    (root / ".git").mkdir(parents=True)
    (root / "src").mkdir()
    (root / "src" / "net.py").write_text(MODEL)
    (root / "pyproject.toml").write_text('[project]\nname = "x"\n\n[tool.gammabeta]\n')
    monkeypatch.chdir(root)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    return root


def run(*words):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, list(words))


def uris(document):
    content = json.loads(document)
    places = [result["locations"][0]["physicalLocation"] for result in content["runs"][0]["results"]]
    return {(place["artifactLocation"]["uri"], place["region"]["startLine"]) for place in places}


def bad(path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].running_var[0] = -1
    torch.save(model.state_dict(), path)


def test_a_diagnosis_is_taken():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.99), nn.BatchNorm2d(4, 0.5))
    gb.ignore(model[2], "GB306", reason="ported")
    diagnosis = gb.check(model, torch.randn(4, 3, 8, 8), optimizer=torch.optim.AdamW(model.parameters()))
    assert len(diagnosis.findings) > 2
    assert complaints(formats.as_sarif(diagnosis, "src/m.py", 12, ["left out: 3 quantized tensors"])) == []
    assert complaints(formats.as_sarif(Diagnosis(()), None, 1)) == []


def test_every_rule_and_odd_texts_are_taken():
    codes = tuple(rule.code for rule in RULES)
    texts = ["x", 'ü "quoted" \\ \n new line', "\ud800 lone", "{0} [link](https://x)", "\x1b[2J", "a" * 5000]
    findings = [Finding(code, "n", "note", text, text, {"γ": float("nan")}) for code in codes for text in texts]
    # A rule may have two findings at one module, which are two alerts.
    document = formats.as_sarif(Diagnosis((*findings, findings[0]), rules=codes), "m.py", 1)
    assert complaints(document) == []
    assert document.isascii()


def test_more_results_than_github_takes_are_cut(monkeypatch):
    assert sarif._MOST_RESULTS == 25_000
    monkeypatch.setattr(sarif, "_MOST_RESULTS", 1000)  # the schema's validation is slow
    findings = tuple(Finding("GB101", "n", "error", f"layer{i}", "m") for i in range(1010))
    document = formats.as_sarif(Diagnosis(findings, rules=("GB101",)), "m.py", 1)
    assert complaints(document) == []
    (run,) = json.loads(document)["runs"]
    assert len(run["results"]) == 1000
    (note,) = run["invocations"][0]["toolExecutionNotifications"]
    assert note["message"]["text"] == "10 findings are left out: code scanning takes 1,000."


@pytest.mark.parametrize("folder", [".", "src", "experiments/deep"])
def test_a_model_is_shown_relative_to_the_root_from_any_folder(repository, monkeypatch, folder):
    (repository / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(repository / folder)
    target = f"{os.path.relpath(repository / 'src' / 'net.py')}:build"
    document = run("check", target, "--format", "sarif").stdout
    assert complaints(document) == []
    assert uris(document) == {("src/net.py", 4)}
    lines = run("check", target, "--format", "github").stdout.splitlines()
    assert lines[0].startswith("::warning file=src/net.py,line=4,title=GB")


@pytest.mark.parametrize(
    ("name", "uri", "escaped"),
    [
        ("my net.py", "my%20net.py", "my net.py"),
        ("größe#1.py", "gr%C3%B6%C3%9Fe%231.py", "größe#1.py"),
        ("50%,a b.py", "50%25%2Ca%20b.py", "50%25%2Ca b.py"),
        ("what?&[1].py", "what%3F%26%5B1%5D.py", "what?&[1].py"),
    ],
)
def test_names_are_encoded(repository, name, uri, escaped):
    (repository / "src" / name).write_text(MODEL)
    document = run("check", f"src/{name}:build", "--format", "sarif").stdout
    assert complaints(document) == []
    assert uris(document) == {(f"src/{uri}", 4)}
    assert f" file=src/{escaped},line=4," in run("check", f"src/{name}:build", "--format", "github").stdout


def test_a_checkpoint_with_a_colon_in_its_name_is_a_file(repository):
    bad("epoch=3:loss=0.1.pt")
    document = run("check", "epoch=3:loss=0.1.pt", "--format", "sarif").stdout
    assert complaints(document) == []
    assert uris(document) == {("epoch%3D3%3Aloss%3D0.1.pt", 1)}
    assert "::error file=epoch=3%3Aloss=0.1.pt," in run("check", "epoch=3:loss=0.1.pt", "--format", "github").stdout


def outside_of(kind, repository, monkeypatch):
    """A target that is not in the repository, and its name in the message."""
    if kind == "a checkpoint elsewhere":
        bad(repository.parent / "elsewhere.pt")
        return str(repository.parent / "elsewhere.pt"), "elsewhere.pt"
    if kind == "above":
        bad(repository.parent / "above.pt")
        return "../above.pt", "above.pt"
    installed = (repository if kind == "in the root" else repository.parent) / "lib" / "site-packages"
    (installed / "somebodys").mkdir(parents=True)
    (installed / "somebodys" / "__init__.py").write_text("")
    (installed / "somebodys" / "net.py").write_text(MODEL)
    monkeypatch.syspath_prepend(installed)
    return "somebodys.net:build", "somebodys/net.py"


@pytest.mark.parametrize("kind", ["a checkpoint elsewhere", "above", "installed", "in the root"])
def test_what_is_outside_of_the_repository_is_shown_at_its_settings(repository, monkeypatch, kind):
    target, name = outside_of(kind, repository, monkeypatch)
    found = run("check", target, "--format", "sarif")
    for module in ("somebodys", "somebodys.net"):
        sys.modules.pop(module, None)
    assert complaints(found.stdout) == []
    assert uris(found.stdout) == {("pyproject.toml", 4)}
    result = json.loads(found.stdout)["runs"][0]["results"][0]
    assert result["locations"][0]["message"]["text"] == f"The target is not in the repository: it is {name}."
    assert str(repository.parent) not in found.stdout
    line = run("check", target, "--format", "github").stdout.splitlines()[0]
    for module in ("somebodys", "somebodys.net"):
        sys.modules.pop(module, None)
    assert "file=" not in line
    assert re.match(r"::(error|warning) title=GB\d+ ", line)


def test_without_settings_another_file_of_the_root_stands_in(repository):
    (repository / "pyproject.toml").rename(repository / "README.md")
    assert place_of(None, 1).path == "README.md"
    assert place_of(None, 1).outside == "an unknown place"
    (repository / "README.md").unlink()
    assert place_of("/usr/lib/a.py", 3).path == "pyproject.toml"  # need not exist


def test_without_git_the_working_directory_is_the_root(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    assert place_of("a.py", 1).path == "a.py"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert place_of("a.py", 1).path == "sub/a.py"
    monkeypatch.setenv("GITHUB_WORKSPACE", "/nowhere")
    assert place_of("a.py", 1).path == "a.py"
    assert place_of("a.py", 1).end == 6


def test_links_are_shown_where_they_lead_if_that_is_in_the_repository(repository):
    (repository / "link.py").symlink_to("src/net.py")
    assert place_of("link.py", 4).path == "src/net.py"
    (repository.parent / "data.pt").write_bytes(b"")
    (repository / "data.pt").symlink_to(repository.parent / "data.pt")
    assert place_of("data.pt", 1).path == "data.pt"


def test_a_worktree_s_root_is_where_its_git_file_is(repository, monkeypatch):
    tree = repository / "trees" / "one"
    (tree / "src").mkdir(parents=True)
    (tree / ".git").write_text("gitdir: elsewhere\n")
    monkeypatch.chdir(tree / "src")
    assert place_of("a.py", 1).path == "src/a.py"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_a_name_that_is_no_text_is_encoded_byte_by_byte(repository):
    name = os.fsdecode(b"w\xff\xe9.pt")
    bad(name)
    done = subprocess.run(
        [sys.executable, "-m", "gammabeta", "check", name, "--format", "sarif"], capture_output=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert complaints(done.stdout.decode("ascii")) == []
    assert uris(done.stdout) == {("w%FF%E9.pt", 1)}


# What could not be checked is a document too: an upload after it does not fail for want of one.

FAILING = [
    (("check", "nothing"), 2),
    (("check", "absent.pt"), 2),
    (("check", "src/net.py:absent"), 2),
    (("check", "src/net.py:build", "--inputs", "torch:randn(3)"), 2),
    (("check", "src/net.py:build", "--select", "XY1"), 2),
    (("check", "src/net.py:build", "--nonsense"), 2),
    (("check",), 2),
    (("check", "src/net.py:build", "--batch-size", "many"), 2),
]


@pytest.mark.parametrize(("words", "code"), FAILING, ids=lambda value: " ".join(map(str, value)) if value != 2 else "")
def test_a_check_that_could_not_run_is_a_valid_document(repository, words, code):
    result = run(*words, "--format", "sarif")
    assert result.exit_code == code
    assert complaints(result.stdout) == []
    (document,) = json.loads(result.stdout)["runs"]
    assert document["results"] == []
    (invocation,) = document["invocations"]
    assert not invocation["executionSuccessful"]
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["level"] == "error"
    assert notification["message"]["text"]
    content = json.loads(run(*words, "--format=json").stdout)
    assert content["error"] == notification["message"]["text"]
    assert (content["findings"], content["rules"]) == ([], [])
    (line,) = run(*words, "--format", "github").stdout.splitlines()
    assert line.startswith("::error title=gammabeta::")
    assert result.stderr != ""


def test_a_check_that_fails_is_a_valid_document_too(repository, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("gammabeta.cli.inspection.check", broken)
    result = run("check", "src/net.py:build", "--format", "sarif")
    assert result.exit_code == 3
    assert complaints(result.stdout) == []
    assert not json.loads(result.stdout)["runs"][0]["invocations"][0]["executionSuccessful"]


def test_the_rules_of_this_test_can_find_something():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.99))
    content = json.loads(formats.as_sarif(gb.check(model), "m.py", 1))
    place = content["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    for uri in ("/tmp/m.py", "../m.py", "my net.py", "größe.py", "file:///m.py", "a#b"):
        place["artifactLocation"]["uri"] = uri
        assert complaints(json.dumps(content)) != []
    del content["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert complaints(json.dumps(content)) == ["expected a physical location"]
    del content["runs"][0]["tool"]
    with pytest.raises(jsonschema.ValidationError):
        complaints(json.dumps(content))
