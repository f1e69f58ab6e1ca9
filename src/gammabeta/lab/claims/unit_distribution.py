"""Normalization gives mean 0 and variance 1.

Question: What is the distribution of a normalization layer's output, over the axes that it normalizes?

Claim: Standardized inputs have mean 0 and variance 1, more exactly variance σ²/(σ² + ε). RMSNorm does not center: its
output has mean square m/(m + ε), with m the input's mean square, and its mean is not 0.

Criterion: An identity in float64, over every norm's own axes. The mean is within (64 + n)·u·(1 + |μ|/s) of 0, and the
variance within (64 + n)·u·(1 + |μ|/σ) of σ²/(σ² + ε), relatively. Here n is the number of values per statistic, s² = σ²
+ ε and u = 2⁻⁵³. A sum of n squares taken one by one errs by at most n·u (Higham 2002, eq. 4.4), x − μ loses as many
digits as |μ| exceeds the spread, and 64 covers the rest. Supported if it holds for every statistic of every norm on
every input, otherwise contradicted.

Room: Always: an identity needs none.

Method: BatchNorm of (N, C) and (N, C, H, W), LayerNorm, GroupNorm, InstanceNorm and RMSNorm run in training mode with γ
= 1 and β = 0. There are two kinds of inputs: random ones, with means and spreads over nine and six decades, and the
real task's images after the first linear or convolutional layer of a network trained for 20 steps. Means and variances
of the output are computed here by torch.mean in float64, not by the library's own Moments.

Settings: ε of 10⁻⁵ and 10⁻²; |μ| of 0, 1, 10³, 10⁶; σ of 10⁻³, 1, 10³; 32 samples, 16 channels, 4 × 4 positions; the
same for quick and full.

Sources: Ioffe & Szegedy 2015, algorithm 1 (arXiv 1502.03167); Ba et al. 2016, eq. 3 (1607.06450); Wu & He 2018, eq. 1
(1803.08494); Zhang & Sennrich 2019, eq. 4 (1910.07467)

Known: It follows from the definition; at σ² below ε the variance is far from 1.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.training import batches
from gammabeta.lab.norms import NORMS, norm
from gammabeta.lab.outcome import Axis, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned

EXACT = True
KIND = "any"

UNIT_ROUNDOFF = 2.0**-53
OTHER_ROUNDING = 64
TINY = 1e-300  # keeps a constant channel from dividing by zero
SAMPLES, CHANNELS, SIDE = 32, 16, 4
EPSILONS = (1e-5, 1e-2)
MEANS = (0.0, 1.0, 1e3, 1e6)
SPREADS = (1e-3, 1.0, 1e3)
# (norm, positional axes)
CASES = (
    ("batch", 0),
    ("batch", 2),
    ("layer", 0),
    ("layer", 2),
    ("group", 0),
    ("group", 2),
    ("instance", 2),
    ("rms", 0),
    ("rms", 2),
)


def statistics_of(name: str, x: Tensor, groups: int) -> Tensor:
    """Reshape x, (N, C) or (N, C, H, W), to (statistics, values): a row holds the values of one statistic."""
    if name == "batch":
        return x.movedim(1, 0).flatten(1)
    if name == "group":
        return x.reshape(x.shape[0] * groups, -1)
    if name == "instance":
        return x.flatten(2).flatten(0, 1)
    if name == "rms":
        return x.movedim(1, -1).flatten(0, -2)
    return x.flatten(1)


def deviation(name: str, layer: nn.Module, x: Tensor, eps: float) -> dict[str, float]:
    """Return the distance of the layer's output from the identity, in units of the tolerance: at most 1 if it holds."""
    for module in layer.modules():
        if hasattr(module, "eps"):
            setattr(module, "eps", eps)  # noqa: B010 (a norm's, which nn.Module does not declare)
    groups = next((int(module.num_groups) for module in layer.modules() if isinstance(module, nn.GroupNorm)), 1)
    with torch.no_grad():
        y = layer.double().train()(x)
    x_sv, y_sv = statistics_of(name, x, groups), statistics_of(name, y, groups)
    rounding = (OTHER_ROUNDING + x_sv.shape[1]) * UNIT_ROUNDOFF
    if name == "rms":
        square = (x_sv**2).mean(1)
        wanted = square / (square + eps)
        found = (y_sv**2).mean(1)
        tolerance = torch.full_like(wanted, rounding)
        mean = torch.zeros_like(wanted)
    else:
        variance, mu = torch.var_mean(x_sv, dim=1, correction=0)
        wanted = variance / (variance + eps)
        found, mean = torch.var_mean(y_sv, dim=1, correction=0)
        tolerance = rounding * (1 + mu.abs() / variance.clamp_min(TINY).sqrt())
        mean = mean / (rounding * (1 + mu.abs() / (variance + eps).sqrt()))
    return {
        "mean": float(mean.abs().max()),
        "variance": float(((found - wanted).abs() / (tolerance * wanted.clamp_min(TINY))).max()),
        "found": float(found.mean()),
        "wanted": float(wanted.mean()),
        "statistics": len(wanted),
    }


