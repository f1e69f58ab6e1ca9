"""What differs from torch on purpose, where PyTorch's own tests meet it: one entry each, with its reason.

The tests ask an entry whether it applies to a case; `test_differences.py` checks that each of them still differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta import functional as gf


@dataclass(frozen=True)
class Difference:
    """One thing that is not as torch's.

    Attributes:
        what: what differs, in a sentence.
        reason: why.
        both: ours and torch's result of a case in which they differ: values, or the error's type.
        applies: whether a case of the tests meets it.
    """

    what: str
    reason: str
    both: Callable[[], tuple[Any, Any]]
    applies: Callable[..., bool] = lambda *_: False


def _result(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or the type of its error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error)


FLOAT32_STATE = Difference(
    what="Parameters and running statistics stay float32 in a model that is cast to 16 bits.",
    reason="A running average stalls in bfloat16, a variance overflows in float16, and small updates of γ are lost.",
    both=lambda: (gb.BatchNorm1d(3).half().running_var.dtype, nn.BatchNorm1d(3).half().running_var.dtype),
    applies=lambda dtype: dtype in (torch.bfloat16, torch.float16),
)


def _count_after_an_empty_batch() -> tuple[Any, Any]:
    counts = []
    for layer in (gb.BatchNorm1d(3), nn.BatchNorm1d(3)):
        layer(torch.zeros(0, 3, 2))
        counts.append(int(layer.num_batches_tracked))
    return counts[0], counts[1]


UNCOUNTED_BATCH = Difference(
    what="A batch none of whose channels has finite statistics, such as an empty one, is not counted.",
    reason="It moves no running statistic, and momentum=None divides by the count of the batches that did.",
    both=_count_after_an_empty_batch,
    applies=lambda sample: "BatchNorm" in sample.name and sample.training and sample.inputs[0].numel() == 0,
)


def _statistics_after_nan() -> tuple[Any, Any]:
    means = []
    for layer in (gb.BatchNorm1d(2), nn.BatchNorm1d(2)):
        layer(torch.tensor([[1.0, torch.nan], [3.0, 1.0]]))
        means.append(layer.running_mean.tolist())
    return str(means[0]), str(means[1])


GUARDED_STATISTICS = Difference(
    what="A channel whose batch statistics are not finite keeps its running statistics.",
    reason="One NaN would stay in the moving average for ever, and evaluation gives NaN from then on.",
    both=_statistics_after_nan,
)


def _steps_of_a_checkpointed_forward() -> tuple[Any, Any]:
    counts = []
    for layer in (gb.BatchNorm1d(2), nn.BatchNorm1d(2)):
        x = torch.randn(4, 2, requires_grad=True)
        checkpoint(layer, x, use_reentrant=False).sum().backward()
        counts.append(int(layer.num_batches_tracked))
    return counts[0], counts[1]


RECOMPUTED_ONCE = Difference(
    what="A forward that activation checkpointing repeats moves the running statistics once.",
    reason="The repetition is no new batch: counted twice, the effective momentum is 1 − (1 − momentum)².",
    both=_steps_of_a_checkpointed_forward,
)

AVERAGE_COMPILES = Difference(
    what="momentum=None compiles without a graph break.",
    reason="torch reads the number of batches on the host; ours stays a tensor.",
    both=lambda: tuple(
        isinstance(
            _result(torch.compile(layer, backend="eager", fullgraph=True), torch.randn(4, 2)), Tensor
        )
        for layer in (gb.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2, momentum=None))
    ),
)  # fmt: skip

NEGATIVE_EPS = Difference(
    what="A negative ε is refused by every norm, with a ValueError.",
    reason="σ² + ε can be negative, and the result NaN; torch's BatchNorm refuses it in training for this reason.",
    both=lambda: (
        _result(gf.layer_norm, torch.ones(2, 3), (3,), eps=-0.5),
        type(_result(F.layer_norm, torch.ones(2, 3), (3,), eps=-0.5)),
    ),
    applies=lambda settings: (settings.get("eps") or 0) < 0,
)

WITHOUT_CHANNELS = Difference(
    what="An input of batch_norm without a channel axis is refused, with a ValueError.",
    reason="There is nothing to normalize over: torch takes an empty vector only, and returns it.",
    both=lambda: (
        _result(gf.batch_norm, torch.ones(0), torch.ones(0), torch.ones(0)),
        type(_result(F.batch_norm, torch.ones(0), torch.ones(0), torch.ones(0))),
    ),
    applies=lambda op, x: op == "batch_norm" and x.ndim < 2,
)

REAL_NUMBERS = Difference(
    what="rms_norm of complex numbers is refused, with a TypeError.",
    reason="What torch composes divides by the root of the mean of x², not of |x|², which is no norm of a complex x.",
    both=lambda: (
        _result(gf.rms_norm, torch.ones(2, 3, dtype=torch.complex64), (3,)),
        type(_result(F.rms_norm, torch.ones(2, 3, dtype=torch.complex64), (3,))),
    ),
    applies=lambda dtype: dtype.is_complex,
)

ERROR_TYPES = Difference(
    what="Arguments that do not fit raise ValueError or TypeError where torch raises RuntimeError for some.",
    reason="The error is the caller's, found before anything runs, and says what was expected and what came.",
    both=lambda: (
        _result(gf.group_norm, torch.ones(3), 1),
        _result(F.group_norm, torch.ones(3), 1),
    ),
)


def _sums_of_10_000_ones() -> tuple[Any, Any]:
    sums = []
    for norm in (gf.layer_norm, F.layer_norm):
        bias = torch.zeros(8, dtype=torch.bfloat16, requires_grad=True)
        norm(torch.randn(10_000, 8).bfloat16(), (8,), torch.ones_like(bias), bias).sum().backward()
        sums.append(bias.grad[0].item())
    return sums[0], sums[1]


WIDE_SUMS = Difference(
    what="Statistics and sums of 16-bit tensors are float32 on a CPU.",
    reason="torch adds the gradient of γ and β in the parameters' dtype, where a sum of 10,000 ones stops at 512.",
    both=_sums_of_10_000_ones,
)


def _gradient_of_one_image() -> tuple[Any, Any]:
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    direction = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    right = []
    for norm in (gf.instance_norm, F.instance_norm):
        gradients = []
        for g in (direction, direction.contiguous(memory_format=torch.channels_last)):
            leaf = x.clone().requires_grad_()
            gradients += torch.autograd.grad(norm(leaf), leaf, g)
        right.append(bool((gradients[0] - gradients[1]).abs().max() < 1e-9))
    return right[0], right[1]


IMAGES_OF_CHANNELS_LAST_GRADIENT = Difference(
    what="The gradient of InstanceNorm does not depend on the layout of its output's gradient.",
    reason="torch's is wrong for a single image whose output's gradient is channels_last, in float64 too.",
    both=_gradient_of_one_image,
)


def _reverse_over_forward() -> tuple[Any, Any]:
    x, direction = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    right = []
    for norm in (gf.layer_norm, F.layer_norm):

        def tangent(x: Tensor, norm: Any = norm) -> Tensor:
            return torch.func.jvp(lambda x: norm(x, (4,)), (x,), (direction,))[1].pow(2).sum()

        gradient = torch.func.grad(tangent)(x)
        h = 1e-6 * direction
        change = (tangent(x + h) - tangent(x - h)) / 2
        right.append(bool((change - (gradient * h).sum()).abs() < 1e-6 * change.abs()))
    return right[0], right[1]


REVERSE_OVER_FORWARD = Difference(
    what="The gradient of a tangent of layer_norm, as jacrev(jacfwd(...)) takes it, is right.",
    reason="torch takes the mean and variance in the tangent for constants, whose own derivatives then are left out.",
    both=_reverse_over_forward,
)

DECLARED_WRITES = Difference(
    what="The op that moves running statistics says in its schema that it writes to them.",
    reason="torch's batch_norm hides the write, so that wrappers lose it. Ours is refused where a wrapper can't let it "
    "pass: statistics that are plain beside a wrapped input, or lazily negated views.",
    both=lambda: (
        torch.ops.gammabeta.move_running_statistics_.default._schema.is_mutable,
        torch.ops.aten.batch_norm.default._schema.is_mutable,
    ),
    applies=lambda sample: sample.moves,
)

ALL = {name: value for name, value in vars().items() if isinstance(value, Difference)}
