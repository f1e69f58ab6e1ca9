"""What the outputs of a forward tell: values that are not finite, outputs that do not vary, and where either begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.introspection.norms import kind_of
from gammabeta.introspection.observe import tensors_in

# A tensor varies if its samples differ by this share of its largest value. It is constant if they differ by no more
# than a few units in the last place; a norm's output also if it varies by no more than this in units of γ.
_VARIES, _ULPS, _NORM = 1e-5, 8, 1e-6
# Behind a norm that loses what varies, only this share of what it was given may still vary.
_TRACE = 1e-4
# A norm's output that one of these makes constant is one of which they pass nothing.
_ACTIVATIONS = (F.relu, F.relu6, torch.tanh, torch.sigmoid, F.gelu)
# A checkpoint does not tell parameters from other tensors, but by their names.
PARAMETERS = ("weight", "bias")


@dataclass(frozen=True)
class Place:
    """Where a forward stops being finite.

    Attributes:
        module: qualified name of the innermost module whose inputs were finite and whose outputs were not.
        after, before: if an operation in that module's own forward did it, the last module without children whose
            outputs were finite, and the first whose inputs were not; "" if there is none.
    """

    module: str
    after: str = ""
    before: str = ""

    @property
    def between(self) -> str:
        """The operation's place in words; "" if it is that of a module without children, or unknown."""
        if not self.after and not self.before:
            return ""
        ends = [f"after {self.after}" * bool(self.after), f"before {self.before}" * bool(self.before)]
        return f"an operation {' and '.join(end for end in ends if end)} does it"


@dataclass(frozen=True)
class NotFinite:
    """A forward whose outputs are not finite.

    Attributes:
        mode: "evaluation" or "training": the mode of the model.
        place: where it begins; None if that was not seen.
        inputs: whether the model's inputs were already not finite.
    """

    mode: str
    place: Place | None = None
    inputs: bool = False

    @property
    def where(self) -> str | None:
        """Qualified name of the module where it begins; None if it was not seen."""
        return None if self.place is None else self.place.module


@dataclass(frozen=True)
class Constant:
    """Outputs of the model that do not vary over samples although its inputs do.

    Attributes:
        where: the norm at which the variation is lost, or right behind which; None if it is lost elsewhere.
        activation: the activation right behind the norm, if the variation is lost there; "" otherwise.
        spread: largest difference between two samples in the norm's output, or in that of the activation.
        before: the next module behind the norm, if an operation between the two lost the variation, "the outputs" if
            there is none; "" otherwise.
    """

    where: str | None
    activation: str = ""
    spread: float = 0.0
    before: str = ""


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


def first_not_finite(model: nn.Module, forward: Callable[[], Any]) -> Place | None:
    """Run a forward, and return where it stops being finite.

    Inner modules end before those around them, so it is the innermost one.
    """
    found: list[Place] = []
    seen = {"after": "", "before": ""}
    names = {module: name for name, module in model.named_modules()}

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if found:
            return
        given, given_on = is_finite((args, kwargs)), is_finite(out)
        is_leaf = not any(True for _ in module.children())
        if given and not given_on:
            found.append(Place(names[module]) if is_leaf else Place(names[module], **seen))
        elif is_leaf and given:
            seen["after"] = names[module]
        elif is_leaf and not seen["before"]:
            seen["before"] = names[module]

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
    return _where_variation_ends(model, forward) if are_constant(inputs, out) else None


def are_constant(inputs: Any, out: Any) -> bool:
    """Return whether outputs are the same for every sample although the inputs vary; False if nothing can be said."""
    given = [tensor for tensor in tensors_in(inputs) if tensor.ndim > 0 and tensor.shape[0] > 1]
    if not any(_varies(tensor) for tensor in given):
        return False
    samples = given[0].shape[0]
    outputs = [tensor for tensor in tensors_in(out) if tensor.is_floating_point() and tensor.numel() > 0]
    return bool(outputs) and all(y.ndim > 0 and y.shape[0] == samples and _is_constant(y) for y in outputs)


@dataclass(frozen=True)
class _Call:
    """A call of a norm or of a module without children.

    Attributes:
        module: the module.
        varies: whether its input varies over samples.
        given: largest difference between two samples in its input.
        still: whether its output is constant.
        spread: largest difference between two samples in its output.
        saturates: of a norm, whether some usual activation would make its output constant.
    """

    module: nn.Module
    varies: bool
    given: float
    still: bool
    spread: float
    saturates: bool

    @property
    def is_norm(self) -> bool:
        return kind_of(self.module) is not None


def _where_variation_ends(model: nn.Module, forward: Callable[[], Any]) -> Constant:
    """Look for the norm behind which nothing varies, then at the last call whose input still varies."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[_Call] = []

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        norm = kind_of(module) is not None
        if not norm and any(True for _ in module.children()):
            return
        x, y = next(iter(tensors_in((args, kwargs))), None), next(iter(tensors_in(out)), None)
        if x is None or y is None or min(x.ndim, y.ndim) == 0 or not y.is_floating_point():
            return
        spread = _spread(y)
        still = _is_constant(y) or (norm and spread <= _NORM * _scale(module))
        given = 0.0 if x.dtype == torch.bool or x.is_complex() or x.is_meta else _spread(x)
        saturates = norm and not still and any(_is_constant(f(y.detach())) for f in _ACTIVATIONS)
        calls.append(_Call(module, _varies(x), given, still, spread, saturates))

    with _after(model, leave):
        forward()
    first = next((i for i in range(len(calls)) if _loses_all(calls, i)), None)
    last = next((i for i in reversed(range(len(calls))) if calls[i].varies), None)
    if first is not None:
        return Constant(names[calls[first].module], spread=calls[first].spread)
    if last is None:
        return Constant(None)
    call = calls[last]
    if call.is_norm and not call.still and call.saturates:
        behind = names[calls[last + 1].module] if last + 1 < len(calls) else "the outputs"
        return Constant(names[call.module], before=behind)
    if not call.still:
        return Constant(None)
    if call.is_norm:
        return Constant(names[call.module], spread=call.spread)
    before = calls[last - 1] if last else call
    if any(True for _ in call.module.parameters()) or not before.is_norm:
        return Constant(None)
    return Constant(names[before.module], names[call.module], call.spread)


def _loses_all(calls: Sequence[_Call], i: int) -> bool:
    """Return whether a norm's output is constant, and nothing that varies more than by a trace passes it by."""
    call = calls[i]
    if not (call.is_norm and call.varies and call.still):
        return False
    behind = calls[i + 1 :]
    return all(c.still for c in behind if c.is_norm) and not any(
        c.varies and c.given > _TRACE * call.given for c in behind
    )


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
