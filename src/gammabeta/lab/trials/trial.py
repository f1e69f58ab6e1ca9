"""Trials: the unit of measurement. Each is a function and its settings.

A trial is reproducible bit by bit: one thread, its own seeds, nothing taken from the process it happens to run in.
Its key is a hash of everything that decides its result, so that a stored result is never mistaken for another's.
"""

import hashlib
import importlib
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch

import gammabeta
from gammabeta import ops

Function = TypeVar("Function", bound=Callable[..., dict[str, Any]])


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
        # One by one, so that the one that fails does not take the others with it.
        return [perform(run, settings) for settings in several]
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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
