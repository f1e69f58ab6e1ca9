"""What a verification has found, by backend, operation and dtype."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gammabeta.proof.report import html_of, text_of
from gammabeta.proof.tolerances import TABLE

MOST_FAILURES = 20
"""Failed cases that are kept of a backend; the others are counted."""

WELL_CONDITIONED = 64
"""ulp that may be allowed of a result whose error is shown."""


@dataclass
class Cell:
    """One operation in one dtype on one backend: its cases, and the largest error of a well-conditioned result.

    Attributes:
        error, allowed: in ulp, as `check.Comparison` has them. Results for which more than
            ``WELL_CONDITIONED`` ulp are allowed, such as deviations from a mean of 1e8, are held to that too, but
            shown only where there is no other: their errors in ulp say little.
        row: the tolerance's index in the table of tolerances, which has the reason.
    """

    cases: int = 0
    failed: int = 0
    seconds: float = 0.0
    error: float = 0.0
    allowed: float = 0.0
    quantity: str = ""
    row: int | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Count a case."""
        self.cases += 1
        self.seconds += event["seconds"]
        self.failed += "failure" in event
        for quantity, error, allowed, row in event.get("compared", ()):
            if self.row is None or _rank(error, allowed) > _rank(self.error, self.allowed):
                self.error, self.allowed, self.quantity, self.row = error, allowed, quantity, row

    @property
    def reason(self) -> str:
        """Why that much is allowed."""
        return "" if self.row is None else TABLE[self.row].reason


def _rank(error: float, allowed: float) -> tuple[bool, float]:
    """Return what decides which error is shown."""
    return allowed <= WELL_CONDITIONED, error


@dataclass
class BackendOutcome:
    """What was found of one backend.

    Attributes:
        name, judged: as the backend's.
        on: the instruction set or the GPU.
        cells: by operation and dtype.
        failures: each with case, backend, seed and message.
        not_run: the cases that this machine does not let run, each with case, backend and reason; none of them is
            about a kernel alone.
        ended: why its process ended before all cases had run, "" where it did not.
        starved: why the machine could not see it through, "" where it did: memory was short, or the process was
            killed. It has then neither passed nor failed by that.
    """

    name: str
    judged: bool = True
    on: str = ""
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    not_run: list[dict[str, str]] = field(default_factory=list)
    ended: str = ""
    starved: str = ""
    seconds: float = 0.0

    def add(self, event: dict[str, Any], seed: int) -> None:
        """Count a case, if it ran."""
        if "not_run" in event:
            self.not_run.append({"case": event["done"], "backend": self.name, "reason": event["not_run"]})
            return
        if "out_of_memory" in event:
            self.starved = self.starved or f"in {event['done']}: {event['out_of_memory']}"
            return
        self.cells.setdefault((event["op"], event["dtype"]), Cell()).add(event)
        if "failure" in event:
            self.fail(event["done"], seed, event["failure"])

    def fail(self, case: str, seed: int, message: str) -> None:
        """Keep a failed case, unless there are too many."""
        if len(self.failures) < MOST_FAILURES:
            self.failures.append({"case": case, "backend": self.name, "seed": seed, "message": message})

    @property
    def cases(self) -> int:
        """How many cases ran."""
        return sum(cell.cases for cell in self.cells.values())

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(cell.failed for cell in self.cells.values())

    @property
    def passed(self) -> bool:
        """Whether all cases ran that can run here, and none failed."""
        return not self.failed and not self.ended and not self.starved and self.cases > 0

    @property
    def decides(self) -> bool:
        """Whether it says something about the kernels: they have passed, a case has failed, or one has crashed."""
        return self.passed or self.failed > 0 or (bool(self.ended) and self.ended != self.starved)

    @property
    def verdict(self) -> str:
        """A word for people."""
        if self.passed:
            return "passed"
        if not self.decides:
            return "incomplete"
        return "failed" if self.judged else "differs"


@dataclass
class Verification:
    """What `gammabeta.verify()` has found.

    Attributes:
        backends: of each backend, what was found.
        certificates: by "native" or "triton:0", the files that were written.
        unwritten: by the same names, the files that could not be written, each with the reason.
        environment: versions and devices, by name.
        seconds: how long it took, in seconds.
        seed: of the random values; an integer.
    """

    backends: list[BackendOutcome]
    certificates: dict[str, Path]
    unwritten: dict[str, str]
    environment: dict[str, str]
    seconds: float
    seed: int

    @property
    def passed(self) -> bool:
        """Whether every backend that is judged has passed every case."""
        judged = [backend for backend in self.backends if backend.judged]
        return bool(judged) and all(backend.passed for backend in judged)

    @property
    def cases(self) -> int:
        """The number of cases that ran, over all backends."""
        return sum(backend.cases for backend in self.backends)

    @property
    def ran(self) -> str:
        """How much ran, in words."""
        cases = "1 case" if self.cases == 1 else f"{self.cases:,} cases"
        return f"{cases} on {'1 backend' if len(self.backends) == 1 else f'{len(self.backends)} backends'}"

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The failed cases, each with case, backend, seed and message; at most 20 of a backend."""
        return [failure for backend in self.backends for failure in backend.failures]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "seed": self.seed,
            "environment": self.environment,
            "certificates": {name: str(path) for name, path in self.certificates.items()},
            "unwritten": self.unwritten,
            "backends": [_of_backend(backend) for backend in self.backends],
            "failures": self.failures,
        }

    def report(self) -> str:
        """Return one text to paste: versions, what ran, and the failed cases with the commands that run them again."""
        return text_of(self.to_dict())

    def _repr_html_(self) -> str:
        return html_of(self.to_dict())

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return f"Verification({verdict}: {self.ran}, {self.seconds:.0f} s)"


def _of_backend(backend: BackendOutcome) -> dict[str, Any]:
    cells = [
        {
            "op": op, "dtype": dtype, "cases": cell.cases, "failed": cell.failed, "seconds": round(cell.seconds, 3),
            "quantity": cell.quantity, "error_ulp": round(cell.error, 4), "allowed_ulp": round(cell.allowed, 4),
            "reason": cell.reason,
        }
        for (op, dtype), cell in backend.cells.items()
    ]  # fmt: skip
    return {
        "backend": backend.name, "on": backend.on, "judged": backend.judged, "verdict": backend.verdict,
        "cases": backend.cases, "failed": backend.failed, "ended": backend.ended, "starved": backend.starved,
        "not_run": backend.not_run,
        "seconds": round(backend.seconds, 2), "cells": cells,
    }  # fmt: skip
