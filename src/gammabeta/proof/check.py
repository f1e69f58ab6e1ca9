"""Results held against the oracle's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.proof.call import DIFFERENTIABLE, Call, result_dtypes, run
from gammabeta.proof.magnitudes import magnitudes
from gammabeta.proof.operations import ADD_OPS
from gammabeta.proof.oracle import expected
from gammabeta.proof.tolerances import Row, arithmetic_roundoff, row, tolerance, working_dtype

WORST: dict[tuple[str, str, str], float] = {}
"""The largest error seen, by x's dtype, quantity and who computed, in roundings of its magnitude: A of the table."""


class NotRunError(RuntimeError):
    """This machine does not let a case run, which says nothing about any kernel; the text says why."""


class MismatchError(AssertionError):
    """Results that are not what they have to be."""


@dataclass(frozen=True)
class Comparison:
    """One result beside the oracle's, at the element whose error is the largest.

    Attributes:
        quantity: the result's name.
        error, allowed: in ulp: spacings, at the element's magnitude (`magnitudes.py`), of the coarsest dtype on the way
            to the result.
        row: the row of the table that allows it, with the reason.
    """

    quantity: str
    error: float
    allowed: float
    row: Row


def computed_by(call: Call, route: str) -> str:
    """Return who computes, in the words of the table."""
    if call.op in ADD_OPS:
        return "added"
    if route != "chosen" or call.tensor("mask") is not None:
        return "ops"
    composed = call.tensor("residual") is not None or call.setting("activation") is not None
    return "composed" if composed else "torch"


def assert_conforms(
    call: Call, route: str, about: str = "", *, differentiated: tuple[str, ...] = DIFFERENTIABLE
) -> list[Comparison]:
    """Compare the call's results with the oracle's, which they have to equal in value, dtype and shape.

    Raises:
        MismatchError: they do not.
    """
    wanted = expected(call)
    unwanted = {f"grad {name}" for name in set(DIFFERENTIABLE) - set(differentiated)}
    wanted = {name: result for name, result in wanted.items() if name not in unwanted}
    return assert_close(call, run(call, differentiated), wanted, computed_by(call, route), about)


def assert_close(
    call: Call, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], by: str, about: str = ""
) -> list[Comparison]:
    """Compare results with expected ones, to the table's tolerances.

    Raises:
        MismatchError: a result is off, has another dtype or shape, or is not there.
    """
    require(actual.keys() == expected.keys(), f"{call.op}: expected {sorted(expected)}, got {sorted(actual)}")
    dtypes, measures = result_dtypes(call), magnitudes(call)
    compared = []
    for name, wanted in expected.items():
        got, what = actual[name], f"{call.op} {name} by {by}, x {_describe(call.input)}, {_settings(call)} {about}"
        require(got.dtype == dtypes[name], f"{what}: dtype {got.dtype}, expected {dtypes[name]}")
        require(got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
        limit = row(working_dtype(call), name, by)
        allowed = tolerance(call, limit, measures[name], wanted, got.dtype)
        same = (got == wanted) | (got.isnan() & wanted.isnan())  # infinite and NaN where the oracle is
        error = torch.where(same, 0.0, (got.double() - wanted).abs())
        _record(call, limit, by, (error, allowed, measures[name].arithmetic), got.dtype)
        off = ~(error <= allowed)  # NaN too
        if off.any():
            most = (error / allowed).nan_to_num(torch.inf).argmax()
            at = tuple(int(i) for i in torch.unravel_index(most, error.shape))
            raise MismatchError(
                f"{what}: {int(off.sum())} of {off.numel()} elements off, most at {at}: {got[at].item():.9g}, expected "
                f"{wanted[at].item():.9g}, allowed error {allowed[at].item():.3g} ({limit.reason})"
            )
        if error.numel():
            sizes = error, allowed, wanted, measures[name].arithmetic
            compared.append(_compared(call, limit, sizes, got.dtype))
    return compared


def require(condition: bool, text: str) -> None:
    """Raise a MismatchError with that text unless the condition holds."""
    if not condition:
        raise MismatchError(text)


def assert_same_bits(actual: Mapping[str, Tensor], wanted: Mapping[str, Tensor], about: str) -> None:
    """Compare only the values of results: all have to be equal, and NaN where the others are."""
    for name, result in wanted.items():
        same = (actual[name] == result) | (actual[name].isnan() & result.isnan())
        require(bool(same.all()), f"{name} {about}: {int((~same).sum())} of {same.numel()} elements have other bits")


def _compared(call: Call, limit: Row, sizes: tuple[Tensor, Tensor, Tensor, Tensor], dtype: torch.dtype) -> Comparison:
    error, allowed, wanted, magnitude = sizes
    # The coarsest rounding on the way: of the result, of the arithmetic, of what is stored in between.
    eps = max(torch.finfo(dtype).eps, 2 * arithmetic_roundoff(call, limit.quantity, dtype))
    eps = max(eps, torch.finfo(working_dtype(call)).eps) if limit.inside else eps
    size = torch.maximum(wanted.abs(), magnitude).nan_to_num(torch.inf)
    size = size.clamp(torch.finfo(dtype).smallest_normal, torch.finfo(torch.float64).max)
    ulp = (torch.exp2(torch.floor(torch.log2(size))) * eps).expand_as(wanted)
    in_ulp = (error / ulp).flatten()
    most = int(in_ulp.argmax())
    return Comparison(limit.quantity, float(in_ulp[most]), float((allowed / ulp).flatten()[most]), limit)


def _record(call: Call, limit: Row, by: str, sizes: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> None:
    error, allowed, magnitude = sizes
    unit = arithmetic_roundoff(call, limit.quantity, dtype) * magnitude
    other = allowed - limit.arithmetic * unit
    roundings = ((error - other).clamp(min=0) / unit).nan_to_num(0.0, 0.0, 0.0)
    key = (str(working_dtype(call)).removeprefix("torch."), limit.quantity, by)
    WORST[key] = max(WORST.get(key, 0.0), float(roundings.max()) if roundings.numel() else 0.0)


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} strides {x.stride()}"


def _settings(call: Call) -> str:
    given = {name: str(t.dtype).removeprefix("torch.") for name, t in call.tensors.items() if t is not None}
    return f"{call.settings} {given}"
