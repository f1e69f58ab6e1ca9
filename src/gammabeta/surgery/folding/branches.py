"""Parallel branches whose outputs are added: convolutions, and norms as multiply-adds, of one input.

A convolution is linear in its weight. So the sum of several convolutions of one input, with the same stride and groups,
is one convolution: that of the largest kernel, to which the others are added where their taps lie. A multiply-add is a
convolution of 1×1 with a diagonal weight. After its norms are folded, a block of RepVGG or MobileOne is such a sum.

The user's forward goes on adding its branches. The merged convolution stands where the first of them stood, and each of
the others gives a zero without axes. Its addition costs one pass over the sum, or nothing where the sum so far is a
tensor that only this addition reads: then it is the result.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gammabeta._torch_private import transforms_active
from gammabeta.introspection.neighbours import Neighbours, Refusal
from gammabeta.introspection.observe import Call, Observation, Operation, Seen, hooks_of
from gammabeta.surgery.change import Change
from gammabeta.surgery.folding.affine import MultiplyAdd
from gammabeta.surgery.folding.sites import Sites

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ADDS = ("aten.add", "aten.add_")
_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


class Nothing(Tensor):
    """A zero without axes: x + nothing is x itself, not a copy. In all else it is the tensor that it is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ADDITIONS and len(args) == 2 and not kwargs:
            one, other = args
            if isinstance(one, Tensor) and isinstance(other, Tensor):
                return one if isinstance(other, cls) else other
        plain = [arg.as_subclass(Tensor) if isinstance(arg, cls) else arg for arg in args]
        return func(*plain, **(kwargs or {}))


class Zero(nn.Module):
    """A branch that was merged into another: it adds nothing to the sum.

    Attributes:
        vanishes: whether what it is added to may be the result itself, in eager mode. Elsewhere it is a plain zero.
    """

    def __init__(self, vanishes: bool = False) -> None:
        super().__init__()
        self.vanishes = vanishes

    def forward(self, input: Tensor) -> Tensor:
        zero = input.new_zeros(())
        if torch.jit.is_scripting():
            return zero
        else:  # TorchScript does not compile the else of this condition
            return _vanishing(zero) if self.vanishes else zero

    def extra_repr(self) -> str:
        return f"vanishes={self.vanishes}"


def _vanishing(zero: Tensor) -> Tensor:
    plainly = torch.compiler.is_compiling() or torch.jit.is_tracing() or transforms_active()
    return zero if plainly or type(zero) is not Tensor else zero.as_subclass(Nothing)


@dataclass(frozen=True)
class Branches:
    """Branches of one input whose outputs are added.

    Attributes:
        layers: their qualified names, in the order in which they are added. The merged convolution takes the place of
            the first.
        vanishing: those whose zero may vanish, because nothing but the addition reads what they are added to.
        kernel: the size of its kernel.
        reason: why they were not merged; "" where they were.
        error: the largest relative error with them merged, where that is why they were not.
    """

    layers: tuple[str, ...]
    kernel: tuple[int, ...]
    vanishing: frozenset[str] = frozenset()
    reason: str = ""
    error: float | None = None

    def __str__(self) -> str:
        kernel = "×".join(map(str, self.kernel))
        if self.reason:
            return f"not merged with {', '.join(self.layers[1:])}: {self.reason}"
        return f"one convolution of {kernel}, merged with {', '.join(self.layers[1:])}"


