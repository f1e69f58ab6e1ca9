"""BatchNorm needs a large enough batch.

Question: How does the test error change as batches get smaller, with each normalization?

Claim: With few images per batch BatchNorm's statistics are too noisy and its error rises. GroupNorm and LayerNorm,
which take their statistics from one image, do not suffer.

Criterion: Two quantities for each seed and regime (network × equal steps or equal epochs). BatchNorm's rise is its test
error at batches of 2 and 4 (mean) minus its own at 32. Its excess is that rise minus GroupNorm's. For every norm alike,
smaller batches also change how much data a step sees and how noisy the gradient is, which is no fault of the
statistics. The margin is 2 percentage points. In a regime the claim is supported if both rise and excess are entirely
above the margin. It is contradicted if one is entirely below minus the margin, equivalent if one is entirely within,
otherwise inconclusive.

Room: A regime is judged if three validation errors on the tuning seed are below half of that of chance: BatchNorm's at
32, and GroupNorm's at 4 and at 32. A budget that leaves the network untrained at some batch size says nothing about
statistics. (GroupNorm's part was added after two first looks at quick settings for the ResNet that had no room. 200
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
from statistics import mean
from typing import Any

import torch
from torch import nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.training import chance
from gammabeta.lab.images.user_network import impossible_arms
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import GHOST_SIZE, NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.paired import differences
from gammabeta.lab.tuning import error_then_loss, tune
from gammabeta.lab.verdict import Verdict, over_regimes, weakest

EXACT = False
KIND = "images"

SMALL, LARGE = (2, 4), 32
MARGIN = (-2.0, 2.0)
CONTROLS = (("batch", 32), ("group", 4), ("group", 32))
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Cell = tuple[str, int]  # norm, batch size
Cells = dict[Cell, list[float]]  # percent, one value per seed


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

    def arms(self, experiment: Experiment, sizes: Sequence[int]) -> dict[Cell, dict[str, Any]]:
        """Return the trial settings, except learning rate and seed, of every arm that the norm allows."""
        images = len(experiment.task.train)
        impossible = impossible_arms(self.network, experiment.task)
        return {
            (norm, size): {
                "network": dict(self.network),
                "norm": norm,
                "batch_size": size,
                "steps": self.steps or self.epochs * (images // size),
            }
            for norm in self.norms
            for size in sizes
            if norm not in impossible and (norm != "ghost" or size > GHOST_SIZE)
        }


@dataclass(frozen=True)
class Errors:
    """One regime's errors, by norm and batch size.

    Attributes:
        values: how many values per image the BatchNorm with the fewest takes its statistics from.
        exact, moving: test errors with exact statistics and with moving averages.
        tuned: validation errors on the tuning seed, as fractions.
        rates: the exponents of the learning rates.
    """

    values: int
    exact: Cells
    moving: Cells
    tuned: Mapping[Cell, float]
    rates: Mapping[Cell, int]

    @property
    def excess(self) -> list[float]:
        """BatchNorm's rise minus GroupNorm's."""
        return differences(rise(self.exact, "batch"), rise(self.exact, "group"))


def regimes(experiment: Experiment) -> list[Regime]:
    """Return the networks and budgets to compare."""
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
    """Count the values that an image gives to a statistic of the BatchNorm that gets the fewest."""
    model = build(experiment.task, network, "batch", 0)
    counts: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0][0, 0].numel()))
    with torch.no_grad():
        model(experiment.task.train.x_nchw[:4])
    return min(counts)


def rise(cells: Cells, norm: str) -> list[float]:
    """Return the error at the small batches minus that at 32, seed by seed."""
    small = [mean(of_seed) for of_seed in zip(*(cells[norm, size] for size in SMALL), strict=True)]
    return differences(small, cells[norm, LARGE])


def measure(experiment: Experiment) -> Outcome:
    """Compare the test errors at small and large batches, in every regime."""
    sizes = (2, 4, 32) if experiment.quick else (2, 4, 8, 32)
    seeds = experiment.seeds(3, 6)
    errors = _errors(experiment, sizes, seeds)
    judged, room = _room(experiment, errors)
    precision = Precision(samples=len(experiment.task.test))
    pairs = {name: _excess_and_rise(name, errors[name], precision) for name in judged}
    regimes: dict[str, Verdict] = {
        name: weakest([effect.verdict for effect in pairs[name]]) if name in pairs else "no room here"
        for name in errors
    }
    others = [
        CRITERION.effect(f"{name}: {what}", values, precision)
        for name in judged
        for what, values in (
            ("GroupNorm's rise", rise(errors[name].exact, "group")),
            ("BatchNorm's rise with the moving average", rise(errors[name].moving, "batch")),
        )
    ]
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(pairs, regimes, errors),
        effects=[*(effect for pair in pairs.values() for effect in pair), *others],
        room=room,
        pictures=[*(_by_size(name, of.exact, sizes) for name, of in errors.items()), _by_values(errors, sizes)],
        tables=[_table(errors)],
        settings=f"{len(seeds)} seeds, batches of {', '.join(map(str, sizes))}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _errors(experiment: Experiment, sizes: Sequence[int], seeds: Sequence[int]) -> dict[str, Errors]:
    """Tune and run every arm of every regime."""
    chosen = regimes(experiment)
    arms = {
        (regime.name, cell): settings for regime in chosen for cell, settings in regime.arms(experiment, sizes).items()
    }
    rates = dict(zip(arms, tune(experiment, list(arms.values()), error_then_loss), strict=True))

    def run(several: Sequence[int], **more: str) -> dict[tuple[str, Cell], list[dict[str, Any]]]:
        return experiment.grid(
            list(arms),
            several,
            lambda key, seed: experiment.train(**arms[key], rate=2.0 ** rates[key], seed=seed, **more),
        )

    tuned = run([experiment.tuning_seed])
    found = run(seeds, report="test")
    errors = {}
    for regime in chosen:
        keys = [key for key in arms if key[0] == regime.name]
        errors[regime.name] = Errors(
            values_per_image(experiment, regime.network),
            {key[1]: [100 * result["error"] for result in found[key]] for key in keys},
            {key[1]: [100 * result["moving_error"] for result in found[key]] for key in keys},
            {key[1]: tuned[key][0]["error"] for key in keys},
            {key[1]: rates[key] for key in keys},
        )
    return errors


def _room(experiment: Experiment, errors: Mapping[str, Errors]) -> tuple[list[str], Room]:
    """Return the regimes that can be judged, and what was seen."""
    allowed = 0.5 * (1 - chance(experiment.task))
    seen = {name: [of_regime.tuned[cell] for cell in CONTROLS] for name, of_regime in errors.items()}
    judged = [name for name, controls in seen.items() if max(controls) < allowed]
    control = f"validation errors of BatchNorm at 32, GroupNorm at 4 and at 32 below {allowed:.2f}: " + "; ".join(
        f"{name} {', '.join(f'{error:.3f}' for error in controls)} ({'room' if name in judged else 'no room'})"
        for name, controls in seen.items()
    )
    return judged, Room(bool(judged), control)


def _excess_and_rise(name: str, errors: Errors, precision: Precision) -> tuple[Effect, Effect]:
    return (
        CRITERION.effect(f"{name}: BatchNorm's excess", errors.excess, precision),
        CRITERION.effect(f"{name}: BatchNorm's rise", rise(errors.exact, "batch"), precision),
    )


def _sentence(
    pairs: Mapping[str, tuple[Effect, Effect]], regimes: Mapping[str, Verdict], errors: Mapping[str, Errors]
) -> str:
    if not pairs:
        return "no network trains well enough to judge by, BatchNorm with batches of 32 or GroupNorm with 4 and 32"
    each = []
    for name, (excess, whole) in pairs.items():
        shown = "/".join(f"{mean(errors[name].exact['batch', size]):.1f}" for size in (*SMALL, LARGE))
        each.append(
            f"{name}: {shown} % at 2/4/32, rise {whole.value:+.1f} [{whole.low:.1f}, {whole.high:.1f}], excess "
            f"over GroupNorm's {excess.value:+.1f} [{excess.low:.1f}, {excess.high:.1f}] ({regimes[name]})"
        )
    return f"BatchNorm's test error from batches of 32 to 2 and 4, in points: {'; '.join(each)}"


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
        "Each arm at its best learning rate for the batch size, exact statistics; mean and range over seeds.",
        "line",
        Axis("batch size", "images", log=True),
        Axis("test error", "%", log=True),
        series,
    )


def _by_values(errors: Mapping[str, Errors], sizes: Sequence[int]) -> Picture:
    """Draw BatchNorm's rise in each regime against what decides it: the number of values per statistic."""
    series = []
    for name, of_regime in errors.items():
        cells = of_regime.exact
        rises = [differences(cells["batch", size], cells["batch", LARGE]) for size in sizes]
        series.append(_series(f"BatchNorm, {name}", [size * of_regime.values for size in sizes], rises))
    return Picture(
        "BatchNorm's error above its own at 32, by values per statistic",
        "An image gives a statistic as many values as it has positions; counted in the layer with the fewest.",
        "line",
        Axis("values per statistic", log=True),
        Axis("test error above that at 32", "percentage points"),
        series,
        [Line("y", MARGIN[1], "margin")],
    )


def _table(errors: Mapping[str, Errors]) -> Table:
    rows = [
        [
            name,
            NORMS[norm],
            size,
            size * of_regime.values if norm in ("batch", "renorm") else None,
            2.0 ** of_regime.rates[norm, size],
            mean(values),
            mean(of_regime.moving[norm, size]),
        ]
        for name, of_regime in errors.items()
        for (norm, size), values in of_regime.exact.items()
    ]
    columns = [
        "regime",
        "norm",
        "batch size",
        "values per statistic",
        "learning rate",
        "test error, %",
        "with moving averages, %",
    ]
    return Table("Test error, mean over seeds", columns, rows)
