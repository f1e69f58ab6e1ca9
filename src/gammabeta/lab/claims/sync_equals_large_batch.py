"""Synchronized BatchNorm over k processes equals BatchNorm on the whole batch.

Question: Do k processes that share BatchNorm's statistics compute what one process computes on all their samples?

Claim: Synchronized BatchNorm over k ranks is BatchNorm on the whole batch: the same outputs, gradients and running
statistics, for batches of equal and of different sizes.

Criterion: An identity in float64. Each case compares the outputs, the gradients of the input and of all parameters, and
the running statistics. They differ from those of the whole batch by less than 10⁻¹⁰ of the largest value of their kind.
Sums of some hundred values in another order err by 10⁻¹⁴, which several layers, forward and backward, magnify.
Supported if all agree, otherwise contradicted.

Room: The control averages the ranks' means and variances, which leaves out the variance between the means and weighs a
small batch as much as a large one. Its outputs must be off by more than 10⁻⁶ in every case, 10⁴ times what is allowed.
Then the ranks' batches do differ, and the check can fail.

Method: Real gloo processes, each with its own samples, ordered by class so that ranks differ, against torch.nn's own
BatchNorm on all samples in one process. Cases are single layers of (N, C) and (N, C, H, W) with random γ, β and running
statistics, and two networks on the task's images. Each rank's loss is the mean over its own n_r samples times n_r / n,
scaled before backward because gradients cross between ranks inside it. Parameter gradients are then summed over ranks;
DistributedDataParallel, which averages them, gives the same for a loss k times as large.

Settings: 2 and 3 processes (quick), also 4 (full); ranks of 8 samples each, and of 13, 3, 8 and 1; 6 channels, 5 × 4
positions; MLP of 2 layers and the small ResNet.

Sources: Chan, Golub & LeVeque 1983, eq. 2.1; Peng et al. 2018, MegDet (arXiv 1711.07240)

Known: It follows from the formula for merging moments. In a pilot run, averaging rank means and variances was off by
0.23.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.distributed import processes
from gammabeta.distributed.collectives import all_reduce
from gammabeta.distributed.process_groups import Peers
from gammabeta.functional import NormCall
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Task
from gammabeta.lab.outcome import Axis, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.statistics import Statistics, Synced

EXACT = True
KIND = "images"

TOLERANCE, SEEN = 1e-10, 1e-6
QUICK, FULL = (2, 3), (2, 3, 4)  # processes
SIZES = {"even": (8, 8, 8, 8), "uneven": (13, 3, 8, 1)}
CHANNELS, POSITIONS = 6, (5, 4)
CASES: dict[str, Mapping[str, Any] | tuple[int, ...]] = {
    "BatchNorm, (N, C)": (),
    "BatchNorm, (N, C, H, W)": POSITIONS,
    "MLP": {"kind": "mlp", "depth": 2, "width": 64, "activation": "relu", "init": "matched"},
    "ResNet": {"kind": "resnet", "init": "matched"},
}
KINDS = ("outputs", "gradients", "running statistics")
JUDGED, CONTROL = "synced", "averaged"
FLOOR = 1e-17  # where the plot shows an error of 0


@dataclass(frozen=True)
class Averaged:
    """The mistake: the ranks' means and variances averaged with equal weights."""

    peers: Peers

    def normalize(self, call: NormCall) -> Tensor:
        x, (weight, bias) = call.x, call.affine
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        mean, variance = all_reduce(torch.stack((mean, variance)), self.peers).div(self.peers.size)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y = (x - mean.reshape(shape)) * (variance.reshape(shape) + call.eps).rsqrt()
        count = all_reduce(torch.full_like(mean, x.numel() // x.shape[1], requires_grad=False), self.peers)
        call.running.update(mean.detach(), variance.detach(), count.long())
        assert weight is not None
        assert bias is not None
        scaled: Tensor = y * weight.reshape(shape) + bias.reshape(shape)
        return scaled


SOURCES: dict[str, Callable[[Peers, tuple[int, ...]], Statistics]] = {
    "synced": lambda peers, ranks: Synced(ranks),
    "averaged": lambda peers, ranks: Averaged(peers),
}


def problem(case: str, samples: int, data: Task) -> tuple[nn.Module, Tensor, Callable[[Tensor, slice], Tensor]]:
    """Build a case's model and input, the same in every process, and the loss of each sample of a part."""
    what = CASES[case]
    generator = torch.Generator().manual_seed(0)
    if isinstance(what, Mapping):
        index = data.train.y_n.argsort(stable=True)[:: len(data.train) // samples][:samples]
        labels_n = data.train.y_n[index]
        model = build(data, what, "batch", 0).double()
        cross_entropy = partial(functional.cross_entropy, reduction="none")
        return model, data.train.x_nchw[index].double(), lambda y, part: cross_entropy(y, labels_n[part])
    layer: nn.Module = (gb.BatchNorm2d if what else gb.BatchNorm1d)(CHANNELS).double()
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0, generator=generator)
    shape = (samples, CHANNELS, *what)
    x, direction = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    # Means are far from 0 and differ between ranks.
    x = 2 * x + 30 + torch.arange(samples, dtype=torch.float64).reshape(-1, *(1,) * (len(shape) - 1))
    return layer, x, lambda y, part: (y * direction[part]).flatten(1).sum(1)


def pass_over(model: nn.Module, x: Tensor, part: slice, loss_of: Callable[[Tensor, slice], Tensor]) -> dict[str, Any]:
    """Run forward and backward over a part of the samples, its loss weighted by its share of them."""
    own = x[part].requires_grad_()
    y = model.train()(own)
    (loss_of(y, part).sum() / len(x)).backward()
    return {
        "y": y.detach(),
        "g_x": own.grad,
        "gradients": [parameter.grad for parameter in model.parameters()],
        "running": [buffer.clone() for name, buffer in model.named_buffers() if "running" in name],
    }


def part_of(sizes: Sequence[int], rank: int) -> slice:
    """Return the rank's part of all samples."""
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def shares(*, task: Mapping[str, str], counts: Sequence[int], sources: Sequence[str]) -> dict[Any, Any]:
    """Compute this process's part of every (processes, sizes, case, source) that it takes part in."""
    data, found = load(task), {}
    rank = dist.get_rank()
    for count in counts:
        group = dist.new_group(list(range(count)))  # called by all processes, members or not
        if rank >= count:
            continue
        peers = Peers(group.group_name, count)
        for sizes in SIZES:
            own = SIZES[sizes][:count]
            for case in CASES:
                for source in sources:
                    model, x, loss_of = problem(case, sum(own), data)
                    gb.set_statistics(model, SOURCES[source](peers, tuple(range(count))))
                    found[count, sizes, case, source] = pass_over(model, x, part_of(own, rank), loss_of)
    return found


def distance(found: Sequence[Tensor], whole: Sequence[Tensor]) -> float:
    """Return the largest difference over the largest value."""
    largest = max(float(b.abs().max()) for b in whole)
    return max(float((a - b).abs().max()) for a, b in zip(found, whole, strict=True)) / largest


@versioned(1)
def compare(*, task: Mapping[str, str], counts: Sequence[int], sources: Sequence[str]) -> dict[str, Any]:
    """Compare all ranks with the whole batch; return the errors of every comparison."""
    settings = {"task": dict(task), "counts": list(counts), "sources": list(sources)}
    of_rank = processes.run(f"{__name__}:shares", settings, max(counts))
    data, rows = load(task), []
    for key in of_rank[0]:
        count, sizes, case, source = key
        own = SIZES[sizes][:count]
        model, x, loss_of = problem(case, sum(own), data)
        gb.release(model)  # torch's own layers, on the whole batch
        whole = pass_over(model, x, slice(None), loss_of)
        ours = [found[key] for found in of_rank[:count]]
        summed = [sum(parts) for parts in zip(*(share["gradients"] for share in ours), strict=True)]
        errors = {
            "outputs": distance([torch.cat([share["y"] for share in ours])], [whole["y"]]),
            "gradients": max(
                distance([torch.cat([share["g_x"] for share in ours])], [whole["g_x"]]),
                distance(summed, whole["gradients"]),
            ),
            "running statistics": max(distance(share["running"], whole["running"]) for share in ours),
        }
        rows.append({"processes": count, "sizes": sizes, "case": case, "source": source, "errors": errors})
    return {"rows": rows}


def measure(experiment: Experiment) -> Outcome:
    """Count the comparisons in which ranks and the whole batch differ."""
    if not processes.available():
        return Outcome(
            "no room here",
            "this build of torch has no gloo, which the processes need to communicate",
            [],
            Room(False, "torch has no gloo"),
        )
    counts = list(QUICK if experiment.quick else FULL)
    trial = Trial(
        f"{__name__}:compare",
        {"task": dict(experiment.source), "counts": counts, "sources": [JUDGED, CONTROL]},
    )
    rows = experiment.run([trial])[0]["rows"]
    judged = [row for row in rows if row["source"] == JUDGED]
    control = [row for row in rows if row["source"] == CONTROL]
    errors = [(row, kind, _number(row["errors"][kind])) for row in judged for kind in KINDS]
    wrong = [(row, kind) for row, kind, error in errors if not error < TOLERANCE]
    least = min(_number(row["errors"]["outputs"]) for row in control)
    room = Room(
        least > SEEN,
        f"averaging the ranks' means and variances is off by at least {least:.2g} of the largest output (above "
        f"{SEEN:g})",
    )
    effect = Effect.exactly(
        "comparisons in which ranks and the whole batch differ", len(wrong), len(errors), "comparisons"
    )
    worst = max(error for *_, error in errors)
    where = ", ".join(dict.fromkeys(f"{row['case']} {row['sizes']}" for row, _ in wrong))
    sentence = (
        f"over {' or '.join(map(str, counts))} processes outputs, gradients and running statistics are those of the "
        f"whole batch (largest difference {worst:.1g}); with the ranks' means and variances averaged instead, outputs "
        f"are off by {least:.2g} to {max(_number(row['errors']['outputs']) for row in control):.2g}"
        if not wrong
        else f"ranks and the whole batch differ in {len(wrong)} of {len(errors)} comparisons, by up to {worst:.2g}: "
        f"{where}"
    )
    return Outcome(
        verdict=effect.verdict if room.holds else "no room here",
        sentence=sentence,
        effects=[effect],
        room=room,
        pictures=[_picture(judged, control)],
        tables=[_table(judged, control)],
        settings=f"{', '.join(map(str, counts))} processes",
        trials=experiment.trials,
    )


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['case']}, {row['processes']}, {row['sizes']}"


def _picture(judged: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]]) -> Picture:
    series = [
        Series(name, [_label(row) for row in rows], [max(FLOOR, _number(row["errors"]["outputs"])) for row in rows])
        for name, rows in (("synchronized", judged), ("rank means and variances averaged", control))
    ]
    return Picture(
        "Difference of the ranks' outputs from the whole batch's",
        "Relative to the largest output, float64, by number of processes and by batches of even and uneven size.",
        "bar",
        Axis("case"),
        Axis("largest difference", log=True),
        series,
        [Line("y", TOLERANCE, "allowed"), Line("y", SEEN, "smallest for the control")],
    )


def _table(judged: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [row["case"], row["processes"], row["sizes"]]
        + [row["errors"][kind] for kind in KINDS]
        + [other["errors"][kind] for kind in KINDS]
        for row, other in zip(judged, control, strict=True)
    ]
    columns = ["case", "processes", "batches", *KINDS, *(f"averaged: {kind}" for kind in KINDS)]
    return Table("Largest difference from the whole batch, relative to the largest value", columns, rows)
