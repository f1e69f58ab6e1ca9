"""Synchronizing BatchNorm is a communication bottleneck.

Question: What does sharing BatchNorm's statistics between processes cost, and from how many processes on does it
matter?

Claim: Synchronizing is a communication bottleneck: every layer waits for all processes, forward and backward.

Criterion: Reported, not judged: what is measured holds for processes of this machine, and what is said of other links
rests on their assumed speed. Two figures are reported. One is how much synchronization lengthens a step, in percent.
The other, for each link, is the number of ranks at which the modelled exchange exceeds 5 % of a step.

Room: The network has BatchNorm layers that synchronize: at least one collective per step is counted in 2 processes.

Method: Real gloo processes, each with its own batch, in lockstep. The same network runs with each process's own
statistics and with synchronized ones, in turns. Timed are a whole step (forward, backward, gradients averaged in one
collective, SGD), and only the normalization layers, forward and backward on inputs of their shapes. Collectives and
bytes are counted as torch dispatches them. The time of one collective over message sizes is fitted by t = α + m/β, by
least squares of relative errors. For more ranks, the step's counted messages m are sent one after another, without
overlap or contention, by the cheaper of two algorithms. The ring takes (P − 1)(α + m/β) for an all-gather and 2(P −
1)(α + m/(Pβ)) for an all-reduce. Recursive doubling takes ⌈log₂ P⌉α + (P − 1)m/β and ⌈log₂ P⌉(α + m/β). The ring is
also reported on its own. The model leaves out waiting for each other, which the measured step includes. The step is
this machine's in one process, and also one 10 and one 100 times longer, as with larger batches or images and as many
layers.

Settings: the small ResNet (or the user's model), 32 images per process; 1 and 2 processes, in full also 4, each with
one thread; a setting with more processes than cores is marked oversubscribed. Messages of 64 bytes to 1 MB. 8 rounds
(quick), 40 (full). Links, assumed, with latency per message and bandwidth: NVLink 4, 3 µs, 900 GB/s; InfiniBand NDR, 5
µs, 50 GB/s; 100 GbE, 20 µs, 12.5 GB/s; 25 GbE, 30 µs, 3.1 GB/s; 10 GbE, 50 µs, 1.25 GB/s.

Sources: Thakur, Rabenseifner & Gropp 2005, section 4; Peng et al. 2018, MegDet (arXiv 1711.07240); Wu & He 2018
(1803.08494)

Known: A layer sends 2C + 2 values forward and 2C backward, so few that latency decides and not bandwidth.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.distributed import processes
from gammabeta.distributed.collectives import all_gather, all_reduce
from gammabeta.distributed.process_groups import Peers
from gammabeta.distributed.traffic import Traffic
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.training import average_gradients
from gammabeta.lab.interval import interval
from gammabeta.lab.links import GATHER, LINKS, MOST_RANKS, PART, REDUCE, exchange, passes_at
from gammabeta.lab.outcome import Axis, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, cores, versioned
from gammabeta.statistics import Synced

EXACT = False
KIND = "images"

QUICK, FULL = (1, 2), (1, 2, 4)  # processes
BATCH, WARM, REPEATS = 32, 2, 4
MESSAGES = tuple(4**power for power in range(3, 11))  # bytes
CALLS = 12
SHOWN_RANKS = (8, 64, 1024)
LONGER = (1, 10, 100)  # factors of the step's time: this machine's, and more work between as many exchanges
NAMES = {"all_gather_into_tensor": GATHER, "all_reduce": REDUCE}
ARMS = {"own": "each its own statistics", "synced": "synchronized"}


# --- measured, in each process ---


def own_times(*, task: Mapping[str, str], network: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Time steps, their norm layers and single collectives, and record the collectives of a step."""
    data = load(task)
    together = dist.is_initialized() and dist.get_world_size() > 1
    rank = dist.get_rank() if together else 0
    index = torch.arange(rank * BATCH, (rank + 1) * BATCH) % len(data.train)
    x_nchw, y_n = data.train.x_nchw[index], data.train.y_n[index]
    timed: dict[tuple[str, str], Callable[[], object]] = {}
    found: dict[str, Any] = {"messages": [], "gradients": []}
    for arm in ARMS:
        model = build(data, network, "batch", 0).train()
        if arm == "synced":
            gb.set_statistics(model, Synced())
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)

        def gradients(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            functional.cross_entropy(model(x_nchw), y_n).backward()

        def step(
            model: nn.Module = model,
            optimizer: torch.optim.Optimizer = optimizer,
            gradients: Callable[[], None] = gradients,
        ) -> None:
            gradients()
            if together:
                average_gradients(model)
            optimizer.step()

        timed["step", arm] = step
        timed["norms", arm] = norms_alone(model, x_nchw)
        if arm == "synced" and together:
            with Traffic() as traffic:
                gradients()
            found["messages"] = [(NAMES.get(name, name), count) for name, count in traffic.seen]
            with Traffic() as traffic:
                average_gradients(model)
            found["gradients"] = [(NAMES.get(name, name), count) for name, count in traffic.seen]
    found["timing"] = {"rounds": in_turns(timed, rounds), "messages": collectives_alone() if together else []}
    return found


def norms_alone(model: nn.Module, x_nchw: Tensor) -> Callable[[], None]:
    """Return a call that runs each BatchNorm of the model forward and backward, on an input of its usual shape."""
    shapes: list[tuple[nn.Module, torch.Size]] = []
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: shapes.append((layer, given[0].shape))) for layer in layers
    ]
    model(x_nchw)
    for hook in hooks:
        hook.remove()
    given = [(layer, torch.randn(shape, requires_grad=True), torch.randn(shape)) for layer, shape in shapes]

    def call() -> None:
        for layer, x, direction in given:
            torch.autograd.grad(layer(x), [x, *layer.parameters()], direction)

    return call


