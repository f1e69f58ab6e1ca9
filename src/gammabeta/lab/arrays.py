"""The four arrays of a task of any kind, read, checked and split: x_train, y_train, x_test, y_test."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gammabeta.lab.task import TaskError

NAMES = ("x_train", "y_train", "x_test", "y_test")
PARTS = ("train", "validation", "test")
# The study trains hundreds of networks. A subset keeps that to minutes, and leaves room for differences between norms.
TRAIN, VALIDATION, TEST = 2000, 500, 1000
MOST_TUNING = 5000  # of a whole data set: more would hardly change a choice of the learning rate
FEWEST, FEWEST_TESTED = 10, 5  # samples of each class in the training and in the test part


def fingerprint_of_file(path: Path) -> str:
    """Hash a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the four arrays of an .npz.

    Raises:
        TaskError: the file cannot be read or is no .npz, an array is missing or damaged, or one holds Python objects.
    """
    expected = f"{path.name}: expected a numpy .npz archive with {', '.join(NAMES)}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not raw:
        raise TaskError(f"{expected}, got an empty file: write or copy it again.")
    if raw[:4] not in (b"PK\3\4", b"PK\5\6"):
        raise TaskError(f"{expected}, and could not read it as one. Write it with numpy.savez.")
    try:
        archive = np.load(io.BytesIO(raw), allow_pickle=False)
        held = list(archive.files)
    except Exception as error:  # zipfile raises many kinds where an archive is cut off or changed
        raise TaskError(
            f"{expected}, and could not read it as one ({describe(error)}): it is damaged or cut off; copy it again, "
            "or write it again with numpy.savez."
        ) from error
    if not set(NAMES) <= set(held):
        found = ", ".join(held[:8]) + (", …" if len(held) > 8 else "") or "nothing"
        raise TaskError(
            f"{path.name}: expected the arrays {', '.join(NAMES)}, found {found}: write them under these names, with "
            "numpy.savez."
        )
    return {name: _member(path, archive, name) for name in NAMES}


def _member(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except Exception as error:  # of zipfile, of zlib, of numpy's reader, or MemoryError
        objects = "allow_pickle" in str(error)
        todo = "convert it, as x.astype(np.float32) does" if objects else "write it again with numpy.savez"
        got = "Python objects" if objects else f"a damaged one ({describe(error)})"
        raise TaskError(f"{path.name}: expected {name} as an array of numbers, got {got}: {todo}.") from error
    if not isinstance(array, np.ndarray):  # the bytes of a file that is no array
        raise TaskError(
            f"{path.name}: expected {name} as an array of numbers, got another file in the archive: write it again "
            "with numpy.savez."
        )
    return array


def unreadable(path: Path, error: OSError) -> TaskError:
    """Return the error that says why a file or folder cannot be read."""
    todo = "change its permissions" if isinstance(error, PermissionError) else "check it, or copy it again"
    return TaskError(
        f"{path}: expected a file or folder that can be read, got {error.strerror or describe(error)}: {todo}."
    )


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def is_finite(x: np.ndarray) -> bool:
    """Return whether all values are finite in float64, in which they are standardized."""
    if x.dtype.kind != "f":
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(x.astype(np.float64) if x.dtype.itemsize > 8 else x).all())


def check_numbers(arrays: Mapping[str, np.ndarray], part: str, where: str, what: str) -> None:
    """Check that x of one part is of a real dtype, that y is (n,) of integers, and that both have one length.

    Args:
        part: ``"train"`` or ``"test"``.
        where: the start of every error message, for example the file's name.
        what: ``"images"`` or ``"sequences"``.
    """
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.dtype.kind not in "uif":
        raise TaskError(
            f"{where}: expected x_{part} of a real number type, got {x.dtype}: convert it, as x.astype(np.float32)."
        )
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise TaskError(
            f"{where}: expected y_{part} of shape (n,) with integer labels, got {y.shape} of {y.dtype}: give each of "
            f"the {what} the number of its class."
        )
    if len(x) != len(y):
        raise TaskError(
            f"{where}: expected as many labels as {what}, got {len(x)} in x_{part}, {len(y)} in y_{part}: remove "
            "what has no counterpart."
        )


def check_labels(arrays: Mapping[str, np.ndarray], where: str, what: str) -> int:
    """Check that y_train has the labels 0 to k − 1, y_test no others, and that each class has enough; return k."""
    labels = np.unique(arrays["y_train"])
    classes = len(labels)
    if classes < 2 or labels[0] != 0 or labels[-1] != classes - 1:
        raise TaskError(
            f"{where}: expected labels 0 to k − 1 in y_train, k at least 2, each present, got {_some(labels)}: "
            "renumber the classes, as np.unique(y, return_inverse=True)[1] does."
        )
    unknown = np.setdiff1d(arrays["y_test"], labels)
    if len(unknown):
        raise TaskError(
            f"{where}: expected the labels of y_test among those of y_train, got {_some(unknown)} too: leave out "
            f"the test {what} of these classes."
        )
    fewest = int(np.bincount(arrays["y_train"].astype(np.int64)).min())
    if fewest < FEWEST:
        raise TaskError(
            f"{where}: expected {FEWEST} training {what} of each class or more, got {fewest} of one: bring more, or "
            "leave the class out."
        )
    if len(arrays["y_test"]) < FEWEST:
        raise TaskError(
            f"{where}: expected {FEWEST} test {what} or more, got {len(arrays['y_test'])}: bring more of them."
        )
    return classes


def _some(labels: np.ndarray) -> str:
    shown = ", ".join(str(label) for label in labels[:6])
    return shown + (", …" if len(labels) > 6 else "") if len(labels) else "none"


@dataclass(frozen=True)
class Draw:
    """Which samples are drawn.

    Attributes:
        split: decides which samples are for training and which for tuning; the test samples are always the same.
        most: training samples; None for all samples of both parts, a fifth of the training part, and at most 5,000 of
            it, for tuning.
    """

    split: int = 0
    most: int | None = TRAIN


WHOLE = Draw()


def parts(
    arrays: Mapping[str, np.ndarray], where: str, what: str, draw: Draw = WHOLE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the indices of the training, tuning and test samples; the first two index the training part.

    They are at most ``draw.most``, a quarter and half of it. Where the training part is smaller, a fifth of it is for
    tuning. They have equal shares of each class, and stand in a random order: files hold one class after another, and
    the first samples of a part serve as a sample of it (for exact statistics, for one).

    Raises:
        TaskError: a class that few of many samples have is hardly among those that are drawn.
    """
    y_train, y_test = arrays["y_train"], arrays["y_test"]
    most, rng = draw.most, np.random.default_rng(draw.split)
    share = VALIDATION / TRAIN
    kept = stratified(y_train, len(y_train) if most is None else min(round(most * (1 + share)), len(y_train)), rng)
    tuned = round(len(kept) * share / (1 + share))
    tuned = min(tuned, MOST_TUNING) if most is None else tuned
    held_out = stratified(y_train[kept], tuned, rng)
    is_held_out = np.zeros(len(kept), dtype=bool)
    is_held_out[held_out] = True
    wanted = len(y_test) if most is None else min(round(most * TEST / TRAIN), len(y_test))
    of_test = np.random.default_rng(0)
    tested = stratified(y_test, wanted, of_test)
    for part, drawn, fewest in (("train", y_train[kept], FEWEST), ("test", y_test[tested], FEWEST_TESTED)):
        counts = np.bincount(drawn.astype(np.int64), minlength=int(y_train.max()) + 1)
        least = int(np.argmin(counts))
        if counts[least] < fewest:
            raise TaskError(
                f"{where}: expected {fewest} {what} of each class or more among the {len(drawn)} that the study takes "
                f"from x_{part}, got {counts[least]} of class {least}: bring more of it, or leave the class out."
            )
    return rng.permutation(kept[~is_held_out]), rng.permutation(kept[is_held_out]), of_test.permutation(tested)


def stratified(y_n: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` indices, in ascending order; each class keeps its share of the whole, to one sample."""
    order = rng.permutation(len(y_n))
    within = np.empty(len(y_n))
    for label in np.unique(y_n):
        place = order[y_n[order] == label]
        within[place] = (np.arange(len(place)) + rng.random()) / len(place)
    return np.sort(np.argsort(within, kind="stable")[:count])


def available(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many samples each part of a task is drawn from: training and tuning samples both from x_train."""
    whole, of_test = len(arrays["y_train"]), len(arrays["y_test"])
    return {"train": whole, "validation": whole, "test": of_test}


def subset(arrays: Mapping[str, np.ndarray], drawn: tuple[np.ndarray, np.ndarray, np.ndarray], what: str) -> str:
    """Say how many samples of how many are used, of the parts that :func:`parts` drew."""
    train, validation, test = (f"{len(part):,}" for part in drawn)
    whole, of_test = (f"{len(arrays[f'y_{part}']):,}" for part in ("train", "test"))
    return f"{train} training and {validation} tuning {what} of {whole}, {test} test {what} of {of_test}"
