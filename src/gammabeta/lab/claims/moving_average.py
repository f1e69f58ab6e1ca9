"""Inference uses moving averages.

Question: How fast do the running statistics forget, and is the output in evaluation independent of the batch?

Claim: Inference normalizes by moving averages of the batch statistics. It is deterministic and independent of
companions, and an average with momentum m forgets with a time constant of −1/ln(1 − m) batches.

Criterion: The measured time constant over that of the law is within 10 % of 1. Each network at each momentum is a
regime. In addition an identity must hold: in evaluation, with companions exchanged at equal batch size, a sample's
output changes by 0. If it fails, the claim is contradicted.

Room: At the largest momentum the law and the rule of thumb 1/m differ by more than the margin, so that the two can be
distinguished.

Method: The first BatchNorm of an MLP and of the ResNet (or of the user's model), with weights frozen, so that only the
average moves. Its running mean starts 1,000 standard deviations away and sees batches of 32. The distance to the
average over the batches falls as exp(−t/τ), where distance is the root mean square over channels. 1/τ is the
least-squares slope of its logarithm over the batches at which the distance exceeds 10 standard deviations. There the
noise of the batches plays no part.

Settings: momentum 0.03, 0.1, 0.3, 0.5, 0.9; 3 seeds (quick), 10 seeds (full).

Sources: Ioffe & Szegedy 2015, algorithm 2 (arXiv 1502.03167)

Known: It follows from the recursion r ← (1 − m) r + m x. In a pilot run the time constant was 0.95 of 1/m at 0.1 and
0.39 at 0.9, so 1/m is the wrong law for large momenta.
"""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
import torch

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import first_norm, output_of
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.training import batches
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, tally
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import over_regimes, weakest

EXACT = False
KIND = "images"

MOMENTA = (0.03, 0.1, 0.3, 0.5, 0.9)
MARGIN = (1 / 1.1, 1.1)
BATCH, START, NOISE = 32, 1000.0, 10.0
CRITERION = Criterion(unit="of −1/ln(1 − m)", margin=MARGIN, direction="within", null=1.0, ratio=True)


def law(momentum: float) -> float:
    """Return the batches after which an exponential average with this momentum has forgotten all but 1/e."""
    return -1 / math.log1p(-momentum)


@versioned(1)
def forgetting(*, task: Mapping[str, Any], network: Mapping[str, Any], momentum: float, seed: int) -> dict[str, Any]:
    """Measure the running mean's distance to its limit, batch by batch, and what companions change in evaluation."""
    data = load(task)
    model = build(data, network, "batch", seed).train()
    layer: Any = first_norm(model)
    layer.momentum = momentum
    # The limit: the mean of the same layer's input over all training images.
    steps = 5 + math.ceil(law(momentum) * math.log(START / NOISE))
    stream = [x_nchw for x_nchw, _ in batches(data.train, BATCH, steps, seed)]
    inputs: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    with torch.no_grad():
        model(data.train.x_nchw)
    hook.remove()
    x = inputs[0].movedim(1, 0).flatten(1).double()
    mean, spread = x.mean(1), x.std(1).clamp_min(1e-12)
    layer.running_mean.copy_((mean + START * spread).to(layer.running_mean.dtype))
    distances = [START]
    for x_nchw in stream:
        output_of(model, layer, x_nchw)
        distances.append(float(((layer.running_mean.double() - mean) / spread).square().mean().sqrt()))
    far = [(step, math.log(distance)) for step, distance in enumerate(distances) if distance > NOISE]
    slope = (
        float(np.polyfit([step for step, _ in far], [log for _, log in far], 1)[0])
        if len(far) > 1
        else math.log(distances[1] / distances[0])
    )
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(data.train), (2, BATCH), generator=generator)
    index[:, 0] = 0
    with torch.no_grad():
        one, other = (model(data.train.x_nchw[index[which]])[0] for which in range(2))
    return {
        "constant": -1 / slope,
        "distances": distances,
        "change_in_evaluation": float((one - other).abs().max()),
    }


def measure(experiment: Experiment) -> Outcome:
    """Compare the measured time constant with the law, and count the runs in which companions matter."""
    networks = [experiment.mlp(2), experiment.convolutional]
    seeds = experiment.seeds(3, 10)

    def trial(arm: tuple[int, float], seed: int) -> Trial:
        index, momentum = arm
        settings = {"task": dict(experiment.source), "network": dict(networks[index]), "momentum": momentum}
        return Trial(f"{__name__}:forgetting", {**settings, "seed": seed})

    runs = experiment.grid([(index, m) for index in range(len(networks)) for m in MOMENTA], seeds, trial)
    logs = {key: [math.log(run["constant"] / law(key[1])) for run in of_key] for key, of_key in runs.items()}
    each = [CRITERION.effect(f"{describe(networks[n])}, momentum {m:g}", values) for (n, m), values in logs.items()]
    regimes = {effect.name: effect.verdict for effect in each}
    every = [run for of_key in runs.values() for run in of_key]
    moved = sum(run["change_in_evaluation"] != 0.0 for run in every)
    exact = Effect.exactly("runs in which evaluation depends on companions", moved, len(every), "runs")
    thumb = law(MOMENTA[-1]) * MOMENTA[-1]
    room = Room(thumb < MARGIN[0], f"at momentum {MOMENTA[-1]:g} the law is {thumb:.2f} of 1/m, beyond the margin")
    return Outcome(
        verdict=weakest([over_regimes(list(regimes.values())), exact.verdict]) if room.holds else "no room here",
        sentence=(
            f"running statistics forget in {min(effect.value for effect in each):.3f} to "
            f"{max(effect.value for effect in each):.3f} of −1/ln(1 − m) batches, {tally(regimes)} (1/m is off by up "
            f"to {1 / thumb:.1f} times); in evaluation companions "
            + ("change nothing" if not moved else f"matter in {moved} of {len(every)} runs")
        ),
        effects=[*each, exact],
        room=room,
        pictures=[
            Picture(
                "Distance of the running mean to its limit",
                "In standard deviations of the layer's input, MLP; dashed: the law. Median over seeds.",
                "line",
                Axis("batches"),
                Axis("distance", "standard deviations", log=True),
                [
                    series
                    for m in MOMENTA
                    for series in (_measured(runs[0, m], m), _law(m, len(runs[0, m][0]["distances"])))
                ],
            )
        ],
        tables=[
            Table(
                "Batches until all but 1/e is forgotten",
                ["network", "momentum", "measured (median)", "−1/ln(1 − m)", "1/m"],
                [
                    [describe(networks[n]), m, median(run["constant"] for run in of_key), law(m), 1 / m]
                    for (n, m), of_key in runs.items()
                ],
            )
        ],
        settings=f"{len(seeds)} seeds",
        regimes=regimes,
        trials=experiment.trials,
    )


def _measured(runs: list[dict[str, Any]], momentum: float) -> Series:
    middle = [median(of_step) for of_step in zip(*(run["distances"] for run in runs), strict=True)]
    return Series(f"momentum {momentum:g}", list(range(len(middle))), middle)


def _law(momentum: float, steps: int) -> Series:
    return Series(
        f"law at {momentum:g}", list(range(steps)), [START * (1 - momentum) ** step for step in range(steps)], dash=True
    )
