"""The kinds of data. Each is a row of ``KINDS`` and a folder beside this file that has its name.

Every such folder has the same files: ``task`` (the data), ``networks``, ``training`` (its trials), ``comparison`` (the
norms side by side), and a reader for each form of data.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gammabeta.lab.arrays import Draw, fingerprint_of_file
from gammabeta.lab.images import cifar10, digits, folder, mnist, npz
from gammabeta.lab.images.arrays import image_task
from gammabeta.lab.images.task import Task
from gammabeta.lab.sequences import strokes, vowels
from gammabeta.lab.sequences.arrays import sequence_task
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.task import Kind
from gammabeta.lab.text import characters
from gammabeta.lab.text.task import TextTask
from gammabeta.lab.user_data import UserData

ARRAYS = "an .npz with x_train, y_train, x_test, y_test"


@dataclass(frozen=True)
class Form:
    """One form of data, named ``prefix`` or ``prefix:argument``.

    Attributes:
        load: reads the task; called with the argument's path where there is one, and with ``most`` where it is limited.
        limited: whether ``--train`` says how many samples it takes.
        reads_part: whether only the samples that are taken are read; the fingerprint is called with ``most`` too.
        argument: ``"FILE"`` or ``"DIR"``; empty where the prefix takes none.
        optional: whether the prefix may stand without its argument too.
        holds: what the file or folder must be, for the error where it does not exist.
        fingerprint: hashes what lies at the path.
        built_in: the fingerprint where the prefix has no argument.
    """

    load: Callable[..., Any]
    argument: str = ""
    limited: bool = False
    reads_part: bool = False
    optional: bool = False
    holds: str = ""
    fingerprint: Callable[..., str] = fingerprint_of_file
    built_in: str = "gammabeta"


@dataclass(frozen=True)
class KindOfData:
    """One kind of data.

    Attributes:
        embedded: the data that a study takes where none are named.
        forms: how data of this kind are named, by prefix.
        from_user: makes a task of what a user's function returned, with at most the given number of training samples.
        facts: what the report says about a task: ``shape``, ``classes``, ``samples`` by part, and in ``available`` of
            how many these are drawn, where there are more.
        claims: the claims that compare norms on this kind of data; empty where they go by the norm.
    """

    embedded: str
    forms: dict[str, Form]
    from_user: Callable[[UserData, int | None], Any]
    facts: Callable[[Any], dict[str, Any]]
    claims: tuple[str, ...] = ()


def _named(data: UserData) -> dict[str, Any]:
    return {
        "name": data.name,
        "description": data.name,
        "where": f"--data {data.target}",
    }


def _described(data: UserData) -> dict[str, str]:
    return {"name": data.name, "description": f"{data.name}: a text, character by character"}


def _of_images(task: Task) -> dict[str, Any]:
    return {"shape": list(task.shape), "classes": task.classes, "samples": _samples(task), "available": task.available}


def _of_sequences(task: SequenceTask) -> dict[str, Any]:
    return {
        "shape": ["time", task.features],
        "classes": task.classes,
        "samples": _samples(task),
        "available": task.available,
    }


def _of_text(task: TextTask) -> dict[str, Any]:
    samples = {"train": len(task.train_n), "validation": len(task.validation_n), "test": len(task.test_n)}
    rest = samples["train"] + samples["validation"]  # the validation part lies anywhere in it
    available = {"train": rest, "validation": rest, "test": samples["test"]}
    return {"shape": ["characters"], "classes": len(task.vocabulary), "samples": samples, "available": available}


def _samples(task: Task | SequenceTask) -> dict[str, int]:
    return {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}


KINDS: dict[Kind, KindOfData] = {
    "images": KindOfData(
        "digits",
        {
            "digits": Form(digits.load, built_in="scikit-learn"),
            "mnist": Form(mnist.load, "FILE", limited=True, holds=ARRAYS),
            "cifar10": Form(cifar10.load, "FILE", limited=True, holds=ARRAYS),
            "npz": Form(npz.load, "FILE", limited=True, holds=ARRAYS),
            "folder": Form(
                folder.load,
                "DIR",
                limited=True,
                reads_part=True,
                holds="a folder with a folder for each class",
                fingerprint=folder.fingerprint,
            ),
        },
        lambda data, most: image_task(data.content, **_named(data), draw=Draw(most=most)),
        _of_images,
    ),
    "sequences": KindOfData(
        "strokes",
        {
            "vowels": Form(
                vowels.load,
                "DIR",
                limited=True,
                holds="a folder with *_TRAIN.ts and *_TEST.ts",
                fingerprint=vowels.fingerprint,
            ),
            "strokes": Form(strokes.load, built_in="scikit-learn"),
        },
        lambda data, most: sequence_task(data.content, **_named(data), most=most),
        _of_sequences,
        claims=("sequences",),
    ),
    "text": KindOfData(
        "text",
        {
            "text": Form(
                characters.load, "FILE", optional=True, holds="a UTF-8 text", built_in=platform.python_version()
            )
        },
        lambda data, _: characters.task(str(data.content["text"]), **_described(data)),
        _of_text,
        claims=("layernorm_in_transformers", "rate_headroom"),
    ),
}
