"""Allowed distances of results from the oracle: one table, with a reason in every row.

The allowed error of an element is

    u(arithmetic)·A·M  +  u(x)·I·M'  +  u(result)·|expected|

with u the unit roundoff of a dtype (2^-53, 2^-24, 2^-8, 2^-11 for float64, float32, bfloat16, float16), M and M' the
magnitudes of magnitudes.py, and from the table A, roundings in the arithmetic, and I, roundings of intermediate results
to x's dtype. The last term is the one rounding that storing a result costs; it has no factor.

A is twice to three times the largest error that was measured over all these tests (CONFORMANCE_REPORT=1 prints those of
a run), since sums are added in another order with another number of threads or width of registers. I is counted, not
measured. Every row holds for large means as for small ones: that is in M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta.proof.call import Call
from gammabeta.proof.magnitudes import Magnitude
from gammabeta.proof.operations import ADD_OPS

FULL = (torch.float64, torch.float32)
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Row:
    """Who it holds for, A, I, and why.

    Attributes:
        dtypes: of x (of the sum, for the operations that add).
        by: who computes: "ops" ours, "torch" torch's op alone, "composed" torch's op with sum and activation after it,
            "added" a sum with a norm after it.
        about_mean: how many times (u·|μ|/σ)² of the variance is allowed besides.
    """

    dtypes: tuple[torch.dtype, ...]
    quantity: str
    by: tuple[str, ...]
    arithmetic: float
    inside: float
    reason: str
    about_mean: float = 0.0


ANY = ("ops", "torch", "composed", "added")

TABLE = (
    Row(
        FULL, "output", ANY, 8, 0,
        "difference, variance, root, product, scale, shift, sum and activation round once each; the sums under the "
        "mean and the variance are pairwise or blocked and add about as much as one rounding. "
        "Measured 4.3 (float64, where the oracle rounds too) and 3.1 (float32).",
    ),
    Row(
        HALF, "output", ("ops", "torch", "composed"), 8, 0,
        "arithmetic in float32 as above and one rounding when it is stored.",
    ),
    Row(
        HALF, "output", ("added",), 8, 0,
        "the oracle too normalizes the sum as it is stored, so only the norm's own rounding is left.",
    ),
    Row(
        FULL + HALF, "total", ("added",), 0, 0,
        "IEEE addition: rounded once when it is stored and otherwise exact.",
    ),
    Row(
        FULL, "grad input", ANY, 20, 0,
        "two sums over the values of the statistic, three products and two differences on an x̂ that is itself off as "
        "the output is. Measured 7.1 (float32), 4.3 (float64).",
    ),
    Row(
        HALF, "grad input", ("ops", "torch", "composed"), 20, 0,
        "arithmetic in float32 with statistics in float32, one rounding when it is stored.",
    ),
    Row(
        HALF, "grad input", ("added",), 20, 1,
        "the norm's gradient is stored before the sum's own gradient is added to it.",
    ),
    Row(
        FULL, "grad residual", ANY, 8, 0,
        "the output's error through the activation's derivative; of a sum, the input's gradient. Measured 3.4.",
    ),
    Row(
        HALF, "grad residual", ("ops", "torch", "composed"), 8, 0,
        "arithmetic in float32, one rounding when it is stored.",
    ),
    Row(
        HALF, "grad residual", ("added",), 20, 1,
        "the same tensor as the input's gradient.",
    ),
    Row(
        FULL, "grad weight", ANY, 6, 0,
        "one sum of x̂·∂ℓ/∂z, measured against the sum of its absolute values. Measured 2.4.",
    ),
    Row(
        HALF, "grad weight", ("ops", "torch", "composed", "added"), 6, 0,
        "the sum is in float32, however long; one rounding when it is stored.",
    ),
    Row(
        FULL, "grad bias", ANY, 12, 0,
        "one sum of ∂ℓ/∂z, measured against the sum of its absolute values; of 769 samples one after the other. "
        "Measured 5.9 (float64), 4.9 (float32).",
    ),
    Row(
        HALF, "grad bias", ("ops", "torch", "composed", "added"), 12, 0,
        "the sum is in float32, however long; one rounding when it is stored.",
    ),
    Row(
        (torch.float64,), "running_mean", ANY, 16, 0,
        "a mean and a moving average of it. Measured 6.6, at a mean of 1e8, where the oracle's sum is as "
        "far off as ours.",
    ),
    Row(
        (torch.float32, *HALF), "running_mean", ANY, 4, 0,
        "a mean in float32 whatever x's dtype, and a moving average of it. Measured 1.2.",
    ),
    Row(
        (torch.float64,), "running_var", ANY, 8, 0,
        "a variance and a moving average of it; the oracle's variance is about a mean that is off by u·|μ|, which adds "
        "that squared. Measured 4.2.",
        about_mean=8,
    ),
    Row(
        (torch.float32, *HALF), "running_var", ("ops",), 6, 0,
        "the mean of the deviations is taken out of them, so that nothing of μ is left. Measured 2.1.",
    ),
    Row(
        (torch.float32, *HALF), "running_var", ("torch", "composed"), 6, 0,
        "as above, but torch's op takes the variance about a mean off by u·|μ|. Its mean is a plain "
        "sum, so that this holds for hundreds of values and not for thousands. Measured 2.5, and 1.2 of the square.",
        about_mean=4,
    ),
)  # fmt: skip


def working_dtype(call: Call) -> torch.dtype:
    """Return the dtype of the norm's input."""
    if call.op in ADD_OPS:
        return torch.promote_types(call.input.dtype, call.given("residual").dtype)
    return call.input.dtype


def row(dtype: torch.dtype, quantity: str, by: str) -> Row:
    found = [r for r in TABLE if dtype in r.dtypes and quantity == r.quantity and by in r.by]
    assert len(found) == 1, f"{len(found)} rows for {dtype}, {quantity}, {by}"
    return found[0]


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def arithmetic_roundoff(call: Call, quantity: str, dtype: torch.dtype) -> float:
    """Of float64 where x is float64 (and what is moved, for running statistics), else of float32."""
    wide = working_dtype(call) == torch.float64 and (dtype == torch.float64 or not quantity.startswith("running"))
    return roundoff(torch.float64 if wide else torch.float32)


def tolerance(call: Call, row: Row, magnitude: Magnitude, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the allowed error of every element of a result of that dtype, float64."""
    u = arithmetic_roundoff(call, row.quantity, dtype)
    arithmetic = row.arithmetic * u * magnitude.arithmetic
    if row.about_mean:
        assert magnitude.about_mean is not None
        arithmetic = arithmetic + row.about_mean * u**2 * magnitude.about_mean
    inside = row.inside * roundoff(working_dtype(call)) * magnitude.inside
    stored = roundoff(dtype) * (expected.abs() + arithmetic + inside)
    # Where numbers are subnormal their spacing does not shrink any more.
    return arithmetic + inside + stored + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
