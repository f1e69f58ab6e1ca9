"""SIGTERM and SIGHUP end a study as Ctrl-C does, and nothing that a study started outlives it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gammabeta.cli.signals import as_interrupts

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request):
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_the_first_signal_interrupts_and_later_ones_are_ignored(number):
    ended = []
    with contextlib.suppress(KeyboardInterrupt), as_interrupts():
        try:
            os.kill(os.getpid(), number)
            ended.append("no interrupt")
        finally:
            for each in SIGNALS:
                os.kill(os.getpid(), each)
            ended.append("ended in peace")
    assert ended == ["ended in peace"]
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    with as_interrupts():
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN


def test_a_fork_is_ended_by_the_signal(number):
    with as_interrupts():
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), number)
                time.sleep(10)
            os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


def test_a_terminal_that_is_gone_is_left(number, monkeypatch):
    terminal, own = os.openpty()
    monkeypatch.setattr("gammabeta.cli.signals._outputs", lambda: [own])
    with contextlib.suppress(KeyboardInterrupt), as_interrupts():
        os.close(terminal)
        os.kill(os.getpid(), number)
    assert os.write(own, b"a report can still be written\n") == 30
    os.close(own)


# --- whole studies ---


@pytest.fixture
def study(tmp_path):
    """A study that has begun, with two workers, in a session of its own."""

    def begin(**outputs):
        out = tmp_path / "out"
        words = ["study", "gradient_flow", "--quick", "--data", "digits", "--jobs", "2", "--out", str(out)]
        process = subprocess.Popen(
            [sys.executable, "-m", "gammabeta", *words],
            cwd=tmp_path,
            env=ENVIRONMENT,
            text=True,
            start_new_session=True,
            # The test may run with signals ignored, as background jobs of a shell do.
            preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (*SIGNALS, signal.SIGINT)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **outputs},
        )
        begun.append(process)
        deadline = time.monotonic() + 120
        trials = out / "trials.jsonl"
        while not (trials.exists() and trials.stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process, out

    begun = []
    yield begin
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def living(session):
    """List the processes of a session that are not zombies, which wait for their new parent."""
    table = subprocess.run(["ps", "-eo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in table.splitlines()]
    return [row for row in rows if row[1] == str(session) and not row[2].startswith("Z")]


def ended(session):
    """Wait for the last process of a session; return those that are left."""
    deadline = time.monotonic() + 20
    while (left := living(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.slow
def test_a_signal_ends_a_study_as_ctrl_c_does(study, number):
    process, out = study()
    # A terminal that closes tells all its processes, a batch system often only the first.
    (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
    _, said = process.communicate(timeout=60)
    kept = len((out / "trials.jsonl").read_bytes().splitlines())
    assert process.returncode == 130, said
    assert said == (
        f"report of the claims decided so far: {out / 'report.html'}\n"
        f"Interrupted; {kept} finished trials are kept. "
        f"Continue with: gammabeta study gradient_flow --data digits --quick --out {out} --jobs 2\n"
    )
    assert json.loads((out / "results.json").read_text())["claims"][0]["verdict"] == "interrupted"
    assert ended(process.pid) == []


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed_and_so_does_the_reader_of_their_output(study):
    process, _ = study()
    reader = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.PIPE, text=True)
    assert len(living(process.pid)) > 2
    process.kill()
    process.stdout.close()
    reader.communicate(timeout=30)
    assert reader.returncode == 0
    assert process.stderr.read() == ""
    assert ended(process.pid) == []


@pytest.mark.slow
def test_a_terminal_that_closes_ends_a_study_with_a_report(study):
    terminal, own = os.openpty()
    process, out = study(stdout=own, stderr=own)
    os.close(own)
    os.close(terminal)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(60) == 130
    assert (out / "report.html").exists()
    assert ended(process.pid) == []
