"""Images of one's own from an .npz: x_train, y_train, x_test, y_test."""

from pathlib import Path

from gammabeta.lab.arrays import TRAIN, Draw, read_npz
from gammabeta.lab.images.arrays import image_task
from gammabeta.lab.images.task import Task


def load(path: str | Path, most: int | None = TRAIN) -> Task:
    """Read training and tuning images from x_train, and test images from x_test.

    Args:
        path: the .npz. Images and labels are as `gammabeta.lab.user_data` says.
        most: training images, as `gammabeta.lab.arrays.parts` takes it.

    Raises:
        TaskError: a missing array, or one of the wrong shape, dtype, length or range.
    """
    file = Path(path).name
    return image_task(read_npz(Path(path)), name=Path(path).stem, description=file, where=file, draw=Draw(most=most))
