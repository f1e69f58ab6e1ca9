"""Conversion of one norm into another with the same γ, β and ε, which batches may refit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.batches import bounded
from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.forward import Forward, forward_batch, unwrapped
from gammabeta.introspection.norms import is_frozen_batch_norm, is_ours, norm_of
from gammabeta.introspection.where import Where, select
from gammabeta.layers.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from gammabeta.layers.group_norm import GroupNorm
from gammabeta.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from gammabeta.statistics import Batch
from gammabeta.surgery.adopt import adopt_module, forget_source, is_adoptable, why_not_adopted
from gammabeta.surgery.adopted_class import our_class
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.fit import Site, fit_in_order, look_at_calls
from gammabeta.surgery.kept_class import why_not_kept

_KINDS = ("batch", "group", "layer", "instance")
_BATCH = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
_INSTANCE = {3: InstanceNorm1d, 4: InstanceNorm2d, 5: InstanceNorm3d}
_RANK = {
    nn.BatchNorm2d: 4, nn.BatchNorm3d: 5, nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5
}  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def convert(
    model: nn.Module,
    to: str,
    *,
    where: Where = None,
    batches: Iterable[Any] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    groups: int | None = None,
    forward: Forward | None = None,
) -> Change:
    """Turn the model's norms over channels into norms of another kind, in place.

    The object stays, and so do ε, activation, dtype, device and mode. γ and β stay the same Parameters, so that
    optimizers keep their state. torch's norms are adopted on the way. "layer" is GroupNorm with one group, over
    channels and positions.

    With `batches`, γ and β are fitted by least squares, layer by layer in the order of the data. Each layer's output in
    evaluation mode, behind the layers converted so far, comes as close as possible to its output in the former model.
    That takes as many passes over the batches as there are layers. No fit restores what the new norm removes: instance
    norm removes each channel's mean over a sample, which global pooling reads.

    Left alone, each with the reason: norms of the last axes (LayerNorm, RMSNorm); groups of one value, whose output
    would be β for any input; subclasses, and what `adopt` leaves alone.

    Args:
        model: any module.
        to: "batch", "group", "layer" or "instance".
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.
        batches: the data for the fit, kept in memory. Each is as the model takes it: a tensor, a tuple or list of
            positional arguments, a mapping of keyword arguments, or (input, target) ("Batches" in docs/conventions.md).
            Of batches without a length, at most 1000 are taken. "batch" needs them, because its running statistics are
            theirs.
        optimizer: one or several. They must hold γ and β of the converted layers, where these train.
        groups: the number of groups for "group", a divisor of each layer's channels. None is the largest up to 32 that
            leaves at least 4 channels to a group.
        forward: `forward(model, batch)`, for batches that go through the model in another way.

    Returns:
        The `Change`. With batches, its numbers, by layer, are: `residual`, the distance of the fitted output from the
        former one, ‖difference‖/‖former − its channels' means‖; `kept`, the same with γ and β unchanged.

    Raises:
        ValueError: `to` is none of the four; `groups` does not divide a layer's channels; "batch" is asked for without
            batches, or `batches` is empty; an optimizer lacks a converted layer's γ or β; or `where` chooses nothing.
            The model is as before.
        TypeError: a batch is none of the above.

    Source: Wu & He 2018 (1803.08494), eq. 2 to 6: the four kinds differ by the values that they average over.
    """
    _check(to, batches, groups)
    given = None if batches is None else list(bounded(batches))
    if given is not None and not given:
        raise ValueError("convert: expected at least one batch, got none: an iterator that is used up gives none.")
    with transaction("convert") as change:
        sites = []
        for name, module in select(model, where, is_adoptable, operation="convert", kind="norms"):
            site = _site_of(change, name, module, to, groups)
            if site is not None:
                sites.append(site)
        if given is not None and sites:
            run, inner = forward_batch("convert", forward), unwrapped(model)
            with torch.no_grad(), eagerly():
                look_at_calls(inner, sites, run, given[0])
                sites = [site for site in sites if not _refused(change, site)]
                fit_in_order(inner, sites, run, given)
        else:
            sites = [site for site in sites if not _refused(change, site)]
        for site in sites:
            _convert_site(change, site, to)
            numbers = {} if site.line is None else {"residual": site.residual, "kept": site.residual_kept}
            fitted = "" if given is None else ", fitted" if site.line is not None and site.fits else ", not fitted"
            what = f"{site.class_name} is {type(site.module).__name__}"
            if isinstance(site.module, GroupNorm):
                what += f" of {_describe_groups(site.module.num_groups)}"
            change.note(site.name, what + fitted, **numbers)
        _check_optimizers(optimizer, sites)
    return change


def _check(to: str, batches: Iterable[Any] | None, groups: int | None) -> None:
    if to not in _KINDS:
        raise ValueError(f"convert: expected to as one of {', '.join(map(repr, _KINDS))}, got {to!r}.")
    if to == "batch" and batches is None:
        raise ValueError("convert: expected batches where norms become BatchNorms, got None: their running statistics "
                         "come from them.")  # fmt: skip
    if groups is not None and (to != "group" or groups < 1):
        raise ValueError(f'convert: expected groups of at least 1, for to="group", got {groups} for to={to!r}.')


def _site_of(change: Change, name: str, module: Any, to: str, groups: int | None) -> Site | None:
    """Return the layer as a `Site` to convert; None where it is left alone, with the reason."""
    class_name = type(module).__name__
    norm = norm_of(module, probe=True)
    if norm is not None and norm.axes is not None and norm.axes.last:
        change.leave(name, f"{class_name} normalizes the last axes, and not channels at axis 1")
        return None
    if norm is not None and norm.axes is not None and norm.axes.pointwise:
        change.leave(name, f"{class_name} normalizes the channels of each position on their own")
        return None
    ours = is_ours(module)
    reason = None if ours else why_not_adopted(module)
    if ours and not _is_plainly_ours(module):
        reason = f"{class_name} is a subclass of gammabeta's, whose additions would be lost"
    elif is_frozen_batch_norm(module):
        reason = f"{class_name} is another library's: adopt it first"
    if reason is not None:
        change.leave(name, reason)
        return None
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    target = {"batch": None, "layer": 1, "instance": channels, "group": groups or _usual_groups(channels)}[to]
    if target is not None and channels % target:
        raise ValueError(
            f"convert: expected groups that divide the channels of every chosen norm, got {groups} for {channels} of "
            f"{name or 'the model'}."
        )
    present = None if isinstance(module, nn.modules.batchnorm._BatchNorm) else channels
    if isinstance(module, nn.GroupNorm):
        present = module.num_groups
    if present == target:
        kind = "BatchNorm" if target is None else _describe_groups(target)
        change.leave(name, f"{class_name} is {'a' if target is None else 'of'} {kind} already")
        return None
    rank = next((axes for cls, axes in _RANK.items() if isinstance(module, cls)), None)
    return Site(name, module, channels, target, class_name, rank)


def _is_plainly_ours(module: nn.Module) -> bool:
    """Return whether a layer of ours is of a class that converts, or of a subclass that adds nothing to it."""
    cls = our_class(module)
    known = (BatchNorm, *_BATCH.values(), *_INSTANCE.values(), GroupNorm)
    base: Any = next((base for base in cls.__mro__ if base in known), None)
    if cls is base or base is None:
        return base is not None
    return cls.forward is base.forward and why_not_kept(cls, base) is None


def _usual_groups(channels: int) -> int:
    most = max(1, min(32, channels // 4))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def _describe_groups(count: int) -> str:
    return f"{count} group{'' if count == 1 else 's'}"


def _refused(change: Change, site: Site) -> bool:
    """Leave a layer whose groups would or might have one value, or that cannot be fitted; return whether it is left."""
    if site.misplaced is not None:
        change.leave(site.name, site.misplaced)
    elif site.groups is None and not site.calls:
        change.leave(site.name, "no batch reached it, whose statistics it would have")
    elif site.groups is not None and site.positions is not None and site.positions * site.channels == site.groups:
        change.leave(site.name, "a group would have one value, and the output would be β for any input")
    elif site.groups == site.channels and site.positions is None and site.rank is None:
        change.leave(site.name, "a group of one channel has one value where there are no positions: hand batches")
    else:
        return False
    return True


def _convert_site(change: Change, site: Site, to: str) -> None:
    module, name = site.module, site.name
    if not is_ours(module):
        before = len(change.entries)
        adopt_module(change, name, module)
        del change.entries[before:]  # the entry of the conversion replaces it
    instance: Any = _INSTANCE.get(site.rank) if to == "instance" and site.rank is not None else None
    forget_source(change, name, module)
    for key in ("statistics", "adopted_from", "num_features", "momentum", "track_running_stats"):
        if key in module.__dict__:
            change.delete_attribute(module, key)
    for key in ("num_groups", "num_channels"):
        if key in module.__dict__:
            change.delete_attribute(module, key)
    # The buffers that InstanceNorm and BatchNorm register, in the order of their constructors.
    for key in _STATISTICS:
        if key in module._buffers:
            change.delete_buffer(module, key)
    settings: dict[str, Any]
    if site.groups is None:
        assert site.rank is not None
        assert site.mean is not None
        assert site.var is not None
        change.set_class(module, _BATCH.get(site.rank, BatchNorm), name)
        settings = {"num_features": site.channels, "momentum": 0.1, "track_running_stats": True, "statistics": Batch()}
        dtype = torch.float32 if module.weight is None else module.weight.dtype
        device = site.mean.device
        change.set_buffer(module, "running_mean", site.mean.to(dtype))
        change.set_buffer(module, "running_var", site.var.to(dtype))
        change.set_buffer(module, "num_batches_tracked", torch.tensor(site.batches, device=device))
    elif instance is not None:
        change.set_class(module, instance, name)
        settings = {"num_features": site.channels, "momentum": 0.1, "track_running_stats": False}
        for key in _STATISTICS:
            change.set_buffer(module, key, None)
    else:
        change.set_class(module, GroupNorm, name)
        settings = {"num_groups": site.groups, "num_channels": site.channels}
    for key, value in settings.items():
        change.set_attribute(module, key, value, name)
    if site.fits:
        for key, value in (("weight", site.weight), ("bias", site.bias)):
            if isinstance(value, Tensor):
                change.overwrite(module, key, value)


def _check_optimizers(
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None, sites: Sequence[Site]
) -> None:
    if optimizers is None:
        return
    several = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers
    held = {id(p) for one in several for group in one.param_groups for p in group["params"]}
    for site in sites:
        for key, parameter in site.module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in held:
                raise ValueError(
                    f"convert: expected an optimizer that holds {site.name + '.' if site.name else ''}{key}, got one "
                    "that does not: it was made from another model, or for part of this one."
                )
