"""Checks of an op's arguments: axes, sizes, dtype, layout and device of every tensor, and the numbers beside them.

Anyone can call an op, and a vector that is too short would be read beyond its end. So no implementation of an op runs
unchecked. `OpCheck.checked` wraps the default implementations, the fakes and the launches of Triton kernels. The C++
kernels call `kernels/cpu/checks.h`, which has the same rules with the same words in the same order.

`KINDS` says what an argument of a given name has to be, in every op. An op with a tensor of another name cannot be
declared.

Errors are RuntimeErrors, as those of torch's own ops. Callers of a public function get the errors of `arguments.py`
before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gammabeta._torch_private import has_storage, parse_schema
from gammabeta.activations import ACTIVATIONS

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Kind:
    """Requirements on a tensor.

    Attributes:
        shape: the name of an attribute of `Shapes`.
        dtypes: the dtypes that are accepted.
    """

    shape: str
    dtypes: tuple[torch.dtype, ...] = FLOATING


_INPUT = Kind("input")
_PARAMETER = Kind("parameters")
_STATISTIC = Kind("statistics")
_COUNT = Kind("statistics", (torch.int64,))
_SCALAR = Kind("scalar", (torch.int64,))

KINDS = {
    "x": _INPUT, "total": _INPUT, "residual": _INPUT, "g_y": _INPUT, "g_total": _INPUT,
    "weight": _PARAMETER, "bias": _PARAMETER, "mask": Kind("places", (torch.bool,)),
    "mean": _STATISTIC, "var": _STATISTIC, "m2": _STATISTIC, "sum_g": _STATISTIC, "sum_g_xhat": _STATISTIC,
    "count": _COUNT, "running_mean": _STATISTIC, "running_var": _STATISTIC, "skipped": Kind("skipped", (torch.int64,)),
    "num_batches_tracked": _SCALAR, "forwards": _SCALAR,
    "batch_mean": _STATISTIC, "batch_var": _STATISTIC, "batch_count": _COUNT,
}  # fmt: skip
"""Requirements by an argument's name, the same in every op."""

ANY_NUMBER = Kind("scalar", INTEGERS + FLOATING)
"""Requirements on a counter of any dtype."""

_BASES = ("x", "total", "mean")
"""The argument that determines the shapes and the device of the others: the first of these that an op has."""


@dataclass(frozen=True)
class Shapes:
    """The shapes that go with x, (*samples, *channels, *positions).

    Attributes:
        input: the shape of x.
        parameters: the channel axes.
        places: x's shape without the channel axes.
        statistics: one value for each channel, or for each sample and group.
        skipped: counts of skipped updates: two values more than channels.
        scalar: no axes.
    """

    input: tuple[Any, ...]
    parameters: tuple[Any, ...]
    places: tuple[Any, ...]
    statistics: tuple[Any, ...]
    skipped: tuple[Any, ...] = ()
    scalar: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Argument:
    """A tensor argument of a schema: its position, name and requirements, and whether it may be None or is written."""

    at: int
    name: str
    kind: Kind
    required: bool
    written: bool


