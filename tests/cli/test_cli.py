"""The command line: what it passes on, what it prints, and how it fails."""

import html
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from tests.example_results import example_results
from typer.testing import CliRunner

import gammabeta
from gammabeta.cli import main as cli
from gammabeta.lab import study as engine

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def run(*words):
    """Run the command in this process, on a wide terminal without colours."""
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, list(words))


def command(*words, cwd):
    """Run the command as a user does, in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "gammabeta", *words],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def studied(monkeypatch):
    """Replace the study by one that remembers its arguments."""
    asked = {}

    def study(claims=None, **options):
        asked.update(claims=claims, **options)
        return example_results()

    monkeypatch.setattr(engine, "study", study)
    return asked


def test_version():
    assert run("--version").output == f"gammabeta {gammabeta.__version__}\n"


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_the_commands(words):
    text = run(*words).output
    for name in ("study", "report", "env", "--version"):
        assert name in text


def test_help_of_study_names_every_option_and_every_claim():
    result = run("study", "--help")
    assert result.exit_code == 0
    for option in (
        "--quick",
        "--out",
        "--data",
        "--model",
        "--claims",
        "--jobs",
        "--seed",
        "--seeds",
        "--fresh",
        "mnist:FILE",
    ):
        assert option in result.output
    for claim in engine.CLAIMS:
        assert claim.name in result.output


def test_help_does_not_load_the_study(tmp_path):
    script = (
        "import sys; from gammabeta.cli import main as cli\n"
        "try: cli.app(['study', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'sklearn', 'plotly', 'scipy', 'jinja2', 'joblib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_study_hands_on_every_option_and_says_where_the_files_are(studied, tmp_path):
    out = tmp_path / "a folder"
    words = (
        "--data",
        "mnist:x.npz",
        "--model",
        "m:f",
        "--jobs",
        "3",
        "--seed",
        "7",
        "--seeds",
        "40",
        "--fresh",
        "--quick",
    )
    words += ("--batch-size", "4", "--devices", "2", "--compare", "--engine", "dask")
    words += ("--address", "tcp://x:1", "--link", "25gbe", "--train", "all")
    words += ("--until-settled", "--confirmatory")
    result = run(
        "study", "axes", "--claims", "small_batch, batch_noise", "--claims", "gradient_flow", "--out", str(out), *words
    )
    assert result.exit_code == 0, result.output
    assert isinstance(studied.pop("console"), Console)
    assert studied == {
        "claims": ["axes", "small_batch", "batch_noise", "gradient_flow"],
        "data": "mnist:x.npz",
        "model": "m:f",
        "quick": True,
        "first_look": False,
        "at_scale": False,
        "train": "all",
        "link": "25gbe",
        "until_settled": True,
        "confirmatory": True,
        "batch_size": 4,
        "devices": 2,
        "compare_only": True,
        "out": out,
        "jobs": 3,
        "seed": 7,
        "seeds": 40,
        "engine": "dask",
        "address": "tcp://x:1",
        "fresh": True,
    }
    assert f"report   {out / 'report.html'}\nresults  {out / 'results.json'}\n" in result.output
    assert "Use BatchNorm at batches of 16" in (out / "report.html").read_text(encoding="utf-8")


def test_more_seeds_may_be_asked_of_a_study_that_goes_on(studied, monkeypatch, tmp_path):
    asked = {"claims": None, "seeds": None, "jobs": 2, "engine": "loky", "address": None, "out": tmp_path}
    monkeypatch.setattr(engine, "asked_for", lambda folder: dict(asked))
    assert run("study", "--resume", str(tmp_path), "--seeds", "12").exit_code == 0
    assert studied["seeds"] == 12
    studied.clear()
    assert run("study", "--resume", str(tmp_path), "--seeds", "0").exit_code == 0
    assert studied["seeds"] == 0  # which the study refuses, not the earlier value
    studied.clear()
    assert run("study", "--resume", str(tmp_path)).exit_code == 0
    assert studied["seeds"] is None


def test_study_without_options(studied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("study").exit_code == 0
    assert studied.pop("console")
    assert {key: str(value) if key == "out" else value for key, value in studied.items()} == {
        "claims": None,
        "data": None,
        "model": None,
        "quick": False,
        "first_look": False,
        "at_scale": False,
        "train": None,
        "link": "infiniband",
        "until_settled": False,
        "confirmatory": False,
        "batch_size": None,
        "devices": 1,
        "compare_only": False,
        "out": "gammabeta-study",
        "jobs": None,
        "seed": 0,
        "seeds": None,
        "engine": "loky",
        "address": None,
        "fresh": False,
    }


def test_what_the_study_refuses_is_said_in_a_sentence(monkeypatch, tmp_path):
    def study(*_, **__):
        raise engine.StudyError("there is no [claim] x.")

    monkeypatch.setattr(engine, "study", study)
    result = run("study", "--out", str(tmp_path / "out"))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "gammabeta: there is no [claim] x.\n")
    assert not (tmp_path / "out").exists()


def test_a_bug_is_not_dressed_up_as_the_user_s_mistake(monkeypatch, tmp_path):
    def study(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "study", study)
    result = run("study", "--out", str(tmp_path))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "gammabeta: this should not have happened (ZeroDivisionError): it is a fault of gammabeta, so please report it "
        "with what the same command prints with --debug.\n"
    )


def test_an_interrupted_study_leaves_a_report_and_says_how_to_continue(monkeypatch, tmp_path):
    def study(*_, out, **__):
        (out / "results.json").write_text(json.dumps(example_results()), encoding="utf-8")
        raise engine.Interrupted("Interrupted; 3 finished trials are kept. Continue with: gammabeta study")

    monkeypatch.setattr(engine, "study", study)
    result = run("study", "--out", str(tmp_path))
    assert result.exit_code == 130
    assert result.stderr == (
        f"report of the claims decided so far: {tmp_path / 'report.html'}\n"
        "Interrupted; 3 finished trials are kept. Continue with: gammabeta study\n"
    )
    assert (tmp_path / "report.html").is_file()


def test_ctrl_c_before_the_first_trial(monkeypatch, tmp_path):
    def study(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "study", study)
    result = run("study", "--out", str(tmp_path))
    assert (result.exit_code, result.stderr) == (130, "Interrupted before the first trial: nothing was decided.\n")


@pytest.mark.parametrize("words", [("study",), ("report", "x")])
def test_a_missing_extra_is_named(monkeypatch, words):
    monkeypatch.setitem(sys.modules, "plotly", None)
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr == 'gammabeta: this needs plotly, which is not installed: pip install "gammabeta[study]".\n'


def test_report_draws_again_what_results_json_holds(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(example_results()), encoding="utf-8")
    result = run("report", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "What normalization does on digits" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="no limits on the size of files")
def test_a_report_that_cannot_be_written_is_one_sentence_and_no_part_is_left(tmp_path):
    import resource

    (tmp_path / "results.json").write_text(json.dumps(example_results()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        result = run("report", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, result.stderr) == (
        2,
        f"gammabeta: {tmp_path / 'report.html'}: expected a file that can be written, got File too large: the results "
        f"are kept; make room or change permissions, then run gammabeta report {tmp_path}.\n",
    )
    assert os.listdir(tmp_path) == ["results.json"]


def test_report_of_a_folder_without_results(tmp_path):
    result = run("report", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == (
        f"gammabeta: {tmp_path}/results.json: no such file; name the folder to which `gammabeta study --out` wrote.\n"
    )


def test_env_shows_versions_and_kernels():
    text = run("env").output
    assert f"torch                {__import__('torch').__version__}" in text
    for section in ("versions", "processor", "devices", "kernels"):
        assert f"{section}\n" in text


# As a user runs it: its own process, the real study.


def test_a_real_study_of_one_claim(tmp_path):
    done = command("study", "axes", "--quick", "--jobs", "1", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "axes" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [claim["name"] for claim in results["claims"]] == ["axes"]
    page = html.unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert results["claims"][0]["title"] in page


MODEL = """
import torch
def build(input_shape, classes, norm):
    channels = input_shape[0]
    return torch.nn.Sequential(norm(channels), torch.nn.Flatten(), torch.nn.Linear(7, classes))
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("small-bach",), "gammabeta: there is no claim small-bach: did you mean small_batch?\n"),
        (("--data", "mnist:nowhere.npz"), "nowhere.npz"),
        (("--data", "mnist:broken.npz"), "broken.npz"),
        (("--model", "nowhere.py:build"), "nowhere.py"),
        (("--model", "model.py:build"), "does not take a batch of shape (8, 1, 8, 8)"),
        (("--jobs", "0"), "gammabeta: expected at least one job, got 0.\n"),
    ],
)
def test_mistakes_get_one_sentence(words, says, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "broken.npz").write_bytes(b"not an archive")
    monkeypatch.chdir(tmp_path)
    result = run("study", "--quick", *words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("gammabeta: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr


RAISES = """
from torch import nn
class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
    def forward(self, x):
        return helper(x)
def helper(x):
    raise RuntimeError("of the user")
def build(input_shape, classes, norm):
    return nn.Sequential(Net(norm(1)))
"""


def test_the_users_own_traceback_is_shown_once_and_begins_in_the_users_code(tmp_path, monkeypatch):
    (tmp_path / "raises.py").write_text(RAISES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = run("study", "--quick", "--model", "raises.py:build")
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.split(", in ")[1] for line in lines if line.startswith("  File ")] == ["forward", "helper"]
    assert lines[-2:] == [
        "RuntimeError: of the user",
        "gammabeta: --model raises.py:build: the model does not take a batch of shape (8, 1, 8, 8): RuntimeError: of "
        "the user.",
    ]
    assert not (tmp_path / "gammabeta-study").exists()


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = command("study", "--data", "mnist:nowhere.npz", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_keeps_what_is_done_and_says_how_to_continue(tmp_path):
    # Enough claims that the study does not end too early.
    claims = ["faster_convergence", "higher_learning_rate", "init_families", "small_batch", "sequences"]
    words = ["study", *claims, "--quick", "--jobs", "2", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gammabeta", *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs, such as this test may be in, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    trials = tmp_path / "out" / "trials.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (trials.is_file() and trials.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    try:
        _, said = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        # A signal during the start of workers is lost: a user presses again.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.rstrip().endswith(f"Continue with: gammabeta study {' '.join(claims)} --quick --out out --jobs 2")
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["claims"][-1]["verdict"] == "interrupted"
    assert trials.read_text(encoding="utf-8").count("\n") >= 1
    assert (tmp_path / "out" / "report.html").is_file()
