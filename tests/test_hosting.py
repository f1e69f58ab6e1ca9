"""What a host of the repository reads: workflows, templates, CITATION.cff, and whether they agree with the project."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import gammabeta
from gammabeta.cli.main import app

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs():
    return {(path.stem, name): job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def commands():
    return [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]


def test_every_workflow_calls_the_targets_that_make_has_and_nothing_else():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    assert {path.stem for path in WORKFLOWS} == {"tests", "wheels", "site", "census"}
    called = set()
    for command in commands():
        words = shlex.split(command)
        if words != ["bash", ".ci/run"]:
            assert words[0] == "make", command
            called.add(words[1])
            assert all("=" in word for word in words[2:]), command
    assert called <= targets
    assert {"lint", "test", "dist", "census", "site"} == called


def test_the_versions_of_the_matrix_are_those_that_the_project_names():
    tried = jobs()
    prefix = "Programming Language :: Python :: "
    named = [name.removeprefix(prefix) for name in PROJECT["project"]["classifiers"] if name.startswith(prefix + "3.")]
    assert tried["tests", "python"]["strategy"]["matrix"]["python"] == named
    (torch,) = PROJECT["project"]["dependencies"]
    floor, current = tried["tests", "torch"]["strategy"]["matrix"]["torch"]
    assert (floor, current) == (torch.replace(">=", "==") + ".0", "torch")
    assert f">={named[0]}" == PROJECT["project"]["requires-python"]


def test_a_release_is_published_without_a_password_and_only_for_a_tag():
    release = jobs()["wheels", "release"]
    assert release["permissions"] == {"id-token": "write"}
    assert release["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert set(release["needs"]) == {"kernels", "others"}
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    assert "secrets." not in text
    for path in WORKFLOWS:
        assert read(path)["permissions"] == {"contents": "read"}, path.name


def test_a_wheel_of_cibuildwheel_has_kernels_that_prove_themselves():
    asked = PROJECT["tool"]["cibuildwheel"]
    assert asked["environment"] == {"GAMMABETA_KERNELS": "1"}
    assert asked["test-command"] == "gammabeta verify"
    assert CliRunner().invoke(app, ["verify", "--help"]).exit_code == 0
    assert set(asked["test-extras"]) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_a_template_asks_for_what_a_command_prints(name):
    form = read(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    for field in form["body"]:
        for command in re.findall(r"`gammabeta ([^`]+)`", str(field)):
            words = command.split()
            shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [words[0], "--help"])
            assert shown.exit_code == 0, command
            assert all(word in shown.output for word in words[1:]), command


def test_the_citation_is_of_this_version_and_licence():
    cited = read(ROOT / "CITATION.cff")
    assert cited["version"] == gammabeta.__version__
    assert cited["license"] == PROJECT["project"]["license"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "[yyyy]" not in licence
    assert "Copyright 2026 The gammabeta authors" in licence
