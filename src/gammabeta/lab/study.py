"""The study: claims about normalization, measured on the user's data and model.

Every finished trial is on disk before the next begins, so that an interrupted study continues where it stopped.
"""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import gammabeta
from gammabeta.arguments import did_you_mean
from gammabeta.lab import study_file
from gammabeta.lab.choice import choose
from gammabeta.lab.claim import Claim
from gammabeta.lab.claim_sets import REPLACED, SETS
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.claims_hash import Asked, StatusError, claims_hash, held_by, status_of
from gammabeta.lab.comparison import compare
from gammabeta.lab.contradictions import contradiction, without_contradiction
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.heartbeat import INTERVAL, Heartbeat
from gammabeta.lab.images import comparison as images
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.links import LINKS
from gammabeta.lab.looks import LOOKS, MOST
from gammabeta.lab.looks import confidence as confidence_at
from gammabeta.lab.outcome import tally
from gammabeta.lab.progress import progress
from gammabeta.lab.results import Results, elsewhere, read, without_room
from gammabeta.lab.sources import kind, load, load_kind
from gammabeta.lab.sources import source as task_source
from gammabeta.lab.sources import whole as whole_data
from gammabeta.lab.task import Kind, TaskError
from gammabeta.lab.trials.store import Store, StoreError
from gammabeta.lab.trials.trial import cores
from gammabeta.lab.trials.workers import EngineError, TrialError, connected
from gammabeta.lab.user_networks import identify, kind_of_model
from gammabeta.lab.user_traceback import own_traceback
from gammabeta.target import TargetError

# A study's replicates and those of its coarse searches share a thousand numbers.
SEEDS = range(2, 901)
COLOURS = {
    "supported": "green",
    "contradicted": "red",
    "equivalent": "cyan",
    "mixed": "yellow",
    "inconclusive": "yellow",
    "no room here": "magenta",
    "reported": "cyan",
    "does not apply": "bright_black",
    "failed": "bold red",
}


