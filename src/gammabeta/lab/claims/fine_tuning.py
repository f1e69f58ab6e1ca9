"""Fine-tuning on a small target set works best with frozen BatchNorm statistics.

Question: When a trained network is fine-tuned on a few images of another kind, is it better to freeze BatchNorm's
statistics than to keep training with those of small batches?

Claim: Statistics of small batches of a small or different target set do harm; freezing the pretrained ones helps.

Criterion: The difference, for each replicate and regime (network × target × images per class × batch size × budget), is
test accuracy with frozen statistics minus that with batch statistics, all parameters trained in both. The margin is 2
percentage points. The budgets are short and long: an order that only a short one shows is the budget's.

Room: The source is strong: the pretrained network is at most 2 points below a linear classifier on what it was
pretrained for. In each regime, some arm also gains more than the margin over no training: where fine-tuning gains
nothing, the way it is done does not matter.

Method: Two targets. Rotated: the network is pretrained on three quarters of the training images; the target is the last
quarter, rotated by 90° (180° where images are not square), and the head is kept. New classes: the network is pretrained
on the first half of the classes; the target is the second half, and the head is drawn anew. Pretraining takes 20 epochs
of batches of 32; running statistics are then recalibrated on the pretraining images. Fine-tuning takes a few images per
class. Both follow the recipe: SGD with momentum 0.9, 5 % warm-up, half a cosine to 0, decay 5e-4 on weights. All batch
sizes of a budget see equally many images. Every replicate draws its own split, pretraining and images, and chooses each
arm's learning rate on its own validation split. The arms are: all trained on batch statistics; statistics frozen; the
whole norm frozen; statistics recalibrated on the target's training images, then frozen; a network pretrained with
GroupNorm; and no training. The arm on batch statistics is evaluated by its moving averages or by exact statistics of
the target's training images, whichever is better in validation: with few images neither is always right.

Settings: budgets of 800 and 3,200 images. Quick: MLP of 2 layers of 64, 4 images per class, batches of 8 at both
budgets and of 2 at the short one, only the arms that are compared, 4 replicates. Full: also the small ResNet (or the
user's model), 4 and 16 images per class, batches of 2 and 8 at both budgets, all arms, 16 replicates.

Sources: Wu & Johnson 2021, Rethinking "Batch", sections 3 and 5 (arXiv 2105.07576); Wu & He 2018 (1803.08494); He et
al. 2017, Mask R-CNN, which freezes (1703.06870)

Known: Mask R-CNN and most detectors fine-tune with 1 or 2 images per device and frozen statistics.
"""

from collections.abc import Mapping, Sequence
from statistics import mean

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.adaptation import ARMS, Adapted, Cell, adapt, effect, room, table
from gammabeta.lab.images.networks import describe
from gammabeta.lab.outcome import Axis, Criterion, Effect, Heat, Outcome, Picture, bars
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

SHORT, LONG = 800, 3200
MARGIN = 2.0
COMPARED = ("frozen", "all")
OTHERS = ("frozen_all", "recalibrated", "group")
CRITERION = Criterion(unit="percentage points", margin=(-MARGIN, MARGIN), direction="above")


def cells(experiment: Experiment) -> list[Cell]:
    """Return the cells to measure."""
    targets = ("rotated", "classes")
    if experiment.quick and not experiment.user:
        mlp, ways = experiment.mlp(2), ((2, SHORT), (8, SHORT), (8, LONG))
        return [Cell(mlp, target, 4, size, images) for target in targets for size, images in ways]
    chosen = [(experiment.mlp(2), 4), (experiment.mlp(2), 16), (experiment.convolutional, 4)]
    if experiment.quick:
        return [Cell(network, target, 4, 8, SHORT) for network, _ in chosen[::2] for target in targets]
    return [
        Cell(network, target, per_class, size, images)
        for network, per_class in chosen
        for target in targets
        for size in (2, 8)
        for images in (SHORT, LONG)
    ]


def measure(experiment: Experiment) -> Outcome:
    """Compare the arms' test accuracies in every cell."""
    every, seeds = cells(experiment), experiment.seeds(4, 16)
    arms = (*COMPARED, *(() if experiment.quick else OTHERS), "untrained")
    found = adapt(experiment, every, arms, seeds)
    judged, control = room(experiment, found, arms[:-1], MARGIN)
    each = {cell.name: effect(experiment, found, cell, COMPARED, CRITERION) for cell in judged}
    regimes: dict[str, Verdict] = {
        cell.name: each[cell.name].verdict if cell.name in each else "no room here" for cell in every
    }
    names = dict.fromkeys(describe(cell.network) for cell in every)
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(each, found, judged, arms),
        effects=list(each.values()),
        room=control,
        pictures=[
            bars(
                "Accuracy with frozen statistics minus that with batch statistics",
                "All parameters trained in both. Above 0: freezing is better. 95 % interval over replicates.",
                "regime",
                Axis("difference of test accuracy", "percentage points"),
                list(each.values()),
            ),
            *(_heat(name, [cell for cell in every if describe(cell.network) == name], found, arms) for name in names),
        ],
        tables=[table(found, arms)],
        settings=f"{len(seeds)} replicates, budgets of {SHORT} and {LONG} images",
        regimes=regimes,
        trials=experiment.trials,
    )


def _sentence(each: Mapping[str, Effect], found: Adapted, judged: Sequence[Cell], arms: Sequence[str]) -> str:
    """Tell how frozen statistics compare in every cell, and over what range of cells each other arm does."""
    if not each:
        return "no regime has room: the source is not strong, or fine-tuning gains nothing over no training"
    compared = "; ".join(f"{name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict})" for name, e in each.items())
    gains = {
        arm: [mean(found.accuracy(cell, arm)) - mean(found.accuracy(cell, "all")) for cell in judged]
        for arm in arms
        if arm not in COMPARED
    }
    others = ", ".join(f"{ARMS[arm]} {min(of_arm):+.1f} to {max(of_arm):+.1f}" for arm, of_arm in gains.items())
    without = len(found.cells) - len(each)
    return (
        f"points of test accuracy by which frozen statistics are above batch statistics: {compared}; the other arms "
        f"above batch statistics: {others}" + (f"; {without} regimes without room" if without else "")
    )


def _heat(name: str, mine: Sequence[Cell], found: Adapted, arms: Sequence[str]) -> Picture:
    z = [[mean(found.accuracy(cell, arm)) for arm in arms] for cell in mine]
    return Picture(
        f"{name}: test accuracy after fine-tuning",
        "Every replicate at the learning rate that it chose; mean over replicates.",
        "heatmap",
        Axis("arm"),
        Axis("target, images, batch size, steps"),
        heat=Heat(
            [ARMS[arm] for arm in arms],
            [cell.regime for cell in mine],
            z,
            [[f"{value:.1f}" for value in row] for row in z],
        ),
    )
