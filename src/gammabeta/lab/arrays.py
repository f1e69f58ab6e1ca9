"""The four arrays of a task of any kind, read, checked and split: x_train, y_train, x_test, y_test."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gammabeta.lab.task import TaskError

NAMES = ("x_train", "y_train", "x_test", "y_test")
# The study trains hundreds of networks. A subset keeps that to minutes, and leaves room for differences between norms.
TRAIN, VALIDATION, TEST = 2000, 500, 1000
FEWEST = 10


def fingerprint_of_file(path: Path) -> str:
    """Hash a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the four arrays of an .npz.

    Raises:
        TaskError: the file is no .npz, an array is missing, or one holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in NAMES if name not in archive.files]
            if missing:
                found = ", ".join(archive.files) or "nothing"
                raise TaskError(
                    f"{path.name}: expected the arrays {', '.join(NAMES)}, found {found}: write them under these "
                    "names, with numpy.savez."
                )
            return {name: archive[name] for name in NAMES}
    except TaskError:
        raise
    except (OSError, ValueError, AttributeError, TypeError, EOFError) as error:
        raise TaskError(
            f"{path.name}: expected a numpy .npz archive with {', '.join(NAMES)}, and could not read it as one. "
            "Write it with numpy.savez."
        ) from error


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


def parts(y_train: np.ndarray, y_test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the indices of the training, tuning and test samples; the first two index the training part.

    They are at most 2,000, 500 and 1,000. Where the training part is smaller, a fifth of it is for tuning. They are
    drawn with a fixed seed and equal shares of each class.
    """
    rng = np.random.default_rng(0)
    kept = stratified(y_train, min(TRAIN + VALIDATION, len(y_train)), rng)
    tuned = round(len(kept) * VALIDATION / (TRAIN + VALIDATION))
    held_out = stratified(y_train[kept], tuned, rng)
    is_held_out = np.zeros(len(kept), dtype=bool)
    is_held_out[held_out] = True
    tested = stratified(y_test, min(TEST, len(y_test)), rng)
    return kept[~is_held_out], kept[is_held_out], tested


def stratified(y_n: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` indices, in ascending order; each class keeps its share of the whole, to one sample."""
    order = rng.permutation(len(y_n))
    within = np.empty(len(y_n))
    for label in np.unique(y_n):
        place = order[y_n[order] == label]
        within[place] = (np.arange(len(place)) + rng.random()) / len(place)
    return np.sort(np.argsort(within, kind="stable")[:count])
