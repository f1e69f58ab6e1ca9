"""What tasks of every kind share: a task is data of one kind with a fixed split, standardized by its training part."""

# The name of a kind of data: of a folder of lab/ and of a row of gammabeta.lab.kinds.KINDS.
Kind = str


class TaskError(ValueError):
    """Data or a model that the study cannot use; the message says what was expected, what was received and what to do."""
