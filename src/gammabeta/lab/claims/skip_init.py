"""A residual network keeps most of BatchNorm's advantage with a better initialization alone.

Question: How much of what BatchNorm gains in a deep residual network is left to SkipInit or Fixup, which have no norm?

Claim: In residual networks BatchNorm works by making residual branches small at the start. An initialization that does
the same keeps more than half of its advantage.

Criterion: The effect is the test error with an initialization and no norm minus that with BatchNorm and He's
initialization, in percentage points, paired by replicate. It is below 3 points, which is half of the smallest advantage
that gives room. SkipInit and Fixup at each depth are the regimes.

Room: A depth is judged where the test error without norms, with He's initialization, exceeds that with BatchNorm by
more than 6 points in the median of the replicates.

Method: Residual networks of blocks x + f(x), where f is twice (norm, relu, layer). SkipInit multiplies f by one
trainable scalar that is 0 at first. Fixup scales the first layer of each block by the number of blocks to the power
−1/2, starts with 0 in the second one and the classifier, and has trainable scalar offsets and one multiplier. Training
is by SGD with momentum, warm-up, half a cosine to 0 and weight decay, in batches of 128 for 20 epochs. Each arm and
replicate has its own learning rate, chosen on the replicate's own validation split among three around the best of a
coarse search. Errors are by exact statistics. The table also gives the mean square of the last block's output over that
of the first block's input at the start, on training images: De & Smith derive 2 to the power of the number of blocks
without norms, growth in proportion to it with BatchNorm, and 1 with SkipInit.

Settings: linear layers of width 32. Quick: 8 blocks, 4 replicates. Full: 8 and 24 blocks, and 8 blocks of 3 × 3
convolutions with 12 channels, 16 replicates.

Sources: De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity (arXiv 2002.10444); Zhang,
Dauphin & Ma 2019, Fixup Initialization (1901.09321); Hanin & Rolnick 2018 (1803.01719)

Known: De & Smith train residual networks of 1,000 layers with SkipInit, and reach BatchNorm's accuracy at small
batches. With large ones BatchNorm stays ahead, because it stands larger learning rates. Fixup trains as deep.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build, describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.residual import ResidualNet
from gammabeta.lab.images.training import POPULATION
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences, paired_errors
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

BATCH, EPOCHS, WIDTH, CHANNELS = 128, 20, 32, 12
LEAST = 6.0
# Each arm's initialization and norm.
ARMS = {
    "no norm": ("he", "none"),
    "BatchNorm": ("he", "batch"),
    "SkipInit": ("skipinit", "none"),
    "Fixup": ("fixup", "none"),
}
JUDGED = ("SkipInit", "Fixup")
UNIT = "percentage points"
CRITERION = Criterion(unit=UNIT, margin=(-100.0, LEAST / 2), direction="within")
ADVANTAGE = Criterion(unit=UNIT, margin=(0.0, LEAST), direction="above")
Form = tuple[int, bool]  # blocks, convolutional


# --- the trial ---


@versioned(1)
def growth(*, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, seed: int) -> dict[str, list[float]]:
    """Return the mean square of each block's output over that of the first block's input, at the start."""
    data = load(task)
    model = build(data, network, norm, seed).train()
    assert isinstance(model, ResidualNet)
    seen: list[Tensor] = []
    hooks = [model.stem.register_forward_hook(lambda _, given, y: seen.append(y))]
    hooks += [block.register_forward_hook(lambda _, given, y: seen.append(y)) for block in model.blocks]
    with torch.no_grad():
        model(data.train.x_nchw[:POPULATION])
    for hook in hooks:
        hook.remove()
    squares = [float(x.double().square().mean()) for x in seen]
    return {"over_input": [square / squares[0] for square in squares[1:]]}


# --- the claim ---


def measure(experiment: Experiment) -> Outcome:
    """Compare SkipInit and Fixup with BatchNorm where a network without norms is far behind it."""
    chosen = forms(experiment)
    replicates = experiment.seeds(4, 16)
    runs = choose_rates(experiment, _arms(experiment, chosen), replicates)
    grown = experiment.grid([(form, arm) for form in chosen for arm in ARMS], replicates[:4], _growth(experiment))
    advantages = {form: _behind(experiment, form, "no norm", runs, ADVANTAGE) for form in chosen}
    with_room = {form: median(_differences(runs, form, "no norm")) > LEAST for form in chosen}
    effects = {(form, arm): _behind(experiment, form, arm, runs, CRITERION) for form in chosen for arm in JUDGED}
    verdicts: dict[str, Verdict] = {
        f"{name(form)}, {arm}": effect.verdict if with_room[form] else "no room here"
        for (form, arm), effect in effects.items()
    }
    room = Room(
        any(with_room.values()),
        f"BatchNorm's advantage, more than {LEAST:g} points in the median required: "
        + "; ".join(
            f"{name(form)} {median(_differences(runs, form, 'no norm')):+.1f}"
            + ("" if with_room[form] else " (no room)")
            for form in chosen
        ),
    )
    return Outcome(
        verdict=over_regimes(list(verdicts.values())),
        sentence=_sentence(advantages, effects, with_room),
        effects=[*effects.values(), *advantages.values()],
        room=room,
        pictures=[
            bars(
                "Test error without norms minus that with BatchNorm",
                "At 0 the initialization keeps the whole advantage. 95 % interval over replicates.",
                "network and initialization",
                Axis("difference", UNIT),
                [*effects.values(), *advantages.values()],
            ),
            *(_by_block(form, grown) for form in chosen),
        ],
        tables=[_table(chosen, runs, grown)],
        settings=f"{len(replicates)} replicates, {EPOCHS} epochs, batches of {BATCH}",
        regimes=verdicts,
        trials=experiment.trials,
    )


def forms(experiment: Experiment) -> list[Form]:
    """Return the numbers of blocks, and whether they are convolutional."""
    return [(8, False)] if experiment.quick else [(8, False), (24, False), (8, True)]


def network_of(form: Form, start: str) -> dict[str, Any]:
    depth, convolutional = form
    width = CHANNELS if convolutional else WIDTH
    return {"kind": "residual", "depth": depth, "width": width, "start": start, "convolutional": convolutional}


def name(form: Form) -> str:
    return describe(network_of(form, "he"))


def _arms(experiment: Experiment, chosen: Sequence[Form]) -> dict[tuple[Form, str], dict[str, Any]]:
    steps = EPOCHS * (len(experiment.task.train) // BATCH)
    return {
        (form, arm): {
            **RECIPE,
            "network": network_of(form, start),
            "norm": norm,
            "batch_size": BATCH,
            "steps": steps,
        }
        for form in chosen
        for arm, (start, norm) in ARMS.items()
    }


def _growth(experiment: Experiment) -> Any:
    def trial(cell: tuple[Form, str], seed: int) -> Trial:
        form, (start, norm) = cell[0], ARMS[cell[1]]
        settings = {"task": experiment.drawn(seed), "network": network_of(form, start), "norm": norm, "seed": seed}
        return Trial(f"{__name__}:growth", settings)

    return trial


Runs = Mapping[tuple[Form, str], Chosen]


def _errors(chosen: Chosen) -> list[float]:
    return [100 * float(result["error"]) for result in chosen.results]


def _differences(runs: Runs, form: Form, arm: str) -> list[float]:
    """Return an arm's test error minus that with BatchNorm, in points, by replicate."""
    return differences(_errors(runs[form, arm]), _errors(runs[form, "BatchNorm"]))


