"""A function run in several processes of this machine, joined by gloo, which start and end with it.

They are started as new interpreters, not by multiprocessing. Its spawn does not start from a worker of joblib, and runs
the user's script again where that has no ``__main__`` guard.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 120.0  # seconds
_POLL = 0.01
_END = 5.0  # seconds that a process has to end on its own, once nobody waits for it
_NOT_JOINED = 3  # the status of a process that could not join the others


class ProcessesError(RuntimeError):
    """Failure of one of the processes, with what it printed, or of all to end in time."""


class JoinError(ProcessesError):
    """Failure of processes to join, before the function was called: a machine without a network for gloo, say."""


def available() -> bool:
    """Return whether this torch has gloo."""
    return bool(dist.is_available() and dist.is_gloo_available())


def run(function: str, settings: Mapping[str, Any], size: int, *, limit: float = LIMIT) -> list[Any]:
    """Call ``function(**settings)`` in each of ``size`` processes of one group; return the results in rank order.

    Each process has one thread. All have ended when this returns or raises. If this process is killed, they end on
    their own.

    Args:
        function: ``"package.module:function"``; its result has to be picklable.
        settings: arguments of the function, picklable.
        size: number of processes, at least 1.
        limit: seconds for all of them together.

    Raises:
        JoinError: the processes could not join each other.
        ProcessesError: a process failed, or the limit has passed.
    """
    # The paths on which this process found its modules, so that the others find the same ones.
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="gammabeta-") as folder:
        try:
            for rank in range(size):
                with Path(folder, f"{rank}.txt").open("wb") as printed:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "gammabeta.distributed.processes"],
                        stdin=subprocess.PIPE,
                        stdout=printed,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                processes.append(process)
                assert process.stdin is not None
                # The pipe stays open: when it closes, they know that nobody waits for them any more.
                pickle.dump((function, dict(settings), rank, size, folder, limit), process.stdin)
                process.stdin.flush()
            _wait(processes, folder, limit, function)
        finally:
            _end(processes)
        return [pickle.loads(Path(folder, f"{rank}.pickle").read_bytes()) for rank in range(size)]


def _wait(processes: list[subprocess.Popen[bytes]], folder: str, limit: float, function: str) -> None:
    deadline = time.monotonic() + limit
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            break
        if time.monotonic() > deadline:
            raise ProcessesError(f"{function}: expected {len(processes)} processes to end within {limit:g} s.")
        time.sleep(_POLL)
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if failed:
        # The first to print is the cause: the others fail because it is gone.
        first = min(failed, key=lambda rank: Path(folder, f"{rank}.txt").stat().st_mtime_ns)
        printed = Path(folder, f"{first}.txt").read_text(errors="replace").strip()
        kind = JoinError if processes[first].returncode == _NOT_JOINED else ProcessesError
        raise kind(f"{function}: rank {first} of {len(processes)} failed:\n{printed}")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None
        try:
            process.stdin.close()
        except OSError:
            continue  # it has ended
    for process in processes:
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve() -> None:
    """Join the other processes, call the function, write its result, and end this process."""
    function, settings, rank, size, folder, limit = pickle.load(sys.stdin.buffer)

    def end_with_the_first() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=end_with_the_first, daemon=True).start()
    status = _NOT_JOINED
    try:
        _join(rank, size, folder, limit)
        status = 1
        _call(function, settings, rank, folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: a thread of gloo may block an interpreter that ends


def _join(rank: int, size: int, folder: str, limit: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(Path(folder, "store")), size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=limit),
    )


def _call(function: str, settings: Mapping[str, Any], rank: int, folder: str) -> None:
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(**settings)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()  # no process closes its connections while another still uses them
    dist.destroy_process_group()


if __name__ == "__main__":
    _serve()
