"""Norms of DTensors: they equal torch.nn's norm of the whole tensor, however it is distributed."""

import copy
import functools
import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import once
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta import kernels
from gammabeta.statistics import Ghost, Renorm, Running

C, S = 6, 4

LAYERS = {
    "LayerNorm": lambda ns: ns.LayerNorm(C),
    "LayerNorm of two axes": lambda ns: ns.LayerNorm((S, C)),
    "LayerNorm without bias": lambda ns: ns.LayerNorm(C, bias=False),
    "LayerNorm without parameters": lambda ns: ns.LayerNorm(C, elementwise_affine=False),
    "RMSNorm": lambda ns: ns.RMSNorm(C),
    "GroupNorm": lambda ns: ns.GroupNorm(3, C),
    "InstanceNorm": lambda ns: ns.InstanceNorm1d(C, affine=True),
    "InstanceNorm that tracks": lambda ns: ns.InstanceNorm1d(C, affine=True, track_running_stats=True),
    "BatchNorm": lambda ns: ns.BatchNorm1d(C),
    "BatchNorm, momentum None": lambda ns: ns.BatchNorm1d(C, momentum=None),
    "BatchNorm without parameters": lambda ns: ns.BatchNorm1d(C, affine=False),
    "BatchNorm in evaluation": lambda ns: ns.BatchNorm1d(C).eval(),
}
PLACEMENTS = {
    "replicated": Replicate(),
    "sharded over axis 0": Shard(0),
    "sharded over axis 1": Shard(1),
    "sharded over axis 2": Shard(2),
    "partial": Partial(),
}
THRESHOLDS = {"small": math.inf, "large": 0}
"""Values for `kernels.WORTH_IT`: torch's op where nothing of ours is asked for, or always ours."""


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor, mesh, placements):
    """Distribute the tensor; where it is a sum still to be taken, each process gets another summand."""
    if placements == [Partial()]:
        rank, size = dist.get_rank(), dist.get_world_size()
        return DTensor.from_local(tensor * (2 * (rank + 1) / (size * (size + 1))), mesh, placements)
    return distribute_tensor(tensor, mesh, placements)


def difference(a, b):
    """Return the largest difference relative to b's largest value; NaN where one is NaN and the other is not."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    same = a.isnan() & b.isnan()
    a, b = torch.where(same, 0, a), torch.where(same, 0, b)
    return 0.0 if b.numel() == 0 else float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def largest(*differences):
    return math.nan if any(math.isnan(d) for d in differences) else max(differences, default=0.0)


def said(run, *args, **kwargs):
    """Return the result, or an error as its text, so that every process goes on to the next case."""
    try:
        return run(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def in_both_ways(run, *args, **kwargs):
    """Call `run` with both thresholds."""
    results = {}
    before = dict(kernels.WORTH_IT)
    for way, threshold in THRESHOLDS.items():
        kernels.WORTH_IT.update(dict.fromkeys(before, threshold))
        results[way] = said(run, *args, **kwargs)
    kernels.WORTH_IT.update(before)
    return results


def pair(make, mesh, distribute=distribute_module):
    """Make torch's layer, and ours with the same state, distributed."""
    torch.manual_seed(1)
    theirs = make(nn).double()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    ours = copy.deepcopy(theirs)
    gb.adopt(ours)
    distribute(ours, mesh)
    return theirs, ours


def compare(theirs, ours, shape, mesh, placements, steps=2):
    """Return the largest difference of y, all gradients and all buffers over some forwards and backwards."""
    found = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, g = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
        x = (x * (1 + step) + 1).requires_grad_()
        d = part(x.detach(), mesh, placements).requires_grad_()
        y, z = theirs(x), ours(d)
        y.backward(g)
        z.backward(distribute_tensor(g, mesh, z.placements))
        found += [difference(whole(z), y), difference(whole(d.grad), x.grad)]
        parameters, buffers = dict(ours.named_parameters()), dict(ours.named_buffers())
        for name, p in theirs.named_parameters():
            found.append(difference(whole(parameters[name].grad), p.grad))
        for name, b in theirs.named_buffers():
            found.append(difference(whole(buffers[name]).double(), b.double()))
    return largest(*found)


