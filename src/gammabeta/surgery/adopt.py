"""Adoption of torch.nn's and other libraries' norms as gammabeta's, and back: the class of the same object changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from gammabeta._torch_private import process_group
from gammabeta.activations import activate
from gammabeta.introspection.norms import (
    OURS,
    TORCHS,
    is_frozen_batch_norm,
    is_norm,
    is_norm_act,
    is_ours,
    norm_of,
)
from gammabeta.introspection.probed import form_of, form_or_reason
from gammabeta.introspection.same_as_base import computes_as
from gammabeta.introspection.where import Where, select
from gammabeta.layers.batch_norm import BatchNorm, BatchNorm2d, _BatchNorm
from gammabeta.layers.form import Form
from gammabeta.layers.formed import FORMED
from gammabeta.layers.layer_norm import computes_itself
from gammabeta.running_statistics import skipped_counts
from gammabeta.statistics import Batch, Running, Synced
from gammabeta.surgery.adopted_class import adopted_class, old_class, our_class
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.kept_class import adds_nothing, torchs_base, why_not_kept
from gammabeta.surgery.late_cast import cast_late
from gammabeta.surgery.norm_act import activation_of, why_not_act, why_not_norm_act
from gammabeta.surgery.same_forward import computes_form_now

# What our layers, and operations on them, set on a module.
_ATTRIBUTES = ("activation", "activation_slope", "keep_float32", "statistics", "frozen", "adopted_from")
_FROZEN_BUFFERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Frozen:
    """The state that freezing a layer replaced, kept with the layer so that `unfreeze` can restore it.

    Attributes:
        statistics: the former source; None where the statistics were not frozen.
        affine: the names of those of γ and β that required a gradient.
    """

    statistics: Any = None
    affine: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Origin:
    """The class that an adopted module had, and the attributes that it lacked."""

    cls: type[nn.Module]
    added: tuple[str, ...] = ()
    activation: str | None = None


def adopt(model: nn.Module, *, where: Where = None, keep_float32: bool = True) -> Change:
    """Turn the norms of the model into gammabeta's, in place: same objects, Parameters, hooks and state_dict.

    Outputs stay equal up to rounding, and every layer stays an instance of the class that it had.

    - torch's SyncBatchNorm becomes a BatchNorm with `Synced`, of its group. On a CPU it is no longer a SyncBatchNorm,
      because DistributedDataParallel refuses every SyncBatchNorm there, and ours work.
    - The frozen BatchNorms of torchvision, detectron2 and DETR, whose four vectors are buffers, become a BatchNorm2d
      with `Running`. Its γ and β are Parameters that require no gradient.
    - timm's BatchNorms with an activation become ours with that activation.
    - Subclasses of torch's norms become ours where they compute the same and override nothing else.
    - Norms of other libraries become an RMSNorm or LayerNorm that computes by their formula: Llama's, T5's, Gemma's
      with its scale of 1 + weight, timm's LayerNorm2d with channels on axis 1. Their names of γ and β stay. A 16-bit
      input is rounded where the class rounds it, to the same dtype; `docs/conventions.md` says where that differs.

    The last four kinds are first compared with ours: copies run on inputs made for the purpose, and nothing is adopted
    by its name.

    Left alone, each with the reason, are:

    - norms that compute none of the known formulas, or take more than one tensor, such as Mamba's gated RMSNorm
    - classes with other methods of torch.nn.Module of their own, which would be lost
    - modules that are parametrized, scripted, or lazy and have not seen a batch
    - modules with a `forward` set on the instance, and those that FSDP2 manages

    Args:
        model: any module. It may be wrapped by torch.compile, which compiles again, or by DistributedDataParallel.
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.
        keep_float32: whether parameters and running statistics stay float32 in a model that is cast to 16 bits later.
            False casts them as torch's, for code that needs one dtype in a model: FSDP1 and FSDP2 without mixed
            precision, `torch.nn.utils.vector_to_parameters`. Norms that are gammabeta's already get this setting too.

    Returns:
        The `Change`.

    Raises:
        ValueError, TypeError: `where` chooses nothing, or cannot choose.
    """
    with transaction("adopt") as change:
        for name, module in select(model, where, is_adoptable, operation="adopt", kind="norms"):
            if not is_ours(module):
                adopt_module(change, name, module, keep_float32)
            elif module.keep_float32 == keep_float32:
                change.leave(name, f"{type(module).__name__} is gammabeta's already")
            else:
                change.set_attribute(module, "keep_float32", keep_float32, name)
                change.note(name, f"keep_float32={keep_float32}")
    return change


def release(model: nn.Module, *, where: Where = None) -> Change:
    """Turn gammabeta's norms in the model into torch.nn's, in place: the inverse of `adopt`.

    An adopted module gets the class that it had. Left alone, each with the reason: layers with what torch's cannot do
    (an activation, or a source of statistics other than `Batch`), subclasses, and parametrized modules.

    Some tools take only torch's own classes: torch.fx, torch.jit.script, torch.ao's quantization, and code that asks
    `type(layer) is nn.BatchNorm2d`. For these, write `with gammabeta.release(model): …`. On leaving the block the norms
    are gammabeta's again.

    Args:
        model: any module.
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Returns:
        The `Change`.

    Raises:
        ValueError, TypeError: `where` chooses nothing, or cannot choose.
    """
    with transaction("release") as change:
        for name, module in select(model, where, is_ours, operation="release", kind="norms of gammabeta"):
            _release_module(change, name, module)
    return change


def adopt_module(change: Change, name: str, module: nn.Module, keep_float32: bool = True) -> bool:
    """Adopt one norm within a change, or leave it with the reason; return whether it was adopted."""
    reason = why_not_adopted(module)
    if reason is not None:
        change.leave(name, reason)
        return False
    before = type(module)
    if isinstance(module, nn.SyncBatchNorm):
        _adopt_synced(change, name, module)
    elif is_frozen_batch_norm(module):
        if not _adopt_frozen(change, name, module):
            return False
    elif is_norm_act(module):
        _adopt_norm_act(change, name, module)
    elif before in OURS:
        _change_class(change, name, module, OURS[before])
    elif adds_nothing(module):
        _change_class(change, name, module, OURS[torchs_base(before)])
        change.set_attribute(module, "adopted_from", _Origin(before), name)
    elif not _adopt_by_form(change, name, module):
        return False
    if not keep_float32:
        change.set_attribute(module, "keep_float32", False, name)
    now = our_class(module).__name__.removeprefix("Formed")
    how = ("" if before.__name__ == now else f" as {now}") + _settings(module)
    old = before.__name__
    change.count(name, f"{old} now runs on gammabeta{how}", f"{old} now run on gammabeta{how}")
    return True


def drop_old_class(change: Change, name: str, module: Any, source: Any) -> None:
    """Drop the old class of a former SyncBatchNorm or frozen BatchNorm whose statistics get another source.

    Such a class says where the statistics come from, and would be wrong with another source.
    """
    old = old_class(module)
    if old is None or (torchs_base(old) is not None and not issubclass(old, nn.SyncBatchNorm)):
        return
    if isinstance(source, Synced if issubclass(old, nn.SyncBatchNorm) else Running):
        return
    change.set_class(module, our_class(module), name)
    mean = module._buffers.get("running_mean")
    if mean is not None and module._buffers.get("num_batches_tracked") is None:
        change.set_buffer(module, "num_batches_tracked", torch.zeros((), dtype=torch.int64, device=mean.device))


def forget_source(change: Change, name: str, module: nn.Module) -> None:
    """Forget the source that `freeze` replaced, but not which of γ and β it froze."""
    frozen: Frozen | None = module.__dict__.get("frozen")
    if frozen is not None and frozen.affine:
        change.set_attribute(module, "frozen", Frozen(None, frozen.affine), name)
    elif frozen is not None:
        change.delete_attribute(module, "frozen")


def _settings(module: Any) -> str:
    source: Any = getattr(module, "statistics", Batch())
    has = [*([] if source == Batch() else [str(source)]), *([module.activation] if module.activation else [])]
    form: Form | None = module.__dict__.get("form")
    if form is not None:
        has += ["scale 1 + weight"] if form.offset else []
        has += ["channels on axis 1"] if form.axis == 1 else []
    rounds = "" if form is None or form.same_bits else "; in 16 bits it rounds at other steps"
    return (f" with {' and '.join(has)}" if has else "") + rounds


def why_not_adopted(module: nn.Module) -> str | None:
    """Return why a norm cannot be adopted; None where it can, or must be compared first."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted: adopt the model before torch.jit.script"
    if isinstance(module, LazyModuleMixin):
        return f"{cls.__name__} has not been initialized: run a batch through the model first"
    if parametrize.is_parametrized(module):
        return "it is parametrized: adopt before parametrizing, or remove the parametrizations"
    if "forward" in module.__dict__:
        return "its forward is set on the instance, and would still run"
    if is_frozen_batch_norm(module):
        return _why_not_frozen(module)
    if cls in OURS or cls in TORCHS or cls in (nn.SyncBatchNorm, BatchNorm):
        return None
    if is_norm_act(module):
        return why_not_norm_act(module)  # type: ignore[arg-type]
    if cls.__name__.startswith("FSDP") and len(cls.__bases__) > 1:
        return "FSDP manages it: adopt before fully_shard"
    torchs: Any = torchs_base(cls)
    if torchs is not None and (cls.forward is torchs.forward or (torchs in OURS and computes_as(module, torchs))):
        if torchs is nn.SyncBatchNorm:
            return why_not_kept(cls, BatchNorm)
        if torchs not in OURS:
            return f"{cls.__name__} is a subclass of {torchs.__name__}, whose additions would be lost"
        return why_not_kept(cls, OURS[torchs])
    if torchs is not None and not issubclass(cls, nn.LayerNorm | nn.RMSNorm):
        return f"{cls.__name__} has a forward of its own, which would be lost"
    form = form_or_reason(module)
    if isinstance(form, str):
        return form
    names = (*_ATTRIBUTES, "form", "stayed_float32")
    # `freeze` may have frozen γ and β of a norm of any class.
    taken = next((k for k in names if k in vars(module) and not isinstance(vars(module)[k], Frozen)), None)
    if taken is not None:
        return f"{cls.__name__} has an attribute {taken}, and so have layers of gammabeta's"
    return why_not_kept(cls, FORMED[form.kind]) if form.kind in FORMED else _why_not_frozen(module)


