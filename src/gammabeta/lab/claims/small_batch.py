"""BatchNorm needs a large enough batch.

Question: How does the test error change as batches get smaller, with each normalization?

Claim: With few images per batch BatchNorm's statistics are too noisy and its error rises. GroupNorm and LayerNorm,
which take their statistics from one image, do not suffer.

Criterion: Two quantities for each seed and regime (network × equal steps or equal epochs). BatchNorm's rise is its test
error at batches of 2 and 4 (mean) minus its own at 32. Its excess is that rise minus GroupNorm's. For every norm alike,
smaller batches also change how much data a step sees and how noisy the gradient is, which is no fault of the
statistics. The margin is 2 percentage points. Supported if both rise and excess, by the median over regimes, are
entirely above the margin. Contradicted if one is entirely below minus the margin, equivalent if one is entirely within,
otherwise inconclusive. Regimes are named.

Room: A regime is judged if three validation errors on the tuning seed are below half of that of chance: BatchNorm's at
32, and GroupNorm's at 4 and at 32. A budget that leaves the network untrained at some batch size says nothing about
statistics. (GroupNorm's part was added after two first looks at quick settings for the ResNet that had no room: 200
steps of 2 images trained neither norm, and 2 epochs, 62 steps of 32, left GroupNorm untrained. The quick setting then
became 400 equal steps, and 300 to save time.)

Method: SGD without momentum. Each arm's learning rate is tuned at each batch size and budget on the validation split
with a separate seed (factor-4 grid, then factor-2 neighbours); the result comes from the test split. Evaluation uses
exact statistics (of 256 training images, under the final weights), not the moving average. Over batches of 2 the moving
average remembers some 40 images, and its own noise would decide the outcome. This favours BatchNorm, so a rise is harm
done in training; the error with the moving average, which a user would see, is reported as a separate effect. LayerNorm
of images normalizes over channels and positions. InstanceNorm is left out of the MLP, where it has one value per
statistic. Ghost BatchNorm takes statistics of 4 images within a batch of 32 (and of 8), so that BatchNorm's statistics
of 4 meet the gradient of 32. Renorm has r ≤ 3, d ≤ 5 from the first step, without the paper's warm-up. Values per
statistic are those of the norm with the fewest.

Settings: MLP of 2 layers of 64 and the small ResNet (or the user's model). Quick: batches of 2, 4, 32, 3 seeds; MLP at
200 equal steps with none, batch, group, layer, renorm and ghost, and at 2 equal epochs with batch and group; ResNet at
300 equal steps with batch and group. Full: batches of 2, 4, 8, 32, 6 seeds; all norms in both networks at equal steps,
300 and 400; none, batch, group and layer at 4 equal epochs in both.

Sources: Wu & He 2018, table 2 (arXiv 1803.08494); Ioffe 2017, Batch Renormalization (1702.03275); Hoffer et al. 2017
(1705.08741); Wu & Johnson 2021, Rethinking "Batch" (2105.07576)

Known: Wu & He, ImageNet, batches of 32/16/8/4/2: BatchNorm 23.6 23.7 24.8 27.3 34.7 % error; GroupNorm 24.1 24.2 24.0
24.2 24.1. In a pilot run on digits with the MLP at 2/4/32: BatchNorm 68/9.9/2.4, GroupNorm 4.3/3.7/5.4. A small ResNet,
whose statistics also draw on 64 positions: BatchNorm 1.3/1.2/1.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe, impossible_arms
from gammabeta.lab.images.training import chance
from gammabeta.lab.norms import GHOST_SIZE, NORMS
from gammabeta.lab.outcome import Axis, Effect, Line, Outcome, Picture, Room, Series, Table, measured
from gammabeta.lab.tuning import error_then_loss, tune
from gammabeta.lab.verdict import weakest

EXACT = False
KIND = "images"

SMALL, LARGE = (2, 4), 32
MARGIN = (-2.0, 2.0)
CONTROLS = (("batch", 32), ("group", 4), ("group", 32))
SETTINGS: dict[str, Any] = {"unit": "percentage points", "margin": MARGIN, "direction": "above"}


@dataclass(frozen=True)
class Regime:
    """A network and a budget: ``steps`` for every batch size, or ``epochs``."""

    network: Mapping[str, Any]
    norms: Sequence[str]
    steps: int = 0
    epochs: int = 0

    @property
    def name(self) -> str:
        return f"{describe(self.network)}, {f'{self.steps} steps' if self.steps else f'{self.epochs} epochs'}"

    def arms(self, experiment: Experiment, sizes: Sequence[int]) -> list[tuple[str, int, dict[str, Any]]]:
        """(norm, batch size, settings of the trial but for rate and seed) of every arm that the norm allows."""
        images = len(experiment.task.train)
        impossible = impossible_arms(self.network, experiment.task)
        return [
            (
                norm,
                size,
                {
                    "network": dict(self.network),
                    "norm": norm,
                    "batch_size": size,
                    "steps": self.steps or self.epochs * (images // size),
                },
            )
            for norm in self.norms
            for size in sizes
            if norm not in impossible and (norm != "ghost" or size > GHOST_SIZE)
        ]


def regimes(experiment: Experiment) -> list[Regime]:
    mlp, conv = experiment.mlp(2), experiment.convolutional
    flat = ("none", "batch", "group", "layer", "renorm")
    if experiment.quick:
        pair = ("batch", "group")
        return [Regime(mlp, (*flat, "ghost"), steps=200), Regime(mlp, pair, epochs=2), Regime(conv, pair, steps=300)]
    few = ("none", "batch", "group", "layer")
    return [
        Regime(mlp, (*flat, "ghost"), steps=300),
        Regime(mlp, few, epochs=4),
        Regime(conv, (*flat, "ghost", "instance"), steps=400),
        Regime(conv, few, epochs=4),
    ]


def values_per_image(experiment: Experiment, network: Mapping[str, Any]) -> int:
    """How many values an image gives to a statistic of the BatchNorm that gets fewest."""
    model = build(experiment.task, network, "batch", 0)
    counts: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0][0, 0].numel()))
    with torch.no_grad():
        model(experiment.task.train.x_nchw[:4])
    return min(counts)


Cells = dict[tuple[str, int], list[float]]  # (norm, batch size) -> percent, a seed


def rise(cells: Cells, norm: str) -> list[float]:
    """Error at the small batches less that at 32, seed by seed."""
    small = [mean(of_seed) for of_seed in zip(*(cells[norm, size] for size in SMALL), strict=True)]
    return [a - b for a, b in zip(small, cells[norm, LARGE], strict=True)]


def measure(experiment: Experiment) -> Outcome:
    sizes = (2, 4, 32) if experiment.quick else (2, 4, 8, 32)
    seeds = experiment.seeds(3, 6)
    chosen = regimes(experiment)
    arms = [(regime, *arm) for regime in chosen for arm in regime.arms(experiment, sizes)]
    exponents = tune(experiment, [settings for *_, settings in arms], error_then_loss)
    tuning = experiment.run(
        [
            experiment.train(**settings, rate=2.0**exponent, seed=experiment.tuning_seed)
            for (*_, settings), exponent in zip(arms, exponents, strict=True)
        ]
    )
    results = iter(
        experiment.run(
            [
                experiment.train(**settings, rate=2.0**exponent, seed=seed, report="test")
                for (*_, settings), exponent in zip(arms, exponents, strict=True)
                for seed in seeds
            ]
        )
    )
    exact: dict[str, Cells] = {regime.name: {} for regime in chosen}
    moving: dict[str, Cells] = {regime.name: {} for regime in chosen}
    rates: dict[tuple[str, str, int], int] = {}
    for (regime, norm, size, _), exponent in zip(arms, exponents, strict=True):
        mine = [next(results) for _ in seeds]
        exact[regime.name][norm, size] = [100 * result["error"] for result in mine]
        moving[regime.name][norm, size] = [100 * result["moving_error"] for result in mine]
        rates[regime.name, norm, size] = exponent
    tuned = {arm[0].name: dict[tuple[str, int], float]() for arm in arms}
    for arm, result in zip(arms, tuning, strict=True):
        tuned[arm[0].name][arm[1], arm[2]] = result["error"]
    allowed = 0.5 * (1 - chance(experiment.task))
    judged = [name for name, error in tuned.items() if max(error[cell] for cell in CONTROLS) < allowed]
    room = Room(
        bool(judged),
        f"validation errors of BatchNorm at 32, GroupNorm at 4 and at 32 below {allowed:.2f}: "
        + "; ".join(
            f"{name} {', '.join(f'{error[cell]:.3f}' for cell in CONTROLS)} ({'room' if name in judged else 'no room'})"
            for name, error in tuned.items()
        ),
    )
    rises = {name: rise(exact[name], "batch") for name in exact}
    excesses = {name: [a - b for a, b in zip(rises[name], rise(exact[name], "group"), strict=True)] for name in exact}
    effects: list[Effect] = []
    if judged:
        effects = [
            measured(
                "BatchNorm's excess over GroupNorm's rise, median of regimes", _median(excesses, judged), **SETTINGS
            ),
            measured("BatchNorm's rise at 2 and 4 over 32, median of regimes", _median(rises, judged), **SETTINGS),
        ]
    for name in judged:
        effects += [
            measured(f"{name}: BatchNorm's excess", excesses[name], **SETTINGS),
            measured(f"{name}: BatchNorm's rise", rises[name], **SETTINGS),
            measured(f"{name}: GroupNorm's rise", rise(exact[name], "group"), **SETTINGS),
            measured(f"{name}: BatchNorm's rise with the moving average", rise(moving[name], "batch"), **SETTINGS),
        ]
    verdict = weakest([effects[0].verdict, effects[1].verdict]) if judged else "no room here"
    values = {regime.name: values_per_image(experiment, regime.network) for regime in chosen}
    return Outcome(
        verdict=verdict,
        sentence=_sentence(effects, exact, judged),
        effects=effects,
        room=room,
        pictures=[*(_by_size(name, exact[name], sizes) for name in exact), _by_values(exact, values, sizes)],
        tables=[_table(exact, moving, rates, values)],
        settings=f"{len(seeds)} seeds, batches of {', '.join(map(str, sizes))}",
        trials=experiment.trials,
    )


def _median(of_regime: Mapping[str, list[float]], judged: Sequence[str]) -> list[float]:
    return [median(of_seed) for of_seed in zip(*(of_regime[name] for name in judged), strict=True)]


def _sentence(effects: list[Effect], exact: Mapping[str, Cells], judged: list[str]) -> str:
    if not judged:
        return "no network trains well enough to judge by, BatchNorm with batches of 32 or GroupNorm with 4 and 32"
    excess, whole = effects[0], effects[1]
    each = []
    for name in judged:
        of_regime = {
            effect.name.rpartition(" ")[2]: effect for effect in effects if effect.name.startswith(f"{name}: B")
        }
        its_rise, its_excess = of_regime["rise"], of_regime["excess"]
        both = weakest([its_rise.verdict, its_excess.verdict])
        errors = "/".join(f"{mean(exact[name]['batch', size]):.1f}" for size in (*SMALL, LARGE))
        each.append(
            f"{name}: {errors} % at 2/4/32, rise {its_rise.value:+.1f}, excess {its_excess.value:+.1f} ({both})"
        )
    return (
        f"from batches of 32 to 2 and 4 BatchNorm's test error rises by {whole.value:+.1f} points [{whole.low:.1f}, "
        f"{whole.high:.1f}], {excess.value:+.1f} [{excess.low:.1f}, {excess.high:.1f}] more than GroupNorm's; "
        f"{'; '.join(each)}"
    )


def _series(name: str, x: Sequence[float], of_size: Sequence[list[float]]) -> Series:
    return Series(
        name,
        x,
        [mean(errors) for errors in of_size],
        [min(errors) for errors in of_size],
        [max(errors) for errors in of_size],
    )


def _by_size(name: str, cells: Cells, sizes: Sequence[int]) -> Picture:
    series = []
    for norm in dict.fromkeys(norm for norm, _ in cells):
        at = [size for size in sizes if (norm, size) in cells]
        series.append(_series(NORMS[norm], at, [cells[norm, size] for size in at]))
    return Picture(
        f"{name}: test error by batch size",
        "Each arm at its best rate for the batch size, exact statistics; mean and range over seeds.",
        "line",
        Axis("batch size", "images", log=True),
        Axis("test error", "%", log=True),
        series,
    )


def _by_values(exact: Mapping[str, Cells], values: Mapping[str, int], sizes: Sequence[int]) -> Picture:
    """BatchNorm's rise in each regime against what decides it: the number of values a statistic is taken over."""
    series = []
    for name, cells in exact.items():
        rises = [[a - b for a, b in zip(cells["batch", size], cells["batch", LARGE], strict=True)] for size in sizes]
        series.append(_series(f"BatchNorm, {name}", [size * values[name] for size in sizes], rises))
    return Picture(
        "BatchNorm's error above its own at 32, by values a statistic",
        "An image gives a statistic as many values as it has positions; counted in the layer with the fewest.",
        "line",
        Axis("values a statistic", log=True),
        Axis("test error above that at 32", "percentage points"),
        series,
        [Line("y", MARGIN[1], "margin")],
    )


def _table(
    exact: Mapping[str, Cells],
    moving: Mapping[str, Cells],
    rates: Mapping[tuple[str, str, int], int],
    values: Mapping[str, int],
) -> Table:
    rows = [
        [
            name,
            NORMS[norm],
            size,
            size * values[name] if norm in ("batch", "renorm") else None,
            2.0 ** rates[name, norm, size],
            mean(errors),
            mean(moving[name][norm, size]),
        ]
        for name, cells in exact.items()
        for (norm, size), errors in cells.items()
    ]
    columns = ["regime", "norm", "batch size", "values a statistic", "rate", "test error, %", "with moving averages, %"]
    return Table("Test error, mean over seeds", columns, rows)
