"""Further forwards of a model: which samples depend on each other, what padding does, what moves, and the outputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.outputs import Constant, NotFinite, constant_outputs, first_not_finite, is_finite
from gammabeta.diagnostics.padding import Padding, measure_padding, padded_lengths
from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.hooks import hook_after, hook_before
from gammabeta.introspection.norms import kind_of
from gammabeta.introspection.observe import tensors_in
from gammabeta.introspection.unchanged import modes_kept, set_mode, unchanged

# Number of samples whose dependence on each other is measured, and number of timed forwards.
_SAMPLES, _TIMES = 4, 3


@dataclass(frozen=True)
class Companions:
    """How much a norm's output for one sample depends on the other samples of its batch.

    It is ‖∂y₀/∂x_others‖/‖∂y₀/∂x‖ for a random direction of y₀: 0 if samples are normalized separately.

    Attributes:
        evaluation, training: the value in either mode; None if the norm does not run in it.
    """

    evaluation: float | None
    training: float | None


@dataclass
class Probe:
    """What further forwards showed, by the norms' qualified names.

    Attributes:
        companions: dependence on the other samples, of BatchNorms.
        padding: effect of padding, on norms called without a mask on padded sequences, if their statistics contain
            positions.
        moved: norms whose running statistics a forward in the model's own mode moved; None if it raised.
        seconds: time of each BatchNorm in a forward in evaluation, and under "" of the whole forward. It is empty in
            training mode and on devices other than CPUs.
        without_gradient: those of them whose γ or β require a gradient, but whose outputs did not in any call of that
            forward, although the model's outputs did.
        not_finite: the first forward whose outputs are not finite; None if they are.
        constant: outputs in evaluation that do not vary over samples; None if they do.
    """

    companions: dict[str, Companions] = field(default_factory=dict)
    padding: dict[str, Padding] = field(default_factory=dict)
    moved: frozenset[str] | None = None
    without_gradient: frozenset[str] = frozenset()
    seconds: dict[str, float] = field(default_factory=dict)
    not_finite: NotFinite | None = None
    constant: Constant | None = None


def probe(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Probe:
    """Run the model a few more times; it is left as it was.

    Args:
        model: any eager module.
        inputs, forward: as for `observe`.

    Returns:
        The `Probe`.
    """
    found = Probe()
    kinds = {name: kind_of(module) for name, module in model.named_modules()}
    norms = {name: module for name, module in model.named_modules() if kinds[name] is not None}
    moving = {name: module for name, module in norms.items() if kinds[name] in ("batch", "instance")}
    run = forward_batch("check", forward)
    given = _Given(model)
    lengths: dict[int, list[int]] = {}

    def look(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or x.numel() == 0:
            return
        if name not in found.companions and kinds[name] == "batch" and x.shape[0] > 1:
            found.companions[name] = _companions(module, x[:_SAMPLES].detach())
        masked = len(args) > 1 or kwargs.get("mask") is not None
        if lengths and name not in found.padding and not masked:
            padding = measure_padding(module, x.detach(), lengths)
            if padding is not None:
                found.padding[name] = padding

    with given, _before(norms, look):
        given.then = lambda arguments: lengths.update(padded_lengths(arguments))
        out = _forward(model, inputs, run)
    inputs_taken = given.arguments if given.arguments is not None else inputs
    found.moved, found.without_gradient, own = _moved(model, moving, inputs, run)
    _look_at_outputs(found, inputs_taken, (out, own), partial(_forward, model, inputs, run), model)
    if moving and not model.training and all(p.device.type == "cpu" for p in model.parameters()):
        found.seconds = _seconds(model, {n: m for n, m in norms.items() if kinds[n] == "batch"}, inputs, run)
    return found


class _Given:
    """A context that keeps the arguments of the model's own forward, without what of a batch does not get there."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.arguments: Any = None
        self.then: Callable[[Any], None] = lambda arguments: None

    def __enter__(self) -> None:
        self._handle = hook_before(self._model, self._take, with_kwargs=True, prepend=True)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _take(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if self.arguments is None:
            self.arguments = copied((args, kwargs))
            self.then(self.arguments)


def _look_at_outputs(
    found: Probe, inputs: Any, outputs: tuple[Any, Any], forward: Callable[..., Any], model: nn.Module
) -> None:
    """Fill in what the outputs show: those in evaluation, and those in the model's own mode."""
    for result, evaluation in zip(outputs, (True, False), strict=True):
        if not is_finite(result):
            given = not is_finite(inputs)
            where = None if given else first_not_finite(model, partial(forward, evaluation=evaluation))
            found.not_finite = NotFinite("evaluation" if evaluation else "training", where, given)
            return
    found.constant = constant_outputs(model, inputs, outputs[0], forward)


@contextmanager
def _before(
    modules: Mapping[str, nn.Module], look: Callable[[str, nn.Module, tuple[Any, ...], Mapping[str, Any]], None]
) -> Iterator[None]:
    """Call `look` before each call of the modules, except for calls that `look` itself makes."""
    inside = False
    with ExitStack() as stack:
        for name, module in modules.items():

            def listen(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                nonlocal inside
                if not inside:
                    inside = True
                    try:
                        look(name, module, args, kwargs)
                    finally:
                        inside = False

            stack.callback(hook_before(module, listen, with_kwargs=True).remove)
        yield


def _forward(model: nn.Module, inputs: Any, run: Forward, *, evaluation: bool = True) -> Any:
    given = copied(inputs)
    with unchanged(model), torch.no_grad(), eagerly():
        if evaluation:
            set_mode(model, False)
        return run(model, given)


def _companions(module: nn.Module, x: Tensor) -> Companions:
    """Measure the gradient across samples in both modes; the module stays as it was."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    found: dict[bool, float | None] = {}
    for training in (False, True):
        # Errors of a norm on part of its batch, or on x alone, do not concern the model.
        try:
            with modes_kept(module), torch.enable_grad():
                module.train(training)
                leaf = x.clone().requires_grad_()
                y = type(module).forward(module, leaf)
                direction = torch.randn(y[0].shape, generator=torch.Generator().manual_seed(0)).to(y)
                (gradient,) = torch.autograd.grad((y[0] * direction).sum(), leaf)
            whole = float(gradient.double().norm())
            found[training] = float(gradient[1:].double().norm()) / whole if whole > 0 else 0.0
        except Exception:
            found[training] = None
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
    return Companions(found[False], found[True])


def _moved(
    model: nn.Module, norms: Mapping[str, nn.Module], inputs: Any, run: Forward
) -> tuple[frozenset[str] | None, frozenset[str], Any]:
    """Run the model in its own mode, with gradients on if it is in training.

    One value per channel raises in training, for example: then nothing is known.

    Returns:
        The norms whose running mean moved or that counted the batch, those of them that ran with gradients off, and
        the model's result; None, none and None if it raises.
    """
    # A mean in few digits may round to itself: the count tells that it is moved all the same.
    held = {name: _tensors(m, "running_mean", "num_batches_tracked") for name, m in norms.items()}
    before = {name: [tensor.clone() for tensor in tensors] for name, tensors in held.items()}
    # As a fallback without gradients, with which a forward that writes to parameters may raise.
    for gradients in (True, False) if model.training else (False,):
        given = copied(inputs)
        with contextlib.suppress(Exception), ExitStack() as stack:
            stack.enter_context(unchanged(model))
            stack.enter_context(torch.set_grad_enabled(gradients))
            stack.enter_context(eagerly())
            cut_off = _cut_off(norms, stack) if gradients else {}
            out = run(model, given)
            moved = frozenset(name for name, tensors in held.items() if not _all_equal(tensors, before[name]))
            without = frozenset(n for n in moved if cut_off.get(n)) if gradients and _all_seen(out) else frozenset()
            return moved, without, out
    return None, frozenset(), None


def _tensors(module: nn.Module, *names: str) -> list[Tensor]:
    return [tensor for name in names if isinstance(tensor := getattr(module, name, None), Tensor)]


def _all_equal(now: list[Tensor], before: list[Tensor]) -> bool:
    """Return whether tensors are equal; a NaN counts as equal to itself, and as 0."""
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(now, before, strict=True))


def _cut_off(norms: Mapping[str, nn.Module], stack: ExitStack) -> dict[str, bool]:
    """Note, by norm, whether its outputs required no gradient in any call, although its γ or β require one."""
    found: dict[str, bool] = {}
    for name, module in norms.items():
        if any(p.requires_grad for p in module.parameters()):

            def listen(_: Any, __: Any, out: Any, name: str = name) -> None:
                found[name] = found.get(name, True) and not any(y.requires_grad for y in tensors_in(out))

            stack.callback(hook_after(module, listen).remove)
    return found


def _all_seen(out: Any) -> bool:
    """Return whether a result requires gradients, and all that leads to it was recorded by autograd.

    A function with a backward of its own may run modules with gradients off, and once more in its backward, as
    reentrant checkpointing does.
    """
    waiting: list[Any] = [y.grad_fn for y in tensors_in(out) if y.grad_fn is not None]
    seen = set(waiting)
    if not waiting:
        return False
    while waiting:
        node = waiting.pop()
        forward = getattr(type(node), "_forward_cls", None)
        if forward is not None and not forward.__module__.startswith("gammabeta."):
            return False
        new = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= new
        waiting.extend(new)
    return True


def _seconds(model: nn.Module, norms: Mapping[str, nn.Module], inputs: Any, run: Forward) -> dict[str, float]:
    """Time each norm, and under "" the whole forward: the least of several runs, in seconds."""
    names = {module: name for name, module in norms.items()}
    best: dict[str, float] = {}
    given = copied(inputs)
    started: dict[nn.Module, float] = {}

    def start(module: nn.Module, _: Any) -> None:
        started[module] = time.perf_counter()

    def stop(module: nn.Module, _: Any, __: Any) -> None:
        taken[names[module]] = taken.get(names[module], 0.0) + time.perf_counter() - started[module]

    with unchanged(model, watch=False), torch.no_grad(), eagerly(), ExitStack() as stack:
        for module in names:
            stack.callback(hook_before(module, start).remove)
            stack.callback(hook_after(module, stop).remove)
        for _ in range(_TIMES):
            taken: dict[str, float] = {}
            begin = time.perf_counter()
            run(model, given)
            taken[""] = time.perf_counter() - begin
            best = {name: min(best.get(name, s), s) for name, s in taken.items()}
    return best