def placed(make, placements, mesh, samples=8):
    theirs, ours = pair(make, mesh)
    of_features = isinstance(theirs, (nn.LayerNorm, nn.RMSNorm))
    return compare(theirs, ours, (samples, S, C) if of_features else (samples, C, S), mesh, placements)


# What only ours do.

FINISHED = {
    "LayerNorm": lambda: gb.LayerNorm(C, activation="gelu"),
    "RMSNorm": lambda: gb.RMSNorm(C, activation="silu"),
    "GroupNorm": lambda: gb.GroupNorm(3, C, activation="relu"),
    "InstanceNorm": lambda: gb.InstanceNorm1d(C, affine=True, activation="relu"),
    "BatchNorm": lambda: gb.BatchNorm1d(C, activation="relu"),
    "BatchNorm in evaluation": lambda: gb.BatchNorm1d(C, activation="relu").eval(),
}


def finished(make, placement, mesh, masked, dtype):
    """Compare ours on the whole and ours distributed, with a residual, an activation and a mask."""
    torch.manual_seed(2)
    plain = make()
    ours = distribute_module(copy.deepcopy(plain), mesh)
    x, residual = torch.randn(2, 5, C, S).to(dtype)
    mask = torch.rand(5, S) < 0.7
    if isinstance(plain, (nn.LayerNorm, nn.RMSNorm)):
        x, residual = x.transpose(1, 2), residual.transpose(1, 2)
    x[:, 0, 0], mask[:, 0] = (math.nan, False) if masked else (1.0, True)
    x, residual = x.requires_grad_(), residual.requires_grad_()
    y = plain(x, residual, mask=mask if masked else None)
    y.float().square().sum().backward()
    d, e = (part(t.detach(), mesh, [placement]).requires_grad_() for t in (x, residual))
    z = ours(d, e, mask=mask if masked else None)
    whole(z).float().square().sum().backward()
    if masked and dist.get_rank() == 0:
        assert (y == 0).any()
    grads = [(q.grad, p.grad) for p, q in zip(plain.parameters(), ours.parameters(), strict=True)]
    buffers = [(c.double(), b.double()) for b, c in zip(plain.buffers(), ours.buffers(), strict=True)]
    pairs = [(z, y), (d.grad, x.grad), (e.grad, residual.grad), *grads, *buffers]
    return largest(*(difference(whole(a).double(), b.double()) for a, b in pairs))


# BatchNorm's statistics.

SOURCES = {"Ghost": Ghost(4), "Renorm": Renorm(), "Running": Running()}


def buffers_replicated(module, mesh):
    distribute_module(module, mesh)


def buffers_plain(module, mesh):
    for name, parameter in module.named_parameters():
        setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()])))


def buffers_sharded(module, mesh):
    def shard(_name, child, mesh):
        for name, tensor in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
            placed = distribute_tensor(tensor.detach(), mesh, [Shard(0) if tensor.ndim else Replicate()])
            setattr(child, name, nn.Parameter(placed) if isinstance(tensor, nn.Parameter) else placed)

    distribute_module(module, mesh, shard)


WAYS = {"replicated": buffers_replicated, "plain": buffers_plain, "sharded": buffers_sharded}


def with_buffers(distribute, placement, mesh, source=None):
    theirs, ours = pair(LAYERS["BatchNorm"], mesh, distribute)
    if source is not None:
        gb.adopt(theirs)
        gb.set_statistics(theirs, source)
        gb.set_statistics(ours, source)
    return compare(theirs, ours, (8, C, S), mesh, [placement], steps=3)


def of_buffers(ours, plain):
    buffers = dict(ours.named_buffers())
    return largest(*(difference(whole(buffers[name]).double(), b.double()) for name, b in plain.named_buffers()))


def not_finite(placement, mesh, momentum):
    """Compare running statistics to those of the whole, after batches with NaN in one channel and in all."""
    plain = gb.BatchNorm1d(C, momentum=momentum).double()
    ours = distribute_module(copy.deepcopy(plain), mesh)
    generator = torch.Generator().manual_seed(5)
    for channels in (slice(2, 3), slice(0, 0), slice(0, C), slice(0, 0)):
        x = torch.randn(8, C, S, dtype=torch.float64, generator=generator)
        x[0, channels] = math.nan
        plain(x)
        ours(part(x, mesh, [placement]))
    assert all(b.isfinite().all() for b in plain.buffers())
    assert plain.skipped_updates.tolist() == ours.skipped_updates.tolist() == [1, 1, 2, 1, 1, 1]
    return of_buffers(ours, plain)


