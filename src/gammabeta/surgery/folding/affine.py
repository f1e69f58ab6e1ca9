"""What a norm computes in evaluation: one scale and shift per channel, and what its module does after that."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gammabeta.activations import ACTIVATIONS, activate
from gammabeta.introspection.neighbours import Refusal
from gammabeta.introspection.norms import CLASS, norm_of
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.layers.instance_norm import _InstanceNorm

_TORCH = nn.modules.batchnorm._NormBase
# Forwards that are known to normalize by the running statistics and do nothing else.
_PLAIN = (
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    nn.modules.instancenorm._InstanceNorm.forward,
)
# Relative, for outputs in float64: some hundred roundings.
_SAME = 1e-12


@dataclass(frozen=True)
class Affine:
    """y = rest(x·scale + shift) on axis 1 of x.

    Attributes:
        scale, shift: float64, (C,).
        rest: what comes after; None for nothing. A residual that the norm was given is its second argument.
    """

    scale: Tensor
    shift: Tensor
    rest: nn.Module | None


class Finish(nn.Module):
    """The remainder of a norm that is folded away: y = activation(x + residual)."""

    def __init__(self, activation: str | None, slope: float) -> None:
        super().__init__()
        self.activation = activation
        self.slope = slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        z = input if residual is None else input + residual
        return activate(z, self.activation or "none", self.slope)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class MultiplyAdd(nn.Module):
    """A norm in evaluation: y = rest(x·scale + shift) for each channel, axis 1.

    Attributes:
        scale, shift: buffers, (C,).
        rest: what comes after; None for nothing. A residual is passed on to it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, rest: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.rest = rest

    def forward(self, input: Tensor, *residual: Tensor) -> Tensor:
        axes = (1, -1) + (1,) * (input.ndim - 2)
        y = torch.addcmul(self.shift.view(axes), input, self.scale.view(axes))
        y = y if y.dtype == input.dtype else y.to(input.dtype)
        return y if self.rest is None else self.rest(y, *residual)

    def extra_repr(self) -> str:
        return f"{len(self.scale)}"


def is_candidate(module: nn.Module) -> bool:
    """Return whether the module normalizes, or may normalize, by running statistics of its own.

    That is any BatchNorm of torch.nn or ours, and an InstanceNorm that tracks. So is any other module that holds
    running statistics, as the frozen norms of other libraries do.
    """
    norm = norm_of(module)
    return norm is not None and (norm.uses_running or (norm.kind == "batch" and norm.known_by == CLASS))


def affine_of(norm: nn.Module) -> Affine:
    """Return the scale and shift of a norm in evaluation, and the rest of its forward.

        scale = γ/√(σ² + ε)   shift = β − μ·scale        all (C,), in float64

    A subclass with a forward of its own, or another class, is taken for a multiply-add and what follows it: the modules
    that it holds, in their order, or one activation. In float64, on random numbers, it must compute exactly that.

    Raises:
        Refusal: the norm has no running statistics, they are not finite, or its forward does something else.
    """
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or var is None:
        raise Refusal("it has no running statistics: its output depends on the batch")
    if norm.training:
        raise Refusal("it is in training mode: call model.eval() first")
    if isinstance(norm, _TORCH):
        scale, shift = _by_statistics(norm, mean, var)
        plain = type(norm).forward in _PLAIN
        if isinstance(norm, _BatchNorm | _InstanceNorm) and type(norm).forward in (
            _BatchNorm.forward,
            _InstanceNorm.forward,
        ):
            return Affine(scale, shift, Finish(norm.activation, norm.activation_slope))
    else:
        scale, shift = _by_probing(norm, len(mean))
        plain = False
    if not (torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise Refusal(
            "its running statistics or parameters are not finite, or a variance is negative",
            "mend GB404 or GB102 first",
        )
    if plain:
        return Affine(scale, shift, None)
    return Affine(scale, shift, _rest(norm, scale, shift))


def _by_statistics(norm: nn.modules.batchnorm._NormBase, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(var.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


@torch.no_grad()
def _by_probing(norm: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Return scale and shift from the module's outputs for zeros and ones, without its children."""
    bare = _in_float64(norm)
    for name, child in bare.named_children():
        setattr(bare, name, nn.Identity().train(child.training))
    zeros = _probe(bare, channels).new_zeros((1, channels, 1, 1))
    shift, both = _call(bare, zeros), _call(bare, zeros + 1)
    if shift.shape != zeros.shape or both.shape != zeros.shape:
        raise Refusal(f"it is no norm of channels: {type(norm).__qualname__}.forward changes the shape")
    return (both - shift).flatten(), shift.flatten()


@torch.no_grad()
def _rest(norm: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module | None:
    """Return what the module computes after scale and shift, tested on random numbers."""
    exact = _in_float64(norm)
    channels = len(scale)
    # In every channel, x·scale + shift takes both signs and passes the kinks of activations.
    z = torch.linspace(-8, 8, 36, dtype=torch.float64, device=scale.device).view(-1, 1, 1).expand(-1, channels, 1)
    z = z[torch.randperm(36, generator=torch.Generator().manual_seed(0))].reshape(4, 3, 3, channels)
    z = z.permute(0, 3, 1, 2)
    if isinstance(norm, nn.BatchNorm1d):
        z = z.flatten(2)
    elif isinstance(norm, nn.BatchNorm3d):
        z = z.unsqueeze(-1)
    axes = (1, -1) + (1,) * (z.ndim - 2)
    usable = torch.where(scale == 0, 1.0, scale)
    x = (z - shift.view(axes)) / usable.view(axes)
    z = x * scale.view(axes) + shift.view(axes)
    expected = _call(exact, x)

    def matches(y: Tensor) -> bool:
        return y.shape == expected.shape and bool((y - expected).abs().max() <= _SAME * (1 + expected.abs().max()))

    if matches(z):
        return None
    children = [child for child in norm.children() if type(child) is not nn.Identity]
    if children:
        chain = nn.Sequential(*children)
        if matches(_call(_in_float64(chain), z.clone())):
            return children[0] if len(children) == 1 else chain
    for name in ACTIVATIONS:
        if matches(activate(z, name, 0.01)):
            return Finish(name, 0.01)
    raise Refusal(
        f"{type(norm).__qualname__}.forward does more than scale and shift each channel and then call the modules "
        "that it holds"
    )


def _in_float64(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).double()
    except Exception as error:  # whatever a foreign module raises: it cannot be examined
        raise Refusal(f"it cannot be copied: {type(error).__name__}: {error}") from error


def _probe(module: nn.Module, channels: int) -> Tensor:
    return next((b for b in module.buffers() if b.shape == (channels,)), torch.zeros(channels, dtype=torch.float64))


def _call(module: nn.Module, x: Tensor) -> Tensor:
    try:
        out = module(x)
    except Exception as error:  # whatever a foreign module raises: it is none that we know
        raise Refusal(
            f"{type(module).__qualname__}.forward does not take one tensor (N, C, …): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(out, Tensor):
        raise Refusal(f"{type(module).__qualname__}.forward returns {type(out).__qualname__}, not one tensor")
    return out
