"""Text, character by character: the reference documentation that ships with Python, or a file."""

from collections import Counter
from pathlib import Path

import torch

from gammabeta.lab.task import TaskError
from gammabeta.lab.text.task import TextTask

CHARACTERS = 96  # the most frequent ones; the others become REPLACEMENT
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SHORTEST = 10_000


def load(path: str | None = None) -> TextTask:
    """Read a text, in three contiguous parts: 90 % for training, 5 % for tuning, 5 % for the test.

    Args:
        path: a UTF-8 file; None for the English reference in `pydoc_data.topics`, some 460,000 characters.

    Raises:
        TaskError: a file that cannot be read, is not UTF-8, or has fewer than 10,000 characters.
    """
    if path is None:
        from pydoc_data.topics import topics

        text, name = "\n\n".join(topics[key] for key in sorted(topics)), "text"
        description = "Python's own reference (pydoc_data.topics), character by character"
    else:
        text, name = _read(Path(path)), Path(path).stem
        description = f"{Path(path).name}, character by character"
    return task(text, name=name, description=description)


def task(text: str, *, name: str, description: str) -> TextTask:
    """Make a task of a text.

    Raises:
        TaskError: fewer than 10,000 characters.
    """
    if len(text) < SHORTEST:
        raise TaskError(f"{name}: expected a text of {SHORTEST:,} characters or more, got {len(text):,}.")
    kept = sorted(character for character, _ in Counter(text).most_common(CHARACTERS))
    vocabulary = "".join(kept) + REPLACEMENT
    number = {character: index for index, character in enumerate(vocabulary)}
    other = number[REPLACEMENT]
    tokens = torch.tensor([number.get(character, other) for character in text])
    tuned, tested = int(0.9 * len(tokens)), int(0.95 * len(tokens))
    return TextTask(name, description, vocabulary, tokens[:tuned], tokens[tuned:tested], tokens[tested:])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path.name}: expected UTF-8 text, got other bytes at {error.start}. Convert it.") from error
    except OSError as error:
        raise TaskError(f"{path.name}: cannot read it: {error.strerror}.") from error
