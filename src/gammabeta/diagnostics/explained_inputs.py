"""What torch's messages mean about what a norm was given: no tensor, another device, a dtype without a kernel."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from gammabeta.diagnostics.explained_calls import Explain, Failure, called, shape_of
from gammabeta.introspection.norms import norm_of

_MOVE = (
    "Move the whole model, model.to(x.device), before the optimizer is built: .to() moves buffers too, but no tensors "
    "in plain attributes, and no layer that the model holds in a list."
)


_INSTEAD = {
    "tuple": (
        "a tuple",
        "A recurrent layer or an attention returns a tuple: give the norm its first item, x, _ = layer(x).",
    ),
    "PackedSequence": (
        "a PackedSequence",
        "Norm what it holds, packed._replace(data=norm(packed.data)), which has no padding; or unpack it with "
        "torch.nn.utils.rnn.pad_packed_sequence.",
    ),
    "ndarray": ("a NumPy array", "Convert it: torch.from_numpy(x)."),
    "NoneType": ("None", "What is before it returns nothing."),
}


def _no_tensor(failure: Failure) -> tuple[str, str] | None:
    """Explain an input that is a tuple, a PackedSequence or an array."""
    message = failure.message
    told = re.search(r"must be Tensor, not ([\w.]+)|'([\w.]+)' object has no attribute '(?:dim|shape|size)'", message)
    if failure.norm is None or failure.x is not None or told is None:
        return None
    given = (told[1] or told[2]).rpartition(".")[2]
    got, fix = _INSTEAD.get(given, (f"an object of class {given}", "Give it a tensor."))
    return f"{called(failure.norm)} takes a tensor and got {got}.", fix


def _devices(failure: Failure) -> tuple[str, str] | None:
    """Explain an input on another device than the norm's parameters and buffers."""
    norm, x = failure.norm, failure.x
    if norm is None and re.search(r"(batch|layer|group|instance|rms)_norm", failure.message) is None:
        return None
    if norm is None:
        return "a norm and its input are on different devices.", _MOVE
    held = {tensor.device.type for tensor in (*norm.parameters(recurse=False), *norm.buffers(recurse=False))}
    if "meta" in held or (x is not None and x.is_meta):
        if x is not None and x.is_meta:
            return (
                f"{called(norm)} got an input on the meta device, which has a shape and no values, and holds values.",
                "Give the model an input with values, or put the model on the meta device too.",
            )
        return (
            f"{called(norm)} is on the meta device: its γ, β or statistics have no values.",
            "Load the checkpoint with load_state_dict(state_dict, assign=True), buffers included. Without one call "
            "model.to_empty(device=…), then reset_parameters() of every layer: to_empty leaves values of any size, in "
            "running statistics too.",
        )
    own = {name for name, tensor in norm.named_buffers(recurse=False) if x is not None and tensor.device != x.device}
    left = f" Its buffers {' and '.join(sorted(own))} are there." if own and len(held) > 1 else ""
    return (
        f"{called(norm)} is on {' and '.join(sorted(held)) or 'another device'} and got {_placed(x)}.{left}",
        _MOVE,
    )


def _placed(x: Tensor | None) -> str:
    return "an input on another one" if x is None else f"an input on {x.device.type}"


def _no_kernel(failure: Failure) -> tuple[str, str] | None:
    """Explain a dtype that no kernel of a norm takes."""
    told = re.search(r"not implemented for '(\w+)'", failure.message)
    if told is None or (failure.norm is None and failure.raised and "orm" not in failure.message):
        return None
    dtype = told[1]
    if dtype in ("Half", "BFloat16"):
        fix = "Run it in float32 there, or gammabeta.adopt(model), whose layers take 16 bits on every device."
    elif dtype.startswith("Complex"):
        fix = "Norm real and imaginary parts as channels, torch.view_as_real(x), or write the norm for complex numbers."
    else:
        fix = "Convert the input before the model: x.float(), for images usually x.float() / 255."
    return f"{called(failure.norm)} got {dtype}, and torch has no kernel for norms of it.", fix


def _instance_channels(failure: Failure) -> tuple[str, str]:
    told = re.search(r"dim=(\d+) to match num_features \((\d+)\), but got: (\d+)", failure.message)
    assert told is not None
    return (
        f"{called(failure.norm)} has {told[2]} channels and got {shape_of(failure.x)}, which has {told[3]} on axis "
        f"{told[1]}.",
        f"Build it with {told[3]} channels, or give it an input with {told[2]}.",
    )


