"""torch.func over every operation, as functorch's tests compose it.

vmap is held against a loop, derivatives against those of a formula. Each transform takes the operation as a function of
its tensors, running statistics among them, and gives what these have become beside the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.peers.close import assert_alike
from tests.peers.formula import by_formula
from tests.peers.ops import OPS, RUNNING, OpSample, op_samples
from torch import Tensor
from torch.func import jvp, vjp, vmap

Function = Callable[..., Any]
BATCH = 3


def function_of(sample: OpSample) -> Function:
    """Our function of all tensors in order. Running statistics are constants; what is moved is a copy, and returned."""
    names = list(sample.tensors)

    def function(*values: Tensor) -> Any:
        tensors = dict(zip(names, values, strict=True))
        running = {name: t.detach().clone() for name, t in tensors.items() if name in RUNNING}
        y = sample.ours(**tensors | running)
        return (y, *running.values()) if sample.moves else y

    return function


def formula_of(sample: OpSample) -> Function:
    def function(*values: Tensor) -> Tensor:
        tensors = dict(zip(sample.tensors, values, strict=True))
        return by_formula(sample, **{name: t.detach() if name in RUNNING else t for name, t in tensors.items()})

    return function


def in_dims(sample: OpSample) -> list[tuple[int | None, ...]]:
    """All tensors batched, at the first and at the last axis; the input alone and each other alone where that is right.

    Statistics that the call moves have to be batched where anything is that they move by.
    """
    names = list(sample.tensors)
    choices: list[tuple[int | None, ...]] = [(0,) * len(names), (-1,) * len(names)]
    choices += [tuple(0 if i % 2 else -1 for i in range(len(names)))]
    for alone in names:
        batched = {alone}
        if sample.moves and alone in (*RUNNING, "input"):
            batched |= {"input", *RUNNING}
        choices.append(tuple(0 if name in batched else None for name in names))
    return choices


def batched(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """Each as BATCH different ones, along its axis."""
    return [
        t if dim is None else torch.stack([(i + 1) * t.abs() + i if i else t for i in range(BATCH)], dim)
        for t, dim in zip(tensors, dims, strict=True)
    ]


def loop(function: Function, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> Any:
    results = [
        function(*(t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)))
        for i in range(BATCH)
    ]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return torch.stack(results)


def tensors_of(sample: OpSample) -> list[Tensor]:
    return [t.detach() for t in sample.tensors.values()]


def tangents(tensors: Sequence[Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
    """A direction for each; none in the running statistics, which are constants."""
    return tuple(
        torch.zeros_like(t) if name in RUNNING else torch.randn_like(t) for name, t in zip(names, tensors, strict=True)
    )


def vjp_of(function: Function) -> Function:
    """A function of the tensors and a cotangent of the output: the output, what was moved, and the cotangents."""

    def pulled(*values: Tensor) -> Any:
        *tensors, cotangent = values
        result, pull = vjp(lambda *t: _first(function(*t)), *tensors)
        return result, *(g for g in pull(cotangent))

    return pulled


def jvp_of(function: Function, count: int) -> Function:
    """A function of the tensors and their tangents: the output and its tangent."""

    def pushed(*values: Tensor) -> Any:
        return jvp(lambda *t: _first(function(*t)), values[:count], values[count:])

    return pushed


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


@pytest.mark.parametrize("op", OPS)
class TestVmap:
    def test_over_every_argument(self, op: str, route: str) -> None:
        for sample in op_samples(op, torch.float64, empty=False):
            function = function_of(sample)
            for dims in in_dims(sample):
                given = batched(tensors_of(sample), dims)
                assert_alike(vmap(function, dims)(*given), loop(function, dims, given), f"{sample} {dims}")

    def test_nested(self, op: str, route: str) -> None:
        for sample in op_samples(op, torch.float64, empty=False)[:3]:
            function = function_of(sample)
            dims = (0,) * len(sample.tensors)
            given = batched(batched(tensors_of(sample), dims), dims)
            expected = loop(lambda *t, function=function, dims=dims: loop(function, dims, t), dims, given)
            assert_alike(vmap(vmap(function))(*given), expected, sample)

    def test_over_derivatives(self, op: str, route: str) -> None:
        """The cotangents of each of a batch, and the tangents: per-sample gradients."""
        for sample in op_samples(op, torch.float64, empty=False):
            function = function_of(sample)
            tensors = tensors_of(sample)
            for transformed, more in (
                (vjp_of(function), (torch.randn_like(sample.input),)),
                (jvp_of(function, len(tensors)), tangents(tensors, list(sample.tensors))),
            ):
                values = [*tensors, *more]
                constant = 0 if sample.moves else None  # the same parameters for all, where they may be
                for dims in ((0,) * len(values), (0, *(constant for _ in tensors[1:]), *(0 for _ in more))):
                    given = batched(values, dims)
                    assert_alike(
                        vmap(transformed, dims)(*given), loop(transformed, dims, given), f"{sample} {dims}", 100
                    )

    def test_statistics_that_are_captured(self, op: str, route: str) -> None:
        """Refused where a batch would move them, as by torch, and unchanged."""
        for sample in op_samples(op, torch.float64, empty=False):
            if not sample.moves:
                continue
            x = batched([sample.input], [0])[0]
            before = {name: sample.tensors[name].clone() for name in RUNNING}
            for call in (sample.ours, sample.theirs):
                with pytest.raises((RuntimeError, ValueError)):
                    vmap(lambda x, call=call: call(input=x))(x)
            for name, value in before.items():
                assert torch.equal(sample.tensors[name], value)


@pytest.mark.parametrize("op", OPS)
class TestDerivatives:
    """Beside the formula under the same transforms: torch's own operations have some of them wrong."""

    def test_once(self, op: str, route: str) -> None:
        for sample in op_samples(op, torch.float64, empty=False):
            ours, theirs = function_of(sample), formula_of(sample)
            tensors = tensors_of(sample)
            cotangent, directions = torch.randn_like(sample.input), tangents(tensors, list(sample.tensors))
            assert_alike(vjp_of(ours)(*tensors, cotangent), vjp_of(theirs)(*tensors, cotangent), sample, 10)
            n = len(tensors)
            assert_alike(jvp_of(ours, n)(*tensors, *directions), jvp_of(theirs, n)(*tensors, *directions), sample, 10)

    def test_twice(self, op: str, route: str) -> None:
        for sample in op_samples(op, torch.float64, empty=False):
            tensors = tensors_of(sample)
            n, cotangent = len(tensors), torch.randn_like(sample.input)
            directions = tangents(tensors, list(sample.tensors))
            values = (*tensors, cotangent)
            more = (*directions, torch.randn_like(cotangent))
            second = torch.randn_like(sample.input)
            for outer, inner in itertools.product(("vjp", "jvp"), repeat=2):
                results = []
                for function in (function_of(sample), formula_of(sample)):
                    once = vjp_of(function) if inner == "vjp" else jvp_of(function, n)
                    given = values if inner == "vjp" else (*tensors, *directions)
                    if outer == "vjp":
                        _, pull = vjp(lambda *t, once=once: once(*t)[1], *given)
                        results.append(pull(torch.ones_like(once(*given)[1]) * (second if inner == "jvp" else 1)))
                    else:
                        steps = more if inner == "vjp" else (*directions, *directions)
                        results.append(jvp(lambda *t, once=once: once(*t)[1], given, steps))
                assert_alike(results[0], results[1], f"{sample} {outer} of {inner}", 1000)
