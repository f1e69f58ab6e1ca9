"""Further forwards of a model: which samples depend on each other, what padding does, what moves, and the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.hooks import hook_after, hook_before
from gammabeta.introspection.norms import kind_of
from gammabeta.introspection.observe import tensors_in
from gammabeta.introspection.unchanged import modes_kept, set_mode, unchanged
from gammabeta.moments import Moments

# Number of samples whose dependence on each other is measured, and number of timed forwards.
_SAMPLES, _TIMES = 4, 3
# Sequences count as padded if they have at least this share of padding and this many positions.
_SHARE, _POSITIONS = 0.05, 4


@dataclass(frozen=True)
class Companions:
    """How much a norm's output for one sample depends on the other samples of its batch.

    It is ‖∂y₀/∂x_others‖/‖∂y₀/∂x‖ for a random direction of y₀: 0 if samples are normalized separately.

    Attributes:
        evaluation, training: the value in either mode; None if the norm does not run in it.
    """

    evaluation: float | None
    training: float | None


@dataclass(frozen=True)
class Padding:
    """Effect of padded positions on the statistics of a norm's input.

    Attributes:
        share: share of all positions that are padding.
        mean_shift: root mean square over channels of (mean with padding − mean without)/σ without.
        variance_ratio: geometric mean over channels of the variance with padding over that without.
    """

    share: float
    mean_shift: float
    variance_ratio: float


@dataclass
class Probe:
    """What further forwards showed, by the norms' qualified names.

    Attributes:
        companions: dependence on the other samples, of BatchNorms.
        padding: effect of padding, on BatchNorms and InstanceNorms called without a mask on padded sequences.
        moved: norms whose running statistics a forward in the model's own mode moved; None if it raised.
        seconds: time of each BatchNorm in a forward in evaluation, and under "" of the whole forward. It is empty in
            training mode and on devices other than CPUs.
    """

    companions: dict[str, Companions] = field(default_factory=dict)
    padding: dict[str, Padding] = field(default_factory=dict)
    moved: frozenset[str] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def probe(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Probe:
    """Run the model a few more times; it is left as it was.

    Args:
        model: any eager module.
        inputs, forward: as for `observe`.

    Returns:
        The `Probe`.
    """
    found = Probe()
    norms = {name: module for name, module in model.named_modules() if kind_of(module) in ("batch", "instance")}
    if not norms:
        return found
    lengths = padded_lengths(inputs)
    run = forward_batch("check", forward)

    def look(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or x.numel() == 0:
            return
        if name not in found.companions and kind_of(module) == "batch" and x.shape[0] > 1:
            found.companions[name] = _companions(module, x[:_SAMPLES].detach())
        masked = len(args) > 1 or kwargs.get("mask") is not None
        if name not in found.padding and not masked and x.ndim == 3 and x.shape[2] in lengths:
            known = lengths[x.shape[2]]
            if len(known) == x.shape[0]:
                found.padding[name] = _padding(x.detach(), known)

    with _before(norms, look):
        _forward(model, inputs, run)
    found.moved = _moved(model, norms, inputs, run)
    if not model.training and all(p.device.type == "cpu" for p in model.parameters()):
        found.seconds = _seconds(model, {n: m for n, m in norms.items() if kind_of(m) == "batch"}, inputs, run)
    return found


def padded_lengths(inputs: Any) -> dict[int, list[int]]:
    """Find sequences that end in zeros, and their lengths.

    Sequences are float tensors (N, L, C) or (N, C, L), and integers (N, L) such as tokens. Only those with different
    lengths and at least 5 % padding count.

    Returns:
        By the size of the sequence axis, the length of each sample without its trailing zeros.
    """
    found: dict[int, list[int]] = {}
    for x in tensors_in(inputs):
        if x.shape[:1].numel() < 2 or x.ndim not in (2, 3) or x.dtype == torch.bool or x.is_complex():
            continue
        if (x.ndim == 2) is x.is_floating_point():
            continue
        for axis in range(1, x.ndim):
            size = x.shape[axis]
            live = (x != 0).movedim(axis, 1).flatten(2).any(2) if x.ndim == 3 else x != 0
            ends = (live * torch.arange(1, size + 1, device=x.device)).amax(1).tolist()
            share = 1 - sum(ends) / (size * len(ends))
            if size >= _POSITIONS and len(set(ends)) > 1 and min(ends) > 0 and share >= _SHARE:
                found.setdefault(size, ends)
    return found


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


def _forward(model: nn.Module, inputs: Any, run: Forward) -> None:
    """Run the model in evaluation."""
    given = copied(inputs)
    with unchanged(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        set_mode(model, False)
        run(model, given)


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


def _padding(x: Tensor, lengths: list[int]) -> Padding:
    """Measure the effect of padding on x, (N, C, L)."""
    real = torch.arange(x.shape[2], device=x.device) < torch.tensor(lengths, device=x.device)[:, None]
    x_CM = x.to(torch.float64).movedim(1, 0).flatten(1)
    whole, inner = Moments.of(x_CM, [1]), Moments.of(x_CM[:, real.flatten()], [1])
    var = inner.var().flatten()
    live = var > 0
    shift = ((whole.mean - inner.mean).flatten()[live] / var[live].sqrt()).square().mean().sqrt()
    ratio = (whole.var().flatten()[live] / var[live]).clamp_min(1e-300).log().mean().exp()
    return Padding(1 - float(real.double().mean()), float(shift.nan_to_num()), float(ratio.nan_to_num(1.0)))


def _moved(model: nn.Module, norms: Mapping[str, nn.Module], inputs: Any, run: Forward) -> frozenset[str] | None:
    """Return the norms whose running mean a forward in the model's own mode moves; None if it raises."""
    means = {name: mean for name, m in norms.items() if isinstance(mean := getattr(m, "running_mean", None), Tensor)}
    before = {name: mean.clone() for name, mean in means.items()}
    given = copied(inputs)
    # One value per channel in training raises, for example: then nothing is known.
    with contextlib.suppress(Exception), unchanged(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        run(model, given)
        return frozenset(n for n, mean in means.items() if not torch.equal(mean, before[n]))
    return None


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

    with unchanged(model, watch=False), torch.no_grad(), torch.compiler.set_stance("force_eager"), ExitStack() as stack:
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
