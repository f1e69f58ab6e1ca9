"""BatchNorm's output for a sample depends on its companions, by 1/√n.

Question: How much does BatchNorm's output for one image vary with the images it shares a batch with?

Claim: In training the same sample is normalized differently from batch to batch; the noise falls as one over the square
root of the batch size n. In evaluation there is none.

Criterion: The slope of log standard deviation against log n, fitted over n ≥ 16, is −0.5 within ± 0.1. Each network is
a regime, supported if the whole 95 % interval lies in [−0.6, −0.4], contradicted if it is entirely outside. In addition
an identity must hold: in evaluation, with companions exchanged at equal batch size, the sample's output changes by 0.
If it fails, the claim is contradicted. Reported beside it: the noise of companions drawn without replacement, as in an
epoch, over that with replacement, at the largest n. For a mean it is √((N − n)/(N − 2)), about √(1 − n/N).

Room: The noise at n = 16 is above a thousandth of the output's own standard deviation, where rounding plays no part.

Method: The first BatchNorm of the MLP and of the ResNet (or of the user's model), freshly initialized. A probe image is
in a batch with n − 1 images drawn with replacement from N training images. Measured is the standard deviation of its
output over draws, as root mean square over channels, positions and probes. Only the first norm is used: at the logits,
and below n = 16, the noise saturates and follows no power law. The part of the noise that comes from μ is its variance
where σ is that of all N images, over the sum of this and of the variance where μ is theirs; the rest comes from σ.

Settings: n = 4, 8 (drawn, not fitted), 16, 32, 64, 128, 256; 4 probes; N is that of all training images, 2,048 at most.
Quick: 64 draws, 5 seeds. Full: 200 draws, 10 seeds.

Sources: Ioffe & Szegedy 2015, section 3.4 (arXiv 1502.03167); Luo et al. 2019 (1809.00846); Cochran 1977, section 2.6,
on drawing without replacement

Known: −0.49 (MLP) and −0.46 (ResNet) in a pilot run on digits. For normal inputs μ has two thirds of the noise.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import first_norm, input_of, output_of
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import over_regimes, weakest
from gammabeta.moments import Moments

EXACT = False
KIND = "images"

SIZES = (4, 8, 16, 32, 64, 128, 256)
FITTED = 16
PROBES = 4
MARGIN = (-0.6, -0.4)
LEAST = 1e-3
POPULATION = 2048
EPS = 1e-5
CRITERION = Criterion(unit="slope of log sd in log n", margin=MARGIN, direction="within", null=-0.5)
WITHOUT = Criterion(unit="times what is expected", margin=(1 / 1.1, 1.1), direction="within", null=1.0, ratio=True)


@versioned(2)
def noise(
    *, task: Mapping[str, Any], network: Mapping[str, Any], seed: int, sizes: list[int], draws: int
) -> dict[str, Any]:
    """Measure how the first norm's output for a probe varies over batches, and whether it does in evaluation.

    Returns:
        A dict with ``deviations`` over batches drawn with replacement, by batch size. At the last size also
        ``without``, the deviation without replacement, and ``mean_share``, the part of the variance that comes from μ.
        Further ``images``, the number N that batches are drawn from, ``spread``, the output's own standard deviation,
        and ``change_in_evaluation``.
    """
    data = load(task)
    model = build(data, network, "batch", seed).train()
    layer = first_norm(model)
    generator = torch.Generator().manual_seed(seed)
    images = data.train.x_nchw[:POPULATION]
    x = input_of(model, layer, images)
    probes = torch.randint(len(x), (PROBES,), generator=generator).tolist()
    deviations = []
    for size in sizes:
        drawn = [_with_replacement(probe, size, len(x), draws, generator) for probe in probes]
        deviations.append(_deviation(layer, x, drawn))
    others = [_without_replacement(probe, sizes[-1], len(x), draws, generator) for probe in probes]
    without, share = _deviation(layer, x, others), _share_of_mean(x, drawn)
    spread = float(output_of(model.train(), layer, images[:256]).double().std())
    model.eval()
    change = 0.0
    for size in sizes:
        index = torch.randint(len(images), (2, size), generator=generator)
        index[:, 0] = probes[0]
        one, other = (output_of(model, layer, images[index[which]])[0] for which in range(2))
        change = max(change, float((one - other).abs().max()))
    return {
        "deviations": deviations,
        "without": without,
        "mean_share": share,
        "images": len(x),
        "spread": spread,
        "change_in_evaluation": change,
    }


def _with_replacement(probe: int, size: int, images: int, draws: int, generator: torch.Generator) -> Tensor:
    """Draw batches (draws, size) that hold the probe first, and any images with it."""
    index = torch.randint(images, (draws, size), generator=generator)
    index[:, 0] = probe
    return index


def _without_replacement(probe: int, size: int, images: int, draws: int, generator: torch.Generator) -> Tensor:
    """Draw batches (draws, size) that hold the probe first, and other images with it, each once."""
    others = torch.tensor([image for image in range(images) if image != probe])
    chosen = [others[torch.randperm(len(others), generator=generator)[: size - 1]] for _ in range(draws)]
    return torch.stack([torch.cat([torch.tensor([probe]), companions]) for companions in chosen])


@torch.no_grad()
def _deviation(layer: nn.Module, x: Tensor, drawn: Sequence[Tensor]) -> float:
    """Return the standard deviation of the first image's output over batches, as root mean square over the probes.

    Args:
        x: (N, C) or (N, C, H, W), the layer's input for each image.
        drawn: for each probe (draws, size), which images each batch holds.
    """
    variances = [torch.stack([layer(x[index])[0] for index in batches]).double().var(dim=0).mean() for batches in drawn]
    return float(torch.stack(variances).mean().sqrt())


def _share_of_mean(x: Tensor, drawn: Sequence[Tensor]) -> float:
    """Return the part of the variance over batches that comes from μ, as the claim's method has it."""
    axes = [axis for axis in range(x.dim()) if axis != 1]

    def mean_and_factor(part: Tensor) -> tuple[Tensor, Tensor]:
        moments = Moments.of(part, axes)
        of_channel = [-1, *[1] * (x.dim() - 2)]
        return moments.mean.reshape(of_channel), torch.rsqrt(moments.var() + EPS).reshape(of_channel)

    mean, factor = mean_and_factor(x)
    by_mean, by_deviation = [], []
    for batches in drawn:
        probe = x[batches[0, 0]]
        each = [mean_and_factor(x[index]) for index in batches]
        by_mean.append(torch.stack([(probe - own) * factor for own, _ in each]))
        by_deviation.append(torch.stack([(probe - mean) * own for _, own in each]))
    of_mean, of_deviation = (
        float(torch.stack([part.double().var(dim=0).mean() for part in parts]).mean())
        for parts in (by_mean, by_deviation)
    )
    return of_mean / (of_mean + of_deviation)


