"""BatchNorm needs a large enough batch.

Question: How does the test error change as batches get smaller, with each normalization?

Claim: With few images per batch BatchNorm's statistics are too noisy and its error rises. GroupNorm and LayerNorm,
which take their statistics from one image, do not suffer.

Criterion: Two quantities for each replicate and regime (network × small batch). BatchNorm's rise is its test error at
the small batch minus its own at 32. Its excess is that rise minus GroupNorm's. For every norm alike, smaller batches
also change how noisy the gradient is, which is no fault of the statistics. The margin is 2 percentage points. In a
regime the claim is supported if both rise and excess are entirely above the margin. It is contradicted if one is
entirely below minus the margin, equivalent if one is entirely within, otherwise inconclusive.

Room: A regime is judged if three mean validation errors are below half of that of chance: BatchNorm's at 32, and
GroupNorm's at the small batch and at 32. A budget that leaves the network untrained says nothing about statistics.

Method: The recipe: SGD with momentum 0.9, 5 % warm-up, half a cosine to 0, decay 5e-4 on weights. Every batch size sees
equally many images, 20 epochs, so that smaller batches take more steps. Every replicate draws its own split and chooses
each arm's learning rate at each batch size on its own validation split. Errors are those as deployed, with moving
averages. BatchNorm's rise with exact statistics (of 256 training images, under the final weights) is reported beside
it: what recalibration removes is no harm done in training. LayerNorm of images normalizes over channels and positions.
InstanceNorm is left out of the MLP, where it has one value per statistic. Ghost BatchNorm takes statistics of 2 images
within batches of 32, so that BatchNorm's noisiest statistics meet the gradient of 32. Renorm has r ≤ 3, d ≤ 5 from the
first step, without the paper's warm-up. Values per statistic are those of the norm with the fewest.

Settings: MLP of 2 layers of 64 and the small ResNet (or the user's model). Quick: MLP, batches of 2, 4 and 32, 112
training images, batch, group and ghost, 4 replicates; a user's model in place of the MLP, with batches of 4 and 32.
Full: all training images, batches of 2, 4, 8 and 32, 8 replicates; none, batch, group, layer, renorm and ghost in the
MLP, and batch, group, renorm and ghost in the ResNet.

Sources: Wu & He 2018, table 2 (arXiv 1803.08494); Ioffe 2017, Batch Renormalization (1702.03275); Hoffer et al. 2017
(1705.08741); Wu & Johnson 2021, Rethinking "Batch" (2105.07576); Singh & Shrivastava 2019, EvalNorm (1904.06031)

Known: Wu & He, ImageNet, batches of 32/16/8/4/2: BatchNorm 23.6 23.7 24.8 27.3 34.7 % error; GroupNorm 24.1 24.2 24.0
24.2 24.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn

from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import chance
from gammabeta.lab.images.user_network import impossible_arms
from gammabeta.lab.interval import Precision
from gammabeta.lab.norms import named
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.tuning import deployed
from gammabeta.lab.verdict import Verdict, over_regimes, weakest

EXACT = False
KIND = "images"

EPOCHS, LARGE, GHOST = 20, 32, "ghost:2"
FEW_IMAGES = 112
MARGIN = (-2.0, 2.0)
COARSE = (-6, -4)
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Cell = tuple[str, str, int]  # network, norm, batch size


@dataclass(frozen=True)
class Plan:
    """A network, the norms to compare in it, the small batches, and how many training images (None for all)."""

    network: Mapping[str, Any]
    norms: Sequence[str]
    small: Sequence[int]
    images: int | None = None

    @property
    def name(self) -> str:
        return describe(self.network)

    def arms(self, experiment: Experiment) -> dict[Cell, dict[str, Any]]:
        """Return the trial settings, except learning rate and seed, of every arm that the network allows."""
        whole = len(experiment.task.train)
        images = whole if self.images is None else min(self.images, whole)
        limited = {} if self.images is None else {"images": images}
        impossible = impossible_arms(self.network, experiment.task)
        cells = [(norm, size) for norm in self.norms for size in (*self.small, LARGE) if norm not in impossible]
        if "ghost" not in impossible:
            cells.append((GHOST, LARGE))
        return {
            (self.name, norm, size): {
                "network": dict(self.network),
                "norm": norm,
                "batch_size": size,
                "steps": EPOCHS * (images // size),
                **limited,
                **RECIPE,
            }
            for norm, size in cells
        }


@dataclass(frozen=True)
class Errors:
    """Every arm's runs, by network, norm and batch size."""

    chosen: Mapping[Cell, Chosen]

    def of(self, cell: Cell, key: str = "moving_error") -> list[float]:
        """Return the test errors in percent, one per replicate: as deployed, or ``"error"`` by exact statistics."""
        return [100 * result[key] for result in self.chosen[cell].results]

    def validation(self, cell: Cell) -> float:
        """Return the mean validation error, as a fraction."""
        return mean(float(result["validation"]["moving_error"]) for result in self.chosen[cell].results)

    def rise(self, network: str, norm: str, size: int, key: str = "moving_error") -> list[float]:
        """Return the error at a batch size minus that at 32, one per replicate."""
        return differences(self.of((network, norm, size), key), self.of((network, norm, LARGE), key))

    def excess(self, network: str, size: int) -> list[float]:
        """Return BatchNorm's rise minus GroupNorm's."""
        return differences(self.rise(network, "batch", size), self.rise(network, "group", size))


