"""The results of a study: the content of ``results.json``, which is written again after each step."""

import contextlib
import datetime
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import gammabeta
from gammabeta.lab.claim import Claim
from gammabeta.lab.comparison import Comparison
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.outcome import Outcome, Room
from gammabeta.lab.recommendation import Run, failed, not_compared, recommend
from gammabeta.lab.task import Kind
from gammabeta.lab.trials.store import Store, StoreError
from gammabeta.lab.trials.trial import cores, plain
from gammabeta.pages.atomic import write_atomically


class Results:
    """What a study has found so far.

    Attributes:
        content: of ``results.json``.
        outcomes: of the claims that were decided, by name.
    """

    def __init__(self, folder: str | Path, *, command: str, tasks: Sequence[dict[str, Any]], quick: bool) -> None:
        self.path = Path(folder) / "results.json"
        self.outcomes: dict[str, Outcome] = {}
        self._comparisons: list[Comparison] = []
        self._broken: list[dict[str, Any]] = []
        self._names = ", ".join(task["name"] for task in tasks)
        self._start = time.perf_counter()
        self.content: dict[str, Any] = {
            "schema": 2,
            "gammabeta": gammabeta.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": f"{_processor()}, {cores()} cores",
            "command": command,
            "task": tasks[0],
            "tasks": list(tasks),
            "quick": quick,
            "seconds": 0.0,
            "recommendations": [],
            "claims": [],
            "failed": [],
            "trials": {},
        }

    def compared(self, comparisons: Sequence[Comparison]) -> list[str]:
        """Keep the comparisons on one kind of data, and return their recommendations' headlines."""
        self._comparisons += comparisons
        self.write()
        known = len(self._comparisons)
        own = self.content["recommendations"][known - len(comparisons) : known]
        return [recommendation["headline"] for recommendation in own]

    def not_compared(self, kind: Kind, error: str) -> None:
        """Keep that the comparison on one kind of data failed."""
        self.content["failed"].append(f"comparison on {kind}: {error}")
        self._broken.append(failed(kind, error))
        self.write()

    def decided(self, claim: Claim, outcome: Outcome, seconds: float, store: Store) -> None:
        """Keep a claim's outcome, with the records of its trials."""
        self.outcomes[claim.name] = outcome
        self.content["claims"].append({**_facts(claim), **outcome.to_json(), "seconds": round(seconds, 2)})
        for trial in outcome.trials:
            self.content["trials"][trial.key] = {key: value for key, value in store[trial].items() if key != "key"}
        self.write()

    def failed(self, claim: Claim, error: str) -> Outcome:
        """Keep that a claim's trials failed, and return the outcome that says so."""
        self.content["failed"].append(f"{claim.name}: {error}")
        return Outcome("failed", error, [], Room(False, "not measured"))

    def interrupted(self, claim: Claim, seconds: float) -> None:
        """Keep that a claim was interrupted."""
        self.content["claims"].append(
            {
                **_facts(claim),
                "verdict": "interrupted",
                "sentence": "interrupted before it was decided",
                "effects": [],
                "room": {"holds": True, "control": "not measured yet"},
                "pictures": [],
                "tables": [],
                "trials": [],
                "seconds": round(seconds, 2),
            }
        )
        self.write()

    def write(self) -> None:
        """Recommend by what has been found so far, and write the file."""
        quick, command = self.content["quick"], self.content["command"]
        embedded = len(self.content["tasks"]) > 1
        made = [
            {
                **recommend(
                    comparison,
                    self.outcomes,
                    Run(quick, command, KINDS[comparison.kind].embedded if embedded else ""),
                ),
                **comparison.to_json(),
            }
            for comparison in self._comparisons
        ]
        self.content["recommendations"] = [*made, *self._broken] or [not_compared(self._names, self.outcomes)]
        self.content["seconds"] = round(time.perf_counter() - self._start, 1)
        write(self.content, self.path)


def elsewhere(claim: Claim, task: dict[str, Any]) -> Outcome:
    """Return the outcome of a claim about another kind of data than the study's."""
    return Outcome(
        "does not apply",
        f"it is about {claim.kind}, and {task['name']} holds {task['kind']}",
        [],
        Room(False, "other data"),
    )


def _facts(claim: Claim) -> dict[str, Any]:
    return {
        "name": claim.name,
        "title": claim.title,
        "question": claim.line("Question"),
        "claim": claim.line("Claim"),
        "criterion": claim.line("Criterion"),
        "method": claim.line("Method"),
        "settings": claim.line("Settings"),
        "sources": claim.sources,
        "known": claim.line("Known"),
        "exact": claim.exact,
    }


def write(results: dict[str, Any], path: Path) -> None:
    """Write the results in one step, so that a reader never sees half a file."""
    text = json.dumps(plain(results), indent=1, allow_nan=False, ensure_ascii=False)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}. Finished trials are kept: make room and run the same command "
            "again."
        ) from error


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
