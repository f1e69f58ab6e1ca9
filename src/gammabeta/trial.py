"""Trials: the unit of measurement. Each is a function and its settings, run in a worker process, kept on disk at once.

A trial is reproducible bit by bit: one thread, its own seeds, nothing taken from the process it happens to run in.
Its key is a hash of everything that decides its result, so that a stored result is never mistaken for another's.
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

import gammabeta
from gammabeta import ops

Function = TypeVar("Function", bound=Callable[..., dict[str, Any]])


class TrialError(Exception):
    """A trial raised. ``details`` is the traceback as the worker saw it."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class StoreError(Exception):
    """The folder of trials cannot be used."""


def versioned(version: int, *, together: str | None = None) -> Callable[[Function], Function]:
    """Give a trial function its version: raise it when the same settings come to mean another result.

    ``together`` names a module that runs several of its trials as one, faster than one after the other: its
    ``joinable(settings)`` says whether a trial may be, and a function of the trial function's name takes a list of
    settings, which differ in ``rate`` and ``seed`` alone, and returns their results.
    """

    def mark(function: Function) -> Function:
        function.__dict__["trial_version"] = version
        function.__dict__["together"] = together
        return function

    return mark


def plain(value: Any) -> Any:
    """``value`` in JSON's own types: tuples become lists, NaN and infinities null, numpy's and torch's scalars numbers.

    Raises:
        TypeError: for anything that JSON has no form for.
    """
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, int | float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    raise TypeError(f"expected a value that JSON can hold, got {type(value).__name__}")


