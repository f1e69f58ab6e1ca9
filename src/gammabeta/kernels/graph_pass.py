"""A pass over Inductor's graphs that makes norm → add → relu one call of our op, forward and backward.

Inductor cannot look into our ops, so an activation behind a norm would be a pass over memory of its own. In a graph
that holds forward and backward together, as Inductor has it before the two are parted:

    forward     relu(norm(x))              becomes  norm(x, activation="relu")
                relu(norm(x) + residual)   becomes  norm(x, residual, activation="relu")
    backward    norm's of where(relu ≤ 0, 0, g)  becomes  norm's of g with activation="relu", where there is no residual

With a residual the backward stays: there the fused op reads and writes as much as the two apart.

This file imports Inductor, and is itself imported only by `kernels/inductor.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from gammabeta._torch_private import inductor

_aten, _ours = torch.ops.aten, torch.ops.gammabeta


class _Form(NamedTuple):
    """Where an op has its residual and its activation among the arguments."""

    residual: int
    activation: int


def _form(op: Any) -> _Form:
    names = [argument.name for argument in op._schema.arguments]
    return _Form(names.index("residual"), names.index("activation"))


# Norms by their op, each with the op of its backward.
_BACKWARD_OF: dict[Any, Any] = {
    _ours.channel_norm_forward.default: _ours.channel_norm_backward.default,
    _ours.channel_apply_forward.default: _ours.channel_norm_backward.default,
    _ours.sample_norm_forward.default: _ours.sample_norm_backward.default,
}
_FORMS: dict[Any, _Form] = {op: _form(op) for op in (*_BACKWARD_OF, *_BACKWARD_OF.values())}


class FuseNorms(inductor().CustomGraphPass):  # type: ignore[misc]
    """The pass, for `torch._inductor.config.joint_custom_pre_pass`."""

    def __call__(self, graph: fx.Graph) -> None:
        changed = False
        for relu in graph.find_nodes(op="call_function", target=_aten.relu.default):
            changed = _fuse(graph, relu) or changed
        if changed:
            inductor().stable_topological_sort(graph)
            graph.lint()

    def uuid(self) -> Any:
        """Return what changes with this file, by which Inductor's cache tells graphs apart."""
        return inductor().get_hash_for_files((__file__,))


def _fuse(graph: fx.Graph, relu: fx.Node) -> bool:
    """Move a relu into the norm that it reads from; return whether that was possible."""
    z: Any = relu.args[0]
    found = _norm_of(z)
    residual = None
    if found is None and z.target is _aten.add.Tensor and not z.kwargs and set(z.users) == {relu}:
        # The later of two norms: the other's output is there as its residual.
        for y, other in ((z.args[1], z.args[0]), (z.args[0], z.args[1])):
            found = _norm_of(y)
            if found is not None and set(y.users) == {z} and _alike(y, other):
                residual = other
                break
            found = None
    elif found is not None and set(z.users) != {relu}:
        found = None
    if found is None:
        return False
    norm, output = found
    form = _FORMS[norm.target]
    args = list(norm.args)
    args[form.residual], args[form.activation] = residual, "relu"
    norm.args = tuple(args)
    for mask in _masks(relu):
        backward = None if residual is not None else _backward_of(norm, mask)
        if backward is not None:
            _fuse_backward(backward, mask)
    relu.replace_all_uses_with(output)
    graph.erase_node(relu)
    if residual is not None:
        graph.erase_node(z)
    return True


def _norm_of(y: Any) -> tuple[fx.Node, fx.Node] | None:
    """Return the norm without residual and activation whose output a node is, and the node."""
    if not isinstance(y, fx.Node):
        return None
    norm: Any = y
    if y.target is operator.getitem:
        if y.args[1] != 0:
            return None
        norm = y.args[0]
    if norm.target not in _BACKWARD_OF or (norm is y) != (norm.target is _ours.channel_apply_forward.default):
        return None
    form = _FORMS[norm.target]
    bare = norm.args[form.residual] is None and norm.args[form.activation] == "none"
    return (norm, y) if bare else None


def _alike(y: fx.Node, other: Any) -> bool:
    """Return whether a residual has the shape and dtype of a norm's output."""
    if not isinstance(other, fx.Node):
        return False
    mine, theirs = y.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return False
    return bool(mine.shape == theirs.shape) and mine.dtype == theirs.dtype


def _masks(relu: fx.Node) -> Iterator[fx.Node]:
    """Yield the gradients that are masked where a relu gave 0: where(relu ≤ 0, 0, g)."""
    aliases = [relu]
    for node in aliases:  # grows
        for user in list(node.users):
            if user.target is _aten.alias.default:
                aliases.append(user)
            elif user.target is _aten.le.Scalar and user.args[1] == 0:
                for masked in list(user.users):
                    if masked.target is _aten.where.self and masked.args[0] is user and _is_zero(masked.args[1]):
                        yield masked


def _is_zero(node: Any) -> bool:
    made = (_aten.scalar_tensor.default, _aten.full.default)
    return isinstance(node, fx.Node) and node.target in made and bool(node.args[-1] == 0)


def _backward_of(norm: fx.Node, mask: fx.Node) -> fx.Node | None:
    """Return the backward of a norm that alone reads a masked gradient."""
    if len(mask.users) != 1:
        return None
    (reader,) = mask.users
    if (
        reader.target is not _BACKWARD_OF[norm.target]
        or reader.args[0] is not mask
        or reader.args[1] is not norm.args[0]
    ):
        return None
    return reader


def _fuse_backward(backward: fx.Node, mask: fx.Node) -> None:
    args = list(backward.args)
    args[0], args[_FORMS[backward.target].activation] = mask.args[2], "relu"
    backward.args = tuple(args)
