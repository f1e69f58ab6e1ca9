"""What a norm of any class computes, by running a copy of it on small probes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gammabeta.introspection.private_copy import copy_of, plain_attributes, undisturbed, why_not_run
from gammabeta.layers.form import INPUT, OUTPUT, PROMOTED, WEIGHT, Form

_SCALES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
_EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, torch.finfo(torch.float32).eps, 1e-6, 1e-5, 1e-3)
# Bounds on rounding, in units of ε of the dtype times the largest term of the sum: 64 for sums over some thousand
# channels in any order, with means of three deviations; 16 for classes that round each step to 16 bits.
_UNITS, _UNITS_LOW = 64, 16
# Two orders of a sum in float32 seldom round to different 16-bit values.
_SAME = 0.98
_DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
)
_answers: WeakKeyDictionary[type[nn.Module], dict[Any, Form | str]] = WeakKeyDictionary()


class _Unknown(Exception):
    """The module computes none of the forms; the text says how that was seen."""


def form_of(module: nn.Module) -> Form | None:
    """Return what a norm without children computes, of the known forms; None where it is none of them.

    A copy of the module runs, without its hooks, on its device, with random γ and β: on inputs of several scales and
    means, in training and evaluation, in every floating dtype that it takes, and backward. All outputs and gradients
    must be those of one form. The module, the random number generators and the module's buffers are left as they are.
    Never raises.
    """
    answer = form_or_reason(module)
    return answer if isinstance(answer, Form) else None


def form_or_reason(module: nn.Module) -> Form | str:
    """Return what a norm computes, or why that is none of the known forms."""
    if not _may_be_norm(module):
        return f"{type(module).__name__} does not look like a norm"
    reason = why_not_run(module)
    if reason is not None:
        return reason
    try:
        key = _key(module)
        known = _answers.setdefault(type(module), {})
        if key is not None and key in known:
            return known[key]
        answer = _probe(module)
    except Exception as error:  # of another library's class: whatever it is, the answer is that we cannot tell
        return f"a copy of {type(module).__name__} could not be run: {type(error).__name__}"
    if key is not None:
        known[key] = answer
    return answer


def _may_be_norm(module: nn.Module) -> bool:
    """Return whether a module is worth a run: it is called a norm, or holds nothing but one or two equal vectors."""
    cls = type(module)
    if cls.__module__.startswith("torch.") and "norm" not in cls.__name__.lower():
        return False
    if any("norm" in base.__name__.lower() for base in cls.__mro__ if base is not nn.Module):
        return True
    shapes = {tuple(p.shape) for p in module._parameters.values() if p is not None}
    return len(shapes) == 1 and len(module._parameters) <= 2 and _length(next(iter(shapes))) is not None


def _length(shape: tuple[int, ...]) -> int | None:
    """Return the length of a vector, whose other axes have the size 1; None for what is no vector."""
    longer = [size for size in shape if size != 1]
    return longer[0] if len(longer) == 1 else None


def _key(module: nn.Module) -> Any:
    """Return what the answer depends on, beside the class; None where that cannot be told."""
    attributes = plain_attributes(module)
    if attributes is None or any(buffer is not None for buffer in module._buffers.values()):
        return None
    cls = type(module)
    tensors = [(n, tuple(p.shape), p.device) for n, p in module._parameters.items() if p is not None]
    key = (cls.forward, cls.__call__, tuple(tensors), tuple(attributes.items()), torch.get_default_dtype())
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _probe(module: nn.Module) -> Form | str:
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    device = tensors[0].device if tensors else torch.device("cpu")
    with undisturbed(device):
        try:
            return _Copy(module, device).form()
        except _Unknown as unknown:
            return f"{type(module).__name__} {unknown}"


def expected_of(form: Form, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Compute a form by plain operations, with its roundings; in float64 for float64 x, in float32 for others."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x.movedim(form.axis, -1).to(wide)
    if form.kind == "layer":
        h = h - h.mean(-1, keepdim=True)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + form.eps)
    scale = form.scale(weight)
    middle = form.rounded_to(x.dtype, None if weight is None else weight.dtype)
    if middle is not None:
        h = h.to(middle)
    elif scale is not None:
        scale = scale.to(wide)
    h = h if scale is None else h * scale
    h = h if bias is None else h + bias.reshape(-1)
    return h.to(form.result(x.dtype, weight, bias)).movedim(-1, form.axis)


class _Copy:
    """The copy of a module, and its questions."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = copy_of(module), device
        self.random = torch.Generator().manual_seed(0)
        self.vectors = {n: p for n, p in self.module._parameters.items() if p is not None}
        self.attributes = plain_attributes(self.module)

    def form(self) -> Form:
        buffers = [name for name, buffer in self.module._buffers.items() if buffer is not None]
        if {"running_mean", "running_var"} <= {*buffers}:
            form = self.frozen()
        else:
            if buffers:
                raise _Unknown(f"holds the buffer {buffers[0]}")
            form = self.of_samples()
        if plain_attributes(self.module) != self.attributes:
            raise _Unknown("changes its attributes when it is called")
        return form

    # Forms that take statistics from each sample.

    def of_samples(self) -> Form:
        size = self._size()
        self._randomize()
        unknown = _Unknown("computes none of the known forms: RMSNorm and LayerNorm of the last axis or of axis 1")
        for dtype in (torch.float32, torch.float64):
            self._cast(dtype)
            shapes = {axis: [s for s in self._shapes(size, axis) if self.takes(s, dtype)] for axis in (-1, 1)}
            for axis, taken in shapes.items():
                form = self._guess(size, axis, taken[0], dtype) if taken else None
                if form is None:
                    continue
                try:
                    self._verify(form, [*taken, *shapes[-axis]], dtype)
                    return self._with_roundings(form, taken[0], dtype)
                except _Unknown as other:  # of two axes, x of (N, C) shows neither
                    unknown = other
            if any(shapes.values()):
                break
        raise unknown

    def _size(self) -> int:
        shapes = {tuple(p.shape) for p in self.vectors.values()}
        lengths = {_length(shape) for shape in shapes}
        if len(self.vectors) > 2 or len(lengths) > 1 or None in lengths:
            raise _Unknown("holds Parameters that are not one scale and one shift of the same axis")
        if lengths:
            return next(length for length in lengths if length is not None)
        for name in ("normalized_shape", "dim", "hidden_size", "num_channels", "num_features", "size"):
            value = getattr(self.module, name, None)
            value = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
            if isinstance(value, int) and value > 1:
                return value
        return 12

    def _randomize(self) -> None:
        for tensor in self.vectors.values():
            tensor.data = (torch.rand(tensor.shape, generator=self.random) * 4 - 2).to(self.device)

    def _cast(self, dtype: torch.dtype) -> None:
        for tensor in self.vectors.values():
            tensor.data = tensor.data.to(dtype)

    def _shapes(self, size: int, axis: int) -> Iterator[tuple[int, ...]]:
        a, b, c = [n for n in (3, 2, 5, 7) if n != size][:3]
        if axis == -1:
            yield from ((b, a, size), (c, size), (b, 2, a, size))
        else:
            yield from ((b, size, a, c), (b, size, c), (b, size, a, c, 2))

    def x(self, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        values = torch.randn(shape, generator=self.random, dtype=torch.float64)
        return ((values + mean) * scale).to(self.device, dtype)

    def call(self, x: Tensor) -> Tensor:
        before = x.detach().clone()
        y: Any = self.module(x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise _Unknown("does not return one tensor of its input's shape")
        if not torch.equal(x, before):
            raise _Unknown("changes its input")
        return y

    def takes(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        try:
            self.call(self.x(shape, dtype))
        except Exception:
            return False
        return True

    def given(self, form: Form, dtype: torch.dtype | None = None) -> tuple[Tensor | None, Tensor | None]:
        """γ's and β's tensors, as they are or in another dtype."""
        found = [None if n is None else self.vectors[n] for n in (form.weight, form.bias)]
        weight, bias = (t if t is None or dtype is None else t.to(dtype) for t in found)
        return weight, bias

    def _guess(self, size: int, axis: int, shape: tuple[int, ...], dtype: torch.dtype) -> Form | None:
        """Return the form that the output has where ε does not matter, with the ε that it has where that does."""
        x = self.x(shape, dtype, 1e3)
        y = self.call(x).detach().double()
        roles: list[tuple[str | None, str | None]] = [(None, None)]
        if self.vectors:
            names = list(self.vectors)
            roles = [(names[0], None)] if len(names) == 1 else [(names[0], names[1]), (names[1], names[0])]
        for kind, (weight, bias), offset in itertools.product(("rms", "layer"), roles, (0.0, 1.0)):
            form = Form(kind, size, 0.0, axis, weight, bias, offset if weight else 0.0)
            if bool(((y - self.exact(form, x)).abs() <= 1e-3).all()):
                eps = self._epsilon(form, shape, dtype)
                return None if eps is None else replace(form, eps=eps)
        return None

    def exact(self, form: Form, x: Tensor) -> Tensor:
        return expected_of(form, x.detach().double(), *self.given(form, torch.float64)).detach()

    def _epsilon(self, form: Form, shape: tuple[int, ...], dtype: torch.dtype) -> float | None:
        """Measure ε: at a variance far below it, without β, the output's square is variance/(variance + ε)."""
        weight, bias = self.given(form)
        kept = None if bias is None else bias.data
        if bias is not None:
            bias.data = torch.zeros_like(bias)
        x = self.x(shape, dtype, 1e-6)
        y = self.call(x).detach().double().movedim(form.axis, -1)
        if bias is not None and kept is not None:
            bias.data = kept
        scale = form.scale(weight)
        y = y if scale is None else y / scale.double()
        x = x.double().movedim(form.axis, -1)
        x = x - x.mean(-1, keepdim=True) if form.kind == "layer" else x
        measured = float((x.square().sum(-1) / y.square().sum(-1)).mean() - x.square().mean())
        return _nearest_epsilon(measured, self.module)

    def _verify(self, form: Form, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
        for training in (False, True):
            self.module.train(training)
            for scale, shifted in zip(_SCALES, itertools.cycle((training, not training)), strict=False):
                self._compare(form, self.x(shapes[0], dtype, scale, 3.0 if shifted else 0.0))
        for shape in shapes:
            self._compare(form, self.x(shape, dtype))
        if form.eps > 0:
            self._compare(form, self.x(shapes[0], dtype, 0.0))
        self._compare_gradients(form, self.x(shapes[0], dtype))
        if dtype == torch.float32 and self._run_as(torch.float64, torch.float64, shapes[0]) is not None:
            self._compare(form, self.x(shapes[0], torch.float64), torch.float32)
        self._cast(dtype)

    def _compare(self, form: Form, x: Tensor, precision: torch.dtype | None = None) -> None:
        y, expected = self.call(x).detach(), self.exact(form, x)
        units = _UNITS * torch.finfo(precision or x.dtype).eps
        if not self._near(form, x, y, expected, units):
            largest = float(x.abs().max())
            raise _Unknown(f"computes {_describe(form)} on some inputs, and something else up to {largest:.0e}")
        if not torch.is_floating_point(y) or y.dtype != x.dtype:
            raise _Unknown(f"returns {y.dtype} for {x.dtype}")

    def _near(self, form: Form, x: Tensor, y: Tensor, expected: Tensor, units: float) -> bool:
        """Compare, with an allowance of rounding units of the terms that the output is a sum of."""
        weight, bias = self.given(form, torch.float64)
        wide = x.double().movedim(form.axis, -1)
        spread = wide - wide.mean(-1, keepdim=True) if form.kind == "layer" else wide
        terms = wide.abs() * torch.rsqrt(spread.square().mean(-1, keepdim=True) + form.eps)
        scale = form.scale(weight)
        terms = terms if scale is None else terms * scale.abs()
        terms = terms + 1e-30 if bias is None else terms + bias.reshape(-1).abs()
        allowed = units * terms.amax(-1, keepdim=True).movedim(-1, form.axis)
        return bool(((y.double() - expected).abs() <= allowed).all())

    def _compare_gradients(self, form: Form, x: Tensor) -> None:
        leaves = [x.requires_grad_(), *self.vectors.values()]
        g = self.x(tuple(x.shape), x.dtype)
        y = self.call(x)
        if not y.requires_grad:
            raise _Unknown("has no gradient")
        got = torch.autograd.grad(y, leaves, g, allow_unused=True)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        named = dict(zip(self.vectors, wide[1:], strict=True))
        weight, bias = (None if n is None else named[n] for n in (form.weight, form.bias))
        expected = torch.autograd.grad(expected_of(form, wide[0], weight, bias), wide, g.double())
        for mine, theirs in zip(expected, got, strict=True):
            if theirs is None or not bool(((theirs.double() - mine).abs() <= 1e-4 * mine.abs().max()).all()):
                raise _Unknown(f"computes {_describe(form)}, with other gradients")

    # Where 16-bit results are rounded.

    def _run_as(self, dtype: torch.dtype, weights: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        self._cast(weights)
        x = self.x(shape, dtype)
        try:
            return x, self.call(x).detach()
        except Exception:
            return None

    def _with_roundings(self, form: Form, shape: tuple[int, ...], dtype: torch.dtype) -> Form:
        self.module.eval()
        ran = []
        wanted = _DTYPES if self.vectors else _DTYPES[:2]
        for low, weights in wanted if dtype == torch.float32 else ():
            kept = {name: tensor.data for name, tensor in self.vectors.items()}
            found = self._run_as(low, weights, shape)
            if found is not None:
                x, y = found
                if not self._near(form, x, y, self.exact(form, x), _UNITS_LOW * torch.finfo(torch.bfloat16).eps):
                    raise _Unknown(f"computes {_describe(form)} in float32, and something else in {low}")
                ran.append((x, y, *(None if t is None else t.detach().clone() for t in self.given(form))))
            for name, tensor in self.vectors.items():
                tensor.data = kept[name]
        best, most = None, -1.0
        places = (OUTPUT, INPUT, WEIGHT, PROMOTED) if form.weight else (OUTPUT,)
        for rounds, scale in itertools.product(places, (False, True) if form.offset else (False,)):
            candidate = replace(form, rounds=rounds, rounds_scale=scale)
            alike = [_alike(expected_of(candidate, x, w, b), y) for x, y, w, b in ran]
            if None in alike:
                continue
            equal = [share for share in alike if share is not None]
            if sum(equal) > most:
                best, most = replace(candidate, same_bits=all(share >= _SAME for share in equal)), sum(equal)
        if best is None:
            raise _Unknown("returns other dtypes than any known form for 16-bit inputs")
        return best

    # BatchNorm with frozen statistics.

    def frozen(self) -> Form:
        held = {**self.module._buffers, **self.module._parameters}
        vectors = {n: t for n, t in held.items() if isinstance(t, Tensor) and t.is_floating_point()}
        size = len(vectors["running_mean"])
        if set(vectors) - {"running_mean", "running_var", "weight", "bias"} or any(
            t.shape != (size,) for t in vectors.values()
        ):
            raise _Unknown("holds more than running statistics, weight and bias")
        self.vectors = {n: t for n, t in vectors.items() if n in ("weight", "bias")}  # type: ignore[misc]
        for tensor in vectors.values():
            tensor.data = (torch.rand(tensor.shape, generator=self.random) + 0.5).to(self.device)
        form = Form("batch", size, 0.0, 1, *(n if n in vectors else None for n in ("weight", "bias")))
        with torch.no_grad():
            mean, var = vectors["running_mean"], vectors["running_var"]
            weight, bias = (vectors.get(n, torch.full_like(mean, v)) for n, v in (("weight", 1.0), ("bias", 0.0)))
            kept = var.clone()
            var.zero_()
            x = mean.reshape(1, -1, 1, 1) + self.x((2, size, 3, 2), torch.float32).sign()
            y = self.call(x) - bias.reshape(1, -1, 1, 1)
            eps = _nearest_epsilon(float((weight.reshape(1, -1, 1, 1) / y).double().square().mean()), self.module)
            var.copy_(kept)
            for scale, training in itertools.product(_SCALES, (False, True)):
                self.module.train(training)
                x = self.x((2, size, 3, 2), torch.float32, scale, 1.0)
                y = self.call(x)
                scales = weight.double() / (var.double() + (eps or 0.0)).sqrt()
                axes = (1, -1, 1, 1)
                expected = (x.double() - mean.reshape(axes)) * scales.reshape(axes) + bias.reshape(axes)
                terms = (x.abs() + mean.abs().reshape(axes)) * scales.abs().reshape(axes) + bias.abs().reshape(axes)
                if eps is None or not bool(
                    ((y - expected).abs() <= _UNITS * torch.finfo(torch.float32).eps * terms).all()
                ):
                    raise _Unknown("does not normalize by its running statistics in both modes")
            if not torch.equal(var, kept):
                raise _Unknown("changes its buffers")
        return replace(form, eps=eps)


def _alike(expected: Tensor, y: Tensor) -> float | None:
    """Return the share of equal values; None where the dtypes differ."""
    return None if expected.dtype != y.dtype else float((expected == y).double().mean())


def _nearest_epsilon(measured: float, module: nn.Module) -> float | None:
    """Return the number that was meant: an attribute of the module, a usual one, or one of two digits."""
    if not math.isfinite(measured):
        return None
    held = [v for v in vars(module).values() if isinstance(v, float)]
    for value in (*held, *_EPSILONS, float(f"{measured:.1e}")):
        # The measurement is good to some 1e-6 of ε, and to 1e-6 of the variance of 1e-12 at which it is made.
        if abs(measured - value) <= 1e-3 * abs(value) + 1e-17 and value >= 0:
            return value
    return None


def _describe(form: Form) -> str:
    return {"rms": "RMSNorm", "layer": "LayerNorm"}.get(form.kind, form.kind)
