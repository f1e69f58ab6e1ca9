"""Processes started for one function end with it, whatever happens."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch
import torch.distributed as dist

from gammabeta.distributed import processes
from gammabeta.distributed.processes import ProcessesError
from gammabeta.distributed.traffic import Traffic

HERE = "tests.distributed.test_processes"

linux = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")


def note(folder):
    Path(folder, f"{dist.get_rank()}.pid").write_text(str(os.getpid()))


def alive(folder):
    return [pid for pid in (path.read_text() for path in Path(folder).glob("*.pid")) if Path(f"/proc/{pid}").exists()]


def total(folder, factor):
    note(folder)
    x = torch.full((3,), factor * (dist.get_rank() + 1.0))
    with Traffic() as traffic:
        dist.all_reduce(x)
    return x.tolist(), traffic.seen, traffic.bytes


def fail_in_the_second(folder):
    note(folder)
    if dist.get_rank() == 1:
        raise ValueError("this one fails")
    dist.barrier()


def sleep(folder):
    note(folder)
    time.sleep(600)


@linux
def test_each_ranks_result_comes_back_and_all_have_ended(tmp_path):
    results = processes.run(f"{HERE}:total", {"folder": str(tmp_path), "factor": 2}, 2)
    assert results == [([6.0] * 3, [("allreduce_", 12)], 12)] * 2
    assert len(list(tmp_path.glob("*.pid"))) == 2
    assert alive(tmp_path) == []


@linux
def test_a_failure_ends_the_others_and_says_which(tmp_path):
    with pytest.raises(ProcessesError) as caught:
        processes.run(f"{HERE}:fail_in_the_second", {"folder": str(tmp_path)}, 2)
    assert str(caught.value).startswith(f"{HERE}:fail_in_the_second: rank 1 of 2 failed:\n")
    assert "ValueError: this one fails" in str(caught.value)
    assert alive(tmp_path) == []


@linux
def test_too_long_is_an_error(tmp_path):
    with pytest.raises(ProcessesError) as caught:
        processes.run(f"{HERE}:sleep", {"folder": str(tmp_path)}, 1, limit=6.0)
    assert str(caught.value) == f"{HERE}:sleep: expected 1 processes to end within 6 s."
    assert alive(tmp_path) == []


@linux
def test_they_end_when_the_first_is_killed(tmp_path):
    call = f"processes.run('{HERE}:sleep', {{'folder': {str(tmp_path)!r}}}, 1)"
    script = f"from gammabeta.distributed import processes; {call}"
    paths = os.pathsep.join(filter(None, sys.path))
    first = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    try:
        _until(lambda: list(tmp_path.glob("*.pid")))
    finally:
        first.kill()
        first.wait()
    _until(lambda: not alive(tmp_path))


def _until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_they_start_from_a_worker_of_joblib_too(tmp_path):
    call = joblib.delayed(processes.run)(f"{HERE}:total", {"folder": str(tmp_path), "factor": 1}, 2)
    (results,) = joblib.Parallel(n_jobs=2)([call])
    assert [result[0] for result in results] == [[3.0] * 3] * 2


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_without_a_network_they_cannot_join_which_is_another_error():
    """In a network of its own, whose loopback is down; users may not make one everywhere."""
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network of its own can be made here")
    program = (
        "from gammabeta.distributed import processes\n"
        "try:\n"
        "    processes.run('math:sqrt', {}, 2)\n"
        "except processes.JoinError as error:\n"
        "    print(str(error).splitlines()[0])\n"
    )
    done = subprocess.run([*alone, sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "math:sqrt: rank " in done.stdout, done.stderr