def in_turns(timed: Mapping[tuple[str, str], Callable[[], object]], rounds: int) -> list[list[Any]]:
    """Time all calls in turns; return (what, arm, seconds per call in each round).

    All processes begin each turn together.
    """
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for turn in range(WARM + rounds):
        for key, call in timed.items():
            if dist.is_initialized():
                dist.barrier()
            start = time.perf_counter()
            for _ in range(REPEATS):
                call()
            if turn >= WARM:
                seconds[key].append((time.perf_counter() - start) / REPEATS)
    return [[*key, of_key] for key, of_key in seconds.items()]


def collectives_alone() -> list[list[Any]]:
    """Time the functions that the layers call; return (collective, bytes per process, median seconds)."""
    group = dist.group.WORLD
    assert group is not None
    peers = Peers(group.group_name, group.size())
    found: list[list[Any]] = []
    for name, call in ((GATHER, all_gather), (REDUCE, all_reduce)):
        for size in MESSAGES:
            message, times = torch.ones(size // 4), []
            for turn in range(WARM + CALLS):
                dist.barrier()
                start = time.perf_counter()
                call(message, peers)
                if turn >= WARM:
                    times.append(time.perf_counter() - start)
            found.append([name, size, median(times)])
    return found


@versioned(1)
def cost(*, task: Mapping[str, str], network: Mapping[str, Any], ranks: int, rounds: int) -> dict[str, Any]:
    """Measure in ``ranks`` processes and return what the first measured; one rank is this process, without a group."""
    if ranks == 1:
        return own_times(task=task, network=network, rounds=rounds)
    settings = {"task": dict(task), "network": dict(network), "rounds": rounds}
    whole: dict[str, Any] = processes.run(f"{__name__}:own_times", settings, ranks)[0]
    return whole


# --- modelled ---


def fit(messages: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Fit t = α + m/β to (bytes, seconds); return α in seconds and 1/β in seconds per byte, neither below 0."""
    sizes, seconds = np.array(list(messages), dtype=np.float64).T
    (alpha, slope), _ = nnls(np.stack((1 / seconds, sizes / seconds), axis=1), np.ones(len(seconds)))
    return float(alpha), float(slope)


# --- reported ---

Seconds = Mapping[tuple[int, str, str], list[float]]  # by ranks, what and arm: of each round
Fits = Mapping[tuple[int, str], tuple[float, float]]  # by ranks and collective: α and 1/β


def measure(experiment: Experiment) -> Outcome:
    """Report what synchronization costs here, and model what it costs over other links."""
    if not processes.available():
        return Outcome(
            "no room here",
            "this build of torch has no gloo, which the processes need to communicate",
            [],
            Room(False, "torch has no gloo"),
        )
    counts = QUICK if experiment.quick else FULL
    records = _records(experiment, counts)
    messages: list[tuple[str, float]] = [(name, size) for name, size in records[2]["result"]["messages"]]
    room = Room(bool(messages), f"{len(messages)} collectives of normalization per step in 2 processes")
    seconds = {
        (ranks, what, arm): of_rounds
        for ranks, record in records.items()
        for what, arm, of_rounds in record["timing"]["rounds"]
    }
    effects = [
        _longer(f"lengthening of a step by synchronization, {_processes(ranks)}", seconds, ranks)
        for ranks in sorted(counts, key=lambda ranks: ranks != 2)
    ]
    step = median(seconds[1, "step", "own"])
    fits = {
        (ranks, name): fit([(size, t) for kind, size, t in record["timing"]["messages"] if kind == name])
        for ranks, record in records.items()
        if ranks > 1
        for name in (GATHER, REDUCE)
    }
    return Outcome(
        verdict="reported" if room.holds else "no room here",
        sentence=(
            f"{describe(experiment.convolutional)} " + _sentence(effects[0], records[2]["result"], seconds, fits)
            if room.holds
            else f"{describe(experiment.convolutional)} has no BatchNorm that would synchronize"
        ),
        effects=effects if room.holds else [],
        room=room,
        pictures=[
            _bars(counts, seconds),
            _over_sizes(records, fits),
            *(_over_ranks(messages, step * longer, longer) for longer in LONGER[::2]),
        ],
        tables=[_measured(records, seconds, fits), _fitted(fits), _modelled(messages, step)],
        settings=f"{', '.join(map(str, counts))} processes, {cores()} cores",
        trials=experiment.trials,
    )


def _records(experiment: Experiment, counts: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Measure one number of processes after another: run side by side, they would slow each other down."""
    settings = {
        "task": dict(experiment.source),
        "network": dict(experiment.convolutional),
        "rounds": 8 if experiment.quick else 40,
    }
    return {ranks: experiment.records([Trial(f"{__name__}:cost", {**settings, "ranks": ranks})])[0] for ranks in counts}


def _sentence(first: Effect, counted: Mapping[str, Any], seconds: Seconds, fits: Fits) -> str:
    """Tell what a step sends, what that costs in 2 processes, and the ranks that the model says."""
    messages: list[tuple[str, float]] = [(name, size) for name, size in counted["messages"]]
    sent, averaged = (sum(size for _, size in counted[what]) for what in ("messages", "gradients"))
    alone = _by_fit(messages, 2, fits) or 0.0
    step = median(seconds[1, "step", "own"])
    return (
        f"sends {len(messages)} collectives of {round(sent)} bytes together per step (its gradients, "
        f"{averaged}); in 2 processes over gloo that makes a step {first.value:.0f} % longer [{first.low:.0f}, "
        f"{first.high:.0f}]: {1e3 * (_synced(seconds, 2) - _own(seconds, 2)):.1f} ms, where "
        f"the same collectives on their own take {1e3 * alone:.1f}; modelled over assumed "
        f"links the exchange exceeds 5 % of a step of {1e3 * step:.1f} ms at {_passing(messages, step)}, and of one "
        f"100 times longer at {_passing(messages, 100 * step)}"
    )


def _processes(ranks: int) -> str:
    words = f"{ranks} process{'es' * (ranks > 1)}"
    return f"{words}, oversubscribed" if ranks > cores() else words


def _longer(name: str, seconds: Seconds, ranks: int) -> Effect:
    """Return the lengthening, round by round, in percent of the step with each process's own statistics."""
    pairs = zip(seconds[ranks, "step", "synced"], seconds[ranks, "step", "own"], strict=True)
    around = interval([100 * (synced / own - 1) for synced, own in pairs])
    rounds = len(seconds[ranks, "step", "own"])
    margin = (0.0, 100 * PART)
    return Effect(name, around.value, around.low, around.high, "% of a step", margin, 0.0, "reported", rounds)


def _own(seconds: Seconds, ranks: int) -> float:
    return median(seconds[ranks, "step", "own"])


def _synced(seconds: Seconds, ranks: int) -> float:
    return median(seconds[ranks, "step", "synced"])


def _by_fit(messages: Sequence[tuple[str, float]], ranks: int, fits: Fits) -> float | None:
    """Return the seconds that a step's messages would take, each as fast as on its own; None without a fit."""
    known = [fits[ranks, name] for name, _ in messages if (ranks, name) in fits]
    return sum(alpha + slope * m for (alpha, slope), (_, m) in zip(known, messages, strict=True)) if known else None


def _passing(messages: Sequence[tuple[str, float]], step: float) -> str:
    at = {link.name: passes_at(messages, step, link) for link in LINKS.values()}
    reached = [f"{ranks} ranks over {link}" for link, ranks in at.items() if ranks]
    beyond = [link for link, ranks in at.items() if not ranks]
    if len(beyond) == len(at):
        return f"more than {MOST_RANKS} ranks over any of them"
    return ", ".join(reached + ([f"more than {MOST_RANKS} over {', '.join(beyond)}"] if beyond else []))


def _bars(counts: Sequence[int], seconds: Seconds) -> Picture:
    x = [f"{what}, {_processes(ranks)}" for what in ("step", "norms only") for ranks in counts]
    keys = [(ranks, what) for what in ("step", "norms") for ranks in counts]
    series = []
    for arm, name in ARMS.items():
        of_arm = [np.array(seconds[ranks, what, arm]) * 1e3 for ranks, what in keys]
        low, middle, high = ([float(np.percentile(values, q)) for values in of_arm] for q in (25, 50, 75))
        series.append(Series(name, x, middle, low, high))
    return Picture(
        "Milliseconds per step, and of only its normalization layers",
        "Median and quartiles over rounds, on this machine.",
        "bar",
        Axis("what is timed"),
        Axis("time", "ms"),
        series,
    )


def _over_sizes(records: Mapping[int, Mapping[str, Any]], fits: Fits) -> Picture:
    series = []
    for (ranks, name), (alpha, slope) in fits.items():
        of_kind = [(m, t) for kind, m, t in records[ranks]["timing"]["messages"] if kind == name]
        sizes = [m for m, _ in of_kind]
        label = f"{name}, {_processes(ranks)}"
        series.append(Series(label, sizes, [1e6 * t for _, t in of_kind]))
        series.append(Series(f"{label}: α + m/β", sizes, [1e6 * (alpha + slope * m) for m in sizes], dash=True))
    return Picture(
        "Time of one collective over the size of its message",
        "Gloo between processes of this machine, median of calls; dashed: the fit.",
        "line",
        Axis("message per process", "bytes", log=True),
        Axis("time", "µs", log=True),
        series,
    )


def _over_ranks(messages: Sequence[tuple[str, float]], step: float, longer: int) -> Picture:
    ranks = [2**power for power in range(1, MOST_RANKS.bit_length())]
    series = [
        Series(link.name, ranks, [100 * exchange(messages, p, link) / step for p in ranks]) for link in LINKS.values()
    ]
    of_what = "this machine's step" if longer == 1 else f"a step {longer} times longer than this machine's"
    return Picture(
        f"Modelled: exchange of statistics as a share of {of_what}",
        f"Over links of assumed speed, a step of {1e3 * step:.2g} ms without it; the cheaper algorithm.",
        "line",
        Axis("ranks", log=True),
        Axis("exchange", "% of a step", log=True),
        series,
        [Line("y", 100 * PART, "5 %")],
    )


def _measured(records: Mapping[int, Mapping[str, Any]], seconds: Seconds, fits: Fits) -> Table:
    rows = []
    for ranks, record in records.items():
        found = record["result"]
        times = [1e3 * median(seconds[ranks, what, arm]) for what in ("step", "norms") for arm in ARMS]
        sent = [len(found["messages"]), sum(size for _, size in found["messages"])]
        alone = _by_fit(found["messages"], ranks, fits)
        gradients = sum(size for _, size in found["gradients"])
        rows.append([_processes(ranks), *times, None if alone is None else 1e3 * alone, *sent, gradients])
    return Table(
        "Measured, medians",
        [
            "processes", "step, ms", "synchronized, ms", "norms only, ms", "synchronized, ms",
            "its collectives by the fit, ms",
            "collectives per step", "bytes per process", "bytes of gradients",
        ],
        rows,
    )  # fmt: skip


def _fitted(fits: Fits) -> Table:
    rows = [
        [name, _processes(ranks), 1e6 * alpha, 1e-9 / slope if slope else None]
        for (ranks, name), (alpha, slope) in fits.items()
    ]
    return Table("Fit of a collective's time, α + m/β", ["collective", "processes", "α, µs", "β, GB/s"], rows)


def _modelled(messages: Sequence[tuple[str, float]], step: float) -> Table:
    rows = []
    for link in LINKS.values():
        for ring in (False, True):
            at = [1e3 * exchange(messages, p, link, ring=ring) for p in SHOWN_RANKS]
            passing = [
                passes_at(messages, step * longer, link, ring=ring) or f"above {MOST_RANKS}" for longer in LONGER
            ]
            rows.append(
                [link.name, 1e6 * link.alpha, 1e-9 * link.beta, "ring" if ring else "the cheaper", *at, *passing]
            )
    return Table(
        "Modelled over assumed links: milliseconds of exchange per step, and the ranks at which it exceeds 5 % of it",
        [
            "link",
            "latency, µs",
            "GB/s",
            "algorithm",
            *(f"{p} ranks, ms" for p in SHOWN_RANKS),
            *(f"ranks, step of {1e3 * step * longer:.3g} ms" for longer in LONGER),
        ],
        rows,
    )
