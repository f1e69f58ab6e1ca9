"""Checks of the public functions' arguments. A message says what was expected, what was received and what to do."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gammabeta._torch_private import transforms_active
from gammabeta.activations import ACTIVATIONS
from gammabeta.reference import Affine

FLOATING = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))
"""The dtypes that norms take."""

RELEASE = (
    "Call it within `with gammabeta.release(model):`, where the norms are torch's; after it they are gammabeta's again."
)
"""What to do with a tool that takes only torch's own layers."""

_FLOATING = "float64, float32, bfloat16, float16"


def activation_name(norm: str, activation: str | None) -> str:
    """Return the activation's name in the op schemas.

    Raises:
        ValueError: there is no activation of that name.
    """
    if activation is None:
        return "none"
    if activation in ACTIVATIONS and activation != "none":
        return activation
    names = [a for a in ACTIVATIONS if a != "none"]
    hint = did_you_mean(str(activation), names, "apply any other yourself, after the norm.")
    raise ValueError(f"{norm}: expected activation None or one of {', '.join(names)}, got {activation!r}: {hint}")


def did_you_mean(
    given: str,
    known: Iterable[str],
    otherwise: str,
    *,
    most: int = 1,
    cutoff: float = 0.6,
    show: Callable[[str], str] = repr,
) -> str:
    """Suggest the known names nearest to what was given, as "did you mean 'relu'?".

    Args:
        given: what was given, which is none of the known names.
        known: the names that there are.
        otherwise: the hint where no name is near.
        most: how many names are suggested at most.
        cutoff: how near a name has to be, from 0 to 1, as `difflib.get_close_matches` counts.
        show: how a name is written; `str` leaves the quotes out.
    """
    near = difflib.get_close_matches(given, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(map(show, near))}?" if near else otherwise


def check_rank(layer: str, x: Tensor, shapes: str, ranks: tuple[int, ...]) -> None:
    """Raise a ValueError where x has another number of axes than `ranks`; `shapes` describes them."""
    refuse_proxy(layer, x)
    if x.ndim not in ranks:
        raise ValueError(f"{layer}: expected input of shape {shapes}, got {_shape(x)}: {_count_axes(x.ndim)}.")


def refuse_proxy(layer: str, x: Any) -> None:
    """Raise torch.fx's TraceError for one of its proxies, which has no shape that could be checked."""
    if isinstance(x, torch.fx.Proxy):
        raise torch.fx.proxy.TraceError(
            f"{layer}: expected a tensor, got a proxy of torch.fx, which can trace torch's own norms only. {RELEASE}"
        )


def nested_refusal(norm: str) -> ValueError:
    """Make the error that a channel norm raises for a NestedTensor."""
    return ValueError(
        f"{norm}: expected an input whose samples have one size, got a NestedTensor: its statistics are those of "
        "channels, axis 1, and of positions. Give it torch.nested.to_padded_tensor(input, 0.0), channels on axis 1, "
        "and mask= with True where input is real (gammabeta.lengths_to_mask); LayerNorm and RMSNorm take nested input."
    )


def check_channels(
    norm: str,
    x: Tensor,
    affine: Affine,
    statistics: tuple[Tensor | None, Tensor | None],
    residual: Tensor | None,
) -> None:
    """Check what a channel norm gets; `statistics` are running mean and variance.

    x is (N, C, *positions), the vectors are (C,), and the residual is of x's shape. All are floating point and on one
    device.
    """
    if x.is_nested:
        raise nested_refusal(norm)
    weight, bias = affine
    running_mean, running_var = statistics
    shape, device = x.shape[1:2], x.device
    if (
        residual is None
        and len(shape) == 1
        and (weight is None or (weight.shape == shape and weight.dtype in FLOATING and weight.device == device))
        and (bias is None or (bias.shape == shape and bias.dtype in FLOATING and bias.device == device))
        and (
            running_mean is None
            or (running_mean.shape == shape and running_mean.dtype in FLOATING and running_mean.device == device)
        )
        and (
            running_var is None
            or (running_var.shape == shape and running_var.dtype in FLOATING and running_var.device == device)
        )
        and x.dtype in FLOATING
    ):
        return  # all is right, found out at once: a call on little data pays for no more than this
    _check_floating(norm, x)
    if x.ndim < 2:
        raise ValueError(
            f"{norm}: expected input of shape (N, C) or (N, C, *positions), got {_shape(x)}: "
            "add the missing axes with input.unsqueeze(0)."
        )
    channels = x.shape[1]
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check_alike(norm, x, vectors)
    for name, tensor in vectors.items():
        if tensor is not None and (tensor.ndim != 1 or tensor.shape[0] != channels):
            raise ValueError(
                f"{norm}: expected {name} of shape ({channels},), got {_shape(tensor)}: "
                f"{channels} is input.shape[1] of input {_shape(x)}."
            )
    check_residual(norm, x, residual)


