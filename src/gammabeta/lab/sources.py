"""The sources of data: the name that a user gives, its kind, and the task that it stands for."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gammabeta.lab import user_data
from gammabeta.lab.arrays import FEWEST, TRAIN, unreadable
from gammabeta.lab.images.task import Task
from gammabeta.lab.kinds import KINDS, Form
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.task import Kind, TaskError
from gammabeta.lab.text.task import TextTask
from gammabeta.target import canonical, is_target

AnyTask = Task | SequenceTask | TextTask

# each form of data by its prefix, and each prefix's kind of data
FORMS: dict[str, Form] = {prefix: form for row in KINDS.values() for prefix, form in row.forms.items()}
OF_PREFIX: dict[str, Kind] = {prefix: of_kind for of_kind, row in KINDS.items() for prefix in row.forms}
_USER = "user's "  # followed by the kind, ":" and the function; no user can write this prefix


def source(data: str, train: int | str | None = None) -> dict[str, Any]:
    """Return what identifies a task in a trial's settings: its origin and a fingerprint of its content.

    Args:
        data: a name in ``FORMS``, for example ``"digits"``, with its file or folder where it takes one, for example
            ``"mnist:FILE"``. Or a function, ``"package.module:function"`` or ``"file.py:function"``, that keeps the
            contract of :mod:`gammabeta.lab.user_data`.
        train: the number of training samples at most, or ``"all"``; None for 2,000.

    Returns:
        ``{"data", "fingerprint"}``: the prefix, which decides the kind, with the absolute path; and a hash. With
        ``train`` also ``"train"``, as :func:`load_kind` takes it.

    Raises:
        TaskError: an unknown form of data, a missing file or folder, a function that breaks the contract, or data that
            ``train`` does not limit.
    """
    most = TRAIN if train is None else _most(train)
    found = _named(data, most)
    if train is None:
        return found
    if not _is_limited(found):
        forms = ", ".join(f"{prefix}:{known.argument}" for prefix, known in FORMS.items() if known.limited)
        raise TaskError(
            f"--train {train}: expected data of separate samples ({forms}, or a function that returns arrays), got "
            f"{data}: leave --train out."
        )
    return {**found, "train": most}


def whole(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies all of a task's data, of which a study takes a part otherwise."""
    form = FORMS.get(source["data"].partition(":")[0])
    if form is not None and form.reads_part:  # another part is other content
        return {**_named(source["data"], None), "train": None}
    return {**source, "train": None} if _is_limited(source) else dict(source)


def _is_limited(source: Mapping[str, Any]) -> bool:
    """Whether a number of training samples can be taken of a task's data."""
    form = FORMS.get(source["data"].partition(":")[0])
    return form.limited if form is not None else kind(source) != "text"


def _most(train: int | str) -> int | None:
    """Return the number of training samples that ``--train`` names; None for all."""
    if train == "all":
        return None
    if not str(train).isdecimal() or int(train) < FEWEST:
        raise TaskError(f"--train {train}: expected a number of {FEWEST} or more, or all, got {train}.")
    return int(train)


def _named(data: str, most: int | None) -> dict[str, Any]:
    """Return what identifies a task, apart from ``most``: the number of training samples, or None for all."""
    prefix, colon, argument = data.partition(":")
    form = FORMS.get(prefix)
    if form is not None and not colon and (form.optional or not form.argument):
        return {"data": prefix, "fingerprint": form.built_in}
    if form is not None and form.argument and argument:
        path = _resolved(argument)
        with _reading(path):
            # Unlike those of Path, False where a folder may not be searched, or a name is too long.
            if not (os.path.isdir(path) if form.argument == "DIR" else os.path.isfile(path)):
                raise TaskError(f"--data {data}: there is no {_thing(form)} {argument}. Name {form.holds}.")
            found = form.fingerprint(path, most) if form.reads_part else form.fingerprint(path)
            return {"data": f"{prefix}:{path}", "fingerprint": found}
    if form is None and is_target(data):
        made = user_data.read(data)
        return {"data": f"{_USER}{made.kind}:{made.target}", "fingerprint": made.fingerprint}
    raise TaskError(f"--data {data}: expected {_forms()}.")