def accumulated(placement, mesh):
    """Merge some forwards to one update."""
    plain = gb.BatchNorm1d(C).double()
    ours = distribute_module(copy.deepcopy(plain), mesh)
    generator = torch.Generator().manual_seed(5)
    with gb.accumulate_statistics(plain), gb.accumulate_statistics(ours):
        for _ in range(2):
            x = torch.randn(8, C, S, dtype=torch.float64, generator=generator)
            plain(x)
            ours(part(x, mesh, [placement]))
    assert plain.num_batches_tracked == 1
    with gb.frozen_statistics(ours):
        ours(part(x, mesh, [placement]))
    return of_buffers(ours, plain)


def recomputed(placement, mesh):
    """Under activation checkpointing the statistics move once."""
    plain = gb.BatchNorm1d(C).double()
    ours = distribute_module(copy.deepcopy(plain), mesh)
    for _ in range(2):
        x = torch.randn(8, C, S, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        plain(x)
        d = part(x, mesh, [placement]).requires_grad_()
        checkpoint(ours, d, use_reentrant=False).full_tensor().sum().backward()
    return of_buffers(ours, plain)


# Blocks.


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.head = width // heads

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.mT / math.sqrt(self.head)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, norm, width=8, heads=4):
        super().__init__()
        self.norm1, self.norm2, self.last = (norm(width) for _ in range(3))
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return self.last(x + self.down(torch.relu(self.up(self.norm2(x)))))


PLAN = {
    # x is whole and becomes sharded over the sequence.
    "": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1)),
    "norm1": SequenceParallel(),
    "norm2": SequenceParallel(),
    "last": SequenceParallel(use_local_output=True),
    "attention": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
    "attention.q": ColwiseParallel(),
    "attention.k": ColwiseParallel(),
    "attention.v": ColwiseParallel(),
    "attention.out": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
}
NORMS = {"LayerNorm": nn.LayerNorm, "RMSNorm": nn.RMSNorm}
STEPS = 3


def block(norm):
    torch.manual_seed(6)
    return Block(NORMS[norm]).double()


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=generator)


def trained(model, own_samples, own_positions, times, forward=None):
    """Take some steps of SGD on a share of the samples and of the sequence; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, foreach=False)
    losses = []
    for step in range(STEPS):
        x, target = data(step)
        optimizer.zero_grad()
        y = (model if forward is None else forward)(x[own_samples])
        loss = (y - target[own_samples, own_positions]).square().sum() / target.numel()
        (loss * times).backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def sharded_model(norm, adopted, mesh, data_mesh):
    model = block(norm)
    if adopted:
        gb.adopt(model)
    # x is whole and becomes sharded over the sequence.
    sequence = {
        "norm1": SequenceParallel(),
        "": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1)),
    }
    model = parallelize_module(model, mesh, {**PLAN, **sequence})
    if data_mesh is not None:
        for norms in (model.norm1, model.norm2, model.last):
            fully_shard(norms, mesh=data_mesh)
        fully_shard(model, mesh=data_mesh)
    return model


def block_trained(norm, adopted, mesh, data_mesh=None, backend=None):
    """Return the losses of all processes together, and the parameters after training."""
    model = sharded_model(norm, adopted, mesh, data_mesh)
    rank, ranks = mesh.get_local_rank(), mesh.size()
    positions = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    samples, times = slice(None), 1
    if data_mesh is not None:
        own, times = data_mesh.get_local_rank(), data_mesh.size()
        samples = slice(own * 4 // times, (own + 1) * 4 // times)
    forward = None if backend is None else torch.compile(model, backend=backend, fullgraph=True)
    losses = trained(model, samples, positions, times, forward)
    dist.all_reduce(losses)
    return losses, {name: whole(p).detach() for name, p in model.named_parameters()}


@functools.cache
def block_alone(norm):
    """Train torch.nn's layers in one process."""
    model = block(norm)
    return trained(model, slice(None), slice(None), 1), dict(model.named_parameters())