def check_normalized(
    norm: str,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Check what a norm over the last axes gets.

    x ends with normalized_shape, which is the shape of weight and bias; the residual is of x's shape; all are floating
    point and on one device.
    """
    shape, device = tuple(normalized_shape), x.device
    if (
        residual is None
        and shape
        and x.shape[-len(shape) :] == shape
        and (weight is None or (weight.shape == shape and weight.dtype in FLOATING and weight.device == device))
        and (bias is None or (bias.shape == shape and bias.dtype in FLOATING and bias.device == device))
        and x.dtype in FLOATING
    ):
        return
    _check_floating(norm, x)
    if not shape:
        raise ValueError(
            f"{norm}: expected normalized_shape with at least one size, got (): name the last axes of input."
        )
    if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ValueError(
            f"{norm}: expected input whose shape ends with normalized_shape {shape}, got {_shape(x)}: "
            "the last axes are the normalized ones."
        )
    vectors = {"weight": weight, "bias": bias}
    _check_alike(norm, x, vectors)
    for name, tensor in vectors.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{norm}: expected {name} of normalized_shape {shape}, got {_shape(tensor)}.")
    check_residual(norm, x, residual)


def check_groups(num_groups: int, x: Tensor) -> None:
    """Raise a ValueError where the groups do not divide the channels, or have one value."""
    channels = x.shape[1]
    if num_groups <= 0 or channels % num_groups != 0:
        raise ValueError(
            f"group_norm: expected num_groups that divides the {channels} channels of input.shape[1], got {num_groups}."
        )
    if x.shape[0] * (channels // num_groups) * math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"group_norm: expected more than 1 value per group, got 1 from input {_shape(x)} in {num_groups} groups: "
            "the variance of one value is 0 and the output would be the bias whatever comes in. Use fewer groups."
        )


def check_eps(norm: str, eps: float, *, positive: bool) -> None:
    """Raise a ValueError where ε is negative, or is 0 and has to be positive."""
    if eps < 0 or (positive and eps == 0):
        bound = "eps > 0 in training" if positive else "eps ≥ 0"
        raise ValueError(f"{norm}: expected {bound}, got {eps}: it keeps the division by √(σ² + eps) defined.")


def check_values_per_channel(x: Tensor) -> None:
    """Raise a ValueError where a channel has one value: by its own statistics the output would be the bias."""
    if x.numel() == x.shape[1] > 0:
        raise ValueError(
            "batch_norm: expected more than 1 value per channel in training, and in evaluation without running "
            f"statistics, got 1 from input {_shape(x)}: the variance of one value is 0 and the output would be the "
            "bias whatever comes in. Use a larger batch (drop_last=True where the loader's last one is 1), eval() with "
            "running statistics, or a norm that needs no batch: LayerNorm, GroupNorm."
        )


def check_values_per_instance(x: Tensor) -> None:
    """Raise a ValueError where a channel of a sample has one position."""
    if math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"instance_norm: expected more than 1 position per channel and sample, got 1 from input {_shape(x)}: the "
            "variance of one value is 0 and the output would be the bias whatever comes in. Use LayerNorm or "
            "GroupNorm there."
        )


def laid_out(x: Tensor, *, channels_last: bool = True) -> Tensor:
    """Return x, copied where its axes are permuted.

    y gets the layout of x, and code that takes a view of torch's output must be able to take one of y. Of permuted
    layouts, torch's norms keep only channels_last, and that only where `channels_last` is true.
    """
    if x.is_contiguous() or transforms_active():
        return x
    if x.ndim in (4, 5):
        last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=last):
            return x if channels_last else x.contiguous()
        strides = [x.stride(axis) for axis in (0, *range(2, x.ndim), 1)]
        if channels_last and x.shape[1] > 1 and _falling(strides) and strides[0] > strides[-1]:
            return x.contiguous(memory_format=last)  # some of the channels
    strides = [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]
    return x if _falling(strides) else x.contiguous()


def _falling(strides: list[int]) -> bool:
    """Return whether no stride is larger than the one before. A compiler that keeps sizes open cannot sort by them."""
    return all(outer >= inner for outer, inner in itertools.pairwise(strides))


def _check_floating(norm: str, x: Tensor) -> None:
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{norm}: expected input of a floating point dtype ({_FLOATING}), got {x.dtype}: convert it with "
            "input.float()."
        )


def _check_alike(norm: str, x: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
    """Check that every tensor is on x's device and of a dtype that norms take."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise RuntimeError(
                f"{norm}: Expected all tensors to be on the same device, but found at least two devices, {x.device} "
                f"(input) and {tensor.device} ({name}): move the layer with .to(input.device), or load what was left "
                "on the meta device."
            )
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{norm}: expected {name} of a floating point dtype ({_FLOATING}), got {tensor.dtype}: convert it "
                f"with {name}.float()."
            )


def check_residual(norm: str, x: Tensor, residual: Tensor | None) -> None:
    """Check that the residual, if given, has the shape and the device of x and a dtype that norms take."""
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(
            f"{norm}: expected residual of input's shape {_shape(x)}, got {_shape(residual)}: it is added element "
            "by element."
        )
    _check_alike(norm, x, {"residual": residual})


def _count_axes(axes: int) -> str:
    return "it has 1 axis" if axes == 1 else f"it has {axes} axes"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