def _instance_dimensions(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    right = {3: "InstanceNorm1d", 4: "InstanceNorm2d", 5: "InstanceNorm3d"}.get(0 if x is None else x.dim())
    return (
        f"{called(norm)} got {shape_of(x)}: {failure.message}.",
        f"For such an input use {right}."
        if right and right != type(norm).__name__
        else "Each channel of a sample needs positions; for (N, C) use LayerNorm or BatchNorm1d.",
    )


def _no_statistics(failure: Failure) -> tuple[str, str]:
    return (
        f"{called(failure.norm)} normalizes by running statistics in evaluation, and has none.",
        "Hand running_mean and running_var to batch_norm, or training=True for the batch's. A layer with "
        "track_running_stats=False does the latter in both modes.",
    )


def _affine_shape(failure: Failure) -> tuple[str, str]:
    told = re.search(
        r"but got (weight|bias) of shape \[([\d, ]*)\] and normalized_shape = \[([\d, ]*)\]", failure.message
    )
    got = "another shape" if told is None else f"{told[1]} of shape ({told[2]}) for ({told[3]})"
    return (
        f"{called(failure.norm)} needs γ and β of the normalized shape, and got {got}.",
        "They have the sizes of the last axes, in their order.",
    )


def _written_to(failure: Failure) -> tuple[str, str] | None:
    """Explain a backward whose saved running statistics or γ have been written to since the forward."""
    told = re.search(r"Tensor \[(\d+)\]\] is at version (\d+); expected version (\d+)", failure.message)
    if told is None:
        return None
    model = next((m for m in failure.models if _holds_buffer(m, int(told[1]))), None)
    if model is None:
        return None
    failure.norm = None
    parallel = any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules())
    why = (
        f"a vector of {told[1]} values that a forward kept for its backward was written to before that: the model has "
        "BatchNorms of so many channels, and their running statistics are written to by "
    )
    if parallel:
        return (
            f"{why}each forward, in which DistributedDataParallel copies them from the first process.",
            "Call the model once on both batches, torch.cat, before the backward. Or DistributedDataParallel(model, "
            "broadcast_buffers=False), and gammabeta.reconcile(model) before evaluation; or gammabeta.adopt(model) and "
            "gammabeta.set_statistics(model, gammabeta.statistics.Synced()), whose statistics are alike anyway.",
        )
    return (
        f"{why}forwards in training, loads of a state_dict and averages.",
        "Call backward before the next of these, or run the extra forward within "
        "`with gammabeta.frozen_statistics(model):`.",
    )


def _holds_buffer(model: nn.Module, size: int) -> bool:
    return any(
        name.endswith(("running_mean", "running_var")) and tuple(buffer.shape) == (size,)
        for name, buffer in model.named_buffers()
    )


def _inference(failure: Failure) -> tuple[str, str] | None:
    """Explain tensors that were made under inference_mode and stayed in a norm."""
    norm: Any = failure.norm
    if norm is None or norm_of(norm) is None:
        return None
    tensors = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    made = [name for name, tensor in tensors.items() if tensor.is_inference()]
    if not made:
        return None
    return (
        f"{called(norm)} holds {' and '.join(made)} made under torch.inference_mode(), where autograd cannot use or "
        "write to them later.",
        "Build, load and recalibrate under torch.no_grad() instead, or replace each: norm.running_mean = "
        "norm.running_mean.clone().",
    )


INPUTS: tuple[tuple[str, Explain], ...] = (
    (r"must be Tensor, not|object has no attribute '(dim|shape|size)'", _no_tensor),
    (r"is not on the expected device|Expected all tensors to be on the same device", _devices),
    (r"not implemented for '\w+'", _no_kernel),
    (r"input's size at dim=\d+ to match num_features", _instance_channels),
    (r"expected (2D or 3D|3D or 4D|4D or 5D) input \(got \d+D input\)", _instance_dimensions),
    (r"running_(mean|var) must be defined in evaluation mode", _no_statistics),
    (r"Expected (weight|bias) to be of same shape as normalized_shape", _affine_shape),
    (r"modified by an inplace operation", _written_to),
    (r"[Ii]nference tensors? ", _inference),
)
