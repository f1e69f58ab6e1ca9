"""CIFAR-10 (Krizhevsky 2009), 32 × 32 colour images of 10 classes, from an .npz: x_train, y_train, x_test, y_test."""

from pathlib import Path

from gammabeta.lab.arrays import TRAIN, Draw, read_npz
from gammabeta.lab.images.arrays import image_task
from gammabeta.lab.images.task import Task


def load(path: str | Path, most: int | None = TRAIN) -> Task:
    """Read training and tuning images from x_train, and test images from x_test.

    Args:
        path: the .npz. Images are (n, height, width, 3), of any real dtype. Labels are (n,) or, as in Keras, (n, 1),
            integers from 0 to 9.
        most: training images, as `gammabeta.lab.arrays.parts` takes it.

    Raises:
        TaskError: a missing array, or one of the wrong shape, dtype, length or range.
    """
    file = Path(path).name
    arrays = read_npz(Path(path))
    for key in ("y_train", "y_test"):
        if arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    return image_task(arrays, name="cifar10", description=file, where=file, draw=Draw(most=most))
