"""Explanations of torch's errors about norms, and of tools that accept only torch's own classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn

from gammabeta.introspection.norms import is_ours, kind_of


@dataclass(frozen=True)
class Explanation:
    """Explanation of one of torch's exceptions.

    Attributes:
        where: the norm's qualified name; "" if it is the model itself, or was not found.
        why: the cause, in a sentence.
        fix: what to do.
    """

    where: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why} {self.fix}" if self.where else f"{self.why} {self.fix}"


def explain_error(exception: BaseException, model: nn.Module | None = None) -> Explanation | None:
    """Say which norm caused one of torch's exceptions, why, and what to do.

    Args:
        exception: the exception as caught, with its traceback: the norm and its input are looked up there.
        model: the model in which the norm gets its name; None takes the outermost module in the traceback.

    Returns:
        The `Explanation`; None if the message is not a known one about norms.
    """
    message = str(exception)
    for pattern, explain in _KNOWN:
        if re.search(pattern, message):
            norm, x, roots = _running(exception)
            explained = explain(norm, x, message)
            if explained is not None:
                return Explanation(_name(norm, roots if model is None else [model, *roots]), *explained)
    return None


@contextmanager
def explained_errors(model: nn.Module | None = None) -> Iterator[None]:
    """Re-raise torch's normalization errors with an explanation attached; leave all others unchanged.

    The type stays. The explanation is a note (`BaseException.add_note`); on Python 3.10, which has no notes, it is
    appended to the message.

    Args:
        model: the model in which the norm gets its name; None takes the outermost module in the traceback.
    """
    try:
        yield
    except Exception as error:
        explanation = explain_error(error, model)
        if explanation is not None:
            if hasattr(error, "add_note"):
                error.add_note(f"gammabeta: {explanation}")
            else:
                error.args = (f"{error}\ngammabeta: {explanation}",)
        raise


def _running(exception: BaseException) -> tuple[Any, Tensor | None, list[nn.Module]]:
    """Return the innermost norm that was running, its input, and all running modules, outermost first."""
    norm: nn.Module | None = None
    x: Tensor | None = None
    roots: list[nn.Module] = []
    step = exception.__traceback__
    while step is not None:
        values = step.tb_frame.f_locals
        for module in _modules_of(step.tb_frame):
            if not isinstance(module, nn.parallel.DistributedDataParallel):
                roots.append(module)
            if kind_of(module) is not None:
                norm = module
                given = next((values[n] for n in ("input", "x") if isinstance(values.get(n), Tensor)), None)
                x = given if given is not None else x
        step = step.tb_next
    return norm, x, roots


def _modules_of(frame: FrameType) -> list[nn.Module]:
    """Return the modules of a frame: the one whose method it is, or those that torch.jit or torch.ao works on."""
    values = frame.f_locals
    about = [values.get("self")]
    if str(frame.f_globals.get("__name__")).startswith("torch."):
        listed = values.get("mod_list")
        about += [values.get("nn_module"), values.get("model"), *(listed if isinstance(listed, list) else [])]
    return [module for module in about if isinstance(module, nn.Module)]


def _name(norm: nn.Module | None, roots: list[nn.Module]) -> str:
    """Return the norm's name in the first module that has it: some tools work on a copy of the model."""
    for root in roots:
        for name, module in root.named_modules():
            if module is norm:
                return str(name)
    return ""


def _called(norm: Any) -> str:
    return "the norm" if norm is None else f"the {type(norm).__name__}"


def _shape(x: Tensor | None) -> str:
    return "an input" if x is None else f"an input of shape {tuple(x.shape)}"