def _behind(experiment: Experiment, form: Form, arm: str, runs: Runs, criterion: Criterion) -> Effect:
    pair = (runs[form, arm].results, runs[form, "BatchNorm"].results)
    return criterion.effect(f"{name(form)}, {arm}: behind BatchNorm", *paired_errors(experiment, *pair))


def _sentence(
    advantages: Mapping[Form, Effect], effects: Mapping[tuple[Form, str], Effect], with_room: Mapping[Form, bool]
) -> str:
    parts = []
    for form, advantage in advantages.items():
        if not with_room[form]:
            continue
        each = []
        for arm in JUDGED:
            own = effects[form, arm]
            each.append(
                f"{arm} {own.value:+.1f} [{own.low:.1f}, {own.high:.1f}] ({own.verdict}), which keeps "
                f"{1 - own.value / advantage.value:.0%}"
            )
        parts.append(f"{name(form)} without norms {advantage.value:+.1f}, with {' and with '.join(each)}")
    if not parts:
        return f"no depth has room: without norms the test error is not {LEAST:g} points above BatchNorm's"
    return f"points of test error behind BatchNorm: {'; '.join(parts)}"


def _by_block(form: Form, grown: Mapping[tuple[Form, str], list[dict[str, Any]]]) -> Picture:
    series = []
    for arm in ARMS:
        by_block = zip(*(result["over_input"] for result in grown[form, arm]), strict=True)
        middle = [math.exp(mean(math.log(value) for value in values)) for values in by_block]
        series.append(Series(arm, list(range(1, len(middle) + 1)), middle))
    return Picture(
        f"{name(form)}: mean square of a block's output at the start",
        "Relative to the first block's input; geometric mean over replicates.",
        "line",
        Axis("block"),
        Axis("mean square over the input's", log=True),
        series,
    )


def _table(chosen: Sequence[Form], runs: Runs, grown: Mapping[tuple[Form, str], list[dict[str, Any]]]) -> Table:
    return Table(
        "Test error and growth of the residual stream, mean over replicates",
        ["network", "arm", "learning rate", "test error, %", "mean square of the last block's output over the input's"],
        [
            [
                name(form),
                arm,
                runs[form, arm].rate,
                mean(_errors(runs[form, arm])),
                math.exp(mean(math.log(result["over_input"][-1]) for result in grown[form, arm])),
            ]
            for form in chosen
            for arm in ARMS
        ],
    )