def is_adoptable(module: nn.Module) -> bool:
    """Return whether `adopt` looks at a module: at all norms without children, by whatever they are known."""
    if is_norm(module):
        return True
    scripted = isinstance(module, torch.jit.ScriptModule)
    foreign = not scripted and not module._modules and not type(module).__module__.startswith("torch.")
    return foreign and norm_of(module, probe=True) is not None


def _adopt_by_form(change: Change, name: str, module: nn.Module) -> bool:
    """Make a layer of ours compute by the formula that its class was seen to compute."""
    cls, form = type(module), form_of(module)
    assert form is not None
    if form.kind == "batch":
        return _adopt_frozen(change, name, module)
    if not computes_form_now(module, form):
        change.leave(
            name,
            f"{cls.__name__} computes something else now than when another of it was compared: what its forward reads "
            "has changed",
        )
        return False
    settings = {"normalized_shape": (form.size,), "eps": form.eps, "elementwise_affine": form.weight is not None}
    added = tuple(key for key in settings if key not in module.__dict__ and key not in module._buffers)
    change.set_class(module, adopted_class(FORMED[form.kind], cls), name)
    for key in added:
        change.set_attribute(module, key, settings[key], name)
    if form.epsilon is None and "eps" in added:
        form = replace(form, epsilon="eps")
    change.set_attribute(module, "form", form, name)
    _finish(change, name, module, None, 0.01)
    change.set_attribute(module, "adopted_from", _Origin(cls, added), name)
    return True


