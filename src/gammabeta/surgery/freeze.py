"""Freezing of statistics and affine parameters, whatever `train()` says."""

from __future__ import annotations

import warnings

from torch import nn

from gammabeta.introspection.norms import is_batch_norm, is_frozen_batch_norm, is_ours, norm_of
from gammabeta.introspection.where import Where, select
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.statistics import Batch, Running
from gammabeta.surgery.adopt import Frozen, drop_old_class, is_adoptable
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.set_statistics import ensure_ours, why_not_source

# At most this many layers are named in a warning.
_NAMED = 3


def freeze(model: nn.Module, *, statistics: bool = True, affine: bool = False, where: Where = None) -> Change:
    """Make a model's norms normalize by their running statistics, in training too, and keep them; γ and β if asked.

    Statistics are frozen by the source `Running`, which belongs to the layer and is no mode. So `model.train()`,
    copies, pickles, loading a state_dict, `swa_utils.update_bn`, DistributedDataParallel and torch.compile leave them
    frozen. A state_dict itself does not record that they are. torch's own BatchNorms are adopted on the way. γ and β
    are frozen by `requires_grad=False`; an optimizer that holds them leaves them unchanged.

    Args:
        model: any module.
        statistics: whether the BatchNorms' statistics are frozen.
        affine: whether γ and β are frozen, of all norms and not only of the BatchNorms.
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Warns:
        UserWarning: BatchNorms whose statistics should be frozen were left as they are, with the reasons. Of these, γ
            and β are not frozen either.

    Returns:
        The `Change`. Where it is not at hand, after loading a pickle for example, `unfreeze` thaws the layers too;
        those that were adopted stay gammabeta's.

    Raises:
        ValueError: neither is asked for, or `where` chooses nothing.
        TypeError: `where` is of another type.

    Source: Ioffe & Szegedy 2015 (1502.03167), Algorithm 2, line 11.
    """
    return _freeze_or_thaw("freeze", model, statistics, affine, where)


def unfreeze(model: nn.Module, *, statistics: bool = True, affine: bool = True, where: Where = None) -> Change:
    """Undo `freeze`: restore each layer's former source of statistics, and let the γ and β that it froze train again.

    A layer whose statistics are `Running` for another reason gets `Batch`. An adopted FrozenBatchNorm becomes a
    BatchNorm that trains.

    Args:
        model: any module.
        statistics: whether the statistics are unfrozen.
        affine: whether γ and β are unfrozen; only those that `freeze` froze.
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Returns:
        The `Change`.

    Raises:
        ValueError: neither is asked for, or `where` chooses nothing.
        TypeError: `where` is of another type.
    """
    return _freeze_or_thaw("unfreeze", model, statistics, affine, where)


def _freeze_or_thaw(operation: str, model: nn.Module, statistics: bool, affine: bool, where: Where) -> Change:
    if not (statistics or affine):
        raise ValueError(f"{operation}: expected statistics or affine to be True, got both False.")
    eligible = is_adoptable if affine else is_batch_norm
    kind = "norms" if affine else "BatchNorms"
    step = _freeze if operation == "freeze" else _thaw
    with transaction(operation) as change:
        for name, module in select(model, where, eligible, operation=operation, kind=kind):
            step(change, name, module, statistics, affine)
    if operation == "freeze" and statistics:
        _warn(model, change)
    return change


def _warn(model: nn.Module, change: Change) -> None:
    """Warn of BatchNorms whose statistics still move, or that still normalize by the batch."""
    modules = dict(model.named_modules())
    left = [name for name in change.left if is_batch_norm(modules[name]) and not _is_frozen(modules[name])]
    if left:
        every = sum(is_batch_norm(modules[entry.module]) for entry in change.entries)
        named = ", ".join(f"{name or 'the model'} ({change.left[name]})" for name in left[:_NAMED])
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        warnings.warn(
            f"freeze: {len(left)} of {every} BatchNorms are not frozen: {named}{more}. Mend the reason and freeze them "
            "again, or keep them in evaluation mode: model.train() ends that.",
            stacklevel=4,
        )


def _freeze(change: Change, name: str, module: nn.Module, statistics: bool, affine: bool) -> None:
    before: Frozen = module.__dict__.get("frozen", Frozen())
    source, taken, done = before.statistics, before.affine, []
    reason = None
    if statistics and is_batch_norm(module):
        if is_frozen_batch_norm(module):
            reason = f"{type(module).__name__} is frozen by its class"
        elif not ensure_ours(change, name, module):
            # It is left whole: γ and β frozen alone would belong to statistics that training moves.
            return
        else:
            reason = why_not_source(module, Running())
            if reason is not None:
                # As above. ensure_ours may have adopted it, which changes nothing that it computes.
                change.leave(name, reason)
                return
            source = module.statistics
            change.set_attribute(module, "statistics", Running(), name)
            done.append(f"statistics (were {source})")
    if affine:
        names = _affine(module)
        trains = [key for key in names if key in module._parameters and _trains(module, key)]
        for key in trains:
            change.require_grad(module._parameters[key], False)  # type: ignore[arg-type]
        if trains:
            taken = tuple(key for key in names if key in (*taken, *trains))
            done.append(" and ".join(trains))
        elif reason is None and not done:
            reason = "it has no weight or bias that trains"
    if done:
        change.set_attribute(module, "frozen", Frozen(source, taken), name)
        change.note(name, f"frozen: {', '.join(done)}" + (f"; not its statistics: {reason}" if reason else ""))
    else:
        change.leave(name, reason or "there is nothing to freeze")


def _thaw(change: Change, name: str, module: nn.Module, statistics: bool, affine: bool) -> None:
    before: Frozen = module.__dict__.get("frozen", Frozen())
    source, taken, done = before.statistics, before.affine, []
    if statistics and isinstance(module, _BatchNorm) and module.statistics == Running():
        former = Batch() if source is None else source
        drop_old_class(change, name, module, former)
        change.set_attribute(module, "statistics", former, name)
        done.append(f"statistics (are {former})")
        source = None
    if affine and taken:
        for key in taken:
            parameter = module._parameters.get(key)
            if parameter is not None:
                change.require_grad(parameter, True)
        done.append(" and ".join(taken))
        taken = ()
    if not done:
        foreign = is_frozen_batch_norm(module) and not is_ours(module)
        change.leave(
            name, f"{type(module).__name__} is frozen by its class: adopt it first" if foreign else "not frozen"
        )
        return
    if source is None and not taken:
        if "frozen" in module.__dict__:
            change.delete_attribute(module, "frozen")
    else:
        change.set_attribute(module, "frozen", Frozen(source, taken), name)
    change.note(name, f"unfrozen: {', '.join(done)}")


def _affine(module: nn.Module) -> tuple[str, ...]:
    """Return the names under which a norm holds γ and β."""
    norm = norm_of(module, probe=True)
    assert norm is not None
    return tuple(name for name in (norm.affine.weight, norm.affine.bias) if name is not None)


def _is_frozen(module: nn.Module) -> bool:
    return is_frozen_batch_norm(module) or getattr(module, "statistics", None) == Running()


def _trains(module: nn.Module, key: str) -> bool:
    parameter = module._parameters[key]
    return parameter is not None and parameter.requires_grad