def block_difference(norm, *args, **kwargs):
    losses, parameters = block_trained(norm, *args, **kwargs)
    alone, expected = block_alone(norm)
    assert list(parameters) == list(expected)
    return largest(
        difference(losses, alone), *(difference(parameters[name], p.detach()) for name, p in expected.items())
    )


# Errors.


def errors(mesh):
    x = torch.randn(4, S, C)
    layers = {"LayerNorm": gb.LayerNorm(C), "BatchNorm": gb.BatchNorm1d(S)}
    found = {}
    for name, layer in layers.items():
        found[f"{name}, plain weight"] = said(layer, distribute_tensor(x, mesh, [Shard(0)]))
        y = layer(x)
        with implicit_replication():
            z = said(layer, part(x, mesh, [Shard(0)]))
        found[f"{name}, implicit"] = z if isinstance(z, str) else difference(z.full_tensor(), y)
        distributed = distribute_module(copy.deepcopy(layer), mesh)
        found[f"{name}, plain input"] = said(distributed, x)
        found[f"{name}, plain residual"] = said(distributed, part(x, mesh, [Shard(0)]), x)
    norm = distribute_module(gb.LayerNorm(C), mesh)
    found["residual of another shape"] = said(norm, part(x, mesh, [Shard(0)]), part(x[:3], mesh, [Shard(0)]))
    found["no mask"] = said(norm, part(x, mesh, [Shard(0)]), mask=torch.ones(4, S))
    return found


def job():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    results = {}
    for name, make in LAYERS.items():
        for place, placement in PLACEMENTS.items():
            results[name, place] = in_both_ways(placed, make, [placement], mesh)
    for name, make in FINISHED.items():
        for place in ("replicated", "sharded over axis 0", "sharded over axis 1"):
            for masked in (False, True):
                for dtype in (torch.float32, torch.bfloat16):
                    results[name, place, masked, dtype] = said(finished, make, PLACEMENTS[place], mesh, masked, dtype)
    for place in ("replicated", "sharded over axis 0", "sharded over axis 1"):
        for way, distribute in WAYS.items():
            results["buffers", way, place] = said(with_buffers, distribute, PLACEMENTS[place], mesh)
        for name, source in SOURCES.items():
            results[name, place] = said(with_buffers, buffers_replicated, PLACEMENTS[place], mesh, source)
        results["accumulated", place] = said(accumulated, PLACEMENTS[place], mesh)
        results["recomputed", place] = said(recomputed, PLACEMENTS[place], mesh)
        for momentum in (0.1, None):
            results["not finite", momentum, place] = said(not_finite, PLACEMENTS[place], mesh, momentum)
    for norm in NORMS:
        results["block", norm] = in_both_ways(block_difference, norm, True, mesh)
        results["block", norm, "compiled"] = in_both_ways(block_difference, norm, True, mesh, backend="aot_eager")
    results["errors"] = errors(mesh)
    return results


def outside():
    """Call norms on processes that are outside the mesh."""
    mesh = DeviceMesh("cpu", [0, 1])
    found = {}
    for name, make in LAYERS.items():
        theirs, ours = pair(make, mesh)
        shape = (4, S, C) if isinstance(theirs, (nn.LayerNorm, nn.RMSNorm)) else (4, C, S)
        y = said(ours, distribute_tensor(torch.zeros(shape, dtype=torch.float64), mesh, [Shard(0)]))
        found[name] = y if isinstance(y, str) else (tuple(y.shape), y.to_local().numel())
    return found


def job_of_four():
    """Two meshes of two: data and tensor parallel; and parts of different sizes, of which one is empty."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    line = init_device_mesh("cpu", (4,))
    results = {}
    for name, make in LAYERS.items():
        for samples in (3, 6):
            results[name, samples] = in_both_ways(placed, make, [Shard(0)], line, samples)
        results[name, "channels"] = in_both_ways(placed, make, [Shard(1)], line)
        results[name, "two axes"] = in_both_ways(placed, make, [Shard(0), Shard(1)], both)
    for norm in NORMS:
        results["block", norm] = in_both_ways(block_difference, norm, True, both["tensor"], both["data"])
    results["outside"] = outside()
    return results


def found(name, processes=2):
    return once(f"tests.distributed.test_dtensor:{name}", processes)


def small(result, tolerance):
    """Return whether a difference, or each of several, is a number and small; an error's text is not."""
    values = result.values() if isinstance(result, dict) else [result]
    assert all(isinstance(value, float) and value < tolerance for value in values), result


