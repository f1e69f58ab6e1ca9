"""BatchNorm works at a layer's input as well as at the activation's.

Question: Does it matter for the test error whether BatchNorm stands before the activation, after it, or at each layer's
input?

Claim: BatchNorm may stand at a layer's input or at the activation's: the place makes no difference.

Criterion: The test error with BatchNorm after the activation, and with it at each layer's input, minus that with it
before the activation, in percentage points, paired by replicate. It lies within 1 point of 0: supported if the whole
interval does, contradicted if none of it. Each network and place is a regime.

Room: A network is judged where BatchNorm before the activation lowers the test error by more than 1 point in the median
of the replicates, so that a place could be worse.

Method: A hidden layer is a linear layer or convolution and an activation. BatchNorm stands between the two, after the
activation, or before the layer; at the layer's input it also normalizes the images, and not what the classifier takes.
Between two hidden layers "after" and "input" are the same, so that they differ only at the ends. Training is by SGD
with momentum, warm-up, half a cosine to 0 and weight decay, in batches of 128 for 20 epochs. Each arm and replicate has
its own learning rate, chosen on the replicate's own validation split among three around the best of a coarse search.
Errors are as deployed, by moving averages; those by exact statistics are in the table.

Settings: Quick: MLP of 8 layers of 64, relu, matched initialization, 4 replicates. Full: MLPs of 4 and 12 layers, relu
and tanh, and the small ResNet, 16 replicates.

Sources: Ioffe & Szegedy 2015, section 3.2 (arXiv 1502.03167); He et al. 2016, Identity Mappings in Deep Residual
Networks (1603.05027); Mishkin, Sergievskiy & Matas 2017 (1606.02228)

Known: Ioffe & Szegedy put BatchNorm before the activation, where its input is more nearly Gaussian. On ImageNet Mishkin
et al. find it 1 point better after relu.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences, paired_errors
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH, EPOCHS, LEAST = 128, 20, 1.0
# Each arm's placement and norm.
ARMS = {
    "no norm": ("before", "none"),
    "before the activation": ("before", "batch"),
    "after the activation": ("after", "batch"),
    "at the layer's input": ("input", "batch"),
}
NO_NORM, USUAL, *OTHERS = ARMS
CRITERION = Criterion(unit="percentage points", margin=(-1.0, 1.0), direction="within")
Runs = Mapping[tuple[int, str], Chosen]  # (network, arm)


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return networks that know placements; a user's model has its norms where it put them."""
    if experiment.quick:
        return [experiment.mlp(8)]
    mlps = [experiment.mlp(depth, activation=activation) for depth in (4, 12) for activation in ("relu", "tanh")]
    return [*mlps, {"kind": "resnet", "init": "matched"}]


def measure(experiment: Experiment) -> Outcome:
    """Compare the test errors of the places that BatchNorm may have."""
    chosen = networks(experiment)
    replicates = experiment.seeds(4, 16)
    runs = choose_rates(experiment, _arms(experiment, chosen), replicates)
    names = [describe(network) for network in chosen]
    gains = [median(differences(_errors(runs[i, NO_NORM]), _errors(runs[i, USUAL]))) for i, _ in enumerate(chosen)]
    effects = {(i, arm): _effect(experiment, name, i, arm, runs) for i, name in enumerate(names) for arm in OTHERS}
    regimes: dict[str, Verdict] = {
        f"{names[i]}, {arm}": effect.verdict if gains[i] > LEAST else "no room here"
        for (i, arm), effect in effects.items()
    }
    room = Room(
        any(gain > LEAST for gain in gains),
        f"BatchNorm's median gain in test error, more than {LEAST:g} point required: "
        + "; ".join(
            f"{name} {gain:+.1f}" + ("" if gain > LEAST else " (no room)")
            for name, gain in zip(names, gains, strict=True)
        ),
    )
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence({name: gain > LEAST for name, gain in zip(names, gains, strict=True)}, effects),
        effects=list(effects.values()),
        room=room,
        pictures=[
            bars(
                "Test error of a place minus that before the activation",
                "Above 0: worse than before the activation. 95 % interval over replicates.",
                "network and place",
                Axis("difference of test errors", "percentage points"),
                list(effects.values()),
            )
        ],
        tables=[_table(names, runs)],
        settings=f"{len(replicates)} replicates, {EPOCHS} epochs, batches of {BATCH}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _arms(experiment: Experiment, chosen: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], dict[str, Any]]:
    images = len(experiment.task.train)
    size = min(BATCH, images)
    return {
        (index, arm): {
            **RECIPE,
            "network": {**network, "placement": placement},
            "norm": norm,
            "batch_size": size,
            "steps": EPOCHS * (images // size),
        }
        for index, network in enumerate(chosen)
        for arm, (placement, norm) in ARMS.items()
    }


def _errors(chosen: Chosen, key: str = "moving_error") -> list[float]:
    return [100 * float(result[key]) for result in chosen.results]


def _effect(experiment: Experiment, name: str, index: int, arm: str, runs: Runs) -> Effect:
    pair = (runs[index, arm].results, runs[index, USUAL].results)
    return CRITERION.effect(f"{name}, {arm}", *paired_errors(experiment, *pair, "moving_error"))


def _sentence(with_room: Mapping[str, bool], effects: Mapping[tuple[int, str], Effect]) -> str:
    parts = []
    for index, (name, holds) in enumerate(with_room.items()):
        each = [
            f"{arm} {effect.value:+.1f} [{effect.low:.1f}, {effect.high:.1f}] ({effect.verdict})"
            for (of, arm), effect in effects.items()
            if of == index
        ]
        parts += [f"{name} {', '.join(each)}"] if holds else []
    if not parts:
        return f"no network has room: BatchNorm's median gain in test error is at most {LEAST:g} point"
    return f"points of test error above BatchNorm before the activation: {'; '.join(parts)}"


def _table(names: Sequence[str], runs: Runs) -> Table:
    return Table(
        "Test error by BatchNorm's place, %, mean over replicates",
        ["network", "place", "learning rate", "moving averages", "exact statistics"],
        [
            [names[index], arm, chosen.rate, mean(_errors(chosen)), mean(_errors(chosen, "error"))]
            for (index, arm), chosen in runs.items()
        ],
    )