def plans(experiment: Experiment) -> list[Plan]:
    """Return the networks, norms and batch sizes to compare."""
    mlp, conv, pair = experiment.mlp(2), experiment.convolutional, ("batch", "group")
    if experiment.quick:
        return [Plan(conv, pair, (4,), FEW_IMAGES) if experiment.user else Plan(mlp, pair, (2, 4), FEW_IMAGES)]
    return [
        Plan(mlp, ("none", *pair, "layer", "renorm"), (2, 4, 8)),
        Plan(conv, (*pair, "renorm"), (2, 4, 8)),
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


def measure(experiment: Experiment) -> Outcome:
    """Compare the test errors at small and large batches, in every regime."""
    seeds, every = experiment.seeds(4, 8), plans(experiment)
    arms = {cell: settings for plan in every for cell, settings in plan.arms(experiment).items()}
    errors = Errors(choose_rates(experiment, arms, seeds, deployed, COARSE))
    cells = {f"{plan.name}, batches of {size}": (plan.name, size) for plan in every for size in plan.small}
    judged, room = _room(experiment, cells, errors)
    pairs = {name: _excess_and_rise(experiment, name, cells[name], errors) for name in judged}
    regimes: dict[str, Verdict] = {
        name: weakest([effect.verdict for effect in pairs[name]]) if name in pairs else "no room here" for name in cells
    }
    others = [effect for name in judged for effect in _beside(experiment, name, cells[name], errors)]
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(pairs, regimes, cells, errors),
        effects=[*(effect for pair in pairs.values() for effect in pair), *others],
        room=room,
        pictures=[
            *(_by_size(plan, errors) for plan in every),
            _by_values({plan.name: values_per_image(experiment, plan.network) for plan in every}, every, errors),
        ],
        tables=[_table(errors)],
        settings=f"{len(seeds)} replicates, {EPOCHS} epochs at every batch size",
        regimes=regimes,
        trials=experiment.trials,
    )


def _room(experiment: Experiment, cells: Mapping[str, tuple[str, int]], errors: Errors) -> tuple[list[str], Room]:
    """Return the regimes that can be judged, and what was seen."""
    allowed = 0.5 * (1 - chance(experiment.task))
    seen = {
        name: [errors.validation((network, *of)) for of in (("batch", LARGE), ("group", size), ("group", LARGE))]
        for name, (network, size) in cells.items()
    }
    judged = [name for name, controls in seen.items() if max(controls) < allowed]
    control = f"validation errors of BatchNorm at 32, GroupNorm at the small batch and at 32 below {allowed:.2f}: "
    return judged, Room(
        bool(judged),
        control
        + "; ".join(
            f"{name} {', '.join(f'{error:.3f}' for error in controls)} ({'room' if name in judged else 'no room'})"
            for name, controls in seen.items()
        ),
    )


def _precision(experiment: Experiment, errors: Errors, one: Cell, other: Cell, key: str = "moving_error") -> Precision:
    task, wrong = experiment.task, key.replace("error", "wrong")
    results = errors.chosen[one].results, errors.chosen[other].results
    return precision_of(*results, len(task.test), len(task.train), (wrong, wrong))