def _change_class(change: Change, name: str, module: nn.Module, cls: type[nn.Module]) -> None:
    """Give a module one of our classes that is also an instance of the old one, and our constructor's attributes."""
    change.set_class(module, adopted_class(cls, _kept_class(module)), name)
    change.set_attribute(module, "activation", None, name)
    change.set_attribute(module, "activation_slope", 0.01, name)
    if issubclass(cls, _BatchNorm):
        change.set_attribute(module, "statistics", Batch(), name)
        skipped_counts(module._buffers.get("running_mean"))


def _kept_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that the layer stays an instance of."""
    cls = type(module)
    if not isinstance(module, nn.SyncBatchNorm):
        return cls
    on_cpu = all(t.device.type == "cpu" for t in (*module.parameters(), *module.buffers()))
    return nn.modules.batchnorm._BatchNorm if on_cpu else cls


def _adopt_synced(change: Change, name: str, module: nn.SyncBatchNorm) -> None:
    cls, source = type(module), Synced(module.process_group)
    activation, slope = activation_of(module) if is_norm_act(module) else (None, 0.01)
    _change_class(change, name, module, BatchNorm)
    change.delete_attribute(module, "process_group")
    change.set_attribute(module, "statistics", source, name)
    _finish(change, name, module, activation, slope)
    change.set_attribute(module, "adopted_from", _Origin(cls, activation=activation), name)


def _adopt_norm_act(change: Change, name: str, module: nn.Module) -> None:
    cls, (activation, slope) = type(module), activation_of(module)
    _change_class(change, name, module, BatchNorm2d)
    _finish(change, name, module, activation, slope)
    change.set_attribute(module, "adopted_from", _Origin(cls, activation=activation), name)


def _finish(change: Change, name: str, module: nn.Module, activation: str | None, slope: float) -> None:
    # timm's `drop` and `act` stay in place, unused, so that names stay and release is simple.
    change.set_attribute(module, "activation", activation, name)
    change.set_attribute(module, "activation_slope", slope, name)


def _why_not_frozen(module: nn.Module) -> str | None:
    name = type(module).__name__
    held = set(module._buffers) - {"num_batches_tracked"}
    parameters = {key for key, p in module._parameters.items() if p is not None}
    if parameters == {"weight", "bias"} and held == {"running_mean", "running_var"}:
        return f"{name} is a frozen BatchNorm whose weight and bias are Parameters, and not buffers"
    if not parameters and held == {"running_mean", "running_var"}:
        return f"{name} is a frozen BatchNorm without weight and bias"
    if module._parameters or set(module._buffers) - {"num_batches_tracked"} != {*_FROZEN_BUFFERS}:
        return f"{name} is a frozen BatchNorm with more than weight, bias, running_mean and running_var"
    if module._modules:
        return why_not_act(module)
    if any(b is None or b.ndim != 1 for key, b in module._buffers.items() if key in _FROZEN_BUFFERS):
        return f"{name} is a frozen BatchNorm whose buffers are not vectors of the channels"
    if module._buffers["weight"].is_meta:  # type: ignore[union-attr]
        return f"{name} is on the meta device, where its computation cannot be compared"
    return None


def _adopt_frozen(change: Change, name: str, module: nn.Module) -> bool:
    cls = type(module)
    activation, slope = activation_of(module) if module._modules else (None, 0.01)
    eps = getattr(module, "eps", 1e-5)  # DETR's has it in its forward
    weight, bias, mean, var = (module._buffers[key] for key in _FROZEN_BUFFERS)
    assert weight is not None
    assert bias is not None
    assert mean is not None
    assert var is not None
    # At the running means and one deviation around them, γ, β, both statistics and ε all affect the output.
    with torch.no_grad():
        signs = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=mean.dtype, device=mean.device)
        x = (mean[:, None] + signs * torch.sqrt(var[:, None] + eps)).reshape(1, -1, 2, 2)
        got = cls.forward(module, x)
        expected = (signs * weight[:, None] + bias[:, None]).reshape(1, -1, 2, 2)
        expected = activate(expected, activation or "none", slope)
    # The bound on rounding of the terms of x·scale + (β − mean·scale).
    scale = weight / torch.sqrt(var + eps)
    terms = (x.abs() * scale.abs().reshape(1, -1, 1, 1)).amax((2, 3), keepdim=True) + bias.abs().reshape(1, -1, 1, 1)
    if not bool(((got - expected).abs() <= 16 * torch.finfo(mean.dtype).eps * (terms + expected.abs() + 1e-30)).all()):
        then = "" if activation is None else f" and then {activation}"
        formula = f"(x − running_mean)/√(running_var + {eps})·weight + bias{then}"
        change.leave(name, f"{cls.__name__} does not compute {formula}")
        return False
    settings = {"num_features": mean.shape[0], "eps": eps, "momentum": 0.1, "affine": True, "track_running_stats": True}
    added = tuple(key for key in settings if key not in module.__dict__)
    _change_class(change, name, module, BatchNorm2d)
    for key in added:
        change.set_attribute(module, key, settings[key], name)
    for key, value in (("weight", weight), ("bias", bias)):
        change.delete_buffer(module, key)
        change.set_parameter(module, key, nn.Parameter(value, requires_grad=False))
    if "num_batches_tracked" not in module._buffers:
        added += ("num_batches_tracked",)
        change.set_buffer(module, "num_batches_tracked", None)  # as before, it is not in the state_dict
    change.set_attribute(module, "statistics", Running(), name)
    _finish(change, name, module, activation, slope)
    change.set_attribute(module, "frozen", Frozen(Batch(), ("weight", "bias")), name)
    change.set_attribute(module, "adopted_from", _Origin(cls, added, activation), name)
    return True


def _release_module(change: Change, name: str, module: Any) -> None:
    described, cls, cast = type(module).__name__, our_class(module), module.__dict__.get("stayed_float32")
    origin: _Origin | None = module.__dict__.get("adopted_from")
    source: Any = getattr(module, "statistics", Batch())
    # The old class applies its own activation, by its child `act`.
    old_activates = origin is not None and "act" in module._modules and module.activation == origin.activation
    reason = None
    if parametrize.is_parametrized(module):
        reason = "it is parametrized: remove the parametrizations first"
    elif "forward" in module.__dict__:
        reason = "its forward is set on the instance, and would still run"
    elif cls not in TORCHS and cls is not BatchNorm and cls not in FORMED.values():
        reason = f"{described} is a subclass of gammabeta's, whose additions would be lost"
    elif module.activation is not None and not old_activates:
        former = described if cls in FORMED.values() else "torch's layer"
        reason = f"{former} has no activation, and {module.activation} would be lost"
    elif origin is not None and issubclass(origin.cls, nn.SyncBatchNorm) and isinstance(source, Synced):
        reason = _release_synced(change, name, module, source, origin.cls)
    elif origin is not None and source == Running() and not _trains(module):
        _release_frozen(change, name, module, origin)
    elif source != Batch():
        reason = f"torch's layer has no {source} and would normalize by the batch in training"
    elif old_activates and issubclass(origin.cls, nn.BatchNorm2d):  # type: ignore[union-attr]
        _leave_ours(change, name, module, origin.cls)  # type: ignore[union-attr]
    elif module.activation is not None:
        reason = f"{origin.cls.__name__} does not normalize by {source}"  # type: ignore[union-attr]
    elif cls is BatchNorm:
        reason = "torch has no BatchNorm for any number of positions but SyncBatchNorm"
    elif cls in FORMED.values():
        _release_formed(change, name, module, origin)
    else:
        torchs = TORCHS[cls]
        _leave_ours(change, name, module, origin.cls if origin and issubclass(origin.cls, torchs) else torchs)
    if reason is None:
        late = "" if cast is None else f", with Parameters cast to {cast}, as the model was"
        now = type(module)
        one, many = (
            ("torch", "torch") if now.__module__.startswith("torch.") else ("its own forward", "their own forward")
        )
        change.count(name, f"{now.__name__} now runs on {one}{late}", f"{now.__name__} now run on {many}{late}")
    else:
        change.leave(name, reason)


def _release_formed(change: Change, name: str, module: nn.Module, origin: _Origin | None) -> None:
    assert origin is not None  # no constructor makes such a layer
    _leave_ours(change, name, module, origin.cls)
    if module.__dict__.get("stayed_float32") is not None:
        cast_late(change, module, module.stayed_float32)  # type: ignore[arg-type]
    for key in ("form", "stayed_float32", *origin.added):
        if key in module.__dict__:
            change.delete_attribute(module, key)


def _leave_ours(change: Change, name: str, module: nn.Module, cls: type[nn.Module]) -> None:
    for key in _ATTRIBUTES:
        if key in module.__dict__:
            change.delete_attribute(module, key)
    for number, hook in tuple(module._forward_hooks.items()):
        if hook is computes_itself:
            change.delete_item(module._forward_hooks, number)
    change.set_class(module, cls, name)


def _release_synced(change: Change, name: str, module: nn.Module, source: Synced, cls: type[nn.Module]) -> str | None:
    group = None
    if source.group is not None:
        try:
            peers = source.peers()
        except RuntimeError as error:
            return str(error)
        if peers is None:
            return f"{source} is of this process only, which SyncBatchNorm cannot express"
        group = process_group(peers.name)
    _leave_ours(change, name, module, cls)
    change.set_attribute(module, "process_group", group, name)
    return None


def _release_frozen(change: Change, name: str, module: nn.Module, origin: _Origin) -> None:
    _leave_ours(change, name, module, origin.cls)
    for key in origin.added:
        change.delete_attribute(module, key)
    count = module._buffers.get("num_batches_tracked")
    values: dict[str, Tensor | None] = {key: getattr(module, key).detach() for key in _FROZEN_BUFFERS}
    for key in ("weight", "bias"):
        change.delete_parameter(module, key)
    for key in tuple(module._buffers):
        change.delete_buffer(module, key)
    for key in _FROZEN_BUFFERS:
        change.set_buffer(module, key, values[key])
    if "num_batches_tracked" not in origin.added:
        change.set_buffer(module, "num_batches_tracked", count)


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))
