"""What tasks of every kind share: a task is data of one kind with a fixed split, standardized by its training part."""

# The name of a kind of data: of a folder of lab/ and of a row of gammabeta.lab.kinds.KINDS.
Kind = str


class TaskError(ValueError):
    """The study cannot use the data or the model; the message says what was expected and received, and what to do."""
