"""A function run in several gloo processes under torchrun, all of which end."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds; compiling takes most of it on a busy machine


_results = {}


def once(job, processes, environment=None):
    """Call `run` once for many tests: a job that failed or hung fails them all, and is not repeated for each."""
    if (job, processes) not in _results:
        try:
            _results[job, processes] = run(job, processes, environment)
        except RuntimeError as error:
            _results[job, processes] = error
    if isinstance(_results[job, processes], RuntimeError):
        raise _results[job, processes]
    return _results[job, processes]


def run(job, processes, environment=None, limit=LIMIT):
    """Return what `job` returned in each process, in the order of ranks.

    Args:
        job: "module:function"; it takes nothing, and returns what torch.save takes.
        processes: how many.
        environment: variables for them.
        limit: seconds after which they end themselves.

    Raises:
        RuntimeError: one of them failed, or they took longer than the limit; with what they printed.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        # Paths of the source as this process found it, for the processes to find it too.
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(environment or {})}
        agent = subprocess.Popen(
            [*command, str(Path(__file__)), job, out, str(limit)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = agent.communicate(timeout=limit + 30)
        except subprocess.TimeoutExpired:
            agent.terminate()  # which ends the processes, too
            printed, _ = agent.communicate(timeout=30)
        finally:
            _end(agent, Path(out))
        if agent.returncode:
            raise RuntimeError(f"{job} failed in {processes} processes:\n{printed}")
        return [torch.load(f"{out}/{rank}.pt", weights_only=False) for rank in range(processes)]


def _end(agent, out):
    """Kill whatever still runs."""
    if agent.poll() is None:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
    for process in alive(out):
        os.kill(process, signal.SIGKILL)


def alive(out):
    """Return the workers that have not ended."""
    return [pid for pid in (int(path.read_text()) for path in out.glob("*.pid")) if Path(f"/proc/{pid}").exists()]


def _main(job, out, limit):
    # If nobody ends this process, it ends itself; so and where it crashes, it says where it was.
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(limit), exit=True)
    Path(out, f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    module, _, function = job.partition(":")
    result = getattr(importlib.import_module(module), function)()
    torch.save(result, f"{out}/{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