class OpCheck:
    """A check of an op's arguments, made from its schema.

    Args:
        schema: the schema that declares the op.
        kinds: requirements on arguments for which `KINDS` does not hold in this op.
    """

    def __init__(self, schema: str, **kinds: Kind) -> None:
        parsed = parse_schema(f"gammabeta::{schema}")
        self.op = parsed.name
        names = [argument.name for argument in parsed.arguments]
        self._at = {name: i for i, name in enumerate(names)}
        self._base = next(name for name in _BASES if name in names)
        of_tensors = [a for a in parsed.arguments if "Tensor" in str(a.type)]
        # The base first: the requirements on the others depend on it.
        self._tensors = [
            _Argument(
                at=self._at[a.name],
                name=a.name,
                kind=kinds.get(a.name) or KINDS[a.name],
                required="Optional" not in str(a.type),
                written=a.alias_info is not None and a.alias_info.is_write,
            )
            for a in sorted(of_tensors, key=lambda a: a.name != self._base)
        ]

    def __call__(self, args: tuple[Any, ...]) -> None:
        """Check all that needs no memory, which fakes do not have.

        Raises:
            RuntimeError: an argument is not what the op takes.
        """
        first = self._tensors[0]
        base: Tensor | None = args[first.at]
        if base is None:
            raise self._missing(first)
        self._check_kind(first, base, base.device)
        shapes = self._shapes(base, args)
        if first.written:
            self._check_apart(first, base)
        for argument in self._tensors[1:]:
            t: Tensor | None = args[argument.at]
            if t is None:
                if argument.required:
                    raise self._missing(argument)
                continue
            self._check_kind(argument, t, base.device)
            self._check_shape(argument, t, shapes, base)
            if argument.written:
                self._check_apart(argument, t)
        self._check_numbers(args)

    def check_memory(self, args: tuple[Any, ...]) -> None:
        """Check that every tensor's storage reaches as far as its sizes and strides do.

        A storage that was resized or freed, as sharding does between forwards, does not; torch's ops read beyond it.

        Raises:
            RuntimeError: a storage is too small.
        """
        for argument in self._tensors:
            t: Tensor | None = args[argument.at]
            if t is None or not has_storage(t) or t.numel() == 0:
                continue
            last = t.storage_offset() + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
            held = t.untyped_storage().nbytes()
            if (last + 1) * t.dtype.itemsize > held:
                raise RuntimeError(
                    f"{self.op}: expected {argument.name} with memory for shape {_shape(t.shape)}, got a storage of "
                    f"{held} bytes: it was resized or freed."
                )

    def checked(self, implementation: Callable[..., Any], *, memory: bool = False) -> Callable[..., Any]:
        """Wrap an implementation so that it runs only on arguments that pass; with `memory`, `check_memory` too."""

        @functools.wraps(implementation)
        def op(*args: Any) -> Any:
            self(args)
            if memory:
                self.check_memory(args)
            return implementation(*args)

        return op

    def _missing(self, argument: _Argument) -> RuntimeError:
        return RuntimeError(f"{self.op}: expected a tensor {argument.name}, got None.")

    def _check_kind(self, argument: _Argument, t: Tensor, device: torch.device) -> None:
        if t.device != device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {device} and "
                f"{t.device}! (argument {argument.name} of {self.op}, beside {self._base})"
            )
        if t.layout != torch.strided or t.is_nested:
            layout = "nested" if t.is_nested else _name(t.layout)
            raise RuntimeError(f"{self.op}: expected {argument.name} of layout strided, got {layout}.")
        if t.dtype not in argument.kind.dtypes:
            expected = _one_of(tuple(map(_name, argument.kind.dtypes)))
            raise RuntimeError(f"{self.op}: expected {argument.name} of dtype {expected}, got {_name(t.dtype)}.")

    def _check_shape(self, argument: _Argument, t: Tensor, shapes: Shapes, base: Tensor) -> None:
        expected = getattr(shapes, argument.kind.shape)

        def message() -> str:
            return (
                f"{self.op}: expected {argument.name} of shape {_shape(expected)}, got {_shape(t.shape)}: {self._base} "
                f"is of shape {_shape(base.shape)}."
            )

        _require(t.ndim == len(expected), message)
        for size, wanted in zip(t.shape, expected, strict=True):
            _require(size == wanted, message)

    def _check_apart(self, argument: _Argument, t: Tensor) -> None:
        """Check that a tensor that is written has separate memory for each element."""
        if any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride(), strict=True)):
            raise RuntimeError(
                f"{self.op}: expected {argument.name} with memory for each of its elements, since it is written, got "
                f"strides {_shape(t.stride())}: clone() has it."
            )

    def _shapes(self, x: Tensor, args: tuple[Any, ...]) -> Shapes:
        shape = tuple(x.shape)
        if self._base == "mean":
            self._check_axes(x, 1, exactly=True)
            return Shapes((), (), (), shape, (shape[0] + 2,))
        if "channel_axes" not in self._at:
            self._check_axes(x, 2)
            return Shapes(shape, shape[1:2], (*shape[:1], *shape[2:]), shape[1:2])
        channel_axes: int = args[self._at["channel_axes"]]
        _require(channel_axes >= 1, lambda: f"{self.op}: expected channel_axes of 1 or more, got {channel_axes}.")
        if "sample_axes" in self._at:
            sample_axes, groups = args[self._at["sample_axes"]], args[self._at["groups"]]
            _require(sample_axes >= 0, lambda: f"{self.op}: expected sample_axes of 0 or more, got {sample_axes}.")
            self._check_axes(x, sample_axes + channel_axes)
        else:
            self._check_axes(x, channel_axes)
            sample_axes, groups = x.ndim - channel_axes, 1
        behind = sample_axes + channel_axes
        parameters = shape[sample_axes:behind]
        if groups != 1:
            self._check_groups(groups, math.prod(parameters))
        return Shapes(
            shape, parameters, (*shape[:sample_axes], *shape[behind:]), (math.prod(shape[:sample_axes]), groups)
        )

    def _check_axes(self, x: Tensor, axes: int, *, exactly: bool = False) -> None:
        if x.ndim < axes or (exactly and x.ndim != axes):
            number = f"{axes} {'axis' if axes == 1 else 'axes'}"
            raise RuntimeError(
                f"{self.op}: expected {self._base} with {number}{'' if exactly else ' or more'}, got shape "
                f"{_shape(x.shape)}."
            )

    def _check_groups(self, groups: int, channels: Any) -> None:
        def message() -> str:
            return f"{self.op}: expected groups that divide the {channels} channels of {self._base}, got {groups}."

        _require(groups >= 1, message)
        _require(channels % groups == 0, message)

    def _check_numbers(self, args: tuple[Any, ...]) -> None:
        if "activation" in self._at and args[self._at["activation"]] not in ACTIVATIONS:
            activation = args[self._at["activation"]]
            raise RuntimeError(f"{self.op}: expected activation {_one_of(ACTIVATIONS)}, got {activation}.")
        if "eps" in self._at and not args[self._at["eps"]] >= 0:
            raise RuntimeError(f"{self.op}: expected eps of 0 or more, got {args[self._at['eps']]:g}.")


def _require(condition: bool | torch.SymBool, message: Callable[[], str]) -> None:
    """Raise where a condition on sizes is false.

    Traced sizes are compared as torch's own ops compare them, without a guard where both are the same symbol.
    """
    if condition is not True:
        torch._check(condition, message)


def _shape(sizes: Any) -> str:
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


def _name(of_torch: Any) -> str:
    return str(of_torch).removeprefix("torch.").removeprefix("_")


def _one_of(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
