"""Activations that alone read what a norm gives, made the norm's own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from gammabeta.activations import MODULES
from gammabeta.introspection.neighbours import Neighbours, Refusal
from gammabeta.introspection.norms import is_norm, is_ours
from gammabeta.introspection.observe import Call, Observation, hooks_of, observe
from gammabeta.introspection.unchanged import modes_kept
from gammabeta.introspection.where import Where, select
from gammabeta.surgery.change import Change, transaction

# Exact classes: a subclass may do more.
_NAMES = {module: name for module, name in MODULES.items() if name != "none"}


def fuse(model: nn.Module, example_inputs: Any, *, where: Where = None) -> Change:
    """An activation module that alone reads what a norm of ours gives becomes the norm's `activation`.

        act(norm(x) + residual)  by one kernel, in training too; the module's place is taken by nn.Identity

    How data flows is observed on the example inputs, in evaluation and, where the model runs so on them, in training
    mode. An activation that is called more than once, has hooks, or shares its input with another reader is left alone,
    and so is a norm with hooks or with something between it and the activation.

    Args:
        model: changed in place; its norms are ours (`gammabeta.adopt`).
        example_inputs: a tensor; a tuple or list of positional arguments; or a dict of keyword arguments.
        where: a glob on the norms' names, a list of names and modules, or a predicate (name, module) -> bool.

    Returns:
        What was done, norm by norm, with `undo()`.

    Raises:
        ValueError: `where` chooses no norm, or the model has uninitialized parameters.
        Exception: whatever the model's forward raises in the mode in which it is.
    """
    chosen = select(model, where, is_norm, operation="fuse", kind="norms")
    observations = _in_both_modes(model, example_inputs)
    modules = dict(model.named_modules())
    with transaction("fuse") as change:
        for name, norm in chosen:
            try:
                found = {_reader(norm, name, Neighbours(modules, observation)) for observation in observations}
                if len(found) != 1:
                    raise Refusal("training and evaluation mode lead from it to different activations")
                act_name = found.pop()
            except Refusal as refusal:
                change.leave(name, str(refusal))
                continue
            act = modules[act_name]
            change.set_attribute(norm, "activation", _NAMES[type(act)], name)
            if isinstance(act, nn.LeakyReLU):
                change.set_attribute(norm, "activation_slope", act.negative_slope, name)
            idle = nn.Identity().train(act.training)
            for parent in modules.values():
                for key, child in list(parent._modules.items()):
                    if child is act:
                        change.set_child(parent, key, idle)
            change.note(name, f"took in {act_name} ({_NAMES[type(act)]})")
    return change


def _in_both_modes(model: nn.Module, example_inputs: Any) -> list[Observation]:
    """As the model is; and all in training, and all in evaluation, where it runs so."""
    found = [observe(model, example_inputs)]
    modes = {module.training for module in model.modules()}
    for mode in (True, False):
        if modes != {mode}:
            # These inputs may be none for training: one sample, no targets.
            with suppress(Exception), modes_kept(model):
                model.train(mode)
                found.append(observe(model, example_inputs))
    return found


def _reader(norm: Any, name: str, neighbours: Neighbours) -> str:
    """The name of the activation module that alone reads what the norm gives."""
    observation, modules = neighbours.observation, neighbours.modules
    if not is_ours(norm):
        raise Refusal(f"it is {type(norm).__module__}.{type(norm).__qualname__}, not ours: gammabeta.adopt first")
    if norm.activation is not None:
        raise Refusal(f"it has an activation already ({norm.activation})")
    if hooks_of(norm):
        raise Refusal("it has hooks, which would see what the activation gives")
    call = neighbours.only_call(name, "it")
    if len(call.outputs) != 1:
        raise Refusal(f"it gives {len(call.outputs)} tensors, where one was expected")
    data = call.outputs[0].data
    escape = neighbours.escape(data)
    if escape is not None:
        raise Refusal(f"what it gives is {escape}")
    readers = neighbours.readers(data, call)
    if not readers:
        raise Refusal("nothing reads what it gives")
    by = sorted({observation.stack(op.call)[0].module if op.call is not None else "" for op in readers})
    if len(by) > 1:
        raise Refusal(f"what it gives is read by {', '.join(sorted(module or 'the model' for module in by))}")
    act = modules[by[0]]
    if type(act) not in _NAMES:
        ops = ", ".join(sorted({op.name for op in readers}))
        raise Refusal(f"what it gives is read by {ops} in {by[0] or 'the model'} ({type(act).__qualname__})")
    if isinstance(act, nn.GELU) and act.approximate != "none":
        raise Refusal(f"{by[0]} is a gelu by approximation ({act.approximate}); a norm's is the exact one")
    if hooks_of(act) or parametrize.is_parametrized(act):
        raise Refusal(f"{by[0]} has hooks")
    reader = neighbours.only_call(by[0], by[0])
    _check_nothing_between(neighbours, call, reader)
    return by[0]


def _check_nothing_between(neighbours: Neighbours, call: Call, reader: Call) -> None:
    """That no module sees, or hands on, what the norm gives: a dropout at rest does, and training wakes it."""
    observation, data = neighbours.observation, call.outputs[0].data
    around = [*observation.stack(call.index), *observation.stack(reader.index)]
    for other in observation.calls:
        got, gave = (any(seen.data == data for seen in side) for side in (other.inputs, other.outputs))
        module = neighbours.modules[other.module]
        if (got or gave) and hooks_of(module):
            raise Refusal(f"what it gives is seen by the hooks of {other.module or 'the model'}")
        if got and gave and other not in around and type(module) is not nn.Identity:
            raise Refusal(f"{other.module} ({type(module).__qualname__}) stands between it and {reader.module}")
