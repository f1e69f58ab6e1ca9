"""Every norm with every activation, with and without a residual, in every dtype and layout, forward and backward.

A row is one such call on one shape. Norms have only shapes that they have in real networks. Images come both contiguous
and in channels_last. torch computes its own norm, adds the residual, and applies its activation: both in place where a
network would (`x += shortcut`, `nn.ReLU(inplace=True)`). γ and β of BatchNorm are float32 (float64 for float64 x),
those of the other norms have x's dtype.

A row is above its limit if the lower quartile of ours / torch is above it in three repetitions out of three. The ratio
is that of the two contestants in the same round: a disturbance that lasts longer than a round slows both down. The
lower quartile exceeds the limit only if ours was that much slower in three quarters of the rounds, so a shorter
disturbance does not decide either. A repetition goes through all rows before the next begins. A row that one repetition
found within its limit cannot become above any more, so the later ones leave it out.

Two groups of rows are listed apart:

- *small calls*, of fewer than 65,536 values, whose limit is 1.3
- rows where torch's op is *not accurate enough* to take the place of ours ("Who computes" in docs/conventions.md), for
  some mean: there torch computes something else
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta import functional
from gammabeta.activations import ACTIVATIONS, activate
from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row
from gammabeta.benchmarks.pool import Pool
from gammabeta.benchmarks.ring import Norm, as_tuple, slots_for
from gammabeta.benchmarks.sweeping import measure
from gammabeta.benchmarks.swept import INACCURATE, JUDGED, SMALL, Combination
from gammabeta.moments import statistics_dtype

__all__ = ["UNIT", "measure", "rows"]
UNIT = "ms"

AT_MOST, AT_MOST_OF_SMALL = 1.05, 1.3
FEW_VALUES = 1 << 16
MOST_SLOTS = 4
SLOPE = 0.01
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
IN_BOTH, AS_IT_IS = ("contiguous", "channels_last"), ("contiguous",)


@dataclass(frozen=True)
class Shape:
    """A shape that a norm has in a network.

    Args:
        norm: "BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm" or "InstanceNorm".
        network: which has it.
        shape: of x.
        layouts: of x.
    """

    norm: str
    network: str
    shape: tuple[int, ...]
    layouts: tuple[str, ...] = AS_IT_IS


SHAPES = (
    Shape("BatchNorm", "ResNet-50", (8, 256, 40, 40), IN_BOTH),
    Shape("BatchNorm", "ResNet-50", (16, 2048, 5, 5), IN_BOTH),
    Shape("BatchNorm", "MobileNetV2", (8, 144, 40, 40), IN_BOTH),
    Shape("BatchNorm", "EfficientNet-B0", (16, 240, 20, 20), IN_BOTH),
    Shape("GroupNorm", "U-Net", (8, 128, 32, 32), IN_BOTH),
    Shape("InstanceNorm", "style transfer", (4, 64, 64, 64), IN_BOTH),
    Shape("LayerNorm", "ViT-tiny", (16, 101, 192)),
    Shape("LayerNorm", "ViT-base", (8, 197, 768)),
    Shape("RMSNorm", "Llama, small", (8, 256, 256)),
    Shape("RMSNorm", "Llama", (1, 512, 4096)),
    Shape("BatchNorm", "MLP", (32, 64)),
    Shape("LayerNorm", "Transformer, one token", (8, 256)),
    Shape("RMSNorm", "Llama, one token", (8, 256)),
    Shape("GroupNorm", "small ResNet", (4, 32, 8, 8)),
)
GROUPS = 32
# (norm, layout, dtype) where torch's op is accurate enough at every mean: the table of docs/conventions.md.
ACCURATE = {
    ("BatchNorm", "contiguous", torch.float32),
    *(("RMSNorm", "contiguous", dtype) for dtype in DTYPES),
}
# How torch applies an activation to a tensor that nobody else reads; the others need their argument for backward.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "relu6": lambda z: F.relu6(z, inplace=True),
    "leaky_relu": lambda z: F.leaky_relu(z, SLOPE, inplace=True),
}

_pool = Pool()


def rows(quick: bool) -> list[Row]:
    """Return every combination; quick: those of float32 with no activation or relu, on one shape per norm."""
    return list(_combinations(quick))


def _combinations(quick: bool) -> Iterator[Combination]:
    first = {shape.norm: shape for shape in reversed(SHAPES)}
    for shape in [s for s in SHAPES if first[s.norm] is s] if quick else SHAPES:
        for layout in shape.layouts:
            for dtype in DTYPES[:1] if quick else DTYPES:
                for activation in ACTIVATIONS[:2] if quick else ACTIVATIONS:
                    for residual in (False, True):
                        for backward in (False, True):
                            yield _combination(shape, layout, dtype, activation, (residual, backward))


def _combination(of: Shape, layout: str, dtype: torch.dtype, activation: str, more: tuple[bool, bool]) -> Combination:
    residual, backward = more
    after = " + residual" * residual + f" + {activation}" * (activation != "none")
    group = group_of(of, layout, dtype)

    def build(compiled: bool) -> Field:
        return field(of, layout, dtype, activation, more)

    return Combination(
        f"{of.norm}{after}, {'backward' if backward else 'forward'}",
        of.shape,
        dtype,
        layout,
        build,
        at_most_of_torch=AT_MOST_OF_SMALL if group == SMALL else AT_MOST,
        norm=of.norm,
        network=of.network,
        activation=activation,
        residual=residual,
        backward=backward,
        group=group,
    )


def group_of(of: Shape, layout: str, dtype: torch.dtype) -> str:
    """Return the group of a row: a small call, one whose torch op is not accurate enough, or one that is judged."""
    if math.prod(of.shape) < FEW_VALUES:
        return SMALL
    return JUDGED if (of.norm, layout, dtype) in ACCURATE else INACCURATE


def field(of: Shape, layout: str, dtype: torch.dtype, activation: str, more: tuple[bool, bool]) -> Field:
    """Return ours and torch's on up to four buffers; `more`: whether there is a residual, whether backward runs."""
    residual, backward = more
    slots = min(MOST_SLOTS, slots_for(math.prod(of.shape) * dtype.itemsize))
    _pool.restart()
    parameters = _affine(of, dtype)
    inputs = [
        [_pool.tensor(of.shape, dtype, layout).requires_grad_() for _ in range(1 + residual)] for _ in range(slots)
    ]
    given = [_pool.tensor(of.shape, dtype, layout) for _ in range(slots if backward else 0)]
    contestants: dict[str, Contestant] = {}
    calls = [[*tensors, *parameters] for tensors in inputs]
    for name, by in ((OURS, ours), (TORCH, theirs)):
        norm = by(of, dtype, activation, more)
        contestants[name] = _backward(norm, calls, given) if backward else _forward(norm, calls)
    return Field(contestants, slots)


