"""Text, character by character: the reference documentation that ships with Python, or a file."""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gammabeta.lab.decoding import BYTE_ORDER_MARK, decode
from gammabeta.lab.task import TaskError
from gammabeta.lab.text.task import TextTask

# The most frequent characters are symbols of their own; the others become REPLACEMENT. Alphabets need few; of a script
# with thousands of characters, as many are taken as make up COVERED of the text.
CHARACTERS, MOST_CHARACTERS, COVERED = 96, 2048, 0.98
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SHORTEST = 10_000


def load(path: str | None = None) -> TextTask:
    """Read a text, in three parts: 90 % for training, 5 % for tuning, and the last 5 % for the test.

    The tuning part is contiguous and comes before the test part; splits from 1 on take it from somewhere else.

    Args:
        path: a UTF-8 file, or one in UTF-16 or UTF-32; None for the English reference in `pydoc_data.topics`, some
            460,000 characters.

    Raises:
        TaskError: a file that cannot be read, is of another encoding, or has fewer than 10,000 characters.
    """
    if path is None:
        from pydoc_data.topics import topics

        text, name = "\n\n".join(topics[key] for key in sorted(topics)), "text"
        return task(text, name=name, description="Python's own reference (pydoc_data.topics), character by character")
    text, encoding = decode(Path(path).read_bytes(), Path(path).name)
    word = "" if encoding == "utf-8" else f", read as {encoding.upper()}"
    return task(text, name=Path(path).stem, description=f"{Path(path).name}, character by character{word}")


def task(text: str, *, name: str, description: str) -> TextTask:
    """Make a task of a text.

    Raises:
        TaskError: fewer than 10,000 characters.
    """
    text = text.replace(BYTE_ORDER_MARK, "")
    if len(text) < SHORTEST:
        raise TaskError(f"{name}: expected a text of {SHORTEST:,} characters or more, got {len(text):,}.")
    kept, others = _vocabulary(text)
    vocabulary = "".join(kept) + REPLACEMENT
    number = {character: index for index, character in enumerate(vocabulary)}
    other = number[REPLACEMENT]
    tokens = torch.tensor([number.get(character, other) for character in text])
    share = 100 * others / len(text)
    if share >= 0.1:
        description += f"; {share:.1f} % of its characters are rare and count as one"
    return _split(tokens, name, description, vocabulary, 0)


def _split(tokens: torch.Tensor, name: str, description: str, vocabulary: str, split: int) -> TextTask:
    """Take the test part off the end, and the validation part out of the rest, at a place that ``split`` decides."""
    before, tested = int(0.9 * len(tokens)), int(0.95 * len(tokens))
    size = tested - before
    start = before if split == 0 else int(np.random.default_rng(split).integers(0, before + 1))
    rest = torch.cat([tokens[:start], tokens[start + size : tested]])
    return TextTask(
        name,
        description,
        vocabulary,
        rest,
        tokens[start : start + size],
        tokens[tested:],
        redraw=partial(_split, tokens, name, description, vocabulary),
        joint=start if 0 < start < before else None,
    )


def _vocabulary(text: str) -> tuple[list[str], int]:
    """Return the characters that are symbols of their own, in order, and how many characters of the text are others."""
    counts = Counter(text)
    damaged = counts.pop(REPLACEMENT, 0)
    frequent = counts.most_common(MOST_CHARACTERS)
    covered = list(itertools.accumulate(count for _, count in frequent))
    enough = sum(so_far < COVERED * len(text) for so_far in covered) + 1
    kept = frequent[: max(CHARACTERS, enough)]
    return sorted(character for character, _ in kept), damaged + counts.total() - sum(count for _, count in kept)
