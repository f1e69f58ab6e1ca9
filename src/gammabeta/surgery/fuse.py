"""Fusion of a norm with the activation that alone reads its output."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from gammabeta.activations import MODULES
from gammabeta.introspection.forward import Forward
from gammabeta.introspection.neighbours import Neighbours, Refusal
from gammabeta.introspection.norms import is_norm, is_ours
from gammabeta.introspection.observe import Call, Observation, hooks_of, observe
from gammabeta.introspection.unchanged import modes_kept, set_mode
from gammabeta.introspection.where import Where, select
from gammabeta.surgery.change import Change, transaction

# Exact classes, because a subclass may do more.
_NAMES = {module: name for module, name in MODULES.items() if name != "none"}


def fuse(model: nn.Module, example_inputs: Any, *, where: Where = None, forward: Forward | None = None) -> Change:
    """Make an activation module that alone reads a norm's output the norm's own `activation`.

        act(norm(x) + residual)  by one kernel, in training too; nn.Identity takes the module's place

    The data flow is observed on the example inputs, in evaluation mode and, where the model runs on them, in training
    mode. Left alone are activations that are called more than once, have hooks, or share their input with another
    reader; and norms with hooks, or with something between them and the activation.

    Args:
        model: changed in place. Its norms must be gammabeta's (`gammabeta.adopt`).
        example_inputs: a batch as the model takes it: a tensor, a tuple or list of positional arguments, or a mapping
            of keyword arguments ("Batches" in docs/conventions.md).
        where: a glob on the norms' names, a list of names and modules, or a predicate (name, module) -> bool.
        forward: `forward(model, batch)`, for inputs that go through the model in another way.

    Returns:
        The `Change`.

    Raises:
        ValueError: `where` chooses no norm, or the model has uninitialized parameters.
        Exception: whatever the model's forward raises in its present mode.
    """
    chosen = select(model, where, is_norm, operation="fuse", kind="norms")
    observations = _in_both_modes(model, example_inputs, forward)
    modules = dict(model.named_modules())
    with transaction("fuse") as change:
        for name, norm in chosen:
            try:
                found = {_reader(norm, name, Neighbours(modules, observation)) for observation in observations}
                if len(found) != 1:
                    raise Refusal("training and evaluation mode lead to different activations")
                act_name = found.pop()
            except Refusal as refusal:
                change.leave(name, str(refusal))
                continue
            act = modules[act_name]
            change.set_attribute(norm, "activation", _NAMES[type(act)], name)
            if isinstance(act, nn.LeakyReLU):
                change.set_attribute(norm, "activation_slope", act.negative_slope, name)
            idle = nn.Identity().train(act.training)
            change.replace(model, act, idle)
            change.note(name, f"absorbed {act_name} ({_NAMES[type(act)]})")
    return change


def _in_both_modes(model: nn.Module, example_inputs: Any, forward: Forward | None) -> list[Observation]:
    """Observe the model as it is, then with every module in training and in evaluation, where it runs in that mode."""
    found = [observe(model, example_inputs, forward, operation="fuse")]
    modes = {module.training for module in model.modules() if hasattr(module, "training")}
    for mode in (True, False):
        if modes != {mode}:
            # The inputs may not do for training: one sample, no targets.
            with suppress(Exception), modes_kept(model):
                set_mode(model, mode)
                found.append(observe(model, example_inputs, forward))
    return found


def _reader(norm: Any, name: str, neighbours: Neighbours) -> str:
    """Return the name of the activation module that alone reads the norm's output.

    Raises:
        Refusal: there is none, or one of the two cannot be changed.
    """
    observation, modules = neighbours.observation, neighbours.modules
    if isinstance(norm, torch.jit.ScriptModule):
        raise Refusal("it is scripted: fuse before torch.jit.script or torch.jit.trace")
    if not is_ours(norm):
        raise Refusal(f"it is {type(norm).__module__}.{type(norm).__qualname__}, not ours: gammabeta.adopt first")
    if norm.activation is not None:
        raise Refusal(f"it has an activation already ({norm.activation})")
    if hooks_of(norm):
        raise Refusal("it has hooks, which would see the activation's output")
    call = neighbours.only_call(name, "it")
    if len(call.outputs) != 1:
        raise Refusal(f"it returns {len(call.outputs)} tensors, where one was expected")
    data = call.outputs[0].data
    escape = neighbours.escape(data)
    if escape is not None:
        raise Refusal(f"its output is {escape}")
    readers = neighbours.readers(data, call)
    if not readers:
        raise Refusal("nothing reads its output")
    by = sorted({observation.stack(op.call)[0].module if op.call is not None else "" for op in readers})
    if len(by) > 1:
        raise Refusal(f"its output is read by {', '.join(sorted(module or 'the model' for module in by))}")
    act = modules[by[0]]
    if type(act) not in _NAMES:
        ops = ", ".join(sorted({op.name for op in readers}))
        raise Refusal(f"its output is read by {ops} in {by[0] or 'the model'} ({type(act).__qualname__})")
    if isinstance(act, nn.GELU) and act.approximate != "none":
        raise Refusal(f"{by[0]} is an approximate gelu ({act.approximate}); a norm's is exact")
    if hooks_of(act) or parametrize.is_parametrized(act):
        raise Refusal(f"{by[0]} has hooks")
    reader = neighbours.only_call(by[0], by[0])
    _check_nothing_between(neighbours, call, reader)
    return by[0]


def _check_nothing_between(neighbours: Neighbours, call: Call, reader: Call) -> None:
    """Check that no module between the two sees or passes on the norm's output.

    A dropout passes it on in evaluation, but not in training.
    """
    observation, data = neighbours.observation, call.outputs[0].data
    neighbours.check_unseen(data, "its output")
    around = [*observation.stack(call.index), *observation.stack(reader.index)]
    for other in observation.calls:
        got, gave = (any(seen.data == data for seen in side) for side in (other.inputs, other.outputs))
        module = neighbours.modules[other.module]
        if got and gave and other not in around and type(module) is not nn.Identity:
            raise Refusal(f"{other.module} ({type(module).__qualname__}) stands between it and {reader.module}")
