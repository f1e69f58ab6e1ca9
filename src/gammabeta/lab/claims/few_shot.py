"""Learning from a few images hurts BatchNorm.

Question: When a trained network learns new classes from one or five images of each, does BatchNorm make more errors
than a norm that looks at one image?

Claim: BatchNorm can be unsuited to few-shot learning, where a batch is a handful of images.

Criterion: BatchNorm's error on new images minus GroupNorm's, in percentage points, mean over episodes, paired by
replicate, is above 2. Each network and number of shots is a regime.

Room: In the regime, GroupNorm's episodes teach it something: its validation error is at most three quarters of that of
chance.

Method: Networks are pretrained on the first half of the classes, as in fine_tuning. An episode draws five of the other
classes (or all of them where there are fewer), and 1 or 5 images of each from the training images: the support. A copy
of the network gets a new head and is trained on the whole support as one batch, by the recipe (SGD with momentum 0.9,
5 % warm-up, half a cosine, decay 5e-4 on weights). BatchNorm takes its statistics from the support, and is evaluated
with its moving averages, which are those of the support by then. The error is that on the new classes' test images. A
replicate draws its own split and pretraining, and chooses its learning rate by episodes on validation images.
BatchNorm with the pretrained statistics frozen, and LayerNorm, are reported beside it.

Settings: 30 steps. Quick: MLP of 2 layers of 64 (or the user's model), 8 episodes a replicate, 4 replicates, without
LayerNorm. Full: also the small ResNet, 20 episodes, 12 replicates.

Sources: Bronskill et al. 2020, TaskNorm (arXiv 2003.03284); Chen et al. 2019, A Closer Look at Few-shot Classification
(1904.04232); Snell et al. 2017, for episodes (1703.05175)

Known: Bronskill et al.: in MAML the norm decides several points of accuracy; statistics of the support alone do worst.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.descent import descend, judged
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.stacked import joinable, side_by_side
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.transfer import Transfer, few, head, pretrained, pretraining_rates, transfer
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, canonical, versioned
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

WAYS, SHOTS, STEPS = 5, (1, 5), 30
FEW_EPISODES, EPISODES = 8, 20
ARMS = {
    "batch": "BatchNorm",
    "frozen": "BatchNorm, statistics frozen",
    "group": "GroupNorm",
    "layer": "LayerNorm",
}
MARGIN = (-2.0, 2.0)
COARSE = (-5, -2)
CRITERION = Criterion(unit="percentage points", margin=MARGIN, direction="above")
Found = Mapping[tuple[str, str], Chosen]  # by regime and arm


# --- the trials ---


@dataclass(frozen=True)
class Episode:
    """The images to learn from, and those to answer; labels count from 0 within the episode."""

    support: Split
    queries: Split


def episode(parts: Transfer, queries: Split, shots: int, seed: int) -> Episode:
    """Draw an episode's classes and support.

    Args:
        queries: the images to answer; those of the episode's classes are taken.
        seed: of the episode.
    """
    labels = parts.pool.y_n.unique()
    chosen = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:WAYS]]
    return Episode(_of_classes(few(parts.pool, shots, seed), chosen), _of_classes(queries, chosen))


def _of_classes(split: Split, chosen: Tensor) -> Split:
    places = (split.y_n[:, None] == chosen[None]).nonzero()
    return Split(split.x_nchw[places[:, 0]], places[:, 1])


@versioned(1)
def episodes(**settings: Any) -> dict[str, Any]:
    """Learn every episode of a replicate from its support.

    Args:
        settings: task, network, pretraining_rate, arm, shots, episodes, rate, seed, report.

    Returns:
        ``error``: mean over episodes, on the reported split; 1 for an episode whose loss was not finite. ``loss`` is
        None. ``validation``: the error on the validation split, where the test split is reported; otherwise None.
    """
    parts = transfer(load(settings["task"]), "classes")
    tested = settings["report"] == "test"
    validation, *test = _mean_errors(parts, [parts.validation, *([parts.test] if tested else [])], settings)
    return {
        "error": test[0] if tested else validation,
        "loss": None,
        "validation": {"error": validation, "loss": None} if tested else None,
    }


def _mean_errors(parts: Transfer, splits: Sequence[Split], settings: Mapping[str, Any]) -> list[float]:
    """Return the mean error over episodes on each split; all learn side by side where the network stacks."""
    count = settings["episodes"]
    seeds = [10_000 * settings["seed"] + 2 * index + which for which in range(len(splits)) for index in range(count)]
    drawn = [episode(parts, splits[place // count], settings["shots"], seed) for place, seed in enumerate(seeds)]
    models = [_start(settings, seed) for seed in seeds]
    size = len(seeds) if joinable(settings) else 1
    errors: list[float] = []
    for at in range(0, len(seeds), size):
        some = drawn[at : at + size]
        whole = side_by_side(models[at : at + size])
        orders = [torch.arange(len(one.support)).expand(STEPS, -1) for one in some]
        finite = descend(whole, [one.support for one in some], orders, [settings["rate"]] * len(some))
        answers = judged(whole.eval(), [one.queries for one in some])
        errors += [answer.error if good else 1.0 for answer, good in zip(answers, finite, strict=True)]
    return [mean(errors[at : at + count]) for at in range(0, len(errors), count)]


def _start(settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the pretrained network with a new head, and with frozen statistics where the arm says so."""
    arm = settings["arm"]
    how = {key: settings[key] for key in ("task", "network", "seed")}
    norm = "batch" if arm == "frozen" else arm
    key = canonical({**how, "rate": settings["pretraining_rate"], "target": "classes", "norm": norm})
    model = copy.deepcopy(pretrained(key))
    torch.manual_seed(seed)
    layer = head(model)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.reset_parameters()
    if arm == "frozen":
        gb.freeze(model)
    return model


