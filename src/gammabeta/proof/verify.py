"""The verification: every backend of this machine in a process of its own, beside one oracle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gammabeta.proof.outcome import BackendOutcome, Verification

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.proof.backends import Backend

Seen = Callable[[str, int], None]
"""What is told how many cases of all a backend's process has run."""


KILLED = -9
"""The return code of a process that SIGKILL has ended."""


class VerifyError(ValueError):
    """A request that cannot be carried out."""


def verify(
    *,
    backends: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    thorough: bool = False,
    seed: int = 0,
    jobs: int | None = None,
    console: Console | None = None,
) -> Verification:
    """Compare every norm on this machine with a float64 oracle, and write certificates of what was found.

    Forward and backward of every operation, on every backend that is here: the native kernels for each instruction set
    of the processor, torch's ops as gammabeta uses them, the reference, and on a GPU the Triton kernels. All dtypes,
    memory layouts, masks, residuals and activations; large means, no spread, subnormal, infinite and empty inputs;
    statistics over two processes; the same bits in every run.

    A certificate holds for this device, these versions and these kernels. The Triton kernels serve on a GPU once they
    have passed on it, from the next process on. Native kernels that have failed serve no more. Runs of single cases,
    and runs in which a backend's process did not begin, write none.

    Args:
        backends: names such as "native:avx2" or "reference", or "native" for all such; None for all of this machine.
        cases: names of single cases, as a failure has them; None for all.
        thorough: whether to run every case. Otherwise a part of each product of settings is run.
        seed: of the random values, an integer.
        jobs: how many backends are verified at once; None for one for every two cores.
        console: where to show the progress; None shows none.

    Returns:
        What was found. `passed` says whether every backend of gammabeta's has passed.

    Raises:
        VerifyError: there is no such backend or case here.

    Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapters 1 and 3, for the tolerances.
    """
    from gammabeta.proof.certify import Certificates, certify
    from gammabeta.proof.environment import described

    begin = time.perf_counter()
    chosen = _chosen(backends)
    if cases:
        _check_cases(list(cases))
    request = {"cases": list(cases or ()), "thorough": thorough, "seed": seed}
    at_once = jobs or max(1, (os.cpu_count() or 2) // 2)
    with _progress(console, chosen) as seen, ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(lambda backend: _prove(backend, request, seen), chosen))
    made = Certificates() if cases else certify(chosen, found, {"thorough": thorough, "seed": seed})
    return Verification(found, made.written, made.refused, described(), time.perf_counter() - begin, seed)


def _chosen(names: Sequence[str] | None) -> list[Backend]:
    from gammabeta.proof.backends import backends, interpreted

    here = backends()
    if names is None:
        return here
    found: list[Backend] = []
    for name in names:
        of_name = [b for b in (*here, interpreted()) if name in (b.name, b.name.partition(":")[0])]
        if not of_name:
            known = ", ".join(b.name for b in here)
            raise VerifyError(f"verify: expected a backend of this machine ({known}, interpreted), got {name!r}.")
        found += [b for b in of_name if b not in found]
    return found


def _check_cases(names: list[str]) -> None:
    from gammabeta.proof.catalogue import named

    try:
        named(names)
    except ValueError as error:
        raise VerifyError(str(error)) from None


def _prove(backend: Backend, request: dict[str, Any], seen: Seen) -> BackendOutcome:
    """Verify one backend in a process of its own, which may end at any case."""
    from gammabeta.proof.backends import environment_of

    outcome, begin = BackendOutcome(backend.name, backend.judged), time.perf_counter()
    environment = environment_of(backend)
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_WAIT_POLICY": "PASSIVE"}
    at, ended, total, count = "", False, 1, 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "gammabeta.proof.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin as stdin:
                stdin.write(json.dumps({"backend": asdict(backend), **request}) + "\n")
            for line in process.stdout:
                event = json.loads(line)
                if "done" in event:
                    outcome.add(event, request["seed"])
                    count += 1
                    seen(backend.name, count * 1000 // total)
                elif "begin" in event:
                    outcome.on, total = event["on"], max(event["cases"], 1)
                elif "end" in event:
                    ended = True
                at = event.get("case", at)
            process.wait()
        finally:
            process.kill()
            process.wait()
        if not ended:
            outcome.ended = _why(process.returncode, at, errors)
            if process.returncode == KILLED:  # by a system that is short of memory, or by a person
                outcome.starved = outcome.ended
            outcome.fail(at or "none: the process did not begin", request["seed"], outcome.ended)
    seen(backend.name, 1000)
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _why(code: int, at: str, errors: Any) -> str:
    errors.seek(0)
    printed = errors.read().decode(errors="replace").strip()[-2000:]
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"the process ended {how} in {at or 'its beginning'}:\n{printed}"


@contextmanager
def _progress(console: Console | None, chosen: Sequence[Backend]) -> Iterator[Seen]:
    if console is None:
        yield lambda name, share: None
        return
    if not console.is_terminal:  # which has a line for every quarter instead, so that a file shows it too
        quarters = dict.fromkeys((backend.name for backend in chosen), 0)

        def seen(name: str, share: int) -> None:
            while share >= 250 * (quarters[name] + 1):
                quarters[name] += 1
                console.print(f"{name}: {25 * quarters[name]} %", highlight=False)

        yield seen
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        tasks = {backend.name: progress.add_task(backend.name, total=1000) for backend in chosen}
        yield lambda name, share: progress.update(tasks[name], completed=share)
