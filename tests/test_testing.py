"""`gammabeta.testing` and the pytest plugin, as a project's tests use them: in a pytest of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from gammabeta.diagnostics.findings import Diagnosis
from gammabeta.testing import assert_healthy

ROOT = Path(__file__).parents[1]


def healthy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())


def ill():
    """A norm whose running variance is negative: an error. Its convolution has a useless bias: a note."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    model[1].running_var[2] = -1.0
    return model


def test_a_healthy_model_passes_and_the_diagnosis_is_returned():
    diagnosis = assert_healthy(healthy().train(), torch.randn(16, 3, 8, 8), fail_on="note")
    assert isinstance(diagnosis, Diagnosis)
    assert len(diagnosis.rules) > 20


def test_an_error_fails_with_the_diagnosis():
    with pytest.raises(AssertionError) as raised:
        assert_healthy(ill())
    text = str(raised.value)
    assert text.startswith(
        "assert_healthy: expected no finding of severity error, got 1:\nGB102 poisoned-statistics (error"
    )
    assert "fix: " in text


def test_options_are_those_of_check():
    assert assert_healthy(ill(), ignore="GB102").findings == ()
    model, inputs = healthy(), torch.randn(16, 3, 8, 8)
    with pytest.raises(AssertionError, match="severity error or warning, got 1:\nGB202 tiny-batch"):
        assert_healthy(
            nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), torch.randn(16, 4), batch_size=4, fail_on="warning"
        )
    assert assert_healthy(model, inputs, select="GB1").rules != assert_healthy(model, inputs).rules


def test_an_unknown_severity_is_said():
    with pytest.raises(
        ValueError, match="expected fail_on as error, warning, note, got 'warnings': did you mean 'warning'"
    ):
        assert_healthy(healthy(), fail_on="warnings")


def project(folder, text):
    (folder / "test_model.py").write_text(textwrap.dedent(text), encoding="utf-8")


def run_pytest(folder, *arguments):
    """Run pytest in a project, with the plugin and no other, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "gammabeta_pytest", "-q", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_fixture_checks_models_in_a_project_s_tests(tmp_path):
    project(
        tmp_path,
        """
        import torch
        from torch import nn

        def model():
            return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))

        def test_right(norm_check):
            assert norm_check(model(), torch.randn(16, 3, 8, 8)).norms == 1

        def test_wrong(norm_check):
            poisoned = model()
            poisoned[1].running_var[0] = float("nan")
            norm_check(poisoned)
        """,
    )
    code, out = run_pytest(tmp_path)
    assert code == 1
    assert "1 failed, 1 passed" in out
    assert "GB102 poisoned-statistics (error, 1 module)" in out
    assert ">       norm_check(poisoned)" in out
    assert "testing.py" not in out.replace("gammabeta.testing", "")  # the helper's own lines are hidden


def test_pytest_starts_without_torch(tmp_path):
    project(
        tmp_path,
        """
        import sys

        def test_nothing_is_loaded():
            assert "gammabeta_pytest" in sys.modules
            assert not {"torch", "gammabeta", "numpy"} & set(sys.modules)
        """,
    )
    code, out = run_pytest(tmp_path)
    assert code == 0, out
    code, out = run_pytest(tmp_path, "--fixtures")
    assert "norm_check" in out
    assert "Check a model's normalization" in out


def test_the_plugin_is_an_entry_point():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '\n[project.entry-points.pytest11]\ngammabeta = "gammabeta_pytest"\n' in text
