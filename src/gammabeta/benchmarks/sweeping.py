"""The run of a sweep: thousands of short contests between ours and torch's, in three repetitions.

    a row is above its limit  ⇔  p25(ours/torch, round by round) > limit in each of three repetitions

It has a loop of its own beside `contest.contest`. That one fills a ring of buffers, collects garbage and times a copy
for each row, which takes seconds, where a sweep has a fraction of one. Rows and contestants are as in other subjects.

Every measurement is a line of a file at once. After Ctrl-C the same command continues there, as long as kernels,
versions, rows and options are the same.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.markup import escape

import gammabeta
from gammabeta import kernels
from gammabeta.benchmarks.contest import OURS, TORCH, Call, Field, Subject, rotated
from gammabeta.benchmarks.plan import BenchError, Interrupted, Plan, progress_bar, write
from gammabeta.benchmarks.sweep_page import sweep_page, sweep_summary
from gammabeta.benchmarks.swept import REPETITIONS, Combination, Swept, Times

LASTS = 1e-3  # seconds that a timing lasts at least
LONGEST = 0.5  # seconds of rounds after which a row has only `FEWEST` of them
FEWEST = 5
COLLECT = 50  # rows between two collections of garbage

Key = tuple[int, str]  # threads, the row's name


def measure(subject: Subject, plan: Plan, warmed: str, console: Console) -> Path:
    """Measure the sweep and write its page; continue an earlier run where there is one.

    Raises:
        Interrupted: after Ctrl-C.
        BenchError: a file cannot be written.
    """
    path = plan.out / f"{subject.name}-{date.today().isoformat()}.md"
    rows = [cast(Combination, row) for row in subject.rows(plan.quick)]
    journal = Journal(plan.out / f"{subject.name}.partial.jsonl", _identity(plan, rows))
    found = {(threads, row.name): Swept(row, threads) for threads in plan.threads for row in rows}
    if journal.read(found):
        console.print(f"{subject.name} continues with what is in {escape(str(journal.path))}", highlight=False)

    def page(partial: str | None) -> str:
        return sweep_page(subject, plan, [e for e in found.values() if e.times or e.refused], warmed, partial)

    try:
        with progress_bar(console) as bar:
            for threads in plan.threads:
                torch.set_num_threads(threads)
                for repetition in range(REPETITIONS):
                    todo = [key for key, each in found.items() if key[0] == threads and _wants(each, repetition)]
                    words = f"{threads} thread{'s' * (threads > 1)}, repetition {repetition + 1}"
                    running = bar.add_task(words, total=len(todo))
                    for i, key in enumerate(todo):
                        bar.update(running, description=f"{words}  {key[1]}", completed=i)
                        if i % COLLECT == 0:
                            gc.collect()
                        found[key] = repeated(found[key], plan.rounds)
                        journal.add(key, found[key])
                    bar.remove_task(running)
    except KeyboardInterrupt:
        done = sum(bool(each.times or each.refused) for each in found.values())
        if not done:
            raise Interrupted(f"Interrupted in the first row of {subject.name}: nothing was measured.") from None
        partial = path.with_suffix(".partial.md")
        write(partial, page(f"{done} of {len(found)} rows, not all of them in every repetition"))
        raise Interrupted(
            f"Interrupted: {done} of {len(found)} rows of {subject.name} are in {partial}. The same command continues "
            "there."
        ) from None
    write(path, page(None))
    path.with_suffix(".partial.md").unlink(missing_ok=True)
    journal.path.unlink(missing_ok=True)
    console.print(f"{subject.name}: {sweep_summary(list(found.values()))}", highlight=False)
    console.print(f"written to {escape(str(path))}", soft_wrap=True, highlight=False)
    return path


def _wants(each: Swept, repetition: int) -> bool:
    return each.open and len(each.times) == repetition


def repeated(each: Swept, rounds: int) -> Swept:
    """Return the row with one repetition more, or with the reason why it does not run."""
    try:
        times = compete(each.row.build(False), rounds)
    except (RuntimeError, NotImplementedError) as error:  # what torch's op does not take
        return replace(each, refused=str(error).partition("\n")[0] or type(error).__name__)
    return replace(each, times=(*each.times, times))


def compete(field: Field, rounds: int) -> Times:
    """Time ours and torch's in turns: `rounds` times, or fewer where they take long."""
    calls = {name: [field.contestants[name](slot) for slot in range(field.slots)] for name in (OURS, TORCH)}
    held: deque[object] = deque(maxlen=field.slots)
    once = {name: min(_timing(of, field.slots, 1, held) for _ in range(2)) for name, of in calls.items()}
    repeats = max(1, math.ceil(LASTS / min(once.values())))
    if repeats * sum(once.values()) * rounds > LONGEST:
        rounds = max(min(rounds, FEWEST), int(LONGEST / (repeats * sum(once.values()))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    collected = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in rotated(list(calls), turn):
                seconds[name].append(_timing(calls[name], repeats, turn * repeats, held))
    finally:
        if collected:
            gc.enable()
    return Times.of(seconds[OURS], seconds[TORCH])


def _timing(calls: Sequence[Call], repeats: int, first: int, held: deque[object]) -> float:
    """Return the seconds of a call: the mean of several, on the buffers in turn."""
    number = len(calls)
    todo = [calls[(first + i) % number] for i in range(repeats)]
    start = time.perf_counter()
    for call in todo:
        held.append(call())
    return (time.perf_counter() - start) / repeats


class Journal:
    """The file to which every measurement goes at once, and from which an interrupted run continues.

    Args:
        path: of the file; it need not exist.
        identity: what must be the same for a run to continue another.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._head = json.dumps({"identity": identity})

    def read(self, found: dict[Key, Swept]) -> bool:
        """Put what the file holds into the rows; return whether it holds anything. A file of another run is lost."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        if lines[:1] != [self._head]:
            write(self.path, self._head + "\n")
            return False
        for content in _whole(lines[1:]):
            key = content["threads"], content["row"]
            times = tuple(Times(**each) for each in content["times"])
            found[key] = replace(found[key], times=times, refused=content["refused"])
        # Written again without a line that was cut off, to which the next would be added.
        write(
            self.path, "\n".join([self._head, *(_line(k, e) for k, e in found.items() if e.times or e.refused)]) + "\n"
        )
        return len(lines) > 1

    def add(self, key: Key, each: Swept) -> None:
        """Add a row as it is now; the last line about a row counts."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(key, each) + "\n")
        except OSError as error:
            raise BenchError(f"{self.path}: expected a file to write to, got {error.strerror}.") from None


def _line(key: Key, each: Swept) -> str:
    times = [asdict(one) for one in each.times]
    return json.dumps({"threads": key[0], "row": key[1], "times": times, "refused": each.refused})


def _whole(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what whole lines hold; only the last can have been cut off."""
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _identity(plan: Plan, rows: Sequence[Combination]) -> str:
    """Return a hash of what must be the same for a run to continue another: kernels, versions, rows, options."""
    names = [row.name for row in rows]
    parts = gammabeta.__version__, kernels.identity().key, plan.rounds, plan.threads, names
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
