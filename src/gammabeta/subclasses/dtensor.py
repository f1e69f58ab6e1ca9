"""Norms of DTensors: the norm of plain tensors, on each process's part.

The placements are those of torch's own ops. Where x is sharded over samples, each process normalizes its samples, and
the gradients of weight and bias remain to be summed over the processes (Partial). Channel norms leave axis 1 sharded,
channels with their weights. Whatever else is sharded or not yet summed is gathered first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from gammabeta import arguments
from gammabeta._torch_private import replicates_implicitly
from gammabeta.masks import expand_mask
from gammabeta.running_statistics import GatheredMoments, RunningStatistics
from gammabeta.subclasses.operands import Operands

Placements = tuple[Placement, ...]


def by_samples(norm: str, compute: Callable[..., Tensor], axes: int | None, x: Tensor, operands: Operands) -> Tensor:
    """Do the work of `parts.by_parts` for DTensors, by `compute(x, weight, bias, residual, mask)` of plain tensors."""
    weight, bias, residual, mask = operands
    mesh = _mesh(x, weight)
    x = _distributed(norm, "input", x, mesh)
    samples = 1 if axes is None else x.ndim - axes
    placements = _kept(x, lambda axis: axis < samples)
    if mesh.get_coordinate() is None:
        return _nothing(x, residual, placements)
    whole = (Replicate(),) * mesh.ndim
    sums = tuple(Partial() if p.is_shard() else Replicate() for p in placements)
    y = compute(
        _part(norm, "input", x, mesh, placements),
        _part(norm, "weight", weight, mesh, whole, sums),
        _part(norm, "bias", bias, mesh, whole, sums),
        _part_of_residual(norm, residual, x, placements),
        _part_of_mask(norm, mask, x, placements, (1, 2) if axes is None else (samples, x.ndim)),
    )
    return _whole(y, x, placements)


def by_channels(
    norm: str, compute: Callable[..., Tensor], x: Tensor, running: RunningStatistics, operands: Operands
) -> Tensor:
    """Do the work of `parts.by_channels` for DTensors, by `compute(x, running, weight, bias, residual, mask)`."""
    weight, bias, residual, mask = operands
    mesh = _mesh(x, weight)
    x = _distributed(norm, "input", x, mesh)
    # An instance norm's running statistics move by the averages over all samples.
    placements = _kept(x, lambda axis: axis == 1 and not (norm == "instance_norm" and running.tracked))
    if mesh.get_coordinate() is None:
        return _nothing(x, residual, placements)
    of_channels = tuple(Shard(0) if p.is_shard() else Replicate() for p in placements)
    everywhere = _with_buffers(running, lambda t: _part_of_buffer(t, mesh, (Replicate(),) * mesh.ndim))
    own, collected = everywhere, None
    if Shard(0) in of_channels:
        own = _with_buffers(running, lambda t: _part_of_buffer(t, mesh, of_channels))
        if running.tracked:
            # The buffers hold all channels on every process, so it needs the others' moments before they move.
            own.gathered = collected = _Collected()
    y = compute(
        _part(norm, "input", x, mesh, placements),
        own,
        _part(norm, "weight", weight, mesh, of_channels),
        _part(norm, "bias", bias, mesh, of_channels),
        _part_of_residual(norm, residual, x, placements),
        _part_of_mask(norm, mask, x, placements, (1, 2)),
    )
    if collected is not None and collected.moments is not None:
        everywhere.update(*(_all_channels(t, x, of_channels) for t in collected.moments))
    _write_back(running, everywhere, mesh)
    return _whole(y, x, placements)


def update(running: RunningStatistics, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update buffers that are DTensors by moments that are the same on every process."""
    mesh = next(t.device_mesh for t in (running.mean, running.var) if isinstance(t, DTensor))
    everywhere = _with_buffers(running, lambda t: _part_of_buffer(t, mesh, (Replicate(),) * mesh.ndim))
    everywhere.update(mean, var, count)
    _write_back(running, everywhere, mesh)


class _Collected(GatheredMoments):
    """A record of one forward's moments, instead of an update."""

    def __init__(self) -> None:
        self.moments: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        self.moments = mean, var, count


def _mesh(x: Tensor, weight: Tensor | None) -> DeviceMesh:
    for t in (x, weight):
        if isinstance(t, DTensor):
            return t.device_mesh
    raise AssertionError("neither input nor weight is a DTensor")


