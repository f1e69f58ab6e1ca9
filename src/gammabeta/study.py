"""The study: claims about normalization, measured on the user's data and model.

Every finished trial is on disk before the next begins, so that a study that was interrupted continues where it stopped.
"""

import contextlib
import datetime
import difflib
import json
import os
import platform
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import gammabeta
from gammabeta.claim import Claim
from gammabeta.claims import CLAIMS
from gammabeta.experiment import Experiment
from gammabeta.outcome import Outcome
from gammabeta.recommendation import recommend
from gammabeta.tasks.networks import user_network
from gammabeta.tasks.sources import load
from gammabeta.tasks.sources import source as task_source
from gammabeta.tasks.task import TaskError
from gammabeta.trial import Store, StoreError, TrialError, cores, plain

COLOURS = {
    "supported": "green",
    "contradicted": "red",
    "equivalent": "cyan",
    "inconclusive": "yellow",
    "no room here": "magenta",
    "reported": "blue",
}


class StudyError(Exception):
    """What the user asked for cannot be done: one sentence, with what to do."""


class Interrupted(Exception):  # noqa: N818
    """The study was interrupted; finished trials are kept. The message says how to continue."""


def study(
    claims: Sequence[str] | None = None,
    *,
    data: str = "digits",
    model: str | None = None,
    quick: bool = False,
    out: str | Path = "gammabeta-study",
    jobs: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure claims about normalization, and say what follows for this data and model.

    Prints one line a claim as it is decided, and writes ``results.json`` into ``out`` after each. Sets malloc to keep
    its pages, here and in the workers (`gammabeta.warm_allocator`): for speed, no result depends on it.

    Args:
        claims: names of claims; None for all.
        data: ``"digits"`` (scikit-learn's, built in) or ``"mnist:FILE"``, an .npz of x_train, y_train, x_test, y_test.
        model: ``"package.module:function"`` or ``"file.py:function"``, called ``build(input_shape, classes, norm)``;
            takes the place of the small ResNet.
        quick: few seeds and small grids: minutes in place of half an hour.
        out: the folder for results; a study found there is continued.
        jobs: worker processes, each with one thread; None for one a core, 1 for this process.
        seed: repeats the study on other initializations and batches.
        fresh: forget the finished trials found in ``out``.
        console: where to print; None for the terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        StudyError: unknown claim, unusable data, model or folder, or a trial that failed.
        Interrupted: after Ctrl-C; everything finished is kept and ``results.json`` is written.
    """
    console = console or Console()
    chosen = _chosen(claims)
    if jobs is not None and jobs < 1:
        raise StudyError(f"expected at least one job, got {jobs}.")
    command = _command(claims, data, model, quick, out, jobs, seed)
    gammabeta.warm_allocator()
    try:
        source = task_source(data)
        task = load(source)
        user = user_network(model, task) if model else None
        store = Store(out, fresh=fresh)
    except (TaskError, StoreError) as error:
        raise StudyError(str(error)) from error
    results: dict[str, Any] = {
        "schema": 1,
        "gammabeta": gammabeta.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {cores()} cores",
        "command": command,
        "task": {
            "name": task.name,
            "kind": "images",
            "shape": list(task.shape),
            "classes": task.classes,
            "samples": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
            "model": model,
            "description": task.description,
        },
        "quick": quick,
        "seconds": 0.0,
        "recommendation": {},
        "claims": [],
        "trials": {},
    }
    start = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    experiment = Experiment(source, task, store, user, quick, seed, jobs or cores())
    with contextlib.closing(store), _progress(console, len(chosen)) as shown:
        for number, claim in enumerate(chosen):
            began = time.perf_counter()
            experiment.trials = []
            experiment.progress = shown(claim.name, number)
            try:
                outcome = claim.measure(experiment)
            except KeyboardInterrupt:
                results["claims"].append(_interrupted(claim, time.perf_counter() - began))
                _finish(results, experiment, outcomes, start, out)
                raise Interrupted(
                    f"Interrupted; {len(store)} finished trials are kept. Continue with: {command}"
                ) from None
            except TrialError as error:
                raise StudyError(f"{claim.name}: {error}") from error
            outcomes[claim.name] = outcome
            results["claims"].append(_decided(claim, outcome, time.perf_counter() - began))
            for trial in outcome.trials:
                results["trials"][trial.key] = {key: value for key, value in store[trial].items() if key != "key"}
            _finish(results, experiment, outcomes, start, out)
            colour = COLOURS.get(outcome.verdict, "white")
            console.print(f"[bold {colour}]{outcome.verdict:>12}[/]  [bold]{claim.name}[/]: {escape(outcome.sentence)}")
    return results


def _chosen(names: Sequence[str] | None) -> list[Claim]:
    known = {claim.name: claim for claim in CLAIMS}
    if names is None:
        return list(CLAIMS)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.4)
            meant = f"Did you mean {near[0]}?" if near else f"Claims: {', '.join(known)}."
            raise StudyError(f"there is no claim {name}. {meant}")
    return [claim for claim in CLAIMS if claim.name in names]


def _decided(claim: Claim, outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {**_said(claim), **outcome.to_json(), "seconds": round(seconds, 2)}


def _interrupted(claim: Claim, seconds: float) -> dict[str, Any]:
    return {
        **_said(claim),
        "verdict": "interrupted",
        "sentence": "interrupted before it was decided",
        "effects": [],
        "room": {"holds": True, "control": "not looked at yet"},
        "pictures": [],
        "tables": [],
        "trials": [],
        "seconds": round(seconds, 2),
    }


def _said(claim: Claim) -> dict[str, Any]:
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


def _finish(
    results: dict[str, Any], experiment: Experiment, outcomes: dict[str, Outcome], start: float, out: str | Path
) -> None:
    results["recommendation"] = recommend(outcomes, experiment)
    results["seconds"] = round(time.perf_counter() - start, 1)
    write(results, Path(out) / "results.json")


def write(results: dict[str, Any], path: Path) -> None:
    """Write the results in one step: a reader never sees half a file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(plain(results), indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def _progress(console: Console, claims: int) -> Iterator[Any]:
    """A bar for what is running, on a terminal; nothing where output goes to a file."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[trials]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        running = bar.add_task("starting", total=claims, trials="")

        def shown(name: str, number: int) -> Any:
            bar.update(running, description=name, completed=number, trials="")

            def update(done: int, total: int) -> None:
                part = done / total if total else 0.0
                bar.update(running, completed=number + 0.9 * part, trials=f"{done} of {total} trials")

            return update

        yield shown


def _command(
    claims: Sequence[str] | None,
    data: str,
    model: str | None,
    quick: bool,
    out: str | Path,
    jobs: int | None,
    seed: int,
) -> str:
    """The command line that runs this study; without ``--fresh``, so that it continues."""
    words = ["gammabeta", "study", *(claims or [])]
    words += ["--data", data] if data != "digits" else []
    words += ["--model", model] if model else []
    words += ["--quick"] if quick else []
    words += ["--out", str(out)] if str(out) != "gammabeta-study" else []
    words += ["--jobs", str(jobs)] if jobs else []
    words += ["--seed", str(seed)] if seed else []
    return shlex.join(words)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
