"""The study: claims about normalization, measured on the user's data and model.

Every finished trial is on disk before the next begins, so that a study that was interrupted continues where it stopped.
"""

import contextlib
import datetime
import json
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import gammabeta
from gammabeta.arguments import did_you_mean
from gammabeta.lab.claim import Claim
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.comparison import Comparison
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import comparison as images
from gammabeta.lab.images.networks import user_network
from gammabeta.lab.kinds import COMPARE
from gammabeta.lab.outcome import Outcome, Room
from gammabeta.lab.recommendation import failed, not_compared, recommend
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.sources import kind, load, load_sequences, load_text
from gammabeta.lab.sources import source as task_source
from gammabeta.lab.task import Kind, TaskError
from gammabeta.lab.trials.store import Store, StoreError
from gammabeta.lab.trials.trial import cores, plain
from gammabeta.lab.trials.workers import EngineError, TrialError, connected
from gammabeta.pages.atomic import write_atomically

# A study's seeds and those that it tunes on share a thousand numbers.
SEEDS = range(2, 901)
COLOURS = {
    "supported": "green",
    "contradicted": "red",
    "equivalent": "cyan",
    "inconclusive": "yellow",
    "no room here": "magenta",
    "reported": "cyan",
    "does not apply": "bright_black",
    "failed": "bold red",
}
# Where no data are named: one embedded task of each kind.
EMBEDDED: dict[Kind, str] = {"images": "digits", "sequences": "strokes", "text": "text"}


class StudyError(Exception):
    """What the user asked for cannot be done: one sentence, with what to do."""


class Interrupted(Exception):  # noqa: N818
    """The study was interrupted; finished trials are kept. The message says how to continue."""


