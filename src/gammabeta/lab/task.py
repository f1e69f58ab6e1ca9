"""A task: data of one kind with a fixed split, standardized by the training part."""

# The name of a kind of data: of a folder of lab/ and of a row of gammabeta.lab.kinds.KINDS.
Kind = str


class TaskError(ValueError):
    """Data or a model that the study cannot use: one sentence with what was expected, what came and what to do."""
