"""torch's own norms, where they are called: what they take, and in which dtype they compute as ours do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gammabeta.moments import statistics_dtype


# torch.batch_norm and its like rather than torch.nn.functional's: those check arguments once more, which are checked.
def batch_norm(
    x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> Tensor:
    return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, torch.backends.cudnn.enabled)


def takes(x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> bool:
    """Whether torch's op does this at all: a bias without a weight fails in the backward of its group norm."""
    return x.numel() > 0 and (weight is not None or bias is None)


def in_one_dtype(x: Tensor, *tensors: Tensor | None) -> list[Any]:
    """x and what goes with it in a dtype in which torch's op computes as ours do: float32 at the least.

    In 16 bits torch's ops for the CPU keep statistics and sums in 16 bits (the gradient of LayerNorm's bias stagnates
    in bfloat16 at some hundred samples), and none takes every mix of dtypes. Those for other devices accumulate in
    float32 by themselves.
    """
    if x.dtype == torch.float32:
        for t in tensors:
            if t is not None and t.dtype != torch.float32:
                break
        else:
            return [x, *tensors]
    dtype = statistics_dtype(x.dtype)
    if x.device.type != "cpu" and all(t is None or t.dtype == x.dtype for t in tensors):
        dtype = x.dtype
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in (x, *tensors)]


def for_batch_norm(x: Tensor, *tensors: Tensor | None) -> list[Any]:
    """The same for batch_norm, which on other devices than the CPU takes 16-bit x beside float32 parameters."""
    if x.device.type == "cpu":
        return in_one_dtype(x, *tensors)
    dtype = statistics_dtype(x.dtype)
    return [x, *(t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors)]
