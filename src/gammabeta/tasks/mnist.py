"""Images from an .npz in the form MNIST is passed around in: x_train, y_train, x_test, y_test."""

from pathlib import Path

import numpy as np

from gammabeta.tasks.task import Task, TaskError, standardized

NAMES = ("x_train", "y_train", "x_test", "y_test")
# The study trains some hundred networks: a subset keeps that to minutes, and leaves room between the norms.
TRAIN, VALIDATION, TEST = 2000, 500, 1000
SMALLEST = 8


def load(path: str | Path) -> Task:
    """At most 2,000 images to train on and 500 to tune rates on, both from x_train, and 1,000 of x_test to report on.

    The subsets are drawn once, with a fixed seed and equal shares of each class.

    Args:
        path: the .npz; images (n, height, width) or (n, height, width, channels), of any real dtype; labels (n,)
        integers
            from 0 to the number of classes less one.

    Raises:
        TaskError: a missing array, or one of the wrong shape, dtype, length or range.
    """
    arrays = _arrays(Path(path))
    classes = _check(arrays, Path(path).name)
    rng = np.random.default_rng(0)
    kept = _stratified(arrays["y_train"], min(TRAIN + VALIDATION, len(arrays["y_train"])), rng)
    tuned = round(len(kept) * VALIDATION / (TRAIN + VALIDATION))
    held_out = _stratified(arrays["y_train"][kept], tuned, rng)
    is_held_out = np.zeros(len(kept), dtype=bool)
    is_held_out[held_out] = True
    tested = _stratified(arrays["y_test"], min(TEST, len(arrays["y_test"])), rng)

    def part(which: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = arrays[f"x_{which}"][index].astype(np.float64)
        x_nchw = x[:, None] if x.ndim == 3 else np.ascontiguousarray(np.moveaxis(x, 3, 1))
        return x_nchw, arrays[f"y_{which}"][index]

    return standardized(
        part("train", kept[~is_held_out]),
        part("train", kept[is_held_out]),
        part("test", tested),
        name="mnist",
        description=f"{Path(path).name}: a fixed, stratified subset of its images",
        classes=classes,
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in NAMES if name not in archive.files]
            if missing:
                found = ", ".join(archive.files) or "nothing"
                raise TaskError(f"{path.name}: expected the arrays {', '.join(NAMES)}, found {found}.")
            return {name: archive[name] for name in NAMES}
    except TaskError:
        raise
    except (OSError, ValueError, AttributeError, TypeError, EOFError) as error:
        raise TaskError(
            f"{path.name}: expected a numpy .npz archive with {', '.join(NAMES)}, and could not read it as one. "
            "Write it with numpy.savez."
        ) from error


def _check(arrays: dict[str, np.ndarray], name: str) -> int:
    """Every array's shape, dtype, length and range; returns the number of classes."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise TaskError(
                f"{name}: expected x_{part} of shape (n, height, width) or (n, height, width, 1 or 3), got {x.shape}."
            )
        if x.dtype.kind not in "uif":
            raise TaskError(f"{name}: expected x_{part} of a real number type, got {x.dtype}.")
        if min(x.shape[1:3]) < SMALLEST:
            raise TaskError(
                f"{name}: expected images of {SMALLEST} × {SMALLEST} pixels or more in x_{part}, got {x.shape}."
            )
        if y.ndim != 1 or y.dtype.kind not in "ui":
            raise TaskError(f"{name}: expected y_{part} of shape (n,) with integer labels, got {y.shape} of {y.dtype}.")
        if len(x) != len(y):
            raise TaskError(
                f"{name}: expected as many labels as images, got {len(x)} in x_{part}, {len(y)} in y_{part}."
            )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise TaskError(f"{name}: expected finite pixels in x_{part}, got NaN or infinity.")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise TaskError(
            f"{name}: expected images of one shape, got {arrays['x_train'].shape[1:]} in x_train "
            f"and {arrays['x_test'].shape[1:]} in x_test."
        )
    labels = np.unique(arrays["y_train"])
    classes = len(labels)
    if classes < 2 or labels[0] != 0 or labels[-1] != classes - 1:
        raise TaskError(f"{name}: expected labels 0 to k − 1 in y_train, each present, got {_some(labels)}.")
    unknown = np.setdiff1d(arrays["y_test"], labels)
    if len(unknown):
        raise TaskError(f"{name}: expected the labels of y_test among those of y_train, got {_some(unknown)} besides.")
    fewest = int(np.bincount(arrays["y_train"].astype(np.int64)).min())
    if fewest < 10:
        raise TaskError(f"{name}: expected 10 training images of each class or more, got {fewest} of one.")
    if len(arrays["y_test"]) < 10:
        raise TaskError(f"{name}: expected 10 test images or more, got {len(arrays['y_test'])}.")
    return classes


def _some(labels: np.ndarray) -> str:
    shown = ", ".join(str(label) for label in labels[:6])
    return shown + (", …" if len(labels) > 6 else "")


def _stratified(y_n: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` indices in ascending order, each class's share that of the whole (to one)."""
    order = rng.permutation(len(y_n))
    within = np.empty(len(y_n))
    for label in np.unique(y_n):
        place = order[y_n[order] == label]
        within[place] = (np.arange(len(place)) + rng.random()) / len(place)
    return np.sort(np.argsort(within, kind="stable")[:count])