@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_norm_of_a_dtensor_is_torchs_of_the_whole(layer, place):
    """Output, gradients and running statistics. torch's own fail for some: GroupNorm's backward where samples are
    sharded, RMSNorm where the normalized axis is; and its BatchNorm leaves the statistics of sharded channels."""
    for results in found("job"):
        small(results[layer, place], 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("place", ["replicated", "sharded over axis 0", "sharded over axis 1"])
@pytest.mark.parametrize("layer", FINISHED)
def test_residual_activation_and_mask_are_those_of_the_whole(layer, place, masked, dtype):
    for results in found("job"):
        small(results[layer, place, masked, dtype], 1e-6)


@pytest.mark.parametrize("place", ["replicated", "sharded over axis 0", "sharded over axis 1"])
@pytest.mark.parametrize("way", WAYS)
def test_running_statistics_move_whichever_way_they_are_kept(way, place):
    for results in found("job"):
        small(results["buffers", way, place], 1e-14)


@pytest.mark.parametrize("place", ["replicated", "sharded over axis 0", "sharded over axis 1"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_statistics_takes_a_dtensor(source, place):
    for results in found("job"):
        small(results[source, place], 1e-14)


@pytest.mark.parametrize("place", ["replicated", "sharded over axis 0", "sharded over axis 1"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_what_is_not_finite_moves_no_statistics(momentum, place):
    for results in found("job"):
        small(results["not finite", momentum, place], 1e-14)


@pytest.mark.parametrize("place", ["replicated", "sharded over axis 0", "sharded over axis 1"])
@pytest.mark.parametrize("way", ["accumulated", "recomputed"])
def test_statistics_move_once(way, place):
    for results in found("job"):
        small(results[way, place], 1e-14)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_tensor_parallel_block_trains_as_torchs_in_one_process(norm, compiled):
    for results in found("job"):
        small(results["block", norm, "compiled"] if compiled else results["block", norm], 1e-13)


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_under_fsdp2_and_tensor_parallel_trains_as_torchs_in_one_process(norm):
    for results in found("job_of_four", 4):
        small(results["block", norm], 1e-13)


@pytest.mark.parametrize("way", [3, 6, "channels", "two axes"])
@pytest.mark.parametrize("layer", LAYERS)
def test_parts_may_differ_in_size_and_be_empty(layer, way):
    for results in found("job_of_four", 4):
        small(results[layer, way], 1e-14)


def test_processes_outside_of_the_mesh_may_call():
    for rank, results in enumerate(found("job_of_four", 4)):
        for layer, result in results["outside"].items():
            shape = (4, S, C) if layer.startswith(("LayerNorm", "RMSNorm")) else (4, C, S)
            assert not isinstance(result, str), result
            assert result[0] == shape
            assert (result[1] == 0) == (rank > 1)


def test_mixing_dtensors_and_plain_tensors_is_refused_in_torchs_words():
    for results in found("job"):
        for layer in ("LayerNorm", "BatchNorm"):
            for what in ("weight", "input", "residual"):
                error = results["errors"][f"{layer}, plain {what}"]
                assert "got mixed torch.Tensor and DTensor" in error
                assert f"{what} is a plain tensor" in error
            small(results["errors"][f"{layer}, implicit"], 1e-6)


def test_what_does_not_fit_is_refused_on_every_process():
    for results in found("job"):
        assert (
            "expected residual of input's shape (4, 4, 6), got (3, 4, 6)"
            in results["errors"]["residual of another shape"]
        )
        assert "expected mask of dtype torch.bool" in results["errors"]["no mask"]


def test_nothing_of_it_is_imported_before_the_first_dtensor_comes():
    """A build of torch without torch.distributed has no DTensor."""
    script = (
        "import sys, torch, gammabeta; gammabeta.LayerNorm(2)(torch.randn(3, 2)); "
        "print('gammabeta.subclasses.dtensor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"
