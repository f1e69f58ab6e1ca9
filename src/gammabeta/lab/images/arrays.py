"""A task from images in four arrays."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from gammabeta.lab.arrays import WHOLE, Draw, available, check_labels, check_numbers, is_finite, parts, subset
from gammabeta.lab.images.task import Task, standardized
from gammabeta.lab.task import TaskError

SMALLEST = 8


def image_task(
    arrays: Mapping[str, np.ndarray],
    *,
    name: str,
    description: str,
    where: str,
    draw: Draw = WHOLE,
    redraw: Callable[[int], Task] | None = None,
) -> Task:
    """Make a task of training and tuning images from x_train and test images from x_test.

    The subsets have equal shares of each class.

    Args:
        arrays: ``x_train``, ``x_test``: images (n, height, width), (n, height, width, 1 or 3) or, as torch has them,
            (n, 1 or 3, height, width), of any real dtype, with 8 × 8 pixels or more. ``y_train``, ``y_test``: labels
            (n,), integers from 0 to the number of classes minus 1.
        where: the start of every error message, for example the file's name.
        draw: which images are taken, as `gammabeta.lab.arrays.parts` takes it.
        redraw: makes the task of another split, where the arrays have no test set of their own.

    Raises:
        TaskError: an array of the wrong shape, dtype, length or range.
    """
    arrays = {name: _channels_last(array) if name.startswith("x_") else array for name, array in arrays.items()}
    for part in ("train", "test"):
        _check(arrays, part, where)
    shapes = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if shapes[0] != shapes[1]:
        raise TaskError(
            f"{where}: expected images of one shape, got {shapes[0]} in x_train and {shapes[1]} in x_test: give both "
            "the same."
        )
    classes = check_labels(arrays, where, "images")

    def part_of(which: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = arrays[f"x_{which}"][index].astype(np.float64)
        x_nchw = x[:, None] if x.ndim == 3 else np.ascontiguousarray(np.moveaxis(x, 3, 1))
        return x_nchw, arrays[f"y_{which}"][index]

    train, validation, test = drawn = parts(arrays, where, "images", draw)
    task = standardized(
        (part_of("train", train), part_of("train", validation), part_of("test", test)),
        name=name,
        description=description if redraw else f"{description}: {subset(arrays, drawn, 'images')}",
        classes=classes,
        redraw=redraw or partial(_again, arrays, draw.most, name=name, description=description, where=where),
        keeps_test=redraw is None,
    )
    return replace(task, available=available(arrays))


def _again(
    arrays: Mapping[str, np.ndarray], most: int | None, split: int, *, name: str, description: str, where: str
) -> Task:
    return image_task(arrays, name=name, description=description, where=where, draw=Draw(split, most))


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Return images with their channels last. They are first where the last axis can be none, and the first one can."""
    return np.moveaxis(x, 1, 3) if x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3) else x


def _check(arrays: Mapping[str, np.ndarray], part: str, where: str) -> None:
    x = arrays[f"x_{part}"]
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise TaskError(
            f"{where}: expected x_{part} of shape (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, "
            f"height, width), got {x.shape}: reshape it."
        )
    check_numbers(arrays, part, where, "images")
    if min(x.shape[1:3]) < SMALLEST:
        raise TaskError(
            f"{where}: expected images of {SMALLEST} × {SMALLEST} pixels or more in x_{part}, got {x.shape}: enlarge "
            "or pad them."
        )
    if not is_finite(x):
        raise TaskError(
            f"{where}: expected finite pixels in x_{part}, got NaN or infinity: replace them, or leave these images "
            "out."
        )
