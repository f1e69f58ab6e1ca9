"""A task from sequences of variable length in padded arrays."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from gammabeta.lab.arrays import TRAIN, Draw, available, check_labels, check_numbers, is_finite, parts, subset
from gammabeta.lab.sequences.task import Sequences, SequenceTask
from gammabeta.lab.standardization import Standardization
from gammabeta.lab.task import TaskError


def sequence_task(
    arrays: Mapping[str, np.ndarray],
    split: int = 0,
    *,
    name: str,
    description: str,
    where: str,
    most: int | None = TRAIN,
) -> SequenceTask:
    """Make a task of training and tuning sequences from x_train and test ones from x_test.

    The subsets have equal shares of each class. Each feature is standardized by the mean and the standard deviation
    (which divides by the count) of the real training values, without padding: (x − μ)/σ up to each sequence's length,
    and 0 from there on.

    Args:
        arrays: ``x_train``, ``x_test``: (n, time, features), of any real dtype, with one number of features.
            ``lengths_train``, ``lengths_test``: (n,), integers from 1 to time; values after a length are ignored.
            ``y_train``, ``y_test``: labels (n,), integers from 0 to the number of classes minus 1.
        split: decides which of x_train are training and which tuning sequences; the test sequences are always the same.
        where: the start of every error message, for example the file's name.
        most: training sequences, as `gammabeta.lab.arrays.parts` takes it.

    Raises:
        TaskError: an array of the wrong shape, dtype, length or range.
    """
    for part in ("train", "test"):
        _check(arrays, part, where)
    features = arrays["x_train"].shape[2], arrays["x_test"].shape[2]
    if features[0] != features[1]:
        raise TaskError(
            f"{where}: expected one number of features, got {features[0]} in x_train and {features[1]} in x_test: "
            "give both the same."
        )
    classes = check_labels(arrays, where, "sequences")
    train, validation, test = drawn = parts(arrays, where, "sequences", Draw(split, most))
    real_nt = _real(arrays, "train")[train]
    values_vf = arrays["x_train"][train][real_nt].astype(np.float64)
    scaling = Standardization.of(values_vf, (0,), where, "values")
    if not np.all(scaling.std > 0):
        raise TaskError(
            f"{where}: expected features that vary, got one value throughout the training part in feature "
            f"{int(np.argmin(scaling.std))}: leave that feature out."
        )

    def part_of(part: str, index: np.ndarray) -> Sequences:
        real_nt1 = _real(arrays, part)[index][:, :, None]
        # Padding may hold anything: the first step stands in for it.
        x_ntf = arrays[f"x_{part}"][index].astype(np.float64)
        filled_ntf = np.where(real_nt1, x_ntf, x_ntf[:, :1])
        scaled_ntf = np.where(real_nt1, scaling.apply(filled_ntf, where, "values"), np.float32(0.0))
        lengths_n, y_n = (arrays[f"{key}_{part}"][index].astype(np.int64) for key in ("lengths", "y"))
        return Sequences(torch.from_numpy(scaled_ntf), torch.from_numpy(lengths_n), torch.from_numpy(y_n))

    return SequenceTask(
        name,
        f"{description}: {subset(arrays, drawn, 'sequences')}",
        classes,
        part_of("train", train),
        part_of("train", validation),
        part_of("test", test),
        redraw=partial(sequence_task, arrays, name=name, description=description, where=where, most=most),
        keeps_test=True,
        available=available(arrays),
    )


def _real(arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    """Return a mask (n, time): True where a value is real, not padding."""
    return np.asarray(np.arange(arrays[f"x_{part}"].shape[1]) < arrays[f"lengths_{part}"][:, None])


def _check(arrays: Mapping[str, np.ndarray], part: str, where: str) -> None:
    x, lengths = arrays[f"x_{part}"], arrays[f"lengths_{part}"]
    if x.ndim != 3 or 0 in x.shape[1:]:
        raise TaskError(f"{where}: expected x_{part} of shape (n, time, features), got {x.shape}: reshape it.")
    check_numbers(arrays, part, where, "sequences")
    if lengths.shape != (len(x),) or lengths.dtype.kind not in "ui":
        raise TaskError(
            f"{where}: expected lengths_{part} of shape ({len(x)},) with integers, got {lengths.shape} of "
            f"{lengths.dtype}: give each sequence the number of its steps."
        )
    if len(x) and (lengths.min() < 1 or lengths.max() > x.shape[1]):
        raise TaskError(
            f"{where}: expected lengths_{part} from 1 to {x.shape[1]}, the time of x_{part}, got {lengths.min()} to "
            f"{lengths.max()}: leave out empty sequences, and pad x_{part} to the longest."
        )
    if not is_finite(x[_real(arrays, part)]):
        raise TaskError(
            f"{where}: expected finite values in x_{part} up to each sequence's length, got NaN or infinity: replace "
            "them, or leave these sequences out."
        )
