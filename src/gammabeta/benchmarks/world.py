"""Several processes that make the same calls together, so that calls which wait for each other can be timed."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
import torch.distributed as dist

from gammabeta.benchmarks.contest import Call, Contestant

Calls = Callable[[], Mapping[str, Call]]
"""Returns the calls, by name, in each process. Must be picklable."""

TIMEOUT = timedelta(seconds=60)  # for one collective
_ASK, _STOP = b"?", b""


class World:
    """Gloo processes on this machine. This one is rank 0; the others are started here and end with the object.

    Args:
        size: number of processes, at least 1. A single one has no process group.
        calls: returns the calls that they can make, by name.
        threads: torch's threads in each of the others.

    Raises:
        RuntimeError: this process already has a default process group, or another process did not start.
    """

    def __init__(self, size: int, calls: Calls, threads: int = 1) -> None:
        if dist.is_initialized():
            raise RuntimeError(
                "World: expected a process without a default process group, since it makes its own, got one: call "
                "torch.distributed.destroy_process_group() first."
            )
        self._pipes: list[Connection] = []
        others: list[BaseProcess] = []
        self.close = weakref.finalize(self, _end, self._pipes, others)
        if size > 1:
            # The server chooses its port itself, so that nothing else can take the port in between.
            store = dist.TCPStore("127.0.0.1", 0, size, True, timeout=TIMEOUT, wait_for_workers=False)
            context = multiprocessing.get_context("spawn")
            for rank in range(1, size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(rank, size, store.port, threads, calls, theirs), daemon=True
                )
                process.start()
                theirs.close()
                self._pipes.append(ours)
                others.append(process)
            dist.init_process_group("gloo", store=store, rank=0, world_size=size, timeout=TIMEOUT)
        self._calls = calls()
        self.settle()

    def contestant(self, name: str) -> Contestant:
        """Return the contestant that makes the call in all processes at once, after waiting for all of them."""

        def ready(number: int) -> Call:
            self.settle()
            return functools.partial(self.step, name)

        return ready

    def step(self, name: str) -> object:
        """Start the call in the other processes and make it here, without waiting for theirs."""
        for pipe in self._pipes:
            pipe.send_bytes(name.encode())
        return self._calls[name]()

    def settle(self) -> None:
        """Block until every process has finished its calls.

        Raises:
            RuntimeError: a process has ended.
        """
        try:
            for pipe in self._pipes:
                pipe.send_bytes(_ASK)
            for pipe in self._pipes:
                pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise RuntimeError("World: expected all processes to answer, got one that has ended.") from error


def _serve(rank: int, size: int, port: int, threads: int, calls: Calls, pipe: Connection) -> None:
    """Run one of the other processes: make the calls that are asked for until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles it and ends the others
    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, size, False, timeout=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    made = calls()
    while message := pipe.recv_bytes():
        if message == _ASK:
            pipe.send_bytes(_ASK)
        else:
            made[message.decode()]()
    dist.destroy_process_group()


def _end(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    """Stop the other processes and leave the process group."""
    for pipe in pipes:
        try:
            pipe.send_bytes(_STOP)
        except OSError:
            continue  # it has ended
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    if processes and dist.is_initialized():
        dist.destroy_process_group()
