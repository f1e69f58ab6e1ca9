"""Where a task's data comes from: the name that a user gives, its kind, and the task that it stands for."""

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gammabeta.lab import user_data
from gammabeta.lab.images import cifar10, digits, folder, mnist
from gammabeta.lab.images.arrays import image_task
from gammabeta.lab.images.task import Task
from gammabeta.lab.sequences import strokes, vowels
from gammabeta.lab.sequences.arrays import sequence_task
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.task import Kind, TaskError
from gammabeta.lab.text import characters as text
from gammabeta.lab.text.task import TextTask
from gammabeta.target import is_target

AnyTask = Task | SequenceTask | TextTask


ARRAYS = "an .npz with x_train, y_train, x_test, y_test"


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Form:
    """One way to name data: ``prefix``, or ``prefix:argument``.

    Attributes:
        kind: what the data is.
        load: the task; given the argument's path where there is one.
        argument: ``"FILE"`` or ``"DIR"``; empty where the prefix stands alone.
        optional: whether the prefix may stand alone too.
        holds: what is to be named, where the file or folder is not there.
        fingerprint: of what lies at the path.
        built_in: the fingerprint where the prefix stands alone.
    """

    kind: Kind
    load: Callable[..., AnyTask]
    argument: str = ""
    optional: bool = False
    holds: str = ""
    fingerprint: Callable[[Path], str] = _content
    built_in: str = "gammabeta"


FORMS: dict[str, Form] = {
    "digits": Form("images", digits.load, built_in="scikit-learn"),
    "mnist": Form("images", mnist.load, "FILE", holds=ARRAYS),
    "cifar10": Form("images", cifar10.load, "FILE", holds=ARRAYS),
    "folder": Form(
        "images", folder.load, "DIR", holds="a folder with a folder for each class", fingerprint=folder.fingerprint
    ),
    "vowels": Form(
        "sequences", vowels.load, "DIR", holds="a folder with *_TRAIN.ts and *_TEST.ts", fingerprint=vowels.fingerprint
    ),
    "strokes": Form("sequences", strokes.load, built_in="scikit-learn"),
    "text": Form("text", text.load, "FILE", optional=True, holds="a UTF-8 text", built_in=platform.python_version()),
}
# How what a user's function returned becomes a task, by kind.
TASKS: dict[Kind, Callable[[user_data.UserData], AnyTask]] = {
    "images": lambda data: image_task(data.content, **_named(data)),
    "sequences": lambda data: sequence_task(data.content, **_named(data)),
    "text": lambda data: text.task(str(data.content["text"]), **_described(data)),
}
_USER = "user's "  # then the kind, ":", and the function: no prefix that a user can write


def _named(data: user_data.UserData) -> dict[str, str]:
    return {
        "name": data.name,
        "description": f"{data.name}: a fixed, stratified subset of its {data.kind}",
        "where": f"--data {data.target}",
    }


def _described(data: user_data.UserData) -> dict[str, str]:
    return {"name": data.name, "description": f"{data.name}: a text, character by character"}


def source(data: str) -> dict[str, str]:
    """What names a task inside a trial's settings: where it comes from and a fingerprint of its content.

    Args:
        data: a name in ``FORMS``, as ``"digits"``, with its file or folder where it has one, as ``"mnist:FILE"``; or a
            function, as ``"package.module:function"`` and ``"file.py:function"``, which keeps the contract that
            :mod:`gammabeta.lab.user_data` states.

    Returns:
        ``{"data", "fingerprint"}``: the data's prefix, which decides its kind, and the whole path; and a hash.

    Raises:
        TaskError: an unknown kind of data, a file or folder that is not there, or a function that breaks the contract.
    """
    prefix, colon, argument = data.partition(":")
    form = FORMS.get(prefix)
    if form is not None and not colon and (form.optional or not form.argument):
        return {"data": prefix, "fingerprint": form.built_in}
    if form is not None and form.argument and argument:
        path = Path(argument).expanduser().resolve()
        there, thing = (path.is_dir(), "folder") if form.argument == "DIR" else (path.is_file(), "file")
        if not there:
            raise TaskError(f"--data {data}: there is no {thing} {argument}. Name {form.holds}.")
        return {"data": f"{prefix}:{path}", "fingerprint": form.fingerprint(path)}
    if form is None and is_target(data):
        made = user_data.read(data)
        return {"data": f"{_USER}{made.kind}:{made.target}", "fingerprint": made.fingerprint}
    raise TaskError(f"--data {data}: expected {_forms()}.")


def _forms() -> str:
    """All that ``--data`` takes, in one sentence's words."""
    known = []
    for prefix, form in FORMS.items():
        known += [prefix] if form.optional or not form.argument else []
        known += [f"{prefix}:{form.argument}"] if form.argument else []
    return ", ".join(known) + ", or a function of yours as package.module:function or file.py:function"


def kind(task: Mapping[str, Any]) -> Kind:
    """The kind of the task that :func:`source` named; nothing is read."""
    prefix = str(task["data"]).partition(":")[0]
    kinds: tuple[Kind, ...] = ("images", "sequences", "text")
    return next((each for each in kinds if prefix == _USER + each), None) or FORMS[prefix].kind


@lru_cache(maxsize=4)
def _load(data: str, fingerprint: str) -> AnyTask:
    prefix, _, argument = data.partition(":")
    if prefix.startswith(_USER):
        made = user_data.read(argument)
        if made.fingerprint != fingerprint:
            raise TaskError(
                f"--data {argument}: expected the same data each time that the function is called, got others: seed "
                "what it draws, or run the study again if its file changed."
            )
        return TASKS[made.kind](made)
    form = FORMS[prefix]
    if not argument:
        return form.load()
    if source(data)["fingerprint"] != fingerprint:
        raise TaskError(f"--data {data}: the {_thing(form)} changed while the study ran. Run it again.")
    return form.load(argument)


def _thing(form: Form) -> str:
    return "folder" if form.argument == "DIR" else "file"


def _of_kind(task: Mapping[str, Any], wanted: Kind) -> AnyTask:
    found = kind(task)
    if found != wanted:
        named = str(task["data"]).removeprefix(f"{_USER}{found}:")
        raise TaskError(f"--data {named}: expected {wanted}, got {found}: name data of that kind.")
    return _load(task["data"], task["fingerprint"])


def load(task: Mapping[str, Any]) -> Task:
    """The images that :func:`source` named; kept in memory, one copy a process.

    Raises:
        TaskError: it is of another kind, or cannot be used.
    """
    images = _of_kind(task, "images")
    assert isinstance(images, Task)
    return images


def load_sequences(task: Mapping[str, Any]) -> SequenceTask:
    """The sequences that :func:`source` named, as :func:`load`."""
    sequences = _of_kind(task, "sequences")
    assert isinstance(sequences, SequenceTask)
    return sequences


def load_text(task: Mapping[str, Any]) -> TextTask:
    """The text that :func:`source` named, as :func:`load`."""
    text = _of_kind(task, "text")
    assert isinstance(text, TextTask)
    return text