def study(
    claims: Sequence[str] | None = None,
    *,
    data: str | None = None,
    model: str | None = None,
    quick: bool = False,
    batch_size: int | None = None,
    devices: int = 1,
    compare_only: bool = False,
    out: str | Path = "gammabeta-study",
    jobs: int | None = None,
    seed: int = 0,
    seeds: int | None = None,
    fresh: bool = False,
    engine: str = "loky",
    address: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure claims about normalization, and say what follows for this data and model.

    Prints one line a claim as it is decided, and writes ``results.json`` into ``out`` after each. Sets malloc to keep
    its pages, here and in the workers (`gammabeta.warm_allocator`): for speed, no result depends on it.

    Args:
        claims: names of claims; None for all, and the comparison that the recommendation rests on.
        data: as `gammabeta.lab.sources.source` takes it; None for an embedded task of each kind: ``digits`` (images),
            ``strokes`` (sequences), ``text``. Claims about another kind of data do not apply.
        model: ``"package.module:function"`` or ``"file.py:function"``, called ``build(input_shape, classes, norm)``;
            takes the place of the small ResNet.
        batch_size: images, sequences or windows of text a batch on one device, for the recommendation; None for 32, of
            text 16.
        devices: how many, for the recommendation.
        compare_only: only what the recommendation needs, no claims; with a model and no data, on images alone.
        quick: few seeds and small grids: minutes in place of half an hour.
        out: the folder for results; a study found there is continued.
        jobs: worker processes, each with one thread; None for one a core, 1 for this process.
        seed: repeats the study on other initializations and batches.
        seeds: how many each result is taken from, 2 to 900, where a claim said how many would settle it; None for
            each claim's own number. Those of a study in ``out`` are not run again.
        fresh: forget the finished trials found in ``out``.
        engine: what runs the trials: ``"loky"``, ``"dask"`` or ``"ray"``.
        address: of the Dask scheduler or Ray cluster; None starts one on this machine.
        console: where to print; None for the terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        StudyError: unknown claim, unusable data, model, engine or folder, or a disk that is full.
        Interrupted: after Ctrl-C; everything finished is kept and ``results.json`` is written.
    """
    console = console or Console()
    chosen = [] if compare_only and claims is None else _chosen(claims)
    if jobs is not None and jobs < 1:
        raise StudyError(f"expected at least one job, got {jobs}.")
    if seeds is not None and seeds not in SEEDS:
        raise StudyError(
            f"expected {SEEDS[0]} to {SEEDS[-1]} seeds, got {seeds}: one shows no spread, and more share numbers "
            "with those tuned on."
        )
    for what, number in (("batch size", batch_size), ("number of devices", devices)):
        if number is not None and number < 1:
            raise StudyError(f"expected a {what} of 1 or more, got {number}.")
    asked = {"data": data, "model": model, "quick": quick, "out": out, "jobs": jobs, "seed": seed, "seeds": seeds}
    asked |= {"batch_size": batch_size, "devices": devices, "compare": compare_only}
    asked |= {"engine": engine, "address": address}
    command = command_line(claims, asked)
    gammabeta.warm_allocator()
    try:
        given = [task_source(name) for name in ([data] if data else EMBEDDED.values())]
        sources = {kind(source): source for source in given}
        user = None
        if model and "images" not in sources:
            raise TaskError(f"--model {model}: a model needs images, and {data} holds {kind(given[0])}.")
        if model:
            user = user_network(model, load(sources["images"]))
        tasks = [_of_task(source, model) for source in given]
        comparing = list(sources) if compare_only or claims is None else []
        if model and data is None:
            comparing = [of_kind for of_kind in comparing if of_kind == "images"]
        size = (batch_size or images.BATCH) * devices
        if "images" in comparing and 2 * size > (there := len(load(sources["images"]).train)):
            raise TaskError(
                f"--batch-size {batch_size or images.BATCH} on {devices} devices: expected half of the {there} "
                f"training images or less, got {size}."
            )
        store = Store(out, fresh=fresh)
        write({"claims": claims and list(claims), **asked, "out": None}, Path(out) / "study.json")
    except (TaskError, StoreError) as error:
        raise StudyError(str(error)) from error
    results: dict[str, Any] = {
        "schema": 2,
        "gammabeta": gammabeta.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {cores()} cores",
        "command": command,
        "task": tasks[0],
        "tasks": tasks,
        "quick": quick,
        "seconds": 0.0,
        "recommendations": [],
        "claims": [],
        "failed": [],
        "trials": {},
    }
    start = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    experiment = Experiment(sources, store, user, quick, seed, seeds, jobs or cores())
    comparisons: list[Comparison] = []
    broken: list[dict[str, Any]] = []
    name = ", ".join(task["name"] for task in tasks)

    def finish() -> None:
        said = [
            {
                **recommend(one, outcomes, quick=quick, option="" if data else f" --data {EMBEDDED[one.kind]}"),
                **one.to_json(),
            }
            for one in comparisons
        ]
        results["recommendations"] = [*said, *broken] or [not_compared(name, outcomes)]
        results["seconds"] = round(time.perf_counter() - start, 1)
        write(results, Path(out) / "results.json")

    with (
        contextlib.closing(store),
        _errors_in_a_sentence(),
        connected(engine, address, jobs or cores()) as experiment.jobs,
        _progress(console, len(chosen) + len(comparing)) as shown,
    ):
        for number, of_kind in enumerate(comparing):
            experiment.progress = shown(f"norms compared on {of_kind}", number)
            try:
                compared = COMPARE[of_kind](experiment, batch_size, devices)
            except KeyboardInterrupt:
                finish()
                raise Interrupted(
                    f"Interrupted; {len(store)} finished trials are kept. Continue with: {command}"
                ) from None
            except TrialError as error:
                results["failed"].append(f"comparison on {of_kind}: {error}")
                console.print(f"[bold red]{'failed':>14}[/]  [bold]comparison on {of_kind}[/]: {escape(str(error))}")
                broken.append(failed(of_kind, str(error)))
                finish()
                continue
            comparisons += compared
            finish()
            there = len(comparisons) - len(compared)
            for said in results["recommendations"][there : len(comparisons)]:
                console.print(f"[bold green]{'recommended':>14}[/]  {escape(said['headline'])}")
        for number, claim in enumerate(chosen, start=len(comparing)):
            began = time.perf_counter()
            experiment.trials = []
            experiment.progress = shown(claim.name, number)
            try:
                applies = claim.kind == "any" or claim.kind in sources
                outcome = claim.measure(experiment) if applies else _elsewhere(claim, tasks[0])
            except KeyboardInterrupt:
                results["claims"].append(_interrupted(claim, time.perf_counter() - began))
                finish()
                raise Interrupted(
                    f"Interrupted; {len(store)} finished trials are kept. Continue with: {command}"
                ) from None
            except TrialError as error:
                outcome = Outcome("failed", str(error), [], Room(False, "not measured"))
                results["failed"].append(f"{claim.name}: {error}")
            outcomes[claim.name] = outcome
            results["claims"].append(_decided(claim, outcome, time.perf_counter() - began))
            for trial in outcome.trials:
                results["trials"][trial.key] = {key: value for key, value in store[trial].items() if key != "key"}
            finish()
            colour = COLOURS.get(outcome.verdict, "white")
            console.print(f"[bold {colour}]{outcome.verdict:>14}[/]  [bold]{claim.name}[/]: {escape(outcome.sentence)}")
    return results


def _chosen(names: Sequence[str] | None) -> list[Claim]:
    known = {claim.name: claim for claim in CLAIMS}
    if names is None:
        return list(CLAIMS)
    for name in names:
        if name not in known:
            every = f"there are {', '.join(known)}."
            meant = did_you_mean(name.replace("-", "_"), known, every, cutoff=0.4, show=str)
            raise StudyError(f"there is no claim {name}: {meant}")
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


def _elsewhere(claim: Claim, task: dict[str, Any]) -> Outcome:
    return Outcome(
        "does not apply",
        f"it is about {claim.kind}, and {task['name']} holds {task['kind']}",
        [],
        Room(False, "other data"),
    )


def _of_task(source: Mapping[str, str], model: str | None) -> dict[str, Any]:
    """What the report says about a task; loading it here means that its errors come before anything runs."""
    of_kind = kind(source)
    if of_kind == "text":
        text = load_text(source)
        samples = {"train": len(text.train_n), "validation": len(text.validation_n), "test": len(text.test_n)}
        shape: list[Any] = ["characters"]
        classes = len(text.vocabulary)
        name, description = text.name, text.description
    else:
        task = load(source) if of_kind == "images" else load_sequences(source)
        samples = {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}
        shape = ["time", task.features] if isinstance(task, SequenceTask) else list(task.shape)
        name, description, classes = task.name, task.description, task.classes
    return {
        "name": name,
        "kind": of_kind,
        "shape": shape,
        "classes": classes,
        "samples": samples,
        "model": model if of_kind == "images" else None,
        "description": description,
    }


@contextlib.contextmanager
def _errors_in_a_sentence() -> Iterator[None]:
    """What the machine refuses, as a StudyError."""
    try:
        yield
    except (StoreError, EngineError) as error:
        raise StudyError(str(error)) from error


def asked_for(folder: str | Path) -> dict[str, Any]:
    """The arguments of the study in ``folder``, to go on with it.

    Raises:
        StudyError: there is none.
    """
    path = Path(folder) / "study.json"
    try:
        asked: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"there is no study in {folder} to go on with: {path} cannot be read.") from error
    asked["compare_only"] = asked.pop("compare")
    return {**asked, "out": folder}


def write(results: dict[str, Any], path: Path) -> None:
    """Write the results in one step: a reader never sees half a file."""
    text = json.dumps(plain(results), indent=1, allow_nan=False, ensure_ascii=False)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}. Finished trials are kept: make room and run the same command "
            "again."
        ) from error


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


def command_line(claims: Sequence[str] | None, asked: Mapping[str, Any]) -> str:
    """The command line that runs this study; without ``--fresh``, so that it continues."""
    defaults = {"out": "gammabeta-study", "devices": 1, "engine": "loky"}
    words = ["gammabeta", "study", *(claims or [])]
    for name, value in asked.items():
        if value is True:
            words.append(f"--{name}")
        elif value and str(value) != str(defaults.get(name)):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