def _distributed(norm: str, name: str, tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """Return the tensor as a DTensor of the mesh: it is one, or may be taken as the same on every process."""
    if isinstance(tensor, DTensor):
        if tensor.device_mesh != mesh:
            raise ValueError(
                f"{norm}: expected {name} on the mesh of input, {mesh}, got one on {tensor.device_mesh}: distribute "
                "them over the same mesh."
            )
        return tensor
    if tensor.numel() == 1 or replicates_implicitly(DTensor):
        return DTensor.from_local(tensor, mesh, (Replicate(),) * mesh.ndim)
    raise ValueError(
        f"{norm}: expected DTensors only, got mixed torch.Tensor and DTensor, {name} is a plain tensor: a plain "
        "tensor does not say whether it is the whole or one process's part. Make the layer's parameters DTensors with "
        "SequenceParallel or distribute_module, and other tensors with DTensor.from_local or distribute_tensor."
    )


def _kept(x: DTensor, keep: Callable[[int], bool]) -> Placements:
    """x's placements where it is sharded over such axes, which stay; Replicate elsewhere."""
    axes = [p.dim for p in x.placements if type(p) is Shard]
    if len(set(axes)) < len(axes) and x._spec.shard_order != x._spec.compute_default_shard_order(x.placements):
        axes = []  # the parts of one axis in another order than a DTensor that is made of them would have
    return tuple(p if type(p) is Shard and p.dim in axes and keep(p.dim) else Replicate() for p in x.placements)


def _part(
    norm: str, name: str, tensor: Tensor | None, mesh: DeviceMesh, placements: Placements, gradients: Any = None
) -> Any:
    """Place a tensor and return this process's part, differentiably. `gradients` are the placements of its gradient."""
    if tensor is None:
        return None
    distributed = _distributed(norm, name, tensor, mesh)
    if distributed.placements != placements:
        distributed = distributed.redistribute(mesh, placements)
    return distributed.to_local(grad_placements=gradients)


def _part_of_residual(norm: str, residual: Tensor | None, x: DTensor, placements: Placements) -> Any:
    # Checked on the whole: if only some processes raised an error, the others would wait for them.
    arguments.check_residual(norm, x, residual)
    return _part(norm, "residual", residual, x.device_mesh, placements)


def _part_of_mask(
    norm: str, mask: Tensor | None, x: DTensor, placements: Placements, without: tuple[int, int]
) -> Tensor | None:
    """Return this process's part of a mask. A plain tensor is the mask of the whole x, the same on every process."""
    if mask is None:
        return None
    first, last = without
    if not isinstance(mask, DTensor):
        everywhere = (Replicate(),) * x.device_mesh.ndim
        mask = DTensor.from_local(expand_mask(norm, mask, x, first, last), x.device_mesh, everywhere)
    elif mask.shape != (*x.shape[:first], *x.shape[last:]):
        mask = expand_mask(norm, mask, x, first, last)
    wanted = tuple(p if isinstance(p, Shard) and p.dim < first else Replicate() for p in placements)
    part: Tensor | None = _part(norm, "mask", mask, x.device_mesh, wanted)
    return part


def _with_buffers(running: RunningStatistics, part: Callable[[Tensor | None], Tensor | None]) -> RunningStatistics:
    return RunningStatistics(
        part(running.mean), part(running.var), running.momentum, part(running.num_batches_tracked),
        running.skipped, running.held, running.gathered,
    )  # fmt: skip


@torch.no_grad()
def _part_of_buffer(buffer: Tensor | None, mesh: DeviceMesh, placements: Placements) -> Tensor | None:
    """Return this process's part of a buffer.

    A plain tensor is the same on every process. Where it stays whole, it is updated in place.
    """
    if buffer is None:
        return None
    if not isinstance(buffer, DTensor):
        if all(p.is_replicate() for p in placements):
            return buffer
        buffer = DTensor.from_local(buffer, mesh, (Replicate(),) * mesh.ndim)
    if buffer.ndim == 0:
        placements = (Replicate(),) * mesh.ndim
    part: Tensor | None = _part("batch_norm", "running statistics", buffer, mesh, placements)
    return part


@torch.no_grad()
def _write_back(running: RunningStatistics, moved: RunningStatistics, mesh: DeviceMesh) -> None:
    """Copy what has moved as a whole back into buffers that are sharded."""
    if not running.tracked:
        return
    for buffer, whole in (
        (running.mean, moved.mean), (running.var, moved.var),
        (running.num_batches_tracked, moved.num_batches_tracked),
    ):  # fmt: skip
        if isinstance(buffer, DTensor) and whole is not None and not all(p.is_replicate() for p in buffer.placements):
            buffer.copy_(DTensor.from_local(whole, mesh, (Replicate(),) * mesh.ndim))


@torch.no_grad()
def _all_channels(part: Tensor, x: DTensor, placements: Placements) -> Tensor:
    shape = torch.Size((x.shape[1],))
    return DTensor.from_local(part, x.device_mesh, placements, shape=shape, stride=(1,)).full_tensor()


def _nothing(x: DTensor, residual: Tensor | None, placements: Placements) -> DTensor:
    """Return what a process outside the mesh has of y. It may call the norm, as it may call torch's ops."""
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return _whole(x.to_local().to(dtype), x, placements)


def _whole(y: Tensor, x: DTensor, placements: Placements) -> DTensor:
    """Return the DTensor of x's shape of which y is this process's part."""
    stride = x.stride()
    if y.is_contiguous():
        stride = tuple(math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim))
    return DTensor.from_local(y, x.device_mesh, placements, shape=x.shape, stride=stride)
