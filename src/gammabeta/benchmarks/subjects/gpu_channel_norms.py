"""BatchNorm on a GPU at ResNet-50's shapes, batch 256, plain and with residual and relu, in both layouts.

γ and β are float32, x is bfloat16 or float32. A channel does not fit on the chip, so x is read once for the statistics
and once to be normalized. The floor counts x twice, and in backward x and the gradient twice. With residual and relu,
forward reads x twice and the residual once. Backward reads all three for the sums, writes the residual's gradient, and
reads that and x for the gradient of x. Limits: 85 % of the bandwidth of a device-to-device copy for tensors of 64 MB
and more (plain rows), and 1/1.7 of torch's time (rows with residual and relu). Times are device times, by CUDA events.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta import functional
from gammabeta.benchmarks.contest import Field, Row
from gammabeta.benchmarks.gpu import affine, limit, missing
from gammabeta.benchmarks.ring import Inputs, norm_field

__all__ = ["UNIT", "missing", "rows"]

UNIT = "copies"

SHAPES = ((256, 64, 112, 112), (256, 256, 56, 56), (256, 512, 28, 28), (256, 1024, 14, 14), (256, 2048, 7, 7))
FLOOR = {(False, False): 1.5, (False, True): 2.5, (True, False): 2.0, (True, True): 3.5}  # residual, backward
FINISHED = 1 / 1.7


def rows(quick: bool) -> list[Row]:
    """Return every shape, layout and dtype; quick: one shape in bfloat16."""
    shapes = SHAPES[1:2] if quick else SHAPES
    dtypes = (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32)
    return [
        _row(shape, dtype, layout, residual, backward)
        for dtype in dtypes
        for shape in shapes
        for layout in ("channels_last", "contiguous")
        for residual in (False, True)
        for backward in (False, True)
    ]


def _row(shape: tuple[int, ...], dtype: torch.dtype, layout: str, residual: bool, backward: bool) -> Row:
    def ours(x: Tensor, *rest: Tensor) -> Tensor:
        *skip, weight, bias = rest
        given = {"residual": skip[0], "activation": "relu"} if skip else {}
        return functional.batch_norm(x, None, None, weight, bias, True, **given)  # type: ignore[arg-type]

    def theirs(x: Tensor, *rest: Tensor) -> Tensor:
        *skip, weight, bias = rest
        y = F.batch_norm(x, None, None, weight, bias, True)
        return torch.relu(y + skip[0]) if skip else y

    def build(compiled: bool) -> Field:
        parameters = affine(shape[1:2], torch.float32)
        inputs = Inputs(shape, dtype, layout, parameters, count=2 if residual else 1, device="cuda")
        return norm_field(ours, theirs, inputs, backward=backward, compiled=compiled)

    name = f"BatchNorm{' + residual + relu' if residual else ''}, {'backward' if backward else 'forward'}"
    floor = FLOOR[residual, backward]
    at_most = None if residual else limit(floor, shape, dtype)
    of_torch = FINISHED if residual else None
    return Row(name, shape, dtype, layout, build, floor, at_most, of_torch)
