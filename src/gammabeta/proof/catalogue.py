"""All cases by their names, and the choice of those that a verification runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gammabeta.proof.case import Case
from gammabeta.proof.operations import DTYPES, OPS
from gammabeta.proof.topics import TOPICS

SPARSE = {"values": 2, "dtypes": 8, "layouts": 3, "finishes": 3, "masks": 3, "sizes": 4, "running": 2, "sources": 6}
"""Of the topics that go through products of settings, one in so many cases is run, unless all are asked for."""


@dataclass(frozen=True)
class Entry:
    """A case with its place: the topic, the operation and x's dtype."""

    topic: str
    op: str
    dtype: torch.dtype
    case: Case

    @property
    def name(self) -> str:
        """The name by which the command line finds it."""
        return f"{self.topic}/{self.op}/{dtype_name(self.dtype)}/{self.case.name}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name without its package."""
    return str(dtype).removeprefix("torch.")


def entries(*, thorough: bool = False) -> Iterator[Entry]:
    """Yield the cases; of a sparse topic one in so many, which differ between operations and dtypes.

    Each stride is followed over all operations and dtypes as one sequence, so that every setting is met somewhere.
    """
    for topic, cases in TOPICS.items():
        stride, position = 1 if thorough else SPARSE.get(topic, 1), 0
        for op in OPS:
            for dtype in DTYPES:
                for case in cases(op, dtype):
                    if position % stride == 0:
                        yield Entry(topic, op, dtype, case)
                    position += 1
                position += 1  # so that a product whose length the stride divides does not meet the same again


def named(names: list[str]) -> list[Entry]:
    """Return the cases with these names.

    Raises:
        ValueError: there is no such case.
    """
    found = {entry.name: entry for entry in entries(thorough=True)}
    for name in names:
        if name not in found:
            import difflib

            near = difflib.get_close_matches(name, found, n=3)
            hint = f" Near it are {', '.join(near)}." if near else " Names are topic/operation/dtype/settings."
            raise ValueError(f"verify: expected the name of a case, got {name!r}.{hint}")
    return [found[name] for name in names]