def _excess_and_rise(experiment: Experiment, name: str, cell: tuple[str, int], errors: Errors) -> tuple[Effect, Effect]:
    network, size = cell
    batch, group = (network, "batch", size), (network, "group", size)
    return (
        CRITERION.effect(
            f"{name}: BatchNorm's excess",
            errors.excess(network, size),
            _precision(experiment, errors, batch, group),
        ),
        CRITERION.effect(
            f"{name}: BatchNorm's rise",
            errors.rise(network, "batch", size),
            _precision(experiment, errors, batch, (network, "batch", LARGE)),
        ),
    )


def _beside(experiment: Experiment, name: str, cell: tuple[str, int], errors: Errors) -> list[Effect]:
    """Return what is reported beside a regime's verdict."""
    network, size = cell
    batch, large = (network, "batch", size), (network, "batch", LARGE)
    found = [
        CRITERION.effect(
            f"{name}: GroupNorm's rise",
            errors.rise(network, "group", size),
            _precision(experiment, errors, (network, "group", size), (network, "group", LARGE)),
        ),
        CRITERION.effect(
            f"{name}: BatchNorm's rise with exact statistics",
            errors.rise(network, "batch", size, "error"),
            _precision(experiment, errors, batch, large, "error"),
        ),
    ]
    ghost = (network, GHOST, LARGE)
    if ghost in errors.chosen and size == 2:
        found.append(
            CRITERION.effect(
                f"{network}: statistics of 2 images within batches of 32 minus statistics of 32",
                differences(errors.of(ghost), errors.of(large)),
                _precision(experiment, errors, ghost, large),
            )
        )
    return found


def _sentence(
    pairs: Mapping[str, tuple[Effect, Effect]],
    regimes: Mapping[str, Verdict],
    cells: Mapping[str, tuple[str, int]],
    errors: Errors,
) -> str:
    if not pairs:
        return "no network trains well enough to judge by, BatchNorm with batches of 32 or GroupNorm"
    each = []
    for name, (excess, whole) in pairs.items():
        network, size = cells[name]
        small, large = (mean(errors.of((network, "batch", of))) for of in (size, LARGE))
        each.append(
            f"{name}: {small:.1f} % against {large:.1f} % at 32, rise {whole.value:+.1f} [{whole.low:.1f}, "
            f"{whole.high:.1f}], excess over GroupNorm's {excess.value:+.1f} [{excess.low:.1f}, {excess.high:.1f}] "
            f"({regimes[name]})"
        )
    return f"BatchNorm's test error at small batches, in points: {'; '.join(each)}"


def _series(name: str, x: Sequence[float], of_size: Sequence[list[float]]) -> Series:
    return Series(
        name,
        x,
        [mean(errors) for errors in of_size],
        [min(errors) for errors in of_size],
        [max(errors) for errors in of_size],
    )


def _by_size(plan: Plan, errors: Errors) -> Picture:
    series = []
    for norm in (*plan.norms, GHOST):
        at = [size for size in (*plan.small, LARGE) if (plan.name, norm, size) in errors.chosen]
        if at:
            series.append(_series(named(norm), at, [errors.of((plan.name, norm, size)) for size in at]))
    return Picture(
        f"{plan.name}: test error by batch size",
        "Equal images at every batch size, moving averages, every replicate at the learning rate that it chose; mean "
        "and range over replicates.",
        "line",
        Axis("batch size", "images", log=True),
        Axis("test error", "%", log=True),
        series,
    )


def _by_values(values: Mapping[str, int], every: Sequence[Plan], errors: Errors) -> Picture:
    """Draw BatchNorm's rise against what decides it: the number of values per statistic."""
    series = []
    for plan in every:
        sizes = (*plan.small, LARGE)
        rises = [errors.rise(plan.name, "batch", size) for size in sizes]
        series.append(_series(f"BatchNorm, {plan.name}", [size * values[plan.name] for size in sizes], rises))
    return Picture(
        "BatchNorm's error above its own at 32, by values per statistic",
        "An image gives a statistic as many values as it has positions; counted in the layer with the fewest.",
        "line",
        Axis("values per statistic", log=True),
        Axis("test error above that at 32", "percentage points"),
        series,
        [Line("y", MARGIN[1], "margin")],
    )


def _table(errors: Errors) -> Table:
    rows = [
        [network, named(norm), size, chosen.rate, mean(errors.of(cell)), mean(errors.of(cell, "error"))]
        for cell, chosen in errors.chosen.items()
        for network, norm, size in [cell]
    ]
    columns = [
        "network", "norm", "batch size", "learning rate", "test error, %", "with exact statistics, %",
    ]  # fmt: skip
    return Table("Test error, mean over replicates", columns, rows)
