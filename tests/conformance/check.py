"""Results held against the oracle's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tests.conformance.call import ADD_OPS, DIFFERENTIABLE, Call, result_dtypes, run
from tests.conformance.magnitudes import magnitudes
from tests.conformance.oracle import expected
from tests.conformance.tolerances import arithmetic_roundoff, row, tolerance, working_dtype
from torch import Tensor

WORST: dict[tuple[str, str, str], float] = {}
"""The largest error seen, by x's dtype, quantity and who computed, in roundings of its magnitude: A of the table."""


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
) -> None:
    """Assert that the call gives what the oracle gives, in the right dtypes and shapes."""
    wanted = expected(call)
    unwanted = {f"grad {name}" for name in set(DIFFERENTIABLE) - set(differentiated)}
    wanted = {name: result for name, result in wanted.items() if name not in unwanted}
    assert_close(call, run(call, differentiated), wanted, computed_by(call, route), about)


def assert_close(
    call: Call, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], by: str, about: str = ""
) -> None:
    assert actual.keys() == expected.keys()
    dtypes, measures = result_dtypes(call), magnitudes(call)
    for name, wanted in expected.items():
        got, what = actual[name], f"{call.op} {name} by {by}, x {_describe(call.input)}, {_settings(call)} {about}"
        assert got.dtype == dtypes[name], f"{what}: dtype {got.dtype}, expected {dtypes[name]}"
        assert got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(wanted.shape)}"
        limit = row(working_dtype(call), name, by)
        allowed = tolerance(call, limit, measures[name], wanted, got.dtype)
        same = (got == wanted) | (got.isnan() & wanted.isnan())  # infinite and NaN where the oracle is
        error = torch.where(same, 0.0, (got.double() - wanted).abs())
        _record(call, name, by, error, allowed, measures[name].arithmetic, got.dtype)
        off = ~(error <= allowed)  # NaN too
        if off.any():
            most = (error / allowed).nan_to_num(torch.inf).argmax()
            at = tuple(int(i) for i in torch.unravel_index(most, error.shape))
            raise AssertionError(
                f"{what}: {int(off.sum())} of {off.numel()} elements off, most at {at}: {got[at].item():.9g}, expected "
                f"{wanted[at].item():.9g}, allowed error {allowed[at].item():.3g} ({limit.reason})"
            )


def _record(
    call: Call, name: str, by: str, error: Tensor, allowed: Tensor, magnitude: Tensor, dtype: torch.dtype
) -> None:
    unit = arithmetic_roundoff(call, name, dtype) * magnitude
    other = allowed - row(working_dtype(call), name, by).arithmetic * unit
    roundings = ((error - other).clamp(min=0) / unit).nan_to_num(0.0, 0.0, 0.0)
    key = (str(working_dtype(call)).removeprefix("torch."), name, by)
    WORST[key] = max(WORST.get(key, 0.0), float(roundings.max()) if roundings.numel() else 0.0)


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} strides {x.stride()}"


def _settings(call: Call) -> str:
    given = {name: str(t.dtype).removeprefix("torch.") for name, t in call.tensors.items() if t is not None}
    return f"{call.settings} {given}"
