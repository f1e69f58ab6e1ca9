"""The results of a study: the content of ``results.json``, which is written again after each step."""

import contextlib
import datetime
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import gammabeta
from gammabeta.lab.claim import Claim
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.comparison import Comparison
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.outcome import Effect, Outcome, Room
from gammabeta.lab.recommendation import Run, failed, interrupted, not_compared, recommend
from gammabeta.lab.task import Kind
from gammabeta.lab.trials.store import Store, StoreError
from gammabeta.lab.trials.trial import cores, plain
from gammabeta.pages.atomic import write_atomically

SCHEMA = 2
_NUMBERS = ("value", "low", "high")  # of an effect; null in JSON where they are not finite


class Results:
    """What a study has found so far.

    Attributes:
        content: of ``results.json``.
        outcomes: of the claims that were decided, by name.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        command: str,
        tasks: Sequence[dict[str, Any]],
        quick: bool,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin with what an earlier run of the same study found, the content of its ``results.json``."""
        self.path = Path(folder) / "results.json"
        self.outcomes: dict[str, Outcome] = {}
        self._comparisons: list[Comparison] = []
        self._broken: list[dict[str, Any]] = []
        self._names = ", ".join(task["name"] for task in tasks)
        self._start = time.perf_counter()
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
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
        self._own = command
        self._kept: list[dict[str, Any]] = []
        self._spent = 0.0
        if before is not None:
            self._spent = float(before["seconds"])
            self._kept = [said for said in before["recommendations"] if "table" in said]
            self.content |= {name: before[name] for name in ("claims", "failed", "trials")}
            self.outcomes = {claim["name"]: _outcome(claim) for claim in before["claims"]}

    def compared(self, comparisons: Sequence[Comparison]) -> list[str]:
        """Keep the comparisons on one kind of data, and return their recommendations' headlines."""
        for kind in {comparison.kind for comparison in comparisons}:
            self._forget_failure(f"comparison on {kind}")
        self._comparisons += comparisons
        return [recommendation["headline"] for recommendation in self.write()[-len(comparisons) :]]

    def not_compared(self, kind: Kind, error: str) -> None:
        """Keep that the comparison on one kind of data failed."""
        self._forget_failure(f"comparison on {kind}")
        self.content["failed"].append(f"comparison on {kind}: {error}")
        self._broken.append(failed(kind, error))
        self.write()

    def comparison_interrupted(self, kind: Kind) -> None:
        """Keep that the comparison on one kind of data was interrupted, unless an earlier run has finished one."""
        if not any(said["kind"] == kind for said in self._kept):
            self._broken.append(interrupted(kind, self._own))
        self.write()

    def decided(self, claim: Claim, outcome: Outcome, seconds: float, store: Store) -> None:
        """Keep a claim's outcome, with the records of its trials."""
        self.outcomes[claim.name] = outcome
        if outcome.verdict != "failed":
            self._forget_failure(claim.name)
        self._enter({**_facts(claim), **outcome.to_json(), "seconds": round(seconds, 2)})
        for trial in outcome.trials:
            self.content["trials"][trial.key] = {key: value for key, value in store[trial].items() if key != "key"}
        self.write()

    def failed(self, claim: Claim, error: str) -> Outcome:
        """Keep that a claim's trials failed, and return the outcome that says so."""
        self._forget_failure(claim.name)
        self.content["failed"].append(f"{claim.name}: {error}")
        return Outcome("failed", error, [], Room(False, "not measured"))

    def interrupted(self, claim: Claim, seconds: float) -> None:
        """Keep that a claim was interrupted, unless an earlier run has decided it."""
        if claim.name not in self.outcomes or self.outcomes[claim.name].verdict in ("failed", "interrupted"):
            self._enter(
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

    def _enter(self, claim: dict[str, Any]) -> None:
        """Put a claim in place of what an earlier run said about it, in the order of all claims."""
        order = [known.name for known in CLAIMS]
        others = [entry for entry in self.content["claims"] if entry["name"] != claim["name"]]
        entries = [*others, {**claim, "command": self._own}]
        self.content["claims"] = sorted(
            entries, key=lambda entry: order.index(entry["name"]) if entry["name"] in order else len(order)
        )
        used = {key for entry in entries for key in entry["trials"]}
        self.content["trials"] = {key: trial for key, trial in self.content["trials"].items() if key in used}

    def _forget_failure(self, name: str) -> None:
        self.content["failed"] = [text for text in self.content["failed"] if not text.startswith(f"{name}: ")]

    def write(self) -> list[dict[str, Any]]:
        """Recommend by what has been found so far, write the file, and return this run's recommendations."""
        quick, tasks = self.content["quick"], self.content["tasks"]
        embedded, until = len(tasks) > 1, "--until-settled" in self._own
        made = [
            {
                **recommend(
                    comparison,
                    self.outcomes,
                    Run(quick, self._own, KINDS[comparison.kind].embedded if embedded else "", until),
                ),
                **comparison.to_json(),
                "command": self._own,
            }
            for comparison in self._comparisons
        ]
        renewed = {_circumstances(said) for said in made}
        kept = [said for said in self._kept if _circumstances(said) not in renewed]
        # by kind; what earlier runs recommended under other circumstances comes after
        order = sorted([*made, *kept], key=lambda said: list(KINDS).index(said["kind"]))
        self.content["recommendations"] = [*order, *self._broken] or [not_compared(self._names, self.outcomes)]
        entries = [*self.content["claims"], *order]
        commands = [entry["command"] for entry in entries if entry.get("command")]
        self.content["command"] = " && ".join(dict.fromkeys([*commands, self._own]))
        self.content["seconds"] = round(self._spent + time.perf_counter() - self._start, 1)
        write(self.content, self.path)
        return made


def read(folder: str | Path) -> dict[str, Any] | None:
    """Return the results in a folder; None where there are none that can be continued."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("schema") == SCHEMA:
            return content
    return None


def _circumstances(said: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a recommendation is for, apart from the network: a run renews those of all networks of a kind."""
    return said["kind"], said["batch_size"], said["devices"]


def _outcome(claim: Mapping[str, Any]) -> Outcome:
    """Return what a recommendation quotes of a claim in ``results.json``."""
    known = {field.name for field in fields(Effect)}
    effects = []
    for effect in claim["effects"]:
        own = {name: value for name, value in effect.items() if name in known}
        effects.append(Effect(**{**own, **{name: math.nan for name in _NUMBERS if own[name] is None}}))
    return Outcome(claim["verdict"], claim["sentence"], effects, Room(**claim["room"]))


def elsewhere(claim: Claim, task: dict[str, Any]) -> Outcome:
    """Return the outcome of a claim about another kind of data than the study's."""
    return Outcome(
        "does not apply",
        f"it is about {claim.kind}, and {task['name']} holds {task['kind']}",
        [],
        Room(False, "other data"),
    )


def without_room(outcome: Outcome) -> Outcome:
    """Return an outcome whose regimes have no room where the claim has none: a count of them would contradict that."""
    if outcome.verdict != "no room here":
        return outcome
    return replace(outcome, regimes=dict.fromkeys(outcome.regimes, outcome.verdict))


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
