"""Invalid arguments for ops, and guarded memory around tensors.

A damage turns a valid argument into another one and says what an op must do with it: raise an error (REFUSED), return
the result of the same numbers in plain tensors (TAKEN), or either, as long as all implementations agree (AGREED).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OTHERS = (
    torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip

TAKEN, AGREED, REFUSED = 0, 1, 2


@dataclass(frozen=True)
class Argument:
    """One argument of an op's schema."""

    name: str
    tensor: bool
    optional: bool
    written: bool


def arguments_of(op: Any) -> list[Argument]:
    return [
        Argument(
            a.name,
            "Tensor" in str(a.type),
            "Optional" in str(a.type),
            a.alias_info is not None and a.alias_info.is_write,
        )
        for a in op._schema.arguments
    ]


@dataclass(frozen=True)
class Damage:
    """A name, what an op must do, and the function that damages; it returns None where it does not apply."""

    name: str
    owed: int
    to: Callable[[Any], Any]
    of_shape: bool = False
    of_dtype: bool = False


def _if(condition: bool, t: Callable[[], Any]) -> Any:
    return t() if condition else None


def _resized(t: Tensor, axis: int, size: int) -> Tensor | None:
    """Change the size of one axis: cut values off, or append repeated ones."""
    if t.ndim == 0 or size < 0 or t.shape[axis] in (0, size):
        return None
    return t.index_select(axis, torch.arange(size) % t.shape[axis])


def _strided(t: Tensor, strides: Sequence[int]) -> Tensor:
    span = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, strides, strict=True))
    return torch.zeros(span, dtype=t.dtype).as_strided(t.shape, strides).copy_(t)


def _reversed_strides(t: Tensor) -> Tensor:
    return _strided(t, t.permute([*range(t.ndim)][::-1]).contiguous().stride()[::-1])


def _sliced(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def _freed(t: Tensor) -> Tensor:
    freed = t.clone()
    freed.untyped_storage().resize_(0)
    return freed


def _far_strides(t: Tensor) -> Tensor | None:
    """Change the stride of an axis of one element, which may be anything."""
    if 1 not in t.shape:
        return None
    strides = t.contiguous().stride()
    return t.clone().as_strided(t.shape, [2**40 if n == 1 else s for n, s in zip(t.shape, strides, strict=True)])


def damages(argument: Argument, t: Tensor) -> list[Damage]:
    """Return everything that can be wrong with a tensor of the schema."""
    floating = t.dtype in FLOATING
    found = [
        Damage("as it is", TAKEN, lambda t: t),
        Damage("an axis in front", REFUSED, lambda t: t.unsqueeze(0), True),
        Damage("an axis behind", REFUSED, lambda t: t.unsqueeze(-1), True),
        Damage("an axis less", REFUSED, lambda t: _if(t.ndim > 0 and t.shape[0] > 0, lambda: t[0]), True),
        Damage("a scalar", REFUSED, lambda t: _if(t.ndim > 0 and t.numel() > 0, lambda: t.flatten()[0]), True),
        Damage("one long axis", REFUSED, lambda t: _if(t.ndim != 1, lambda: t.flatten()), True),
        Damage("empty", REFUSED, lambda t: _if(t.numel() > 0 and t.ndim > 0, lambda: t.new_empty(0)), True),
        Damage("on meta", REFUSED, lambda t: t.to("meta")),
        Damage("sparse", REFUSED, lambda t: _if(t.ndim > 0, t.to_sparse)),
        Damage("freed", REFUSED, lambda t: _if(t.numel() > 0, lambda: _freed(t))),
        Damage("None", TAKEN if argument.optional else REFUSED, lambda t: "None"),
        Damage("spread", TAKEN, lambda t: _if(t.ndim > 0, lambda: _sliced(t))),
        Damage("far strides", TAKEN, _far_strides),
        Damage(
            "transposed", TAKEN, lambda t: _if(t.ndim > 1, lambda: t.transpose(0, -1).contiguous().transpose(0, -1))
        ),
        Damage("reversed strides", TAKEN, _reversed_strides),
        Damage(
            "expanded", REFUSED if argument.written else TAKEN,
            lambda t: _if(t.ndim > 0 and t.shape[0] > 1, lambda: t[:1].expand(t.shape)),
        ),
        Damage(
            "one element", REFUSED if argument.written else TAKEN,
            lambda t: _if(t.numel() > 1, lambda: t.flatten()[0].expand(t.shape)),
        ),
    ]  # fmt: skip
    for axis in range(t.ndim):
        for size in (t.shape[axis] - 1, t.shape[axis] + 1, 2 * t.shape[axis], 0):
            found.append(
                Damage(
                    f"size {size} of axis {axis}",
                    REFUSED,
                    lambda t, axis=axis, size=size: _resized(t, axis, size),
                    True,
                )
            )
    for dtype in (*FLOATING, *OTHERS):
        if dtype != t.dtype:
            owed = TAKEN if floating and dtype in FLOATING else REFUSED
            found.append(Damage(str(dtype)[6:], owed, lambda t, dtype=dtype: _cast(t, dtype), of_dtype=True))
    return found


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a sparse tensor, of zeros where sparse tensors lack the dtype."""
    return t.to(dtype) if t.layout == torch.strided else torch.zeros(t.shape, dtype=dtype)


WRONG_NUMBERS: dict[str, tuple[Any, ...]] = {
    "eps": (-1e-5, float("nan"), float("-inf")),
    "activation": ("", "Relu", "tanh", "none ", "x" * 1000),
    "groups": (0, -1, 3, 7, 2**31, 2**62, -(2**63)),
    "sample_axes": (-1, 7, 2**31, 2**63 - 1, -(2**63)),
    "channel_axes": (0, -1, 7, 2**31, 2**63 - 1, -(2**63)),
}
"""Values that are invalid for any tensors."""


class Guarded:
    """A tensor in the middle of its own memory, all of which is watched."""

    MARGIN = 64

    def __init__(self, t: Tensor) -> None:
        self.whole: Tensor | None = None
        self.tensor = t
        if t.layout != torch.strided or t.device.type != "cpu" or t.untyped_storage().nbytes() == 0:
            return
        span = 0 if t.numel() == 0 else 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        whole = torch.full(((span + 2 * self.MARGIN) * t.dtype.itemsize,), 0x5A, dtype=torch.uint8)
        values = whole.view(t.dtype)
        if span:
            values[self.MARGIN : self.MARGIN + span] = t.as_strided((span,), (1,), t.storage_offset())
        self.whole = whole
        self.tensor = values.as_strided(t.shape, t.stride(), self.MARGIN)
        self.before = whole.clone()

    def around(self, memory: Tensor) -> Tensor:
        """Return the memory without the tensor's own elements."""
        around = memory.clone()
        around.view(self.tensor.dtype).as_strided(self.tensor.shape, self.tensor.stride(), self.MARGIN).zero_()
        return around

    def assert_untouched(self, about: str, *, written: bool = False) -> None:
        if self.whole is None:
            return
        now, before = (self.around(self.whole), self.around(self.before)) if written else (self.whole, self.before)
        assert torch.equal(now, before), f"{about}: memory was written"


def random_damage(rng: random.Random, argument: Argument, t: Tensor) -> tuple[str, int, Any] | None:
    one = rng.choice(damages(argument, t))
    damaged = one.to(t)
    return None if damaged is None else (one.name, one.owed, damaged)
