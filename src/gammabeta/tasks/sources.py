"""Where a task's data comes from: the name that a user gives, and the task that it stands for."""

import hashlib
import platform
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gammabeta.tasks import digits, mnist, strokes, text
from gammabeta.tasks.task import Kind, SequenceTask, Task, TaskError, TextTask


def source(data: str) -> dict[str, str]:
    """What names a task inside a trial's settings: where it comes from and a fingerprint of its content.

    Args:
        data: ``"digits"`` or ``"mnist:FILE"``.

    Raises:
        TaskError: an unknown kind of data, or a file that is not there.
    """
    kind, _, argument = data.partition(":")
    if data == "digits":
        return {"data": "digits", "fingerprint": "scikit-learn"}
    if data == "strokes":
        return {"data": "strokes", "fingerprint": "scikit-learn"}
    if data == "text":
        return {"data": "text", "fingerprint": platform.python_version()}
    if kind in ("mnist", "text") and argument:
        path = Path(argument).expanduser().resolve()
        if not path.is_file():
            raise TaskError(
                f"--data {data}: there is no file {argument}. Name "
                + ("a UTF-8 text." if kind == "text" else "an .npz with x_train, y_train, x_test, y_test.")
            )
        return {"data": f"{kind}:{path}", "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    raise TaskError(f"--data {data}: expected digits or mnist:FILE.")


@lru_cache(maxsize=4)
def _load(data: str, fingerprint: str) -> Task:
    kind, _, argument = data.partition(":")
    if kind == "digits":
        return digits.load()
    if source(data)["fingerprint"] != fingerprint:
        raise TaskError(f"--data {data}: the file changed while the study ran. Run it again.")
    return mnist.load(argument)


def load(task: Mapping[str, Any]) -> Task:
    """The task that :func:`source` named; kept in memory, one copy a process."""
    return _load(task["data"], task["fingerprint"])


def kind(task: Mapping[str, Any]) -> Kind:
    """The kind of data that :func:`source` named."""
    name = task["data"].partition(":")[0]
    return "text" if name == "text" else "sequences" if name == "strokes" else "images"


@lru_cache(maxsize=4)
def _sequences(data: str, fingerprint: str) -> SequenceTask:
    if data != "strokes":
        raise TaskError(f"--data {data}: expected sequences.")
    return strokes.load()


@lru_cache(maxsize=4)
def _text(data: str, fingerprint: str) -> TextTask:
    name, _, argument = data.partition(":")
    if name != "text":
        raise TaskError(f"--data {data}: expected text.")
    if argument and source(data)["fingerprint"] != fingerprint:
        raise TaskError(f"--data {data}: the file changed while the study ran. Run it again.")
    return text.load(argument or None)


def load_sequences(task: Mapping[str, Any]) -> SequenceTask:
    """The sequences that :func:`source` named."""
    return _sequences(task["data"], task["fingerprint"])


def load_text(task: Mapping[str, Any]) -> TextTask:
    """The text that :func:`source` named."""
    return _text(task["data"], task["fingerprint"])