def _one_value(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    kind = "" if norm is None else kind_of(norm)
    if kind == "group":
        return (
            f"{_called(norm)} got {_shape(x)}: one value in each group of a sample, so the output would be β.",
            f"Use fewer groups than {norm.num_groups}, or another norm in its place.",
        )
    smallest = "" if x is None or x.dim() < 2 else f"; the smallest batch it accepts is {2 if x.shape[0] else 1}"
    return (
        f"{_called(norm)} in training got {_shape(x)}: one value per channel, whose variance is 0{smallest}.",
        "Drop the last, smaller batch (drop_last=True in the DataLoader), call model.eval() if nothing is trained, or "
        "use GroupNorm or LayerNorm after the pooling.",
    )


def _one_position(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    return (
        f"{_called(norm)} got {_shape(x)}: one position per channel of a sample, so the output would be β.",
        "Remove the norm after pooling to 1×1, or use GroupNorm or LayerNorm there.",
    )


def _synchronized(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    device = "another device" if x is None else x.device.type
    return (
        f"{_called(norm)} synchronizes its statistics only on accelerators; its input is on {device}.",
        "Call gammabeta.adopt(model) and gammabeta.set_statistics(model, gammabeta.statistics.Synced()), which works "
        "over gloo too; in one process adopt is enough.",
    )


def _channels(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    features = getattr(norm, "num_features", None)
    got = None if x is None or x.dim() < 2 else x.shape[1]
    if features is None or got is None:
        return f"{_called(norm)} got {_shape(x)}, which has other channels than its running statistics.", "Match them."
    assert x is not None
    axis = next((axis for axis in range(2, x.dim()) if x.shape[axis] == features), None)
    if axis is not None:
        return (
            f"{_called(norm)} has {features} channels and got {_shape(x)}, which has {got} on axis 1 and {features} on "
            f"axis {axis}: the channels are on another axis.",
            f"Move them: x.movedim({axis}, 1).",
        )
    return (
        f"{_called(norm)} has {features} channels and got {_shape(x)}, which has {got} on axis 1.",
        f"Build it with {got} channels, or give it an input with {features}.",
    )


def _dimensions(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    kinds = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    right = None if x is None else kinds.get(x.dim())
    return (
        f"{_called(norm)} got {_shape(x)}: {message}.",
        f"For such an input use {right}." if right else "The input needs a batch and a channel axis.",
    )


def _dtypes(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    tensors = [] if norm is None else [*norm.parameters(recurse=False), *norm.buffers(recurse=False)]
    own = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()})
    got = "another dtype" if x is None else str(x.dtype).removeprefix("torch.")
    return (
        f"{_called(norm)} holds {' and '.join(own) or 'another dtype'} and got {got}, a mixture that torch's kernel "
        "does not accept.",
        "Run the model under torch.autocast, cast the input to the model's dtype, or gammabeta.adopt(model): its "
        "layers accept any mixture and keep their statistics in float32.",
    )


def _groups(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    channels = getattr(norm, "num_channels", None)
    return (
        f"{_called(norm)} has {channels} channels in {getattr(norm, 'num_groups', None)} groups and got {_shape(x)}.",
        "Channels belong on axis 1, in the number that it was built with.",
    )


def _normalized(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    shape = tuple(getattr(norm, "normalized_shape", ()))
    hint = "Build it with the sizes of the last axes, or give it an input that ends in them."
    if x is not None and len(shape) == 1 and x.dim() > 1 and x.shape[1] == shape[0]:
        hint = (
            "The channels are on axis 1: use x.movedim(1, -1) before it and back after it, or GroupNorm(1, channels)."
        )
    return f"{_called(norm)} normalizes the last axes, of shape {shape}, and got {_shape(x)}.", hint


def _not_ddp(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    return (
        "DistributedDataParallel refuses torch's SyncBatchNorm on a CPU, whose forward in training raises there.",
        "Call gammabeta.adopt(model) first: its BatchNorms synchronize their statistics over gloo too.",
    )


def _one_dtype(norm: Any, x: Tensor | None, message: str) -> tuple[str, str]:
    return (
        "FSDP needs one dtype for the parameters that it shards together, but gammabeta's norms stay float32 in a "
        "model that is cast to 16 bits.",
        "Cast them too: gammabeta.adopt(model, keep_float32=False) before the cast (or again, and cast again); or give "
        "the norms their own group, fully_shard([all norms]).",
    )


def _needs_torchs(tool: str) -> Explain:
    """Return the explanation for a tool that accepts only torch's own classes and met one of gammabeta's."""

    def explain(norm: Any, x: Tensor | None, message: str) -> tuple[str, str] | None:
        if norm is None or not is_ours(norm):
            return None
        return (
            f"the {type(norm).__name__} is gammabeta's, but {tool} accepts only torch's own classes.",
            "Call it within `with gammabeta.release(model):`, where the norms are torch's; after it they are "
            "gammabeta's again. Norms with features that torch's lack (an activation, another source of statistics) "
            "are not released: print the `Change`.",
        )

    return explain


Explain = Callable[[Any, "Tensor | None", str], "tuple[str, str] | None"]
_KNOWN: tuple[tuple[str, Explain], ...] = (
    (r"Expected more than 1 value per channel when training", _one_value),
    (r"Expected more than 1 spatial element when training", _one_position),
    (r"SyncBatchNorm expected input tensor to be on", _synchronized),
    (r"running_(mean|var) should contain \d+ elements not \d+", _channels),
    (r"expected (2D or 3D|4D|5D|at least 2D) input \(got \d+D input\)", _dimensions),
    (r"mixed dtype \(CPU\)|expect(ed)? (parameter|scalar type|input) .*(scalar type|but found)", _dtypes),
    (r"divisible by num_groups|Expected weight to be a vector of size equal to the number of channels", _groups),
    (r"Given normalized_shape=", _normalized),
    (r"uniform (original parameter )?dtype but got", _one_dtype),
    (r"SyncBatchNorm layers only work with GPU modules", _not_ddp),
    (r"symbolically traced variables|symbolic tracing|Proxy object cannot be|torch\.fx", _needs_torchs("torch.fx")),
    # TorchScript quotes the source that it does not accept.
    (r"gammabeta[/\\]layers[/\\]\w+\.py", _needs_torchs("torch.jit.script")),
    (r"did not find fuser method for", _needs_torchs("torch.ao's fuse_modules")),
    (
        r"'Quantized\w+' backend|of a floating point dtype.*got torch\.q",
        _needs_torchs("torch.ao's quantization"),
    ),
    (r"Expanded Weights encountered but cannot handle function", _needs_torchs("torch's ExpandedWeight")),
)
