"""scikit-learn's digits: 1,797 images of handwritten digits, 8 × 8 (UCI, Alpaydin and Kaynak 1998). No download."""

from dataclasses import replace

import numpy as np

from gammabeta.lab.arrays import PARTS
from gammabeta.lab.images.task import Task, standardized

TRAIN, VALIDATION, TEST = 997, 400, 400


def load(split: int = 0) -> Task:
    """Load 997 training, 400 tuning and 400 test images: a split with equal shares of each class.

    Args:
        split: decides which images each part holds.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_nchw = images.reshape(-1, 1, 8, 8).astype(np.float64)
    x_rest, x_test, y_rest, y_test = train_test_split(
        x_nchw, labels, test_size=TEST, stratify=labels, random_state=split
    )
    x_train, x_validation, y_train, y_validation = train_test_split(
        x_rest, y_rest, test_size=VALIDATION, stratify=y_rest, random_state=split
    )
    task = standardized(
        ((x_train, y_train), (x_validation, y_validation), (x_test, y_test)),
        name="digits",
        description="scikit-learn's digits: 8 × 8 grey images of handwritten digits, in stratified parts",
        classes=10,
        redraw=load,
        keeps_test=False,
    )
    return replace(task, available=dict.fromkeys(PARTS, len(labels)))
