"""Images from an .npz with the arrays in which MNIST is distributed: x_train, y_train, x_test, y_test."""

from pathlib import Path

from gammabeta.lab.arrays import TRAIN, Draw, read_npz
from gammabeta.lab.images.arrays import image_task
from gammabeta.lab.images.task import Task


def load(path: str | Path, most: int | None = TRAIN) -> Task:
    """Read training and tuning images from x_train, and test images from x_test.

    Args:
        path: the .npz. Images are (n, height, width) or (n, height, width, channels), of any real dtype. Labels are
            (n,), integers from 0 to the number of classes minus 1.
        most: training images, as `gammabeta.lab.arrays.parts` takes it.

    Raises:
        TaskError: a missing array, or one of the wrong shape, dtype, length or range.
    """
    file = Path(path).name
    return image_task(
        read_npz(Path(path)),
        name="mnist",
        description=file,
        where=file,
        draw=Draw(most=most),
    )
