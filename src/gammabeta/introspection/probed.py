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

from gammabeta.introspection.expected import alike, describe, expected_of, inverse_deviation
from gammabeta.introspection.private_copy import (
    argument_of,
    copy_of,
    is_plain,
    plain_attributes,
    same_state,
    state_beside,
    undisturbed,
    why_not_run,
)
from gammabeta.layers.form import CONTIGUOUS, INPUT, MOVED, OUTPUT, PRESERVED, PROMOTED, WEIGHT, Form

# Norms have some thousand channels; flattened Parameters of a whole model are vectors too.
_LARGEST = 2**17
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


class _UnknownFormError(Exception):
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
    if any(t is not None and t.numel() > _LARGEST for t in (*module._parameters.values(), *module._buffers.values())):
        return f"{type(module).__name__} holds a tensor of more than {_LARGEST} values"
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
    """Return whether a module is worth a run: it is called a norm, or holds running statistics or only γ and β."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if cls.__module__.startswith("torch.") and "norm" not in cls.__name__.lower():
        return False
    if any("norm" in base.__name__.lower() for base in cls.__mro__ if base is not nn.Module):
        return True
    if {"running_mean", "running_var"} <= {*module._buffers}:
        return True
    if module._modules:
        return False
    shapes = {tuple(p.shape) for p in module._parameters.values() if p is not None}
    return len(shapes) == 1 and len(module._parameters) <= 2 and _length(next(iter(shapes))) is not None


def _length(shape: tuple[int, ...]) -> int | None:
    """Return the length of a vector, whose other axes have the size 1; None for what is no vector."""
    longer = [size for size in shape if size != 1]
    return longer[0] if len(longer) == 1 else None


def _key(module: nn.Module) -> Any:
    """Return what the answer depends on, beside the class; None where that cannot be told."""
    attributes = plain_attributes(module)
    buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
    # The values of vectors do not matter, since the copy has others; those of any other buffer may.
    if attributes is None or any(_length(tuple(buffer.shape)) is None for buffer in buffers):
        return None
    cls = type(module)
    held = [*module._parameters.items(), *module._buffers.items()]
    tensors = [(n, tuple(t.shape), t.device) for n, t in held if t is not None]
    of_class = [(n, v) for base in cls.__mro__ if base is not nn.Module for n, v in vars(base).items() if is_plain(v)]
    key = (
        cls.forward, cls.__call__, tuple(tensors), tuple(attributes.items()), tuple(of_class), torch.get_default_dtype()
    )  # fmt: skip
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
        except _UnknownFormError as unknown:
            return f"{type(module).__name__} {unknown}"


class _Copy:
    """The copy of a module, and its questions."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = copy_of(module), device
        self.random = torch.Generator().manual_seed(0)
        self.vectors: dict[str, Tensor] = {n: p for n, p in self.module._parameters.items() if p is not None}
        self.parameters = tuple(self.vectors)
        self.state = state_beside(self.module)

    def form(self) -> Form:
        self.module.eval()  # the answer is about both modes, whichever the original is in
        buffers = {n: b for n, b in self.module._buffers.items() if b is not None}
        if {"running_mean", "running_var"} <= {*buffers}:
            form = self.frozen()
        else:
            for name, buffer in buffers.items():
                if not buffer.is_floating_point() or _length(tuple(buffer.shape)) is None:
                    raise _UnknownFormError(f"holds the buffer {name}")
            self.vectors |= buffers
            form = self.of_samples()
        if not same_state(state_beside(self.module), self.state):
            raise _UnknownFormError("changes its attributes when it is called")
        return form

    # Forms that take statistics from each sample.

    def of_samples(self) -> Form:
        size = self._size()
        self._randomize()
        unknown = _UnknownFormError(
            "computes none of the known forms: RMSNorm and LayerNorm of the last axis or of axis 1"
        )
        for dtype in (torch.float32, torch.float64):
            self._cast(dtype)
            shapes = {axis: [s for s in self._shapes(size, axis) if self.takes(s, dtype)] for axis in (-1, 1)}
            for axis, taken in shapes.items():
                form = self._guess(size, axis, taken[0], dtype) if taken else None
                if form is None:
                    continue
                try:
                    compared = [*taken, *shapes[-axis]]
                    self._verify(form, compared, dtype)
                    if axis == 1:
                        self._refuse_axis_from_end(form, size, dtype)
                        form = replace(form, ranks=tuple(sorted({len(shape) for shape in compared})))
                    form = replace(
                        form,
                        layout=self._layout(form, taken[0], dtype),
                        argument=argument_of(self.module),
                        epsilon=self._epsilon_name(form, taken[0], dtype),
                    )
                    return self._with_roundings(form, taken[0], dtype)
                except _UnknownFormError as other:  # of two axes, x of (N, C) shows neither
                    unknown = other
            if any(shapes.values()):
                break
        raise unknown

    def _size(self) -> int:
        shapes = {tuple(p.shape) for p in self.vectors.values()}
        lengths = {_length(shape) for shape in shapes}
        if len(self.vectors) <= 2 and any(p.numel() == 1 for p in self.vectors.values()):
            raise _UnknownFormError("holds Parameters of one value, and the known forms have one for each channel")
        if len(self.vectors) > 2 or len(lengths) > 1 or None in lengths:
            raise _UnknownFormError("holds Parameters that are not one scale and one shift of the same axis")
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
            values = torch.rand(tensor.shape, generator=self.random, dtype=torch.float32, device="cpu")
            tensor.data = (values * 4 - 2).to(self.device)
        self.values = {name: tensor.detach().double() for name, tensor in self.vectors.items()}

    def _cast(self, dtype: torch.dtype) -> None:
        for tensor in self.vectors.values():
            tensor.data = tensor.data.to(dtype)

    def _shapes(self, size: int, axis: int) -> Iterator[tuple[int, ...]]:
        a, b, c = self._others(size)
        if axis == -1:
            yield from ((b, a, size), (c, size), (b, 2, a, size))
        else:
            yield from ((b, size, a, c), (b, size, c), (b, size, a, c, 2))

    def _others(self, size: int) -> list[int]:
        return [n for n in (3, 2, 5, 7) if n != size][:3]

    def x(self, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        values = torch.randn(shape, generator=self.random, dtype=torch.float64, device="cpu")
        return ((values + mean) * scale).to(self.device, dtype)

    def call(self, x: Tensor, exact: bool = True) -> Tensor:
        before = x.detach().clone()
        y: Any = type(self.module).forward(self.module, x)  # without the hooks of all modules
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise _UnknownFormError("does not return one tensor of its input's shape")
        if exact and not torch.equal(x, before):
            raise _UnknownFormError("changes its input")
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
        for kind, (weight, bias), offset in itertools.product(("rms", "layer"), self._roles(), (0.0, 1.0)):
            form = Form(kind, size, 0.0, axis, weight, bias, offset if weight else 0.0)
            if bool(((y - self.exact(form, x)).abs() <= 1e-3).all()):
                eps = self._epsilon(form, shape, dtype)
                return None if eps is None else replace(form, eps=eps)
        return None

    def _roles(self) -> list[tuple[str | None, str | None]]:
        """Who may be γ and β: every Parameter is one of them, and a buffer may be."""
        names: list[str | None] = [None, *self.vectors]
        pairs = [(w, b) for w in names for b in names if w is not None or b is None]
        return [(w, b) for w, b in pairs if (w is None or w != b) and {*self.parameters} <= {w, b}]

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

    def _epsilon_name(self, form: Form, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
        """Return the attribute with which ε changes."""
        held = vars(self.module)
        for name in [n for n, v in held.items() if isinstance(v, float) and v == form.eps]:
            kept, held[name] = held[name], 3 * form.eps + 1e-3
            measured = self._epsilon(form, shape, dtype)
            follows = measured is not None and math.isclose(measured, held[name], rel_tol=1e-3)
            held[name] = kept
            if follows:
                return name
        return None

    def _verify(self, form: Form, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
        for training in (False, True):
            self.module.train(training)
            for scale, shifted in zip(_SCALES, itertools.cycle((training, not training)), strict=False):
                self._compare(form, self.x(shapes[0], dtype, scale, 3.0 if shifted else 0.0))
        for shape in shapes:
            self._compare(form, self.x(shape, dtype))
        self._verify_extremes(form, shapes[0], dtype)
        zeros = self.x(shapes[0], dtype, 0.0)
        if form.eps > 0:
            self._compare(form, zeros)
        elif not torch.equal(self.call(zeros).isnan(), self.exact(form, zeros).isnan()):
            raise _UnknownFormError(f"computes {describe(form)} on some inputs, and something else of zeros")
        self._compare_gradients(form, self.x(shapes[0], dtype))
        if any(not torch.equal(tensor.double(), self.values[name]) for name, tensor in self.vectors.items()):
            raise _UnknownFormError("changes its Parameters or buffers when it is called")
        if dtype == torch.float32 and self._run_as(torch.float64, torch.float64, shapes[0]) is not None:
            self._compare(form, self.x(shapes[0], torch.float64), torch.float32)
        self._cast(dtype)

    def _verify_extremes(self, form: Form, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Compare where a bound on input, Parameters or output would show, and where values are not finite."""
        self._compare(form, self.x(shape, dtype, 1e12))
        kept = {name: tensor.data for name, tensor in self.vectors.items()}
        for tensor in self.vectors.values():
            tensor.data = tensor.data * 100
        self._compare(form, self.x(shape, dtype))
        for name, tensor in self.vectors.items():
            tensor.data = kept[name]
        for value in (math.nan, math.inf):
            x = self.x(shape, dtype)
            x[(0,) * x.ndim] = value
            finite = [each.isfinite().all(form.axis) for each in (self.call(x, exact=False), self.exact(form, x))]
            if not torch.equal(*finite):
                raise _UnknownFormError(f"computes {describe(form)} on finite inputs, and something else of {value}")

    def _refuse_axis_from_end(self, form: Form, size: int, dtype: torch.dtype) -> None:
        """Refuse a norm of the last axis but one, or two: of one rank alone it looks as one of axis 1."""
        a, b, c = self._others(size)
        for shape, axis in (((b, a, size, c), -2), ((b, 2, a, size, c), -2), ((b, 2, size, a, c), -3)):
            if not self.takes(shape, dtype):
                continue
            x = self.x(shape, dtype)
            moved = replace(form, axis=axis)
            if self._near(moved, x, self.call(x).detach(), self.exact(moved, x), _UNITS * torch.finfo(dtype).eps):
                raise _UnknownFormError(f"computes {describe(form)} over an axis counted from the end: {axis}")

    def _layout(self, form: Form, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        """Return the layout that the outputs have for a contiguous input and for two permuted ones."""
        whole = self.x(shape, dtype)
        inputs = [whole, *(whole.transpose(0, a).contiguous().transpose(0, a) for a in (1, whole.ndim - 1))]
        ran = [(x, self.call(x)) for x in inputs]
        for layout in (PRESERVED, CONTIGUOUS, MOVED):
            known = replace(form, layout=layout)
            if all(known.laid_out(torch.empty_like(x), x).stride() == y.stride() for x, y in ran):
                return layout
        return CONTIGUOUS if ran[0][1].is_contiguous() else MOVED

    def _compare(self, form: Form, x: Tensor, precision: torch.dtype | None = None) -> None:
        if form.weight is not None and x.shape[form.axis] != form.size:
            raise _UnknownFormError("takes inputs that the known forms do not take")
        y, expected = self.call(x).detach(), self.exact(form, x)
        units = _UNITS * torch.finfo(precision or x.dtype).eps
        if not self._near(form, x, y, expected, units):
            raise _UnknownFormError(f"computes {describe(form)} on some inputs, and something else on others")
        if not torch.is_floating_point(y) or y.dtype != x.dtype:
            raise _UnknownFormError(f"returns {y.dtype} for {x.dtype}")

    def _near(self, form: Form, x: Tensor, y: Tensor, expected: Tensor, units: float) -> bool:
        """Compare, with an allowance of rounding units of the terms that the output is a sum of."""
        weight, bias = self.given(form, torch.float64)
        terms = x.double().movedim(form.axis, -1).abs() * inverse_deviation(form, x)
        scale = form.scale(weight)
        terms = terms if scale is None else terms * scale.abs()
        terms = terms + 1e-30 if bias is None else terms + bias.reshape(-1).abs()
        allowed = units * terms.amax(-1, keepdim=True).movedim(-1, form.axis)
        return bool(((y.double() - expected).abs() <= allowed).all())

    def _compare_gradients(self, form: Form, x: Tensor) -> None:
        leaves = [x.requires_grad_(), *(self.vectors[name] for name in self.parameters)]
        g = self.x(tuple(x.shape), x.dtype)
        y = self.call(x)
        if not y.requires_grad:
            raise _UnknownFormError("has no gradient")
        got = torch.autograd.grad(y, leaves, g, allow_unused=True)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        named = dict(zip(self.parameters, wide[1:], strict=True))
        held = {**{name: tensor.double() for name, tensor in self.vectors.items()}, **named}
        weight, bias = (None if n is None else held[n] for n in (form.weight, form.bias))
        expected = torch.autograd.grad(expected_of(form, wide[0], weight, bias), wide, g.double())
        # With few values the terms of the gradient cancel: two values of a LayerNorm leave none.
        scale = form.scale(weight)
        steepest = inverse_deviation(form, x.detach()).max() * (1.0 if scale is None else scale.detach().abs().max())
        rounding = _UNITS * torch.finfo(x.dtype).eps * steepest * g.abs().max()
        for mine, theirs in zip(expected, got, strict=True):
            allowed = 1e-4 * mine.abs().max() + rounding
            if theirs is None or not bool(((theirs.double() - mine).abs() <= allowed).all()):
                raise _UnknownFormError(f"computes {describe(form)}, with other gradients")

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
        ran: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
        wanted = _DTYPES if self.vectors else _DTYPES[:2]
        for low, weights in wanted if dtype == torch.float32 else ():
            kept = {name: tensor.data for name, tensor in self.vectors.items()}
            found = self._run_as(low, weights, shape)
            if found is not None:
                x, y = found
                if not self._near(form, x, y, self.exact(form, x), _UNITS_LOW * torch.finfo(torch.bfloat16).eps):
                    raise _UnknownFormError(f"computes {describe(form)} in float32, and something else in {low}")
                weight, bias = (None if t is None else t.detach().clone() for t in self.given(form))
                ran.append((x, y, weight, bias))
            for name, tensor in self.vectors.items():
                tensor.data = kept[name]
        places = (OUTPUT, PROMOTED, INPUT, WEIGHT) if form.weight else (OUTPUT,)
        found_forms = []
        for rounds, scale in itertools.product(places, (False, True) if form.offset else (False,)):
            candidate = replace(form, rounds=rounds, rounds_scale=scale)
            shares = [alike(expected_of(candidate, x, w, b), y) for x, y, w, b in ran]
            if None not in shares:
                least = min((share for share in shares if share is not None), default=1.0)
                found_forms.append((least, replace(candidate, same_bits=least >= _SAME)))
        if not found_forms:
            raise _UnknownFormError("returns other dtypes than any known form for 16-bit inputs")
        least, best = max(found_forms, key=lambda pair: pair[0])
        # Of forms that all round elsewhere the first is the most accurate.
        return best if best.same_bits else found_forms[0][1]

    # BatchNorm with frozen statistics.

    def frozen(self) -> Form:
        held = {**self.module._buffers, **self.module._parameters}
        vectors = {n: t for n, t in held.items() if isinstance(t, Tensor) and t.is_floating_point()}
        size = len(vectors["running_mean"])
        if set(vectors) - {"running_mean", "running_var", "weight", "bias"} or any(
            t.shape != (size,) for t in vectors.values()
        ):
            raise _UnknownFormError("holds more than running statistics, weight and bias")
        self.vectors = {n: t for n, t in vectors.items() if n in ("weight", "bias")}
        for tensor in vectors.values():
            values = torch.rand(tensor.shape, generator=self.random, dtype=torch.float32, device="cpu")
            tensor.data = (values + 0.5).to(self.device)
        held_weight, held_bias = (n if n in vectors else None for n in ("weight", "bias"))
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
                allowed = _UNITS * torch.finfo(torch.float32).eps * terms
                if eps is None or not bool(((y - expected).abs() <= allowed).all()):
                    raise _UnknownFormError("does not normalize by its running statistics in both modes")
            if not torch.equal(var, kept):
                raise _UnknownFormError("changes its buffers")
        assert eps is not None
        return Form("batch", size, eps, 1, held_weight, held_bias)


def _nearest_epsilon(measured: float, module: nn.Module) -> float | None:
    """Return the number that was meant: an attribute of the module, a usual one, one of few digits, or the measured."""
    if not math.isfinite(measured):
        return None
    held = [v for v in vars(module).values() if isinstance(v, float)]
    for value in (*held, *_EPSILONS, *(float(f"{measured:.{digits}e}") for digits in (1, 2, 5))):
        # The measurement is good to some 1e-6 of ε, and to 1e-6 of the variance of 1e-12 at which it is made.
        if abs(measured - value) <= 1e-4 * abs(value) + 1e-17 and value >= 0:
            return value
    return None