def resolved(data: str) -> str:
    """Return what ``--data`` names in a form that means the same in any working directory; nothing is read."""
    prefix, colon, argument = data.partition(":")
    if prefix in FORMS:
        return f"{prefix}:{_resolved(argument)}" if colon else data
    return canonical(data)


def _resolved(argument: str) -> Path:
    """Return the absolute path; one that cannot be resolved stays as it is, and is found missing."""
    try:
        return Path(argument).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, ~ of an unknown user, a zero byte
        return Path(argument)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a TaskError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise unreadable(path if error.filename is None else Path(os.fsdecode(error.filename)), error) from error


def _forms() -> str:
    """List all that ``--data`` takes."""
    known = []
    for prefix, form in FORMS.items():
        known += [prefix] if form.optional or not form.argument else []
        known += [f"{prefix}:{form.argument}"] if form.argument else []
    return ", ".join(known) + ", or a function of yours as package.module:function or file.py:function"


def kind(task: Mapping[str, Any]) -> Kind:
    """Return the kind of the task that :func:`source` named; nothing is read."""
    prefix = str(task["data"]).partition(":")[0]
    return next((each for each in KINDS if prefix == _USER + each), None) or OF_PREFIX[prefix]


@lru_cache(maxsize=4)
def _load(data: str, fingerprint: str, most: int | None) -> AnyTask:
    prefix, _, argument = data.partition(":")
    if prefix.startswith(_USER):
        made = user_data.read(argument)
        if made.fingerprint != fingerprint:
            raise TaskError(
                f"--data {argument}: expected the same data each time that the function is called, got others: seed "
                "what it draws, or run the study again if its file changed."
            )
        task: AnyTask = KINDS[made.kind].from_user(made, most)
        return task
    form = FORMS[prefix]
    if not argument:
        task = form.load()
        return task
    if _named(data, most)["fingerprint"] != fingerprint:
        raise TaskError(f"--data {data}: the {_thing(form)} changed while the study ran. Run it again.")
    with _reading(Path(argument)):
        task = form.load(argument, most) if form.limited else form.load(argument)
    return task


def _thing(form: Form) -> str:
    return "folder" if form.argument == "DIR" else "file"


def load_kind(task: Mapping[str, Any], wanted: Kind) -> AnyTask:
    """Return the task that :func:`source` named; it stays in memory, one copy per process.

    Args:
        task: what :func:`source` returned. It may have ``"split"``, the number of another split of the same data, and
            ``"train"``, the number of training samples at most, or None for all.

    Raises:
        TaskError: the data are of another kind, or cannot be used.
    """
    found = kind(task)
    if found != wanted:
        named = str(task["data"]).removeprefix(f"{_USER}{found}:")
        raise TaskError(f"--data {named}: expected {wanted}, got {found}: name data of that kind.")
    whole = task["data"], task["fingerprint"], task.get("train", TRAIN)
    return _drawn(*whole, task["split"]) if "split" in task else _load(*whole)


@lru_cache(maxsize=4)
def _drawn(data: str, fingerprint: str, most: int | None, split: int) -> AnyTask:
    return _load(data, fingerprint, most).redraw(split)


def load(task: Mapping[str, Any]) -> Task:
    """Return the images that :func:`source` named; they stay in memory, one copy per process.

    Raises:
        TaskError: the data are of another kind, or cannot be used.
    """
    images = load_kind(task, "images")
    assert isinstance(images, Task)
    return images


def load_sequences(task: Mapping[str, Any]) -> SequenceTask:
    """Return the sequences that :func:`source` named, as :func:`load` does."""
    sequences = load_kind(task, "sequences")
    assert isinstance(sequences, SequenceTask)
    return sequences


def load_text(task: Mapping[str, Any]) -> TextTask:
    """Return the text that :func:`source` named, as :func:`load` does."""
    text = load_kind(task, "text")
    assert isinstance(text, TextTask)
    return text