def expected_without(size: int, images: int) -> float:
    """Return the deviation of a mean over size − 1 of images − 1 without replacement, over that with replacement."""
    return math.sqrt((images - size) / (images - 2))


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
    replacement = _replacement(networks, by_network, sizes[-1])
    each = ", ".join(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}] in {e.name} ({e.verdict})" for e in effects)
    sentence = f"the first norm's noise falls as n to the power {each}; {_made_of(results, sizes[-1])}; " + (
        "in evaluation companions change nothing" if not moved else f"in evaluation companions matter in {moved} runs"
    )
    return Outcome(
        verdict=weakest([over_regimes(list(regimes.values())), exact.verdict]) if room.holds else "no room here",
        sentence=sentence,
        effects=[*effects, exact, *replacement],
        room=room,
        pictures=[_picture(networks, sizes, by_network)],
        tables=[
            Table(
                "Standard deviation of a sample's output over batches, mean over seeds",
                [
                    "network",
                    *(f"n = {size}" for size in sizes),
                    "slope from 16 on",
                    f"without replacement at {sizes[-1]}",
                    f"share of μ in the variance at {sizes[-1]}",
                ],
                [
                    [
                        describe(network),
                        *np.mean([result["deviations"] for result in of], axis=0).tolist(),
                        float(np.mean(fitted)),
                        float(np.mean([result["without"] for result in of])),
                        float(np.mean([result["mean_share"] for result in of])),
                    ]
                    for network, of, fitted in zip(networks, by_network, slopes, strict=True)
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {draws} draws",
        regimes=regimes,
        trials=experiment.trials,
    )


def _replacement(networks: list[Any], by_network: list[list[dict[str, Any]]], size: int) -> list[Effect]:
    """Compare the noise without replacement with what is expected, in each network that has any noise."""
    return [
        WITHOUT.effect(
            f"{describe(network)}, n = {size}, without replacement over with, over √((N − n)/(N − 2))",
            [math.log(_times(result) / expected_without(size, result["images"])) for result in of],
        )
        for network, of in zip(networks, by_network, strict=True)
        if size < of[0]["images"] and all(_times(result) > 0 for result in of)
    ]


def _times(result: Mapping[str, Any]) -> float:
    """Return the noise without replacement over that with it, at the largest batch size; NaN without noise."""
    return float(result["without"] / (result["deviations"][-1] or math.nan))


def _made_of(results: Sequence[Mapping[str, Any]], size: int) -> str:
    """Say what the noise at the largest batch size is made of."""
    share = float(np.mean([result["mean_share"] for result in results]))
    times = float(np.mean([_times(result) for result in results]))
    return (
        f"at n = {size} {100 * share:.0f} % of its variance come from μ and the rest from σ, and without replacement "
        f"it is {times:.2f} times as large (√((N − n)/(N − 2)) is {expected_without(size, results[0]['images']):.2f})"
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