def _forward(norm: Norm, calls: list[list[Tensor]]) -> Contestant:
    def ready(number: int) -> Call:
        given = calls[number]
        return lambda: norm(*given)

    return ready


def _backward(norm: Norm, calls: list[list[Tensor]], cotangents: list[Tensor]) -> Contestant:
    def ready(number: int) -> Call:
        leaves, cotangent = calls[number], cotangents[number]
        y = as_tuple(norm(*leaves))
        return lambda: torch.autograd.grad(y, leaves, cotangent, retain_graph=True)

    return ready


def _affine(of: Shape, dtype: torch.dtype) -> list[Tensor]:
    size = of.shape[-1] if of.norm in ("LayerNorm", "RMSNorm") else of.shape[1]
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.rand(size, generator=generator) + 0.5, torch.randn(size, generator=generator)]
    kept = statistics_dtype(dtype) if of.norm == "BatchNorm" else dtype
    return [p.to(kept).requires_grad_() for p in parameters[: 1 if of.norm == "RMSNorm" else 2]]


def _running(of: Shape, dtype: torch.dtype, tracked: bool) -> tuple[Tensor, Tensor] | tuple[None, None]:
    # As in channel_norms: the forward of a backward row keeps no running statistics.
    if of.norm != "BatchNorm" or not tracked:
        return None, None
    kept = statistics_dtype(dtype)
    return torch.zeros(of.shape[1], dtype=kept), torch.ones(of.shape[1], dtype=kept)


def ours(of: Shape, dtype: torch.dtype, activation: str, more: tuple[bool, bool]) -> Norm:
    """Return our norm of x, a residual where there is one, and the parameters."""
    residual, backward = more
    name = None if activation == "none" else activation
    mean, var = _running(of, dtype, not backward)
    size = of.shape[-1:]
    norm: Callable[..., Tensor] = {
        "BatchNorm": lambda x, w, b, **to: functional.batch_norm(x, mean, var, w, b, True, **to),
        "GroupNorm": lambda x, *affine, **to: functional.group_norm(x, GROUPS, *affine, **to),
        "InstanceNorm": lambda x, *affine, **to: functional.instance_norm(x, None, None, *affine, **to),
        "LayerNorm": lambda x, *affine, **to: functional.layer_norm(x, size, *affine, **to),
        "RMSNorm": lambda x, *affine, **to: functional.rms_norm(x, size, *affine, **to),
    }[of.norm]
    if residual:
        return lambda x, r, *affine: norm(x, *affine, residual=r, activation=name)
    return lambda x, *affine: norm(x, *affine, activation=name)


def theirs(of: Shape, dtype: torch.dtype, activation: str, more: tuple[bool, bool]) -> Norm:
    """Return the same by torch's operations."""
    residual, backward = more
    mean, var = _running(of, dtype, not backward)
    size = list(of.shape[-1:])
    norm: Callable[..., Tensor] = {
        "BatchNorm": lambda x, w, b: F.batch_norm(x, mean, var, w, b, True),
        "GroupNorm": lambda x, *affine: F.group_norm(x, GROUPS, *affine),
        "InstanceNorm": lambda x, *affine: F.instance_norm(x, None, None, *affine),
        "LayerNorm": lambda x, *affine: F.layer_norm(x, size, *affine),
        "RMSNorm": lambda x, *affine: F.rms_norm(x, size, *affine),
    }[of.norm]
    # Writing into a view, which torch's instance_norm returns, costs its backward more than it saves.
    fresh = of.norm != "InstanceNorm"
    in_place = activation in IN_PLACE and (fresh or residual)
    act: Callable[[Tensor], Tensor] = IN_PLACE[activation] if in_place else lambda z: activate(z, activation, SLOPE)
    if residual and fresh:
        return lambda x, r, *affine: act(norm(x, *affine).add_(r))
    if residual:
        return lambda x, r, *affine: act(norm(x, *affine) + r)
    return norm if activation == "none" else lambda x, *affine: act(norm(x, *affine))