@dataclass(frozen=True)
class _Frame:
    """The geometry of a convolution along its axes: where in the input the taps of its kernel lie.

    Attributes:
        kernel, padding, dilation, stride: one number per axis of positions.
    """

    kernel: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, layer: nn.Module, axes: int) -> _Frame | None:
        """Return that of a convolution or a multiply-add; None where borders are not padded with zeros alike."""
        if isinstance(layer, MultiplyAdd):
            return cls((1,) * axes, (0,) * axes, (1,) * axes, (1,) * axes)
        assert isinstance(layer, _CONVOLUTIONS)
        twice = layer._reversed_padding_repeated_twice
        sides = [tuple(twice[i : i + 2]) for i in range(0, len(twice), 2)][::-1]
        if any(low != high for low, high in sides) or (layer.padding_mode != "zeros" and any(map(any, sides))):
            return None
        padding = tuple(low for low, _ in sides)
        return cls(layer.kernel_size, padding, layer.dilation, layer.stride)

    def taps_of(self, other: _Frame) -> tuple[slice, ...] | None:
        """Return where in this kernel the other's taps lie; None where they do not, or where outputs differ in size."""
        if self.stride != other.stride:
            return None
        found = []
        for K, P, D, k, p, d in zip(*self._axes(), *other._axes(), strict=True):
            # -p + d·j of the other is -P + D·J of this one.
            step, first = (d // D, d % D) if k > 1 else (1, 0)
            start, off = divmod(P - p, D)
            stop = start + step * (k - 1) + 1
            if first or off or start < 0 or stop > K or 2 * p - d * (k - 1) != 2 * P - D * (K - 1):
                return None
            found.append(slice(start, stop, step))
        return tuple(found)

    def _axes(self) -> tuple[tuple[int, ...], ...]:
        return self.kernel, self.padding, self.dilation


class Finder:
    """The branches in a model whose norms are folded.

    Args:
        model: the model that was observed.
        observation: of one forward.
    """

    def __init__(self, model: nn.Module, observation: Observation) -> None:
        self._modules = dict(model.named_modules())
        self._observation = observation
        self._neighbours = Neighbours(self._modules, observation)
        self._sites = Sites(model, observation)

    def find(self, chosen: set[str]) -> list[Branches]:
        """Return the branches that can be merged, of which at least one is among the chosen modules."""
        found = []
        for terms in self._sums():
            groups: dict[Any, list[Call]] = {}
            vanishing: set[str] = set()
            for seen, op in terms:
                call = self._branch(seen, op)
                if call is not None:
                    groups.setdefault(call.inputs[0], []).append(call)
                    others = [other for other in op.inputs if other != seen]
                    if all(self._observation.maker(o.data) and self._is_read_by(o, op) for o in others):
                        vanishing.add(call.module)
            for calls in groups.values():
                layers = self._of_one_frame(calls)
                if len(layers) > 1 and chosen & set(layers):
                    kernel = self._largest(layers).kernel_size
                    found.append(Branches(tuple(layers), kernel, frozenset(vanishing & set(layers[1:]))))
        return found

    def _sums(self) -> Iterator[list[tuple[Seen, Operation]]]:
        """Yield the terms of each sum, each with the addition that reads it."""
        inner: set[int] = set()
        for op in reversed(self._observation.operations):
            if op.name in _ADDS and op.index not in inner:
                terms = list(self._terms(op, inner))
                if len(terms) > 1:
                    yield terms

    def _terms(self, op: Operation, inner: set[int]) -> Iterator[tuple[Seen, Operation]]:
        for seen in op.inputs:
            maker = self._observation.maker(seen.data)
            if maker is not None and maker.name in _ADDS and self._is_read_by(seen, op) and maker.outputs == (seen,):
                inner.add(maker.index)
                yield from self._terms(maker, inner)
            else:
                yield seen, op

    def _is_read_by(self, seen: Seen, op: Operation) -> bool:
        """Return whether the operation alone reads the data, once, whole, and it does not leave the forward."""
        if self._observation.readers(seen.data) != [op] or [s.data for s in op.inputs].count(seen.data) != 1:
            return False
        return seen.shape == op.outputs[0].shape and self._neighbours.escape(seen.data) is None

    def _branch(self, seen: Seen, op: Operation) -> Call | None:
        """Return the call of the convolution or multiply-add that made a term; None where it is none, or not free."""
        if not self._is_read_by(seen, op):
            return None
        for call in self._observation.producers(seen.data):
            layer = self._modules[call.module]
            if isinstance(layer, (*_CONVOLUTIONS, MultiplyAdd)):
                try:
                    self._check(layer, call)
                except Refusal:
                    return None
                return call if call.outputs == (seen,) and len(call.inputs) == 1 else None
        return None

    def _check(self, layer: nn.Module, call: Call) -> None:
        self._neighbours.check_unseen(call.outputs[0].data, "its output")
        if isinstance(layer, MultiplyAdd):
            self._neighbours.only_call(call.module, call.module)
            if layer.rest is not None or hooks_of(layer):
                raise Refusal("it does more than scale and shift")
        else:
            self._sites.check_layer(call.module, call)

    def _of_one_frame(self, calls: Sequence[Call]) -> list[str]:
        """Return the branches that fit into the one with the largest kernel, in order."""
        names = [call.module for call in calls]
        convolutions = [name for name in names if isinstance(self._modules[name], _CONVOLUTIONS)]
        if not convolutions:
            return []
        largest = self._largest(convolutions)
        if len(calls[0].inputs[0].shape) != len(largest.kernel_size) + 2:
            return []
        return [name for name in names if _taps(largest, self._modules[name]) is not None]

    def _largest(self, names: Sequence[str]) -> Convolution:
        layers = [layer for name in names if isinstance(layer := self._modules[name], _CONVOLUTIONS)]
        return max(layers, key=lambda layer: layer.weight[0, 0].numel())


def merge(model: nn.Module, branches: Branches, change: Change) -> None:
    """Put one convolution in the place of the first branch, and zeros in the places of the others."""
    layers = [model.get_submodule(name) for name in branches.layers]
    convolutions = [layer for layer in layers if isinstance(layer, _CONVOLUTIONS)]
    largest = max(convolutions, key=lambda layer: layer.weight[0, 0].numel())
    weight = torch.zeros_like(largest.weight, dtype=torch.float64, requires_grad=False)
    bias = weight.new_zeros(len(weight))
    for layer in layers:
        taps = _taps(largest, layer)
        assert taps is not None
        if isinstance(layer, MultiplyAdd):
            each = torch.arange(len(weight), device=weight.device)
            index: tuple[Any, ...] = (each, each % weight.shape[1], *(tap.start for tap in taps))
            weight[index] += layer.scale.double()
            bias += layer.shift.double()
        else:
            assert isinstance(layer, _CONVOLUTIONS)
            inside: tuple[Any, ...] = (..., *taps)
            weight[inside] += layer.weight.detach().double()
            if layer.bias is not None:
                bias += layer.bias.detach().double()
    merged = copy.deepcopy(largest)
    old = largest.weight
    merged.weight = nn.Parameter(torch.empty_like(old, requires_grad=False).copy_(weight), old.requires_grad)
    merged.bias = nn.Parameter(bias.to(old.dtype), old.requires_grad)
    change.replace(model, layers[0], merged)
    for name, layer in zip(branches.layers[1:], layers[1:], strict=True):
        change.replace(model, layer, Zero(name in branches.vanishing).train(layer.training))


def _taps(largest: Convolution, layer: nn.Module) -> tuple[slice, ...] | None:
    """Return where in the largest kernel the layer's lies; None where the two cannot be one convolution."""
    axes = len(largest.kernel_size)
    frame, other = _Frame.of(largest, axes), None
    weight = largest.weight
    if isinstance(layer, MultiplyAdd):
        channels = (largest.in_channels, largest.out_channels)
        if channels == (len(layer.scale),) * 2 and layer.scale.device == weight.device:
            other = _Frame.of(layer, axes)
    elif isinstance(layer, _CONVOLUTIONS) and len(layer.kernel_size) == axes and layer.groups == largest.groups:
        alike = layer.weight.shape[:2] == weight.shape[:2]
        if alike and layer.weight.dtype == weight.dtype and layer.weight.device == weight.device:
            other = _Frame.of(layer, axes)
    return None if frame is None or other is None else frame.taps_of(other)