@versioned(4)
def on_random_inputs(*, name: str, positions: int, eps: float, mean: float, spread: float) -> dict[str, Any]:
    """Return the deviation on normal inputs of this mean and spread."""
    generator = torch.Generator().manual_seed(0)
    shape = (SAMPLES, CHANNELS) + (SIDE,) * positions
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + mean
    return deviation(name, norm(name, CHANNELS, positions), x, eps)


@versioned(4)
def on_task(
    *, task: Mapping[str, Any], network: Mapping[str, Any], name: str, positions: int, eps: float
) -> dict[str, Any]:
    """Return the deviation on the output of a briefly trained network's first layer for the task's images."""
    data = load(task)
    model = build(data, network, "none", 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for x_nchw, y_n in batches(data.train, SAMPLES, 20, 0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_nchw), y_n).backward()
        optimizer.step()
    first = next(module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    x_nchw = data.train.x_nchw[:SAMPLES]
    with torch.no_grad():
        x = first(x_nchw if positions else x_nchw.flatten(1)).double()
    return deviation(name, norm(name, x.shape[1], positions), x, eps)


def measure(experiment: Experiment) -> Outcome:
    """Count the inputs on which the identity fails."""
    here = __name__
    trials = [
        Trial(f"{here}:on_random_inputs", {"name": name, "positions": axes, "eps": eps, "mean": mean, "spread": spread})
        for (name, axes), eps, mean, spread in itertools.product(CASES, EPSILONS, MEANS, SPREADS)
    ]
    mlp, conv = experiment.mlp(2), {"kind": "resnet", "init": "matched"}
    trials += [
        Trial(
            f"{here}:on_task",
            {
                "task": dict(experiment.source),
                "network": conv if axes else mlp,
                "name": name,
                "positions": axes,
                "eps": eps,
            },
        )
        for (name, axes), eps in itertools.product(CASES if "images" in experiment.sources else (), EPSILONS)
    ]
    results = experiment.run(trials)
    rows: list[list[Any]] = []
    wrong = total = 0
    for name, axes in CASES:
        mine = [
            r
            for t, r in zip(trials, results, strict=True)
            if (t.settings["name"], t.settings["positions"]) == (name, axes)
        ]
        failed = sum(not holds(result) for result in mine)
        wrong, total = wrong + failed, total + len(mine)
        worst = [max(_number(result[what]) for result in mine) for what in ("mean", "variance")]
        layout = "(N, C, H, W)" if axes else "(N, C)"
        rows.append([f"{NORMS[name]} {layout}", len(mine), failed, None if name == "rms" else worst[0], worst[1]])
    effect = Effect.exactly("inputs on which the identity fails", wrong, total, "inputs")
    largest = max(max(row[3] or 0.0, row[4]) for row in rows)
    sentence = (
        f"mean 0 and variance σ²/(σ² + ε) hold for all {len(CASES)} norms on {total} inputs "
        f"(largest deviation {largest:.2g} of the rounding allowed)"
        if not wrong
        else f"the identity fails on {wrong} of {total} inputs: "
        + ", ".join(f"{row[0]} on {row[2]}" for row in rows if row[2])
    )
    return Outcome(
        verdict=effect.verdict,
        sentence=sentence,
        effects=[effect],
        room=Room(True, "an identity needs none"),
        pictures=[_picture(trials, results)],
        tables=[
            Table(
                "Largest deviation, in units of the rounding allowed (1 is the bound)",
                ["norm", "inputs", "failed", "of the mean", "of the variance (RMSNorm: mean square)"],
                rows,
            )
        ],
        trials=experiment.trials,
    )


def holds(result: Mapping[str, Any]) -> bool:
    """Tell whether mean and variance are within the tolerance."""
    return _number(result["mean"]) <= 1 and _number(result["variance"]) <= 1


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _picture(trials: list[Trial], results: list[dict[str, Any]]) -> Picture:
    """Draw the output's variance against the input's spread, beside the formula."""
    series = []
    for name, axes in (("batch", 0), ("layer", 0), ("group", 0), ("instance", 2)):
        points = {
            trial.settings["spread"]: result
            for trial, result in zip(trials, results, strict=True)
            if (trial.settings["name"], trial.settings["positions"]) == (name, axes)
            and (trial.settings["eps"], trial.settings.get("mean")) == (1e-5, 0.0)
        }
        series.append(Series(NORMS[name], list(points), [point["found"] for point in points.values()]))
    spreads = [10 ** (exponent / 4) for exponent in range(-12, 13)]
    curve = Series("σ²/(σ² + ε)", spreads, [s**2 / (s**2 + 1e-5) for s in spreads], dash=True)
    return Picture(
        "Variance of the output",
        "Against the spread σ of the input, at ε = 10⁻⁵ and mean 0. Where σ² is not far above ε the output's variance "
        "is below 1, as the formula predicts.",
        "line",
        Axis("spread of the input, σ", log=True),
        Axis("variance of the output"),
        [*series, curve],
        [Line("y", 1.0, "variance 1")],
    )
