"""Sums of the programs' partial sums, in a fixed order."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from gammabeta.kernels.cuda.arithmetic import store, widen
from gammabeta.kernels.cuda.launch import ceil_div, power_of_2

PARTIALS = 128  # per tile
COLUMNS = 32  # per program


@triton.jit
def sum_partials_kernel(
    partials, first_out, second_out, rows, columns, HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr,
    DOUBLE: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Sum (2, rows, columns) over its rows, each half into its own output, in the dtype of that output."""
    c = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    first = widen(tl.zeros([K, C], tl.float32), DOUBLE)
    second = first
    for k0 in range(0, rows, K):
        k = k0 + tl.arange(0, K)[:, None]
        where = (k < rows) & (c < columns)
        at = k.to(tl.int64) * columns + c
        if HAS_FIRST:
            first += tl.load(partials + at, mask=where, other=0.0)
        if HAS_SECOND:
            second += tl.load(partials + tl.cast(rows, tl.int64) * columns + at, mask=where, other=0.0)
    if HAS_FIRST:
        total = tl.sum(first, 0, keep_dims=True)
        store(first_out, c, total, c < columns)
    if HAS_SECOND:
        total = tl.sum(second, 0, keep_dims=True)
        store(second_out, c, total, c < columns)


def sum_partials(partials: Tensor, first: Tensor | None, second: Tensor | None) -> None:
    """Sum (2, K, C) over axis 1, into `first` and `second` of shape (C,) and any dtype."""
    _, rows, columns = partials.shape
    constants: dict[str, Any] = {"HAS_FIRST": first is not None, "HAS_SECOND": second is not None}
    wrap_triton(sum_partials_kernel)[(ceil_div(columns, COLUMNS),)](
        partials, first, second, rows, columns, **constants, DOUBLE=partials.dtype.itemsize == 8,
        K=power_of_2(rows, PARTIALS), C=COLUMNS, num_warps=8,
    )  # fmt: skip
