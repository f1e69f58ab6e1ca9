"""Images from an .npz in the form MNIST is passed around in: x_train, y_train, x_test, y_test."""

from pathlib import Path

from gammabeta.lab.arrays import read_npz
from gammabeta.lab.images.arrays import image_task
from gammabeta.lab.images.task import Task


def load(path: str | Path) -> Task:
    """At most 2,000 images to train on and 500 to tune rates on, both from x_train, and 1,000 of x_test to report on.

    Args:
        path: the .npz; images (n, height, width) or (n, height, width, channels), of any real dtype; labels (n,),
            integers from 0 to the number of classes less one.

    Raises:
        TaskError: a missing array, or one of the wrong shape, dtype, length or range.
    """
    file = Path(path).name
    return image_task(
        read_npz(Path(path)),
        name="mnist",
        description=f"{file}: a fixed, stratified subset of its images",
        where=file,
    )
