"""A task: data of one kind with a fixed split, standardized by the training part."""

from typing import Literal

Kind = Literal["images", "sequences", "text"]


class TaskError(ValueError):
    """Data or a model that the study cannot use: one sentence with what was expected, what came and what to do."""
