"""One contest: several ways to compute the same, timed in turns in one process.

    p50(contestant) / p50(copy)       copies: the time in units of y.copy_(x), which reads x once and writes y once
    p50(gammabeta) / p50(torch)       the ratio; below 1 is faster

Every round times each contestant once, and the order rotates by one per round. Preparations are not timed. Each timing
of a contest has its own number, so that a contestant can use other buffers each time. The last few results are held, so
that no result is written where the one before was.
"""

from __future__ import annotations

import gc
import inspect
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gammabeta.allocator import trim_heap

OURS, TORCH, COMPILED, COPY, LIGER = "gammabeta", "torch", "torch.compile", "copy", "Liger-Kernel"

Call = Callable[[], object]  # what is timed
Contestant = Callable[[int], Call]  # not timed: from the timing's number to its call
Measure = Callable[..., Path]  # from a subject, plan, words about the allocator and console to the subject's file


def wall_clock(call: Call, repeats: int) -> tuple[float, object]:
    """Time calls by the wall clock. Return seconds per call, and the last result."""
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    return (time.perf_counter() - start) / repeats, result


def device_clock(call: Call, repeats: int) -> tuple[float, object]:
    """Do the same by CUDA events: from when the device begins to when it is done."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        result = call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats, result


@dataclass(frozen=True)
class Field:
    """The contestants of a row.

    Args:
        contestants: by name, among them `OURS` and `TORCH`; without one of these the row is not timed.
        slots: number of buffers that the contestants cycle through, and of results that are held.
        saved: bytes that forward keeps for backward, per contestant.
        refused: contestants that could not take part, and why.
        clock: the function that times them.
    """

    contestants: Mapping[str, Contestant]
    slots: int = 1
    saved: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[Call, int], tuple[float, object]] = wall_clock


@dataclass(frozen=True)
class Row:
    """A row of a subject's table: what is computed on which tensors, and its limits.

    Args:
        operation: what is computed, in words.
        shape, dtype, layout: of x.
        build: returns the field; its argument says whether torch.compile takes part. It is called with the number of
            threads set.
        floor: least traffic to memory, in copies (one copy reads and writes one tensor of x's size); None where it is
            not meaningful.
        at_most: limit of the p50, in copies; None for no limit.
        at_most_of_torch: limit of the p50, as a ratio to torch's.
        lasts: least duration of a timing in seconds, which repeats its call that long; 0 times single calls.
    """

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    build: Callable[[bool], Field]
    floor: float | None = None
    at_most: float | None = None
    at_most_of_torch: float | None = None
    lasts: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.operation} {self.shape} {str(self.dtype).removeprefix('torch.')} {self.layout}"

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Result:
    """The result of a row: seconds (p20, p50, p80) of each contestant; none where ours or torch's did not run."""

    row: Row
    threads: int
    seconds: Mapping[str, tuple[float, float, float]]
    saved: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        """Whether the row was timed."""
        return bool(self.seconds)

    def ratio(self, contestant: str = TORCH) -> float:
        """Return our median over another's."""
        return self.seconds[OURS][1] / self.seconds[contestant][1]

    def copies(self, contestant: str = OURS) -> tuple[float, float, float]:
        """Return (p20, p50, p80) in units of the copy's median."""
        low, middle, high = self.seconds[contestant]
        unit = self.seconds[COPY][1]
        return low / unit, middle / unit, high / unit

    def within_limit(self) -> bool | None:
        """Return whether our median is within the row's limit; None where it has none."""
        if self.row.at_most is not None:
            return self.copies()[1] <= self.row.at_most
        if self.row.at_most_of_torch is not None:
            return self.ratio() <= self.row.at_most_of_torch
        return None

    def at_least_as_fast(self) -> dict[str, str]:
        """Return whose median is not above ours, and by how much; "apart" where the ranges p20 to p80 are disjoint."""
        others = (name for name in self.seconds if name not in (OURS, COPY))
        return {
            name: f"{self.ratio(name):.2f} of its time, "
            + ("ranges apart" if self.seconds[name][2] < self.seconds[OURS][0] else "ranges overlap")
            for name in others
            if self.seconds[name][1] <= self.seconds[OURS][1]
        }


@dataclass(frozen=True)
class Subject:
    """What one file of benchmarks/subjects/ measures.

    Args:
        name: the file's name.
        title, text: the first line of its docstring, and the rest.
        unit: of its figures: "copies", "µs" or "ms".
        rows: returns the rows, few of them for True.
        missing: what must be installed first, in a sentence; None where nothing is missing.
        names: names of contestants in its tables, where they differ from their own.
        others: contestants besides ours, torch's and torch.compile's, each with its own column.
        variants: those of `others` that do not compete: ours in another form, or no norm at all.
        compiles: whether its contestants are compiled, so that nothing is left without torch.compile.
        measure: measures the subject in its own way and returns its file; None for the usual one.
    """

    name: str
    title: str
    text: str
    unit: str
    rows: Callable[[bool], list[Row]]
    missing: Callable[[], str | None]
    names: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    compiles: bool = False
    measure: Measure | None = None

    def name_of(self, contestant: str) -> str:
        """Return the name of a contestant in this subject's tables."""
        return self.names.get(contestant, contestant)

    @classmethod
    def of(cls, module: Any) -> Subject:
        """Return a module's subject: its docstring, `UNIT`, `rows(quick)` and, if it has them, `missing()`, `NAMES`,
        `OTHERS`, `VARIANTS`, `COMPILES` and `measure`."""
        title, _, text = (inspect.getdoc(module) or "").partition("\n")
        return cls(
            name=module.__name__.rpartition(".")[2],
            title=title.strip(),
            text=text.strip(),
            unit=module.UNIT,
            rows=module.rows,
            missing=getattr(module, "missing", lambda: None),
            names=getattr(module, "NAMES", {}),
            others=getattr(module, "OTHERS", ()),
            variants=getattr(module, "VARIANTS", ()),
            compiles=getattr(module, "COMPILES", False),
            measure=getattr(module, "measure", None),
        )


def contest(row: Row, threads: int, rounds: int, compiled: bool) -> Result:
    """Time the row's contestants in turns.

    Args:
        row: what is timed.
        threads: torch's threads, for the result; the caller has set them.
        rounds: timings per contestant, at least 2.
        compiled: whether torch.compile takes part.
    """
    gc.collect()  # frees what the row before left in reference cycles, and its pages
    trim_heap()
    parts = row.build(compiled)
    contestants = dict(parts.contestants)
    if not {OURS, TORCH} <= {*contestants}:
        return Result(row, threads, {}, refused=parts.refused)
    repeats = max(_repeats(contestant, parts.slots, row.lasts, parts.clock) for contestant in contestants.values())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    held: deque[object] = deque(maxlen=parts.slots)
    number = 0
    # Warm up with twice as many results as will be held: pages that malloc must first get cost more than the
    # arithmetic.
    for turn in range(math.ceil(2 * parts.slots / len(contestants))):
        for name in rotated(list(contestants), turn):
            held.append(contestants[name](number)())
            number += 1
    collected = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in rotated(list(contestants), turn):
                call = contestants[name](number)
                took, result = parts.clock(call, repeats)
                seconds[name].append(took)
                held.append(result)
                number += 1
    finally:
        if collected:
            gc.enable()
    return Result(row, threads, {name: percentiles(took) for name, took in seconds.items()}, parts.saved, parts.refused)


def rotated(names: list[str], turn: int) -> list[str]:
    """Return the names, beginning with another one each round."""
    first = turn % len(names)
    return names[first:] + names[:first]


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile of at least two values, interpolated between them."""
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return low, statistics.median(values), high


def _repeats(
    contestant: Contestant, slots: int, lasts: float, clock: Callable[[Call, int], tuple[float, object]]
) -> int:
    """Warm the contestant up on every buffer. Return how many of its calls last long enough."""
    shortest = math.inf
    for number in range(max(slots, 3)):
        took, _ = clock(contestant(number), 1)
        shortest = min(shortest, took)
    return max(1, math.ceil(lasts / shortest)) if lasts else 1
