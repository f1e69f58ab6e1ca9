"""The pre-commit hook in a real pre-commit, and the GitHub action's steps in a real shell."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = """
from torch import nn

def build():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum={momentum})).train()
    return model
"""
RIGHT, WRONG = MODEL.format(momentum=0.1), MODEL.format(momentum=0.99)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return an environment whose path has the console script, of this Python and this source."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "gammabeta"
    script.write_text(f"#!{sys.executable}\nimport gammabeta_command\ngammabeta_command.main()\n", encoding="utf-8")
    script.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "GITHUB_", "PRE_COMMIT"))
    }
    path = f"{folder}{os.pathsep}{environment['PATH']}"
    return {**environment, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "PRE_COMMIT_HOME": str(folder / "cache")}


def git(folder, *words):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder, files):
    """Make a git repository with these files in one commit, and return the commit."""
    folder.mkdir()
    git(folder, "init", "-q")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "files")
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_pre_commit_runs_the_hook_with_its_arguments(command, tmp_path):
    pytest.importorskip("pre_commit")
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    revision = repository(tmp_path / "hooks", {".pre-commit-hooks.yaml": hooks})
    config = f"""
repos:
  - repo: {tmp_path / "hooks"}
    rev: {revision}
    hooks:
      - id: gammabeta-check
        args: ["net.py:build", "--select", "GB305", "--fail-on", "warning"]
"""
    project = tmp_path / "project"
    repository(project, {"net.py": WRONG, ".pre-commit-config.yaml": config, "notes.txt": "text"})

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "pre_commit", "run", "--color=never", *words],
            cwd=project, env=command, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, out = run("--all-files")
    assert code == 1, out
    assert re.search(r"gammabeta check\.+Failed", out)
    assert "GB305 tensorflow-momentum" in out
    (project / "net.py").write_text(RIGHT, encoding="utf-8")
    code, out = run("--all-files")
    assert code == 0, out
    assert re.search(r"gammabeta check\.+Passed", out)
    code, out = run("--files", "notes.txt")  # nothing of Python changed
    assert code == 0
    assert "Skipped" in out


def action():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def run_step(step, environment, folder):
    """Run a step's script as the runner does, and return its exit code, what it printed, and its outputs."""
    outputs = folder / "outputs"
    outputs.touch()
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]], cwd=folder,
        env={**environment, "GITHUB_OUTPUT": str(outputs), "RUNNER_TEMP": str(folder), "GITHUB_ACTION": "step"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    lines = outputs.read_text(encoding="utf-8").splitlines()
    return done.returncode, done.stdout + done.stderr, dict(line.split("=", 1) for line in lines)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("text", "arguments", "fail_on", "code", "found"),
    [
        (WRONG, "--inputs 'torch:randn(4, 3, 8, 8)' --select GB305", "warning", 1, ["GB305"]),
        (WRONG, "--select GB305", "error", 0, ["GB305"]),
        (RIGHT, "--select GB305", "warning", 0, []),
        (WRONG, "--select GB305 --ignore \"GB305:$(touch 'run by the shell')\"", "warning", 1, ["GB305"]),
        ("raise ValueError", "", "error", 2, []),
    ],
)
def test_the_action_writes_sarif_and_fails_as_the_command_does(
    command, tmp_path, text, arguments, fail_on, code, found
):
    check, upload, result = action()["runs"]["steps"]
    (tmp_path / "net.py").write_text(text, encoding="utf-8")
    environment = {**command, "TARGET": "net.py:build", "ARGS": arguments, "FAIL_ON": fail_on}
    status, out, outputs = run_step(check, environment, tmp_path)
    assert status == 0, out
    assert outputs["code"] == str(code), out
    assert outputs["written"] == "true"
    document = json.loads(Path(outputs["sarif"]).read_text(encoding="utf-8"))
    assert [one["ruleId"] for one in document["runs"][0].get("results", [])] == found
    assert not (tmp_path / "run by the shell").exists()
    assert run_step(result, {**command, "CODE": outputs["code"]}, tmp_path)[0] == code
    assert upload["with"]["sarif_file"] == "${{ steps.check.outputs.sarif }}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_action_says_where_gammabeta_is_not_installed(command, tmp_path):
    check = action()["runs"]["steps"][0]
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    (folder / "bash").symlink_to(shutil.which("bash"))
    environment = {**command, "PATH": str(folder), "TARGET": "net.py:build", "ARGS": "", "FAIL_ON": "error"}
    _, out, outputs = run_step(check, environment, tmp_path)
    assert "::error::gammabeta is not installed" in out
    assert outputs["code"] == "127"
    assert "written" not in outputs


def test_inputs_reach_the_action_s_scripts_by_the_environment_only():
    described = action()
    assert set(described["inputs"]) == {"target", "args", "fail-on", "upload", "category"}
    for step in described["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    assert described["runs"]["using"] == "composite"
