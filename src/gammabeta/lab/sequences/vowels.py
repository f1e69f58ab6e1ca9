"""Sequences of variable length in the .ts text format of the UEA archive, such as Japanese Vowels (Kudo et al. 1999).

A file begins with a header of lines that start with @, up to @data. Then each line is one case: its dimensions
separated by ":", the values of each separated by ",", and the class last. Empty lines and lines that start with # are
comments.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gammabeta.lab.arrays import TRAIN
from gammabeta.lab.decoding import decode
from gammabeta.lab.sequences.arrays import sequence_task
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.task import TaskError


@dataclass(frozen=True)
class Cases:
    """The content of one file: its name, sequences (time, features) float64, and their classes as written."""

    name: str
    x: list[np.ndarray]
    labels: list[str]


def load(path: str | Path, most: int | None = TRAIN) -> SequenceTask:
    """Read training and tuning sequences from the training file, and test sequences from the test file.

    Of Japanese Vowels these are 216, 54 and 370. The subsets have equal shares of each class. Each feature is
    standardized by the real training values; sequences are zero from their length on.

    Args:
        path: a folder with one file \\*_TRAIN.ts and one \\*_TEST.ts, whose dimensions are the features.
        most: training sequences, as `gammabeta.lab.arrays.parts` takes it.

    Raises:
        TaskError: a missing file, or a line that breaks the format.
    """
    train_path, test_path = files(Path(path))
    train, test = read(train_path), read(test_path)
    names = sorted(set(train.labels), key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    unknown = sorted(set(test.labels) - set(names))
    if unknown:
        raise TaskError(
            f"{test.name}: expected the classes of {train.name}, got {unknown[0]} too: leave out the cases of "
            "that class."
        )
    arrays: dict[str, np.ndarray] = {}
    for part, cases in (("train", train), ("test", test)):
        arrays[f"lengths_{part}"] = np.array([len(x_tf) for x_tf in cases.x], dtype=np.int64)
        arrays[f"y_{part}"] = np.array([names.index(label) for label in cases.labels], dtype=np.int64)
        x_ntf = np.zeros((len(cases.x), int(arrays[f"lengths_{part}"].max()), cases.x[0].shape[1]))
        for row, x_tf in enumerate(cases.x):
            x_ntf[row, : len(x_tf)] = x_tf
        arrays[f"x_{part}"] = x_ntf
    name = train_path.name.removesuffix("_TRAIN.ts")
    lengths = np.concatenate([arrays["lengths_train"], arrays["lengths_test"]])
    return sequence_task(
        arrays,
        name=name,
        description=f"{name}: sequences of {lengths.min()} to {lengths.max()} steps, {arrays['x_train'].shape[2]} "
        f"features, {len(names)} classes",
        where=f"vowels:{path}",
        most=most,
    )


def fingerprint(path: Path) -> str:
    """Hash both files."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files(path))).hexdigest()[:16]


def files(folder: Path) -> tuple[Path, Path]:
    """Find the training and the test file.

    Raises:
        TaskError: one of them is missing, there is more than one, or they are of two data sets.
    """
    found = []
    for part in ("TRAIN", "TEST"):
        own = sorted(folder.glob(f"*_{part}.ts"))
        if len(own) != 1:
            got = ", ".join(file.name for file in own) or "none"
            raise TaskError(
                f"vowels:{folder}: expected one file *_{part}.ts, got {got}: name a folder with the two files of one "
                "data set."
            )
        found.append(own[0])
    names = [file.name.removesuffix(f"_{part}.ts") for part, file in zip(("TRAIN", "TEST"), found, strict=True)]
    if names[0] != names[1]:
        raise TaskError(
            f"vowels:{folder}: expected the two files of one data set, got {found[0].name} and {found[1].name}: put "
            "each data set into a folder of its own, or give both files one name if they belong together."
        )
    return found[0], found[1]


def read(path: Path) -> Cases:
    """Read the cases of one .ts file.

    Raises:
        TaskError: no text, no @data, time stamps, no classes, or a line that breaks the format.
        OSError: the file cannot be read.
    """
    lines = _text(path).split("\n")
    cases = Cases(path.name, [], [])
    inside = False
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if inside:
            _case(cases, line, f"{path.name}, line {number}")
            continue
        word, *values = line.lower().split()
        if word == "@timestamps" and values[:1] == ["true"]:
            raise TaskError(f"{path.name}: expected values without time stamps, got @timeStamps true: remove them.")
        if word == "@classlabel" and values[:1] != ["true"]:
            raise TaskError(f"{path.name}: expected a class in each line, got @classLabel false: choose labelled data.")
        inside = word == "@data"
    if not inside:
        raise TaskError(f"{path.name}: expected a line @data before the cases, got none: write it in the .ts format.")
    if not cases.x:
        raise TaskError(f"{path.name}: expected cases after @data, got none: name files with data.")
    return cases


def _text(path: Path) -> str:
    """Return a file's text; where its comments or classes are of another encoding, their bytes one by one."""
    raw = path.read_bytes()
    try:
        return decode(raw, path.name)[0]
    except TaskError:
        if b"\0" in raw:
            raise
        return raw.decode("latin-1").replace("\r", "\n")


def _case(cases: Cases, line: str, where: str) -> None:
    """Add the case of one line: its dimensions, then its class."""
    *dimensions, label = line.split(":")
    if not dimensions or not label or "," in label:
        raise TaskError(
            f'{where}: expected dimensions separated by ":" and a class last, got no class: write it at the end of '
            "the line."
        )
    values: list[list[float]] = []
    for index, dimension in enumerate(dimensions, start=1):
        try:
            values.append([float(value) for value in dimension.split(",")])
        except ValueError:
            wrong = next(value for value in dimension.split(",") if not _is_number(value))
            raise TaskError(
                f'{where}: expected numbers separated by ",", got {wrong!r} in dimension {index}: fill in missing '
                "values, or remove the line."
            ) from None
    lengths = sorted({len(dimension) for dimension in values})
    if len(lengths) > 1:
        raise TaskError(
            f"{where}: expected dimensions of one length, got {lengths[0]} and {lengths[-1]} values: the dimensions "
            "of a case must have the same number of steps."
        )
    if cases.x and len(values) != cases.x[0].shape[1]:
        raise TaskError(
            f"{where}: expected {cases.x[0].shape[1]} dimensions as in the first case, got {len(values)}: correct the "
            "line, or remove it."
        )
    cases.x.append(np.array(values).T)
    cases.labels.append(label.strip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
