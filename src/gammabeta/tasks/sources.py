"""Where a task's data comes from: the name that a user gives, and the task that it stands for."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gammabeta.tasks import digits, mnist
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
    if kind == "mnist" and argument:
        path = Path(argument).expanduser().resolve()
        if not path.is_file():
            raise TaskError(
                f"--data {data}: there is no file {argument}. Name an .npz with x_train, y_train, x_test, y_test."
            )
        return {"data": f"mnist:{path}", "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
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
    return "images"


def load_sequences(task: Mapping[str, Any]) -> SequenceTask:
    raise TaskError(f"--data {task['data']}: expected sequences.")


def load_text(task: Mapping[str, Any]) -> TextTask:
    raise TaskError(f"--data {task['data']}: expected text.")
