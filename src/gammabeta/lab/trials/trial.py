"""Trials, the unit of measurement: each is a function and its settings.

A trial is reproducible bit by bit: it runs in one thread with its own seeds, and takes nothing from the process that it
runs in. Its key is a hash of everything that decides its result, so that a stored result is never taken for another's.
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
from gammabeta.lab.user_traceback import own_traceback

Function = TypeVar("Function", bound=Callable[..., dict[str, Any]])


def versioned(version: int, *, together: str | None = None) -> Callable[[Function], Function]:
    """Mark a trial function with its version. Raise the version when the same settings come to mean another result.

    Args:
        together: names a module that runs several of the function's trials as one, which is faster. Its
            ``joinable(settings)`` says whether a trial can take part. Its function of the trial function's name takes a
            list of settings, which differ only in ``rate``, ``seed`` and the task's split, and returns their results.
    """

    def mark(function: Function) -> Function:
        function.__dict__["trial_version"] = version
        function.__dict__["together"] = together
        return function

    return mark


def plain(value: Any) -> Any:
    """Convert ``value`` to JSON's own types.

    Tuples become lists, NaN and infinities null, numpy's and torch's scalars numbers.

    Raises:
        TypeError: JSON has no form for the value.
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
    """Return the canonical JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def cpu_kernels() -> str | None:
    """Return the instruction set of the native CPU kernels; None where they are not loaded."""
    return torch.ops.gammabeta.cpu_instruction_set() if ops.has_kernel("cpu") else None


@dataclass(frozen=True)
class Trial:
    """One measurement: ``run`` is ``"package.module:function"``, called as ``function(**settings) -> dict``.

    The key covers the settings, in which a task or model carries the fingerprint of its content, and the version of the
    function. It also covers what decides the last bits: the versions of gammabeta and torch, and which kernels run.
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

    def __str__(self) -> str:
        """Name the function, and the settings that are numbers or words."""
        said = [f"{name} {value}" for name, value in self.settings.items() if isinstance(value, str | int | float)]
        return f"{self.run} ({', '.join(said)})" if said else self.run


# At most this many trials run as one: more members make a step longer, and a run that ends early waits for the rest.
MOST_TOGETHER = 6


def bundles(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Group the trials that run as one.

    The groups depend only on what is asked for, not on what is on disk already. The last bits of a result therefore do
    not depend on when a study was interrupted.
    """
    groups: dict[str, list[Trial]] = {}
    found: list[list[Trial]] = []
    for trial in {trial.key: trial for trial in trials}.values():
        together = trial.function.__dict__.get("together")
        if together is None or not importlib.import_module(together).joinable(trial.settings):
            found.append([trial])
            continue
        group = groups.setdefault(canonical(plain([trial.run, _shared(trial.settings)])), [])
        if len(group) % MOST_TOGETHER == 0:
            found.append([])
        group.append(trial)
        # the latest group that was begun for these settings
        own = next(part for part in reversed(found) if not part or part[0] in group)
        own.append(trial)
    return found


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what trials must have in common to run as one."""
    rest = {name: value for name, value in settings.items() if name not in ("rate", "seed")}
    if isinstance(rest.get("task"), Mapping):
        rest["task"] = {name: value for name, value in rest["task"].items() if name != "split"}
    return rest


def perform_together(run: str, several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials as one in this process, and return their records as :func:`perform` does."""
    if len(several) == 1:
        return [perform(run, several[0])]
    module, _, name = run.partition(":")
    together = getattr(importlib.import_module(module), name).__dict__["together"]

    def whole() -> dict[str, Any]:
        return {"results": getattr(importlib.import_module(together), name)(several)}

    record = _measured(whole)
    if "error" in record:
        # One by one, so that the trial that fails does not fail the others.
        return [perform(run, settings) for settings in several]
    seconds = round(record["seconds"] / len(several), 4)
    return [{"result": result, "seconds": seconds} for result in record["result"]["results"]]


def perform(run: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run one trial in this process, and return its record, or a record with ``error`` and ``traceback``.

    Where the user's code raised, the traceback begins there.

    What the function returns under ``"timing"`` is kept apart from ``"result"``: times are never the same twice.
    """
    return _measured(lambda: Trial(run, settings).function(**settings))


def _measured(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Record what ``function`` returns or raises, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        # Trials may run inside the caller's process, whose random state must not change.
        with torch.random.fork_rng(devices=[]):
            result = plain(function())
    except (Exception, SystemExit) as error:  # the user's model may leave by sys.exit()
        message = f"{type(error).__name__}: {error}"
        return {"error": message, "traceback": own_traceback(error) or traceback.format_exc()}
    finally:
        torch.set_num_threads(threads)
    timing = result.pop("timing", None)
    record = {"result": result, "seconds": round(time.perf_counter() - start, 4)}
    return record if timing is None else {**record, "timing": timing}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
