"""What the outputs of a forward tell: values that are not finite, outputs that do not vary, and where either begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.norms import kind_of
from gammabeta.introspection.observe import tensors_in

# A tensor varies if its samples differ by this share of its largest value. It is constant if they differ by no more
# than a few units in the last place; a norm's output also if it varies by no more than this in units of γ.
_VARIES, _ULPS, _NORM = 1e-5, 8, 1e-6
# A checkpoint does not tell parameters from other tensors, but by their names.
PARAMETERS = ("weight", "bias")


@dataclass(frozen=True)
class NotFinite:
    """A forward whose outputs are not finite.

    Attributes:
        mode: "evaluation" or "training": the mode of the model.
        where: qualified name of the first module, in the order of the forward, whose inputs were finite and whose
            outputs were not; None if there is none.
        inputs: whether the model's inputs were already not finite.
    """

    mode: str
    where: str | None = None
    inputs: bool = False


@dataclass(frozen=True)
class Constant:
    """Outputs of the model that do not vary over samples although its inputs do.

    Attributes:
        where: the norm whose output does not vary while its input does, and behind which nothing varies; None if
            the variation is not lost at a norm.
        activation: the activation right behind the norm, if the variation is lost there; "" otherwise.
        spread: largest difference between two samples in the norm's output, or in that of the activation.
    """

    where: str | None
    activation: str = ""
    spread: float = 0.0


def is_finite(value: Any) -> bool:
    """Return whether no floating-point tensor in a nested value holds NaN or +∞.

    −∞ passes: masks hold it on purpose.
    """
    return all(not bool(flag) for tensor in tensors_in(value) if (flag := not_below_infinity(tensor)) is not None)


def not_below_infinity(tensor: Tensor) -> Tensor | None:
    """Return a scalar that is True if a tensor holds NaN or +∞; None if that cannot be asked of it."""
    if nn.parameter.is_lazy(tensor) or not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return None
    try:
        return ~(tensor.detach().amax() < torch.inf)
    except (RuntimeError, NotImplementedError):  # dtypes of eight bits, and classes without the operation
        return None


def spoiled(name: str, parameter: Tensor) -> Tensor | None:
    """Return a scalar that is True if a parameter holds NaN, +∞ or −∞; None if that cannot be asked of it.

    −∞ passes in a parameter that does not train and is neither a weight nor a bias: it may be a mask.

    Args:
        name: its qualified name.
        parameter: the parameter, or a tensor of a checkpoint.
    """
    above = not_below_infinity(parameter)
    is_mask = isinstance(parameter, nn.Parameter) and not parameter.requires_grad
    if above is None or (is_mask and name.rpartition(".")[2] not in PARAMETERS):
        return above
    return above | ~(parameter.detach().amin() > -torch.inf)


def holds_minus_infinity(value: Any) -> bool:
    """Return whether a floating-point tensor in a nested value holds −∞."""
    tensors = (tensor for tensor in tensors_in(value) if not_below_infinity(tensor) is not None)
    return any(bool(tensor.detach().amin() == -torch.inf) for tensor in tensors)


def first_not_finite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Run a forward, and return the first module whose inputs are finite and whose outputs are not.

    Inner modules end before those around them, so it is the innermost one.
    """
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if not found and not is_finite(out) and is_finite((args, kwargs)):
            found.append(names[module])

    with _after(model, leave):
        forward()
    return found[0] if found else None


def constant_outputs(model: nn.Module, inputs: Any, out: Any, forward: Callable[[], Any]) -> Constant | None:
    """Return where the outputs stop varying over samples; None if they vary, or if nothing can be said.

    Args:
        model: the model.
        inputs: what it was given.
        out: its result.
        forward: runs it again; called only if the outputs do not vary.
    """
    given = [tensor for tensor in tensors_in(inputs) if tensor.ndim > 0 and tensor.shape[0] > 1]
    if not given or not any(_varies(tensor) for tensor in given):
        return None
    samples = given[0].shape[0]
    outputs = [tensor for tensor in tensors_in(out) if tensor.is_floating_point() and tensor.numel() > 0]
    if not outputs or any(y.ndim == 0 or y.shape[0] != samples or not _is_constant(y) for y in outputs):
        return None
    return _where_variation_ends(model, forward)


def _where_variation_ends(model: nn.Module, forward: Callable[[], Any]) -> Constant:
    """Look at the last call of a module without children whose input still varies."""
    names = {module: name for name, module in model.named_modules()}
    # Calls in order: the module, whether its input varies, whether its output is constant, and by how much it varies.
    calls: list[tuple[nn.Module, bool, bool, float]] = []

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if kind_of(module) is None and any(True for _ in module.children()):
            return
        x, y = next(iter(tensors_in((args, kwargs))), None), next(iter(tensors_in(out)), None)
        if x is None or y is None or min(x.ndim, y.ndim) == 0 or not y.is_floating_point():
            return
        spread = _spread(y)
        still = _is_constant(y) or (kind_of(module) is not None and spread <= _NORM * _scale(module))
        calls.append((module, _varies(x), still, spread))

    with _after(model, leave):
        forward()
    last = next((i for i in reversed(range(len(calls))) if calls[i][1]), None)
    if last is None or not calls[last][2]:
        return Constant(None)
    module, _, _, spread = calls[last]
    if kind_of(module) is not None:
        return Constant(names[module], spread=spread)
    before = calls[last - 1][0] if last else module
    if any(True for _ in module.parameters()) or kind_of(before) is None:
        return Constant(None)
    return Constant(names[before], names[module], spread)


def _scale(module: nn.Module) -> float:
    weight = getattr(module, "weight", None)
    return 1.0 if not isinstance(weight, Tensor) or weight.numel() == 0 else float(weight.detach().abs().max()) or 1.0


def _spread(x: Tensor) -> float:
    """Return the largest difference between two samples."""
    if x.shape[0] < 2 or x.numel() == 0:
        return 0.0
    x = x.detach()
    return float((x.amax(0) - x.amin(0)).max().double())


def _varies(x: Tensor) -> bool:
    if x.dtype == torch.bool or x.is_complex() or x.numel() == 0 or x.is_meta:
        return False
    return _spread(x) > _VARIES * float(x.detach().abs().max().double())


def _is_constant(y: Tensor) -> bool:
    if y.shape[0] < 2:
        return False
    return _spread(y) <= _ULPS * torch.finfo(y.dtype).eps * float(y.detach().abs().max().double())


@contextmanager
def _after(model: nn.Module, leave: Callable[[nn.Module, Any, Mapping[str, Any], Any], None]) -> Iterator[None]:
    """Call `leave` after each call of every module that is not scripted."""
    with ExitStack() as stack:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield
