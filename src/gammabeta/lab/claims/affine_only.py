"""On a small or different target set, training only γ, β and the head is enough.

Question: When a trained network is adapted to a few images of another kind, with frozen BatchNorm statistics, what do
γ, β and the head reach without the rest of the network?

Claim: For a small or different target set, freeze the statistics and train only γ and β, and the head.

Criterion: Two differences of test accuracy for each replicate and regime (network × target × images per class): γ, β
and head minus only the head, and γ, β and head minus all parameters, which are trained on frozen statistics too. The
margin is 2 percentage points. A regime supports the claim if the first is entirely above the margin, so that γ and β
are worth training, and the second entirely above minus the margin, so that nothing is lost. It contradicts the claim if
all parameters are better by more than the margin, or if γ and β lower the accuracy by more than the margin. It is
equivalent if γ and β change nothing beyond the margin, and all parameters do not either. All parameters on batch
statistics, as plain fine-tuning trains them, are reported beside it.

Room: The source is strong: the pretrained network is at most 2 points below a linear classifier on what it was
pretrained for. In each regime, some arm also gains more than the margin over no training.

Method: Pretraining and targets are those of fine_tuning: 20 epochs by the recipe (SGD with momentum 0.9, 5 % warm-up,
half a cosine, decay 5e-4 on weights), then a few rotated images, or images of new classes with a new head. Adaptation
follows the same recipe. Every replicate draws its own split, pretraining and images, and chooses each arm's learning
rate on its own validation split. The arm on batch statistics is evaluated by whichever is better in validation: its
moving averages, or exact statistics of its training images.

Settings: batches of 8, 400 steps. Quick: MLP of 2 layers, 4 images per class, 4 replicates. Full: also 16 images per
class, and the small ResNet (or the user's model) with 4, 16 replicates.

Sources: Frankle et al. 2020, Training BatchNorm and Only BatchNorm (arXiv 2003.00152); Bilen & Vedaldi 2017, Universal
representations (1701.07275); Wu & Johnson 2021, Rethinking "Batch" (2105.07576)

Known: Frankle et al.: training only γ and β of a random ResNet-866 reaches 82 % on CIFAR-10, training all 93 %.
"""

from collections.abc import Sequence

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.adaptation import ARMS, Cell, adapt, effect, room, table
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, bars
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH_SIZE, IMAGES = 8, 3200
MARGIN = 2.0
COMPARED = ("head", "affine", "frozen", "all")
SHOWN = (*COMPARED, "untrained")
CRITERION = Criterion(unit="percentage points", margin=(-MARGIN, MARGIN), direction="above")


def cells(experiment: Experiment) -> list[Cell]:
    """Return the cells to measure."""
    mlp = experiment.mlp(2)
    chosen = [(mlp, 4)] if experiment.quick else [(mlp, 4), (mlp, 16)]
    if experiment.user or not experiment.quick:
        chosen.append((experiment.convolutional, 4))
    return [
        Cell(network, target, per_class, BATCH_SIZE, IMAGES)
        for network, per_class in chosen
        for target in ("rotated", "classes")
    ]


def regime(worth: Effect, enough: Effect) -> Verdict:
    """Judge a regime.

    Args:
        worth: γ, β and head minus only the head.
        enough: γ, β and head minus all parameters.
    """
    if "contradicted" in (worth.verdict, enough.verdict):
        return "contradicted"
    if enough.low < -MARGIN:
        return "inconclusive"
    return worth.verdict


def measure(experiment: Experiment) -> Outcome:
    """Compare γ, β and head with only the head, and with all parameters."""
    seeds = experiment.seeds(4, 16)
    found = adapt(experiment, cells(experiment), SHOWN, seeds)
    judged, control = room(experiment, found, COMPARED, MARGIN)
    pairs = {
        cell.name: [
            effect(experiment, found, cell, ("affine", other), CRITERION) for other in ("head", "frozen", "all")
        ]
        for cell in judged
    }
    regimes: dict[str, Verdict] = {
        cell.name: regime(*pairs[cell.name][:2]) if cell.name in pairs else "no room here" for cell in found.cells
    }
    effects = [one for of_cell in pairs.values() for one in of_cell]
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(pairs, regimes),
        effects=effects,
        room=control,
        pictures=[
            bars(
                "Accuracy with γ, β and head minus that of the other arms",
                "Above 0: training only γ, β and the head is better. 95 % interval over replicates.",
                "regime and other arm",
                Axis("difference of test accuracy", "percentage points"),
                effects,
            )
        ],
        tables=[table(found, SHOWN)],
        settings=f"{len(seeds)} replicates, batches of {BATCH_SIZE}, {IMAGES // BATCH_SIZE} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _sentence(pairs: dict[str, list[Effect]], regimes: dict[str, Verdict]) -> str:
    """Tell how γ, β and head compare with each other arm in every regime."""
    if not pairs:
        return "no regime has room: the source is not strong, or adaptation gains nothing over no training"
    return "points of test accuracy by which training γ, β and the head is above the other arms: " + "; ".join(
        f"{name}: {_shown(effects)} ({regimes[name]})" for name, effects in pairs.items()
    )


def _shown(effects: Sequence[Effect]) -> str:
    return ", ".join(
        f"{ARMS[other]} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}]"
        for e, other in zip(effects, ("head", "frozen", "all"), strict=True)
    )