def canonical(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def cpu_kernels() -> str | None:
    """The instruction set of the native CPU kernels, None where they are not loaded."""
    return torch.ops.gammabeta.cpu_instruction_set() if ops.has_kernel("cpu") else None


@dataclass(frozen=True)
class Trial:
    """One measurement: ``run`` is ``"package.module:function"``, called as ``function(**settings) -> dict``.

    The key covers the settings (in which a task or model carries the fingerprint of its content), the version of the
    function, and what decides the last bits: the versions of gammabeta and of torch, and which kernels run.
    """

    run: str
    settings: Mapping[str, Any]

    @property
    def function(self) -> Callable[..., dict[str, Any]]:
        module, _, name = self.run.partition(":")
        found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
        return found

    @cached_property
    def key(self) -> str:
        version = getattr(self.function, "trial_version", 1)
        arithmetic = [gammabeta.__version__, torch.__version__, cpu_kernels()]
        identity = canonical([self.run, self.settings, version, *arithmetic])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


# As many trials run as one: more members make a step longer, and a run that stops early waits for the others.
MOST_TOGETHER = 6


def bundles(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials in groups that run as one. The groups depend on what is asked for alone, not on what is on disk
    already, so that the last bits of a result do not depend on when a study was interrupted."""
    groups: dict[str, list[Trial]] = {}
    found: list[list[Trial]] = []
    for trial in {trial.key: trial for trial in trials}.values():
        together = trial.function.__dict__.get("together")
        if together is None or not importlib.import_module(together).joinable(trial.settings):
            found.append([trial])
            continue
        rest = {name: value for name, value in trial.settings.items() if name not in ("rate", "seed")}
        group = groups.setdefault(canonical(plain([trial.run, rest])), [])
        if len(group) % MOST_TOGETHER == 0:
            found.append([])
        group.append(trial)
        # the last group that was begun for these settings
        own = next(part for part in reversed(found) if not part or part[0] in group)
        own.append(trial)
    return found


def perform_together(run: str, several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials as one here and return their records, as :func:`perform` does; one alone runs by itself."""
    if len(several) == 1:
        return [perform(run, several[0])]
    module, _, name = run.partition(":")
    together = getattr(importlib.import_module(module), name).__dict__["together"]

    def whole() -> dict[str, Any]:
        return {"results": getattr(importlib.import_module(together), name)(several)}

    record = _measured(whole)
    if "error" in record:
        return [record for _ in several]
    seconds = round(record["seconds"] / len(several), 4)
    return [{"result": result, "seconds": seconds} for result in record["result"]["results"]]


def perform(run: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run one trial here and return its record, or a record with ``error`` and ``traceback``.

    What the function returns under ``"timing"`` is kept apart from ``"result"``: times are never the same twice.
    """
    return _measured(lambda: Trial(run, settings).function(**settings))


def _measured(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record of what ``function`` returns, or raises, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        # The process's own random state is left as it was, for trials that run inside the caller's process.
        with torch.random.fork_rng(devices=[]):
            result = plain(function())
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return {"error": message, "traceback": traceback.format_exc()}
    finally:
        torch.set_num_threads(threads)
    timing = result.pop("timing", None)
    record = {"result": result, "seconds": round(time.perf_counter() - start, 4)}
    return record if timing is None else {**record, "timing": timing}


class Store:
    """Finished trials in ``folder/trials.jsonl``, one JSON line each, on disk before the next begins.

    A torn last line (the machine stopped while writing it) is cut off, and that trial runs again.

    Raises:
        StoreError: where another process is writing to the same folder, or the folder cannot be made.
    """

    def __init__(self, folder: str | Path, *, fresh: bool = False) -> None:
        self.path = Path(folder) / "trials.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise StoreError(f"cannot write to {self.path.parent}: {error.strerror}. Choose another folder.") from error
        self._lock()
        if fresh:
            self._file.truncate(0)
        self._records = self._read()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise StoreError(
                f"another study is running in {self.path.parent}. Wait for it to end, or choose another folder."
            ) from error

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            self._file.truncate(whole)
        records: dict[str, dict[str, Any]] = {}
        for line in text[:whole].splitlines():
            # A damaged line is left out: its trial runs again and is appended anew.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                records[record["key"]] = record
        return records

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self._records

    def __getitem__(self, trial: Trial) -> dict[str, Any]:
        return self._records[trial.key]

    def __len__(self) -> int:
        return len(self._records)

    def append(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """Keep one finished trial: on disk when this returns."""
        whole = {"key": trial.key, "run": trial.run, "settings": plain(trial.settings), **record}
        self._records[trial.key] = whole
        try:
            self._file.write(canonical(whole).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            del self._records[trial.key]
            raise

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """What is started inside ignores SIGINT: on Ctrl-C the parent alone decides, and workers print nothing.

    Ignored rather than blocked: multiprocessing's resource tracker unblocks it while workers start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Records = list[dict[str, Any]]


def _numbered(index: int, run: str, several: Sequence[Mapping[str, Any]]) -> tuple[int, Records]:
    """One bundle in a worker process."""
    gammabeta.warm_allocator()
    return index, perform_together(run, several)


def _finished(parts: Sequence[Sequence[Trial]], jobs: int) -> Generator[tuple[int, Records], None, None]:
    """Each bundle's position and records, as they finish; closing the iterator ends the workers."""
    if jobs == 1:
        for index, part in enumerate(parts):
            yield index, perform_together(part[0].run, [trial.settings for trial in part])
        return
    import joblib

    pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
    calls = [
        joblib.delayed(_numbered)(index, part[0].run, [dict(trial.settings) for trial in part])
        for index, part in enumerate(parts)
    ]
    with _interrupt_ignored():
        outcomes = pool(calls)
    try:
        # Not `yield from`: that closes them itself, before the warning below is silenced.
        for outcome in outcomes:  # noqa: UP028
            yield outcome
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib warns that results were left: they were, on purpose
            outcomes.close()


def run_trials(
    trials: Sequence[Trial],
    store: Store,
    *,
    jobs: int,
    finished: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Run what the store does not hold yet, and return all records in the order of ``trials``.

    Args:
        trials: the trials; one that stands there twice runs once.
        store: where finished trials are kept, one by one, as they finish.
        jobs: worker processes; 1 runs in this process.
        finished: called after each trial that ran.

    Raises:
        TrialError: a trial raised; those that finished before it are kept.
        KeyboardInterrupt: after the workers were ended.
    """
    missing = [part for part in bundles(trials) if any(trial not in store for trial in part)]
    if missing:
        with contextlib.closing(_finished(missing, jobs)) as done:
            for index, records in done:
                for trial, record in zip(missing[index], records, strict=True):
                    if "error" in record:
                        raise TrialError(
                            f"the trial {trial.run} with {canonical(plain(trial.settings))} failed: {record['error']}",
                            record["traceback"],
                        )
                    if trial not in store:
                        store.append(trial, record)
                        finished()
    return [store[trial] for trial in trials]