# --- the claim ---


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    """Return the networks to measure."""
    if experiment.quick:
        return [experiment.convolutional if experiment.user else experiment.mlp(2)]
    return [experiment.mlp(2), experiment.convolutional]


def arms_of(experiment: Experiment) -> list[str]:
    """Return the arms to measure."""
    return [arm for arm in ARMS if arm != "layer" or not experiment.quick]


def measure(experiment: Experiment) -> Outcome:
    """Compare the errors after learning from a few images."""
    seeds, every = experiment.seeds(4, 12), networks(experiment)
    names = [f"{describe(network)}, {_shots(shots)}" for network in every for shots in SHOTS]
    found = _runs(experiment, every, seeds)
    ways = min(WAYS, len(transfer(experiment.task, "classes").pool.y_n.unique()))
    allowed = 0.75 * (1 - 1 / ways)
    learned = {
        name: mean(float(result["validation"]["error"]) for result in found[name, "group"].results) for name in names
    }
    judged_on = [name for name in names if learned[name] <= allowed]
    each = {name: _effect(experiment, found, name, "batch") for name in judged_on}
    beside = [arm for arm in arms_of(experiment) if arm not in ("batch", "group")]
    others = [_effect(experiment, found, name, arm) for name in judged_on for arm in beside]
    regimes: dict[str, Verdict] = {name: each[name].verdict if name in each else "no room here" for name in names}
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(each, found),
        effects=[*each.values(), *others],
        room=Room(
            bool(judged_on),
            f"GroupNorm's validation error of at most {allowed:.2f}: "
            + ", ".join(f"{name} {error:.2f}" for name, error in learned.items()),
        ),
        pictures=[
            bars(
                "Error after learning from a few images, minus GroupNorm's",
                f"{ways} new classes. Above 0: more errors than GroupNorm. 95 % interval over replicates.",
                "regime and norm",
                Axis("difference of errors", "percentage points"),
                [*each.values(), *others],
            )
        ],
        tables=[
            Table(
                "Error on new images of new classes, %, mean over replicates",
                ["regime", "norm", "learning rate", "error"],
                [[name, ARMS[arm], of.rate, _percent(found, name, arm)] for (name, arm), of in found.items()],
            )
        ],
        settings=f"{len(seeds)} replicates of episodes of {ways} classes, {STEPS} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _shots(count: int) -> str:
    return f"{count} image{'s' * (count > 1)} per class"


def _runs(experiment: Experiment, every: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Found:
    rates = pretraining_rates(experiment, every, [arm for arm in arms_of(experiment) if arm != "frozen"])

    def trial(arm: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate), "rate": 2.0**exponent, "seed": replicate, "report": report}
        return Trial(f"{__name__}:episodes", {**arm, **own})

    arms = {
        (f"{describe(network)}, {_shots(shots)}", arm): {
            "network": dict(network),
            "pretraining_rate": rates[describe(network), "batch" if arm == "frozen" else arm],
            "arm": arm,
            "shots": shots,
            "episodes": FEW_EPISODES if experiment.quick else EPISODES,
        }
        for network in every
        for shots in SHOTS
        for arm in arms_of(experiment)
    }
    return choose_rates(experiment, arms, seeds, lambda result: float(result["error"]), COARSE, trial)


def _effect(experiment: Experiment, found: Found, name: str, arm: str) -> Effect:
    """Judge an arm's error minus GroupNorm's."""
    parts, pair = transfer(experiment.task, "classes"), (found[name, arm].results, found[name, "group"].results)
    values = differences(*([100 * float(result["error"]) for result in results] for results in pair))
    precision = precision_of(*pair, len(parts.test), len(parts.source))
    return CRITERION.effect(f"{name}: {ARMS[arm]} minus {ARMS['group']}", values, precision)


def _percent(found: Found, name: str, arm: str) -> float:
    return 100 * mean(float(result["error"]) for result in found[name, arm].results)


def _sentence(each: Mapping[str, Effect], found: Found) -> str:
    if not each:
        return "no regime has room: GroupNorm learns nothing from so few images"
    return "BatchNorm's error on new classes minus GroupNorm's, in points: " + "; ".join(
        f"{name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict}; {_percent(found, name, 'batch'):.1f} against "
        f"{_percent(found, name, 'group'):.1f} %, with frozen statistics {_percent(found, name, 'frozen'):.1f})"
        for name, e in each.items()
    )
