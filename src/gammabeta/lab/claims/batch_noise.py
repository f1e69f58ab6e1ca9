"""BatchNorm's output for a sample depends on its companions, by 1/√n.

Question: How much does BatchNorm's output for one image vary with the images it shares a batch with?

Claim: In training the same sample is normalized differently from batch to batch; the noise falls as one over the square
root of the batch size n. In evaluation there is none.

Criterion: The slope of log standard deviation against log n, fitted over n ≥ 16, is −0.5 within ± 0.1. Each network is
a regime, supported if the whole 95 % interval lies in [−0.6, −0.4], contradicted if it is entirely outside. In addition
an identity must hold: in evaluation, with companions exchanged at equal batch size, the sample's output changes by 0.
If it fails, the claim is contradicted.

Room: The noise at n = 16 is above a thousandth of the output's own standard deviation, where rounding plays no part.

Method: The first BatchNorm of the MLP and of the ResNet (or of the user's model), freshly initialized. A probe image is
in a batch with n − 1 images drawn with replacement from the training images. Measured is the standard deviation of its
output over draws, as root mean square over channels, positions and probes. Only the first norm is used: at the logits,
and below n = 16, the noise saturates and follows no power law.

Settings: n = 4, 8 (drawn, not fitted), 16, 32, 64, 128, 256; 4 probes; 64 draws and 5 seeds (quick),
200 draws and 10 seeds (full).

Sources: Ioffe & Szegedy 2015, section 3.4 (arXiv 1502.03167); Luo et al. 2019 (1809.00846)

Known: −0.49 (MLP) and −0.46 (ResNet) in a pilot run on digits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import first_norm, output_of
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import over_regimes, weakest

EXACT = False
KIND = "images"

SIZES = (4, 8, 16, 32, 64, 128, 256)
FITTED = 16
PROBES = 4
MARGIN = (-0.6, -0.4)
LEAST = 1e-3
CRITERION = Criterion(unit="slope of log sd in log n", margin=MARGIN, direction="within", null=-0.5)


@versioned(1)
def noise(
    *, task: Mapping[str, Any], network: Mapping[str, Any], seed: int, sizes: list[int], draws: int
) -> dict[str, Any]:
    """Measure the deviation of a probe's first-norm output over batches, by batch size, and its evaluation change."""
    data = load(task)
    model = build(data, network, "batch", seed)
    layer = first_norm(model)
    generator = torch.Generator().manual_seed(seed)
    images = data.train.x_nchw
    probes = torch.randint(len(images), (PROBES,), generator=generator).tolist()
    deviations = []
    for size in sizes:
        variances = []
        for probe in probes:
            outputs = []
            for _ in range(draws):
                index = torch.randint(len(images), (size,), generator=generator)
                index[0] = probe
                outputs.append(output_of(model.train(), layer, images[index])[0])
            variances.append(torch.stack(outputs).double().var(dim=0).mean())
        deviations.append(float(torch.stack(variances).mean().sqrt()))
    spread = float(output_of(model.train(), layer, images[:256]).double().std())
    model.eval()
    change = 0.0
    for size in sizes:
        index = torch.randint(len(images), (2, size), generator=generator)
        index[:, 0] = probes[0]
        one, other = (output_of(model, layer, images[index[which]])[0] for which in range(2))
        change = max(change, float((one - other).abs().max()))
    return {"deviations": deviations, "spread": spread, "change_in_evaluation": change}


def slope(sizes: list[int], deviations: list[float]) -> float:
    """Fit the slope of log deviation against log size by least squares, from ``FITTED`` on."""
    points = np.log([(n, sd) for n, sd in zip(sizes, deviations, strict=True) if n >= FITTED])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def measure(experiment: Experiment) -> Outcome:
    """Fit the fall of the noise with the batch size, and count the runs in which companions matter in evaluation."""
    networks = [experiment.mlp(2), experiment.convolutional]
    seeds = experiment.seeds(5, 10)
    draws = 64 if experiment.quick else 200
    sizes = [size for size in SIZES if size <= len(experiment.task.train)]
    base = {"task": dict(experiment.source), "sizes": sizes, "draws": draws}
    by_network = list(
        experiment.grid(
            range(len(networks)),
            seeds,
            lambda index, seed: Trial(f"{__name__}:noise", {**base, "network": dict(networks[index]), "seed": seed}),
        ).values()
    )
    results = [result for of_network in by_network for result in of_network]
    share = min(result["deviations"][sizes.index(FITTED)] / result["spread"] for result in results)
    room = Room(
        share > LEAST,
        f"noise at n = 16 above {LEAST:g} of the output's standard deviation in every network; lowest {share:.2g}",
    )
    slopes = [[slope(sizes, result["deviations"]) for result in of] for of in by_network]
    effects = [CRITERION.effect(describe(n), of) for n, of in zip(networks, slopes, strict=True)]
    regimes = {effect.name: effect.verdict for effect in effects}
    moved = sum(result["change_in_evaluation"] != 0.0 for result in results)
    exact = Effect.exactly("runs in which evaluation depends on companions", moved, len(results), "runs")
    each = ", ".join(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}] in {e.name} ({e.verdict})" for e in effects)
    sentence = f"the first norm's noise falls as n to the power {each}; " + (
        "in evaluation companions change nothing" if not moved else f"in evaluation companions matter in {moved} runs"
    )
    return Outcome(
        verdict=weakest([over_regimes(list(regimes.values())), exact.verdict]) if room.holds else "no room here",
        sentence=sentence,
        effects=[*effects, exact],
        room=room,
        pictures=[_picture(networks, sizes, by_network)],
        tables=[
            Table(
                "Standard deviation of a sample's output over batches, mean over seeds",
                ["network", *(f"n = {size}" for size in sizes), "slope from 16 on"],
                [
                    [
                        describe(network),
                        *np.mean([result["deviations"] for result in of], axis=0).tolist(),
                        float(np.mean(fitted)),
                    ]
                    for network, of, fitted in zip(networks, by_network, slopes, strict=True)
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {draws} draws",
        regimes=regimes,
        trials=experiment.trials,
    )


def _picture(networks: list[Any], sizes: list[int], by_network: list[list[dict[str, Any]]]) -> Picture:
    series = []
    for network, results in zip(networks, by_network, strict=True):
        table = np.array([result["deviations"] for result in results])
        middle = table.mean(axis=0)
        series.append(
            Series(describe(network), sizes, middle.tolist(), table.min(axis=0).tolist(), table.max(axis=0).tolist())
        )
        start = middle[sizes.index(FITTED)]
        ideal = [float(start * (FITTED / size) ** 0.5) for size in sizes if size >= FITTED]
        series.append(
            Series(f"1/√n through {describe(network)} at 16", [s for s in sizes if s >= FITTED], ideal, dash=True)
        )
    return Picture(
        "Noise from companions",
        "Standard deviation, over batches, of one sample's output at the first BatchNorm; mean and range over seeds.",
        "line",
        Axis("batch size n", "images", log=True),
        Axis("standard deviation of the output", log=True),
        series,
    )
