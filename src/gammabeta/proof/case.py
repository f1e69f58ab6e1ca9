"""A case: one call, and what has to hold of its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gammabeta.proof.call import DIFFERENTIABLE, Call
from gammabeta.proof.check import Comparison, assert_conforms
from gammabeta.proof.random_call import random_call

Make = Callable[[int], Call]
Holds = Callable[[Call, str], "list[Comparison]"]
"""What has to hold of a call on a route. It raises a MismatchError where it does not."""

KERNELS = ("ops", "interpreted", "cuda")
"""The routes on which kernels of ours run, and on which claims about their bits are tested."""


@dataclass(frozen=True)
class Case:
    """A call and what has to hold of its results.

    Attributes:
        name: unique among the cases of one topic, operation and dtype.
        make: the call, from the seed of its random values.
        holds: what has to hold: by default that its results are the oracle's, to the tolerances.
        routes: the routes on which it has to, where not on all.
    """

    name: str
    make: Make
    holds: Holds = assert_conforms
    routes: tuple[str, ...] = ()

    def on(self, route: str) -> bool:
        """Return whether it has to hold on that route."""
        return not self.routes or route in self.routes


Cases = Callable[[str, torch.dtype], Iterator[Case]]
"""The cases of a topic for an operation and a dtype of x."""


def drawn(op: str, shape: tuple[int, ...], dtype: torch.dtype, **settings: Any) -> Make:
    """Return how to make `random_call` with that seed."""
    return lambda seed: random_call(op, shape, dtype, seed=seed, **settings)


def differentiated(*names: str) -> Holds:
    """Return the comparison with the oracle where only these tensors require a gradient."""
    return partial(assert_conforms, differentiated=tuple(n for n in DIFFERENTIABLE if n in names))


def described(*parts: Any) -> str:
    """Join what distinguishes a case into its name: dicts by their items, dtypes and tuples briefly."""
    return "-".join(word for part in parts if (word := _word(part)))


def _word(part: Any) -> str:
    if isinstance(part, dict):
        return "-".join(_item(name, value) for name, value in part.items())
    if isinstance(part, torch.dtype):
        return str(part).removeprefix("torch.")
    if isinstance(part, tuple):
        return "x".join(map(_word, part))
    return str(part).replace(" ", "_").replace("/", "_")


def _item(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no_{name}"
    return str(value) if isinstance(value, str) else f"{name}={_word(value)}"
