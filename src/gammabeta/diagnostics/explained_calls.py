"""What torch's messages about a norm that was called mean: the cause, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from gammabeta.introspection.norms import is_ours, kind_of, norm_of


@dataclass
class Failure:
    """An exception, and what was running when it was raised.

    Attributes:
        message: the exception's.
        norm: the innermost norm that was running; None where none was found. An explanation may set it.
        x: the norm's input.
        models: the modules to look a norm up in: the user's model, then all that were running, outermost first.
        values: the local variables of the frames, outermost first.
        raised: whether there is a traceback.
    """

    message: str
    norm: Any = None
    x: Tensor | None = None
    models: list[nn.Module] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    raised: bool = True


Explain: TypeAlias = "Callable[[Failure], tuple[str, str] | None]"
"""Returns the cause and what to do; None where the failure is not the one it knows."""


def called(norm: Any) -> str:
    """Name a norm by its class."""
    return "the norm" if norm is None else f"the {type(norm).__name__}"


def _than(norm: Any) -> str:
    groups = getattr(norm, "num_groups", None)
    return f" than {groups}" if isinstance(groups, int) else ""


def shape_of(x: Tensor | None) -> str:
    """Describe an input by its shape."""
    return "an input" if x is None else f"an input of shape {tuple(x.shape)}"


def _one_value(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    kind = "" if norm is None else kind_of(norm)
    if kind == "group":
        return (
            f"{called(norm)} got {shape_of(x)}: one value in each group of a sample, so the output would be β.",
            f"Use fewer groups{_than(norm)}, or another norm in its place.",
        )
    smallest = "" if x is None or x.dim() < 2 else f"; the smallest batch it accepts is {2 if x.shape[0] else 1}"
    if norm is not None and not norm.training:
        return (
            f"{called(norm)} has no running statistics and takes the batch's in evaluation too, and got {shape_of(x)}: "
            f"one value per channel, whose variance is 0{smallest}.",
            "Make it with track_running_stats=True and train it, or use GroupNorm or LayerNorm in its place.",
        )
    return (
        f"{called(norm)} in training got {shape_of(x)}: one value per channel, whose variance is 0{smallest}.",
        "Drop the last, smaller batch (drop_last=True in the DataLoader), call model.eval() if nothing is trained, or "
        "use GroupNorm or LayerNorm after the pooling.",
    )


def _one_position(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    return (
        f"{called(norm)} got {shape_of(x)}: one position per channel of a sample, so the output would be β.",
        "Remove the norm after pooling to 1×1, or use GroupNorm or LayerNorm there.",
    )


def _synchronized(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    device = "another device" if x is None else x.device.type
    return (
        f"{called(norm)} synchronizes its statistics only on accelerators; its input is on {device}.",
        "Call gammabeta.adopt(model) and gammabeta.set_statistics(model, gammabeta.statistics.Synced()), which works "
        "over gloo too; in one process adopt is enough.",
    )


def _channels(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    # "running_mean should contain 5 elements not 4": the first number is the input's.
    told = re.search(r"should contain (\d+) elements not (\d+)", failure.message)
    assert told is not None
    got, features = int(told[1]), int(told[2])
    if x is not None and x.dim() > 1:
        axis = next((axis for axis in range(2, x.dim()) if x.shape[axis] == features), None)
        if axis is not None:
            return (
                f"{called(norm)} has {features} channels and got {shape_of(x)}, which has {got} on axis 1 and "
                f"{features} on axis {axis}: the channels are on another axis.",
                f"Move them: x.movedim({axis}, 1).",
            )
    return (
        f"{called(norm)} has {features} channels and got {shape_of(x)}, which has {got} on axis 1.",
        f"Build it with {got} channels, or give it an input with {features}.",
    )


def _dimensions(failure: Failure) -> tuple[str, str] | None:
    norm, x = failure.norm, failure.x
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return None
    if x is not None and x.dim() > 2 and x.shape[0] == getattr(norm, "num_features", None):
        return (
            f"{called(norm)} got {shape_of(x)}: {failure.message}. The first axis has as many entries as the norm has "
            "channels: the batch axis is missing.",
            "Add it: x.unsqueeze(0).",
        )
    kinds = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    right = None if x is None else kinds.get(x.dim())
    return (
        f"{called(norm)} got {shape_of(x)}: {failure.message}.",
        f"For such an input use {right}." if right else "The input needs a batch and a channel axis.",
    )


def _dtypes(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    if norm is not None and x is not None and not x.is_floating_point():
        return (
            f"{called(norm)} got {str(x.dtype).removeprefix('torch.')}, and normalizes floating point numbers.",
            "Convert the input before the model: x.float(), for images usually x.float() / 255; complex numbers as two "
            "real ones, torch.view_as_real(x).",
        )
    tensors = [] if norm is None else [*norm.parameters(recurse=False), *norm.buffers(recurse=False)]
    own = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()})
    got = "another dtype" if x is None else str(x.dtype).removeprefix("torch.")
    return (
        f"{called(norm)} holds {' and '.join(own) or 'another dtype'} and got {got}, a mixture that torch's kernel "
        "does not accept.",
        "Run the model under torch.autocast, cast the input to the model's dtype, or gammabeta.adopt(model): its "
        "layers accept any mixture and keep their statistics in float32.",
    )


def _groups_of_channels(failure: Failure) -> tuple[str, str]:
    """Explain groups that do not divide the channels, in the constructor or in a call."""
    norm, x, message = failure.norm, failure.x, failure.message
    built = re.search(r"num_channels \((\d+)\) must be divisible by num_groups \((\d+)\)", message)
    used = re.search(r"input of shape \[(\d+), (\d+).*num_groups=(\d+)", message)
    channels, groups = getattr(norm, "num_channels", None), getattr(norm, "num_groups", None)
    if built is None and isinstance(channels, int) and isinstance(groups, int):
        return (
            f"{called(norm)} has {channels} channels in {groups} groups and got {shape_of(x)}.",
            "Channels belong on axis 1, in the number that it was built with.",
        )
    if built is None and used is None:
        return f"{called(norm)} got {shape_of(x)}, whose channels it cannot divide into its groups.", "Match the two."
    count, many = (built[1], built[2]) if built is not None else (used[2], used[3])  # type: ignore[index]
    best = next(n for n in range(min(int(many), int(count)), 0, -1) if int(count) % n == 0)
    return (
        f"{count} channels cannot be divided into {many} groups of equal size.",
        f"Use {best} groups, the largest divisor of {count} up to {many}, or another number of channels.",
    )


def _weight_of_channels(failure: Failure) -> tuple[str, str] | None:
    told = re.search(r"(weight|bias) of shape \[(\d+)\] and input of shape \[(\d+), (\d+)", failure.message)
    if told is None:
        return _groups_of_channels(failure)
    return (
        f"{called(failure.norm)} holds a {told[1]} of {told[2]} channels and got {shape_of(failure.x)}, which has "
        f"{told[4]} on axis 1.",
        "Channels belong on axis 1, in the number that it was built with.",
    )


def _normalized(failure: Failure) -> tuple[str, str]:
    norm, x = failure.norm, failure.x
    told = re.search(r"normalized_shape=\[([\d, ]*)\]", failure.message)
    shape = tuple(int(size) for size in told[1].split(",")) if told is not None else ()
    hint = "Build it with the sizes of the last axes, or give it an input that ends in them."
    if x is not None and len(shape) == 1 and x.dim() > 1 and x.shape[1] == shape[0]:
        hint = (
            "The channels are on axis 1: use x.movedim(1, -1) before it and back after it, or GroupNorm(1, channels)."
        )
    return f"{called(norm)} normalizes the last axes, of shape {shape}, and got {shape_of(x)}.", hint


def _transformed(failure: Failure) -> tuple[str, str] | None:
    """Explain a torch.func transform that met a norm whose running statistics it would move."""
    norm = None if failure.norm is None else norm_of(failure.norm)
    if norm is not None and not (norm.uses_running or norm.tracks):
        return None
    if norm is None and not failure.message.startswith(("Batch norm got", "running statistics: expected buffers")):
        return None
    return (
        f"{called(failure.norm)} in training moves its running statistics in place, and a transform of torch.func "
        "(vmap, grad, jacrev) cannot write to tensors that are not its arguments.",
        "To use the running statistics as they are, call model.eval(). To normalize by the batch and leave them, run "
        "it within `with gammabeta.frozen_statistics(model):`. To move them under grad, hand the buffers to the "
        "function as arguments, and to the model by torch.func.functional_call(model, (parameters, buffers), inputs). "
        "Under vmap over samples each sample is a batch of its own: "
        'gammabeta.convert(model, "group") gives norms that do not read other samples.',
    )


def _not_ddp(failure: Failure) -> tuple[str, str]:
    return (
        "DistributedDataParallel refuses torch's SyncBatchNorm on a CPU, whose forward in training raises there.",
        "Call gammabeta.adopt(model) first: its BatchNorms synchronize their statistics over gloo too.",
    )


def _one_dtype(failure: Failure) -> tuple[str, str]:
    return (
        "FSDP needs one dtype for the parameters that it shards together, but gammabeta's norms stay float32 in a "
        "model that is cast to 16 bits.",
        "Cast them too: gammabeta.adopt(model, keep_float32=False) before the cast (or again, and cast again); or give "
        "the norms their own group, fully_shard([all norms]).",
    )


def _needs_torchs(tool: str) -> Explain:
    """Return the explanation for a tool that accepts only torch's own classes and met one of gammabeta's."""

    def explain(failure: Failure) -> tuple[str, str] | None:
        norm = failure.norm
        if norm is None and (not failure.raised or "gammabeta" in failure.message):
            # Nothing tells which norm it was, as in a message from a log: any of the model's will do.
            ours = (module for model in failure.models for module in model.modules() if is_ours(module))
            failure.norm = norm = next(ours, None)
        if norm is None or not is_ours(norm):
            return None
        return (
            f"the {type(norm).__name__} is gammabeta's, but {tool} accepts only torch's own classes.",
            "Call it within `with gammabeta.release(model):`, where the norms are torch's; after it they are "
            "gammabeta's again. Norms with features that torch's lack (an activation, another source of statistics) "
            "are not released: print the `Change`.",
        )

    return explain


CALLS: tuple[tuple[str, Explain], ...] = (
    (r"Expected more than 1 value per channel when training", _one_value),
    (r"Expected more than 1 spatial element when training", _one_position),
    (r"SyncBatchNorm expected input tensor to be on", _synchronized),
    (r"running_(mean|var) should contain \d+ elements not \d+", _channels),
    (r"expected (2D or 3D|4D|5D|at least 2D) input \(got \d+D input\)", _dimensions),
    (r"mixed dtype \(CPU\)|expect(ed)? (parameter|scalar type|input) .*(scalar type|but found)", _dtypes),
    (r"divisible by num_groups", _groups_of_channels),
    (r"Expected (weight|bias) to be a vector of size equal to the number of channels", _weight_of_channels),
    (r"Given normalized_shape=", _normalized),
    (
        r"Batch norm got a batched tensor as input|running statistics: expected buffers that are arguments|"
        r"transform, the function provided attempted to call in-place operation|vmap: inplace arithmetic|"
        r"output with shape \[.*\] doesn't match the broadcast shape",
        _transformed,
    ),
    (r"uniform (original parameter )?dtype but got", _one_dtype),
    (r"SyncBatchNorm layers only work with GPU modules", _not_ddp),
    (r"symbolically traced variables|symbolic tracing|Proxy object cannot be|torch\.fx", _needs_torchs("torch.fx")),
    # TorchScript quotes the source that it does not accept.
    (r"gammabeta[/\\][\w/\\]+\.py|torch\.jit\.script: expected", _needs_torchs("torch.jit.script")),
    (r"did not find fuser method for", _needs_torchs("torch.ao's fuse_modules")),
    (
        r"'Quantized\w+' backend|of a floating point dtype.*got torch\.q",
        _needs_torchs("torch.ao's quantization"),
    ),
    (r"Expanded Weights encountered but cannot handle function", _needs_torchs("torch's ExpandedWeight")),
)
