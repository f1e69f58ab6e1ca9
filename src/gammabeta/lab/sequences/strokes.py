"""Rows of digits, read column by column: sequences of variable length from scikit-learn's digits. No download."""

import numpy as np
import torch

from gammabeta.lab.images import digits
from gammabeta.lab.images.task import Split
from gammabeta.lab.sequences.task import Sequences, SequenceTask

MOST_DIGITS = 6
TRAIN, VALIDATION, TEST = 1500, 400, 600


def load(split: int = 0) -> SequenceTask:
    """Make sequences of 1 to 6 digits in a row, labelled by the first digit.

    Each step is a column of 8 pixels; empty columns at a digit's margins are left out. Training, validation and test
    sequences are made from the corresponding splits of the task digits, so that they share no image. A single digit is
    nearly always 6 columns wide, so sequences of one digit would hardly vary in length. Each of the 8 pixels is
    standardized by the training part's columns.

    Args:
        split: decides which images each part is made of, and the rows that are made of them.
    """
    images = digits.load(split)
    parts = ((images.train, TRAIN), (images.validation, VALIDATION), (images.test, TEST))
    raw = [_rows(part, count, [index, split]) for index, (part, count) in enumerate(parts)]
    columns = np.concatenate([row for row, _ in raw[0]])
    mean, std = columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-6)
    longest = max(len(row) for rows in raw for row, _ in rows)

    def padded(rows: list[tuple[np.ndarray, int]]) -> Sequences:
        x_ntf = np.zeros((len(rows), longest, 8), dtype=np.float32)
        for index, (row, _) in enumerate(rows):
            x_ntf[index, : len(row)] = (row - mean) / std
        lengths = torch.tensor([len(row) for row, _ in rows])
        return Sequences(torch.from_numpy(x_ntf), lengths, torch.tensor([label for _, label in rows]))

    train, validation, test = (padded(rows) for rows in raw)
    return SequenceTask(
        "strokes",
        "1 to 6 of scikit-learn's digits in a row, read column by column; the label is the first",
        10,
        train,
        validation,
        test,
        redraw=load,
        keeps_test=False,
    )


def _rows(part: Split, count: int, seed: list[int]) -> list[tuple[np.ndarray, int]]:
    """Draw ``count`` rows of columns (time, 8) with the labels of their first digits, by ``seed``."""
    rng = np.random.default_rng(seed)
    images = part.x_nchw[:, 0].numpy().astype(np.float64)
    empty = images.min()
    trimmed = []
    for image in images:
        inked = np.flatnonzero((image > empty + 1e-6).any(axis=0))
        trimmed.append(image[:, inked[0] : inked[-1] + 1].T)
    rows = []
    for _ in range(count):
        chosen = rng.integers(0, len(images), rng.integers(1, MOST_DIGITS + 1))
        rows.append((np.concatenate([trimmed[index] for index in chosen]), int(part.y_n[chosen[0]])))
    return rows