class StudyError(Exception):
    """What the user asked for cannot be done; the message is one sentence that says what to do.

    Attributes:
        details: the traceback from the user's code on, where the user's model or data function raised; else "".
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Interrupted(Exception):  # noqa: N818
    """The study was interrupted; finished trials are kept. The message says how to continue."""


def study(
    claims: Sequence[str] | None = None,
    *,
    data: str | None = None,
    model: str | None = None,
    quick: bool = False,
    first_look: bool = False,
    at_scale: bool = False,
    train: int | str | None = None,
    batch_size: int | None = None,
    devices: int = 1,
    link: str = "infiniband",
    until_settled: bool = False,
    confirmatory: bool = False,
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
    """Measure claims about normalization, and recommend a norm for this data and model.

    Prints one line per claim when it is decided, and writes ``results.json`` into ``out`` after each. Sets malloc to
    keep its pages, here and in the workers (`gammabeta.warm_allocator`): this is for speed, no result depends on it.

    Args:
        claims: names of claims. None for all claims, and for the comparison that the recommendation rests on.
        data: as `gammabeta.lab.sources.source` takes it. None for an embedded task of each kind: ``digits`` (images),
            ``strokes`` (sequences), ``text``. Claims about another kind of data do not apply.
        model: ``"package.module:function"`` or ``"file.py:function"``, called as ``build(input_shape, classes, norm)``
            for images, ``build(features, classes, norm)`` for sequences, ``build(vocabulary, context, norm)`` for text;
            it replaces the study's own network (`gammabeta.lab.user_networks`).
        train: the number of training samples to take at most, with a quarter and half as many for tuning and the test;
            ``"all"`` for the whole data set. None for 2,000.
        batch_size: images, sequences or windows of text per batch on one device, for the recommendation; None for 32,
            or 16 windows of text; at scale 128 images.
        devices: the number of devices, for the recommendation.
        link: between devices: ``"nvlink"``, ``"infiniband"``, ``"100gbe"``, ``"25gbe"`` or ``"10gbe"``, for the cost of
            synchronizing statistics.
        until_settled: look at the comparison after 4, 8, 16, 32 and 64 replicates, and stop where all norms are
            decided; the looks together keep the error rate of one (`gammabeta.lab.looks`).
        confirmatory: mark the results as confirming: measured once, by claims that were fixed beforehand, with the
            replicates of a seed that nobody has looked at (`gammabeta.lab.claims_hash`).
        compare_only: run only what the recommendation needs, and no claims but those named in ``claims``. With a model
            and no data, only images.
        quick: few replicates and small grids.
        first_look: as ``quick``, which need not be set too; where no claims are named, only those of ``FIRST_LOOK``.
        at_scale: on all of ``data``, with networks and lengths of training that people use on such data, few
            replicates, and the claims of ``AT_SCALE``.
        out: the folder for results; a study found there is continued.
        jobs: worker processes, each with one thread; None for one per core, 1 for this process.
        seed: another number repeats the study with other initializations and batches.
        seeds: how many replicates each result is taken from, 2 to 900, where a claim said how many would decide. None
            for each claim's own number. The replicates of a study in ``out`` do not run again.
        fresh: forget the finished trials found in ``out``.
        engine: what runs the trials: ``"loky"``, ``"dask"`` or ``"ray"``.
        address: of the Dask scheduler or Ray cluster; None starts one on this machine.
        console: where to print; None for the terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        StudyError: an unknown claim, unusable data, model, engine or folder, or a full disk.
        Interrupted: after Ctrl-C; everything finished is kept, and ``results.json`` is written.
    """
    console = console or Console()
    whole = claims is None
    listed = SETS["first_look"] if first_look else SETS["at_scale"] if at_scale else None
    chosen = [] if compare_only and whole else _chosen(listed if whole else claims)
    _check_numbers(jobs=jobs, seeds=seeds, batch_size=batch_size, devices=devices)
    _check_looks(link=link, until_settled=until_settled, seeds=seeds)
    asked: dict[str, Any] = {"data": data, "model": model, "quick": quick, "first_look": first_look}
    asked |= {"out": out, "jobs": jobs, "seed": seed, "seeds": seeds, "at_scale": at_scale}
    asked |= {"train": None if train is None else str(train), "batch_size": batch_size, "devices": devices}
    asked |= {"link": link, "until_settled": until_settled}
    asked |= {"compare": compare_only, "confirmatory": confirmatory, "engine": engine, "address": address}
    command = command_line(claims, asked)
    quick = quick or first_look or at_scale
    gammabeta.warm_allocator()
    heartbeat = Heartbeat(lambda line: console.print(f"{'running':>14}  {escape(line)}"), INTERVAL)
    with contextlib.nullcontext() if console.is_terminal else heartbeat.beating():
        try:
            sources, user, tasks, comparing = _prepared(asked, whole)
            run = {
                "identity": study_file.identity(sources, user, asked),
                "asked": asked,
                "claims": claims and list(claims),
                "compare": compare_only,
            }
            store, before = _opened(out, run, fresh=fresh, console=console)
        except (TaskError, StoreError, StatusError) as error:
            raise StudyError(str(error), own_traceback(error)) from error
        results = Results(out, command=command, tasks=tasks, quick=quick, before=before)
        results.content |= {"status": run["status"], "claims_hash": run["claims_hash"], "at_scale": at_scale}
        chosen = [claim for claim in chosen if not (at_scale and whole) or claim.kind in ("any", *sources)]
        with (
            contextlib.closing(store),
            _errors_of_the_machine(),
            connected(engine, address, jobs or cores()) as workers,
            progress(console, len(chosen) + len(comparing), heartbeat) as shown,
        ):
            experiment = Experiment(sources, store, user, quick, seed, seeds, workers, link, at_scale=at_scale)
            running = _Running(experiment, results, console, heartbeat, shown, command, LOOKS if until_settled else ())
            running.say_first([task["description"] for task in tasks], store.note)
            running.run(comparing, chosen, batch_size, devices)
    return results.content


def _prepared(
    asked: Mapping[str, Any], whole: bool
) -> tuple[dict[Kind, dict[str, Any]], dict[str, Any] | None, list[dict[str, Any]], list[Kind]]:
    """Load and check what the study is about.

    Args:
        asked: the options.
        whole: whether all claims are asked for.

    Returns:
        The tasks as settings identify them, the user's model, facts of every task, and the kinds to compare norms on.
    """
    model, batch_size, devices = asked["model"], asked["batch_size"], asked["devices"]
    sources = _sources(asked["data"], asked["train"], at_scale=asked["at_scale"])
    modelled = kind_of_model(sources) if model else None
    user = identify(model, sources, quick=asked["quick"] or asked["first_look"]) if model else None
    tasks = [_facts(source, model if kind(source) == modelled else None) for source in sources.values()]
    comparing = list(sources) if asked["compare"] or whole else []
    if model:
        comparing = [of_kind for of_kind in comparing if of_kind == modelled]
    if "images" in comparing:
        usual = images.BATCH_AT_SCALE if asked["at_scale"] else images.BATCH
        _check_batch(batch_size or usual, devices, len(load(sources["images"]).train))
    return sources, user, tasks, comparing


@dataclass
class _Running:
    """A running study: what it measures with, what it has found, and where it prints."""

    experiment: Experiment
    results: Results
    console: Console
    heartbeat: Heartbeat
    shown: Callable[[str, int], Callable[[int, int], None]]
    command: str
    looks: Sequence[int] = ()
    tracebacks: set[str] = field(default_factory=set)

    def say(self, colour: str, word: str, text: str) -> None:
        """Print a line that begins with a word in colour."""
        self.heartbeat.check()
        self.console.print(f"[bold {colour}]{word:>14}[/]  {text}")
        self.heartbeat.written()

    def say_first(self, descriptions: Sequence[str], note: str | None) -> None:
        """Print what the data were read as, and what there is to know about the folder."""
        for description in descriptions:
            self.say("cyan", "data", escape(description))
        if note is not None:
            self.say("yellow", "note", escape(note))

    def run(self, kinds: Sequence[Kind], claims: Sequence[Claim], batch_size: int | None, devices: int) -> None:
        """Compare the norms on each kind of data, and measure each claim.

        Raises:
            Interrupted: after Ctrl-C.
        """
        try:
            for number, of_kind in enumerate(kinds):
                self.compare(number, of_kind, batch_size, devices)
            for number, claim in enumerate(claims, start=len(kinds)):
                self.decide(number, claim)
        except KeyboardInterrupt:
            self.results.write()
            kept = len(self.experiment.store)
            raise Interrupted(f"Interrupted; {kept} finished trials are kept. Continue with: {self.command}") from None

    def compare(self, number: int, of_kind: Kind, batch_size: int | None, devices: int) -> None:
        """Compare the norms on one kind of data, and print what is recommended."""
        self.experiment.progress = self.shown(f"norms compared on {of_kind}", number)
        own = self.experiment.seed_count
        try:
            found = compare(of_kind, self.experiment, batch_size, devices) if not self.looks else []
            for look in self.looks:
                self.experiment.seed_count, self.experiment.confidence = look, confidence_at(look)
                found = compare(of_kind, self.experiment, batch_size, devices)
                if all(not comparison.learned or not choose(comparison).open for comparison in found):
                    break
                self.say("cyan", "looked", f"{of_kind}: not settled after {look} of at most {MOST} replicates")
        except KeyboardInterrupt:
            self.results.comparison_interrupted(of_kind)
            raise
        except TrialError as error:
            self.say("red", "failed", f"[bold]comparison on {of_kind}[/]: {escape(str(error))}")
            self._show(error.details)
            self.results.not_compared(of_kind, str(error))
            return
        finally:
            self.experiment.seed_count, self.experiment.confidence = own, 0.95
        for headline in self.results.compared(found):
            self.say("green", "recommended", escape(headline))

    def decide(self, number: int, claim: Claim) -> None:
        """Measure one claim, and print its verdict."""
        began = time.perf_counter()
        self.experiment.trials = []
        self.experiment.progress = self.shown(claim.name, number)
        try:
            if claim.kind == "any" or claim.kind in self.experiment.sources:
                outcome = claim.measure(self.experiment)
            else:
                outcome = elsewhere(claim, self.results.content["task"])
        except KeyboardInterrupt:
            self.results.interrupted(claim, time.perf_counter() - began)
            raise
        except TrialError as error:
            outcome = self.results.failed(claim, str(error))
            self._show(error.details)
        outcome = without_room(outcome)
        self.results.decided(claim, outcome, time.perf_counter() - began, self.experiment.store)
        counted = f"{counts}; " if (counts := tally(outcome.regimes)) else ""
        self.say(
            COLOURS.get(outcome.verdict, "white"),
            outcome.verdict,
            f"[bold]{claim.name}[/]: {escape(counted + outcome.sentence)}",
        )

    def _show(self, details: str) -> None:
        """Print the traceback of a trial that failed, the first time that it occurs."""
        if details and details not in self.tracebacks:
            self.tracebacks.add(details)
            self.console.print(escape(details), style="dim", highlight=False)
            self.heartbeat.written()


def _chosen(names: Sequence[str] | None) -> list[Claim]:
    known = {claim.name: claim for claim in CLAIMS}
    if names is None:
        return list(CLAIMS)
    for name in names:
        if now := REPLACED.get(name.replace("-", "_")):
            raise StudyError(f"there is no claim {name} any more: {now} took its place (docs/claims_history.md).")
        if name not in known:
            every = f"there are {', '.join(known)}."
            meant = did_you_mean(name.replace("-", "_"), known, every, cutoff=0.4, show=str)
            raise StudyError(f"there is no claim {name}: {meant}")
    return [claim for claim in CLAIMS if claim.name in names]


def _check_numbers(*, jobs: int | None, seeds: int | None, batch_size: int | None, devices: int) -> None:
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


def _check_looks(*, link: str, until_settled: bool, seeds: int | None) -> None:
    if link not in LINKS:
        raise StudyError(f"--link {link}: expected {', '.join(LINKS)}, got {link}.")
    if until_settled and seeds is not None:
        raise StudyError(
            f"--until-settled --seeds {seeds}: expected one of the two, got both: --until-settled takes "
            f"{', '.join(map(str, LOOKS[:-1]))} and at most {MOST} replicates, and stops where it is settled."
        )


def _sources(data: str | None, train: int | str | None, *, at_scale: bool) -> dict[Kind, dict[str, Any]]:
    """Return the study's tasks, as a trial's settings identify them, by kind."""
    if at_scale and data is None:
        raise TaskError("--at-scale: expected --data, got none: the built-in data are small; --quick is for them.")
    if train is not None and data is None:
        raise TaskError(f"--train {train}: expected --data, got none: the built-in data are always whole.")
    names = [data] if data else [row.embedded for row in KINDS.values()]
    given = [task_source(name, train) for name in names]
    given = [whole_data(source) for source in given] if at_scale and train is None else given
    return {kind(source): source for source in given}


def _opened(
    out: str | Path, run: dict[str, Any], *, fresh: bool, console: Console
) -> tuple[Store, dict[str, Any] | None]:
    """Open the folder's trials, and say in study.json what the folder holds. The run gets its status.

    Returns:
        The store, and the results so far of the same study; None where there are none.

    Raises:
        TaskError: the folder's study was about other data of the same name. Nothing is changed then.
        StoreError: the folder cannot be used.
        StatusError: the run cannot confirm, or would be mixed with a study that does.
    """
    before = study_file.read(out)
    asked, anything = run["asked"], any((Path(out) / name).exists() for name in ("trials.jsonl", "results.json"))
    run["claims_hash"] = claims_hash()
    run["status"] = status_of(
        Asked(asked["confirmatory"], run["claims_hash"], asked["seed"], asked["seeds"]),
        held_by(before, run["identity"], anything=anything),
        out,
    )
    before = None if fresh else before
    study_file.refuse_other_data(out, before, run)
    store = Store(out, fresh=fresh)
    try:
        same = before if before is not None and before["identity"] == run["identity"] else None
        moved = study_file.set_aside(out) if same is None and not fresh else None
        study_file.write(out, same, run)
    except StoreError:
        store.close()
        raise
    if moved is not None:
        text = f"{out} held another study, whose results are in {moved} now."
        console.print(escape(text), soft_wrap=True, highlight=False)
    return store, read(out) if same is not None else None


def _check_batch(batch_size: int, devices: int, images: int) -> None:
    if 2 * batch_size * devices > images:
        raise TaskError(
            f"--batch-size {batch_size} on {devices} devices: expected half of the {images} training images or less, "
            f"got {batch_size * devices}."
        )


def _facts(source: Mapping[str, str], model: str | None) -> dict[str, Any]:
    """Return what the report says about a task. Loading it here raises its errors before anything runs."""
    of_kind = kind(source)
    task = load_kind(source, of_kind)
    facts = KINDS[of_kind].facts(task)
    return {
        "name": task.name,
        "kind": of_kind,
        "shape": facts["shape"],
        "classes": facts["classes"],
        "samples": facts["samples"],
        "available": {**facts["samples"], **facts.get("available", {})},
        "model": model,
        "description": task.description,
    }


@contextlib.contextmanager
def _errors_of_the_machine() -> Iterator[None]:
    """Turn errors of the store and of the engine into a StudyError."""
    try:
        yield
    except (StoreError, EngineError) as error:
        raise StudyError(str(error)) from error


def asked_for(folder: str | Path) -> dict[str, Any]:
    """Return the arguments that continue the study in ``folder``: its last run, and what earlier runs left open.

    Raises:
        StudyError: there is no study in the folder.
    """
    arguments = study_file.to_continue(folder, [claim.name for claim in CLAIMS], SETS)
    if arguments is None:
        path = Path(folder) / "study.json"
        raise StudyError(
            f"there is no study in {folder} to continue: expected {path} of this version of gammabeta, got "
            f"{'another' if path.exists() else 'none'}: run the study's own command, with --out."
        )
    return arguments


def refuse_contradictions(asked: Mapping[str, Any]) -> None:
    """Raise where options of a new study contradict each other, or one has no effect beside the others.

    Args:
        asked: the arguments of :func:`study` by name.

    Raises:
        StudyError: it names both options.
    """
    wrong = contradiction(asked)
    if wrong is not None:
        raise StudyError(wrong)


def refuse_on_resuming(folder: str | Path, given: Mapping[str, Any]) -> None:
    """Raise where options would make another study of the one in ``folder``.

    Args:
        given: the options that were written on the command line, by name.

    Raises:
        StudyError: it names the option.
    """
    try:
        wrong = study_file.conflict(folder, given)
    except TargetError as error:
        raise StudyError(str(error)) from error
    if wrong is not None:
        raise StudyError(
            f"--resume {folder}: expected the options of the study there, got {wrong}: leave it out, or run another "
            "study in another folder, with --out and without --resume."
        )


def command_line(claims: Sequence[str] | None, asked: Mapping[str, Any]) -> str:
    """Return the command line that runs this study, without ``--fresh``, so that it continues."""
    defaults = {"out": "gammabeta-study", "devices": 1, "engine": "loky", "link": "infiniband"}
    words = ["gammabeta", "study", *(claims or [])]
    for name, value in without_contradiction(list(claims or []), asked).items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value and str(value) != str(defaults.get(name)):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
