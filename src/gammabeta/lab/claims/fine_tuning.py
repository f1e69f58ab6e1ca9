"""Fine-tuning on a small target set works best with frozen BatchNorm statistics.

Question: When a trained network is fine-tuned on a few images of another kind, is it better to freeze BatchNorm's
statistics than to keep training with those of small batches?

Claim: Statistics of small batches of a small or different target set do harm; freezing the pretrained ones helps.

Criterion: The difference, for each seed and cell (network × target × images per class × batch size), is test accuracy
with frozen statistics minus that with everything trained on batch statistics. The margin is 2 percentage points. Each
cell is a regime.

Room: On the tuning seed the pretrained network exceeds twice the accuracy of chance on what it was trained for. In each
cell, training some arm also gains more than the margin over no training: where fine-tuning gains nothing, the way it is
done does not matter.

Method: Two targets. Rotated: the network is pretrained on three quarters of the training images; the target is the last
quarter, rotated by 90° (180° where images are not square), and the head is kept. New classes: the network is pretrained
on the first half of the classes; the target is the second half, and the head is reinitialized. Pretraining takes 200
steps of 32 images at the best learning rate for the whole task. Running statistics are then recalibrated on the
pretraining images. Fine-tuning takes 60 steps of SGD without momentum on a few images per class, drawn by the seed.
Each arm's learning rate is tuned in each cell on the target's validation split, with a separate seed. The arms are:
everything trained with batch statistics; statistics frozen, γ and β trained; the whole norm frozen; statistics
recalibrated on the target's training images, then frozen; a network pretrained with GroupNorm, everything trained; and
no training. The arm on batch statistics is evaluated with its moving averages or with exact statistics of the target's
training images, whichever is better on the tuning seed. With few images neither is always right, and that choice should
not decide against the arm.

Settings: batches of 2 and 8. Quick: MLP of 2 layers of 64 and the user's model, 2 and 16 images per class, 3 seeds.
Full: also 4 images per class, and the small ResNet with 2 and 16, 10 seeds (5 at first, which was inconclusive).

Sources: Wu & Johnson 2021, Rethinking "Batch", sections 3 and 5 (arXiv 2105.07576); Wu & He 2018 (1803.08494); He et
al. 2017, Mask R-CNN, which freezes (1703.06870)

Known: In a pilot run on digits, frozen minus everything trained was +14 points with batches of 2. With batches of 8 it
was −9 to −28 on rotated images and +19 on new classes with one image each.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.images.training import Training, chance, error_and_loss, exact_statistics, fit
from gammabeta.lab.interval import Precision
from gammabeta.lab.outcome import Axis, Criterion, Effect, Heat, Outcome, Picture, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, canonical, versioned
from gammabeta.lab.tuning import error_then_loss, tune
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

PRETRAINING, STEPS, BATCH = 200, 60, 32
BATCH_SIZES = (2, 8)
MARGIN = 2.0
TARGETS = {"rotated": "rotated", "classes": "new classes"}
ARMS = {
    "all": "all trained, batch statistics",
    "frozen": "statistics frozen",
    "frozen_all": "whole norm frozen",
    "recalibrated": "recalibrated, then frozen",
    "group": "GroupNorm, all trained",
    "untrained": "no training",
}
TRAINED = tuple(arm for arm in ARMS if arm != "untrained")
CRITERION = Criterion(unit="percentage points", margin=(-MARGIN, MARGIN), direction="above")


# --- the trials ---


@dataclass(frozen=True)
class Transfer:
    """The pretraining images, and the target's: a pool to draw from, validation and test."""

    source: Split
    source_validation: Split
    pool: Split
    validation: Split
    test: Split


def transfer(task: Task, target: str) -> Transfer:
    """Split the task for a target; no image of the target is pretrained on."""
    if target == "rotated":
        last = torch.arange(len(task.train)) % 4 == 3
        return Transfer(
            _chosen(task.train, ~last),
            task.validation,
            rotated(_chosen(task.train, last)),
            rotated(task.validation),
            rotated(task.test),
        )
    parts = (task.train, task.validation, task.test)
    old, new = ([_chosen(part, (part.y_n < task.classes // 2) == first) for part in parts] for first in (True, False))
    return Transfer(old[0], old[1], new[0], new[1], new[2])


def _chosen(split: Split, which_n: Tensor) -> Split:
    return Split(split.x_nchw[which_n], split.y_n[which_n])


def rotated(split: Split) -> Split:
    """Rotate by 90°, which moves pixels without interpolation; by 180° where the images are not square."""
    square = split.x_nchw.shape[2] == split.x_nchw.shape[3]
    return Split(split.x_nchw.rot90(1 if square else 2, (2, 3)).contiguous(), split.y_n)


def few(pool: Split, per_class: int, seed: int) -> Split:
    """Draw ``per_class`` images of every class in the pool, or all where it has fewer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)
    index = torch.cat([order[pool.y_n[order] == label][:per_class] for label in pool.y_n.unique()])
    return Split(pool.x_nchw[index], pool.y_n[index])


def stream(split: Split, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` batches of ``size`` from consecutive shuffled epochs; a batch may be larger than the target."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-size * steps // len(split))
    row = torch.cat([torch.randperm(len(split), generator=generator) for _ in range(epochs)])
    for index in row[: size * steps].split(size):
        yield split.x_nchw[index], split.y_n[index]


@lru_cache(maxsize=64)
def pretrained(settings: str) -> nn.Module:
    """Pretrain a network and recalibrate its running statistics on the pretraining images; callers must copy it.

    Args:
        settings: task, network, norm, learning rate, seed and target, as canonical JSON, so that they can be a key.
    """
    how = json.loads(settings)
    data = load(how["task"])
    source = transfer(data, how["target"]).source
    chosen = {key: how[key] for key in ("network", "norm", "rate", "seed")}
    model = fit(data, source, Training(batch_size=BATCH, steps=PRETRAINING, **chosen)).model
    gb.recalibrate(model, source.x_nchw.split(256))
    return model


def head(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the last linear or convolutional layer."""
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def prepare(model: nn.Module, arm: str, x_nchw: Tensor) -> None:
    """Freeze and recalibrate the model as the arm requires."""
    if arm == "recalibrated":
        gb.recalibrate(model, [x_nchw])
    if arm in ("frozen", "recalibrated"):
        gb.freeze(model)
    if arm == "frozen_all":
        gb.freeze(model, affine=True)


@versioned(1)
def tuned_on(
    *,
    task: Mapping[str, Any],
    network: Mapping[str, Any],
    pretraining_rate: float,
    target: str,
    arm: str,
    per_class: int,
    batch_size: int,
    rate: float,
    seed: int,
    report: str = "validation",
) -> dict[str, Any]:
    """Fine-tune one network.

    Returns:
        ``error``, ``loss``: on the target, with the layers' running statistics.
        ``exact_error``, ``exact_loss``: with those of the target's training images, only of the arm on batch
        statistics.
        ``source_accuracy``: of the pretrained network on what it was trained for, only of the untrained arm.
    """
    data = load(task)
    parts = transfer(data, target)
    how = {"task": task, "network": network, "rate": pretraining_rate, "seed": seed, "target": target}
    model = copy.deepcopy(pretrained(canonical({**how, "norm": "group" if arm == "group" else "batch"})))
    split: Split = getattr(parts, report)
    result: dict[str, Any] = {"exact_error": None, "exact_loss": None}
    if arm == "untrained":
        model.eval()
        result["source_accuracy"] = 1.0 - error_and_loss(model, parts.source_validation)[0]
    if target == "classes":
        torch.manual_seed(seed)
        head(model).reset_parameters()
    images = few(parts.pool, per_class, seed)
    prepare(model, arm, images.x_nchw)
    finite = arm == "untrained" or _train(model, images, rate, batch_size, seed)
    model.eval()
    result["error"], result["loss"] = error_and_loss(model, split) if finite else (1.0, None)
    if arm == "all":
        result["exact_error"] = 1.0
        if finite:
            with exact_statistics(model, images.x_nchw):
                result["exact_error"], result["exact_loss"] = error_and_loss(model, split)
    return result


def _train(model: nn.Module, images: Split, rate: float, batch_size: int, seed: int) -> bool:
    """Train in place; return whether the loss stayed finite."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate, foreach=True)
    model.train()
    for x_nchw, y_n in stream(images, batch_size, STEPS, seed):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x_nchw), y_n)
        if not torch.isfinite(loss):
            return False
        loss.backward()
        optimizer.step()
    return True


def score(result: Mapping[str, Any]) -> float:
    """Return the lower score of the two evaluations."""
    return min(error_then_loss(result), error_then_loss(_exact(result)) if result["exact_error"] is not None else 1e9)


def _exact(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": result["exact_error"], "loss": result["exact_loss"]}


def by_exact(result: Mapping[str, Any]) -> bool:
    """Tell whether exact statistics are better than the moving averages; a tie goes to the moving averages."""
    return result["exact_error"] is not None and error_then_loss(_exact(result)) < error_then_loss(result)


# --- the claim ---


@dataclass(frozen=True)
class Cell:
    """A network, a target, how many images per class it has, and the batch size."""

    network: Mapping[str, Any]
    target: str
    per_class: int
    batch_size: int

    @property
    def regime(self) -> str:
        many = "image" if self.per_class == 1 else "images"
        return f"{TARGETS[self.target]}, {self.per_class} {many} per class, batches of {self.batch_size}"

    @property
    def name(self) -> str:
        return f"{describe(self.network)}, {self.regime}"


def cells(experiment: Experiment) -> list[Cell]:
    """Return the cells to measure."""
    sizes: list[tuple[Mapping[str, Any], Sequence[int]]]
    sizes = [(experiment.mlp(2), (2, 16) if experiment.quick else (2, 4, 16))]
    if experiment.user or not experiment.quick:
        sizes.append((experiment.convolutional, (2, 16)))
    return [
        Cell(network, target, per_class, batch_size)
        for network, of_network in sizes
        for target in TARGETS
        for per_class in of_network
        for batch_size in BATCH_SIZES
    ]


def pretraining_rates(experiment: Experiment, networks: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Tune the learning rate for the whole task by network and norm; small_batch shares these trials on the MLP."""
    keys = [(network, norm) for network in networks for norm in ("batch", "group")]
    arms = [
        {"network": dict(network), "norm": norm, "batch_size": BATCH, "steps": PRETRAINING} for network, norm in keys
    ]
    exponents = tune(experiment, arms, error_then_loss)
    return {(describe(network), norm): 2.0**best for (network, norm), best in zip(keys, exponents, strict=True)}


Key = tuple[str, str]  # name of the cell, arm
Found = dict[Key, list[float]]  # accuracy in percent, one value per seed


@dataclass(frozen=True)
class Tuned:
    """Every arm in every cell at its best learning rate (0 where nothing is trained), and its tuning result."""

    arms: Mapping[Key, Mapping[str, Any]]
    rates: Mapping[Key, float]
    results: Mapping[Key, Mapping[str, Any]]


def measure(experiment: Experiment) -> Outcome:
    """Compare the arms' test accuracies in every cell."""
    every, seeds = cells(experiment), experiment.seeds(3, 10)
    tuned = _tuned(experiment, every)
    results = experiment.grid(
        list(tuned.arms),
        seeds,
        lambda key, seed: _trial(experiment, tuned.arms[key], rate=tuned.rates[key], seed=seed, report="test"),
    )
    found: Found = {}
    for key, of_key in results.items():
        which = "exact_error" if by_exact(tuned.results[key]) else "error"
        found[key] = [100 * (1 - result[which]) for result in of_key]
    judged, room = _room(experiment, every, tuned.results)
    tested = {target: Precision(samples=len(transfer(experiment.task, target).test)) for target in TARGETS}
    each = [
        CRITERION.effect(
            cell.name, differences(found[cell.name, "frozen"], found[cell.name, "all"]), tested[cell.target]
        )
        for cell in judged
    ]
    verdicts = {effect.name: effect.verdict for effect in each}
    regimes: dict[str, Verdict] = {cell.name: verdicts.get(cell.name, "no room here") for cell in every}
    names = dict.fromkeys(describe(cell.network) for cell in every)
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(each, found, regimes),
        effects=each,
        room=room,
        pictures=[
            bars(
                "Accuracy with frozen statistics minus that with everything trained on batch statistics",
                "Above 0: freezing is better. 95 % interval over seeds.",
                "cell",
                Axis("difference of test accuracy", "percentage points"),
                each,
            ),
            *(_heat(name, [cell for cell in every if describe(cell.network) == name], found) for name in names),
        ],
        tables=[_table(every, found, tuned, regimes)],
        settings=f"{len(seeds)} seeds, batches of {', '.join(map(str, BATCH_SIZES))}, {STEPS} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _trial(experiment: Experiment, arm: Mapping[str, Any], **settings: Any) -> Trial:
    return Trial(f"{__name__}:tuned_on", {"task": dict(experiment.source), **arm, **settings})


def _tuned(experiment: Experiment, every: Sequence[Cell]) -> Tuned:
    """Tune the pretraining of each network, then each arm's fine-tuning in each cell."""
    of_name = {describe(cell.network): cell.network for cell in every}
    pretraining = pretraining_rates(experiment, list(of_name.values()))
    arms: dict[Key, dict[str, Any]] = {
        (cell.name, arm): {
            "network": dict(cell.network),
            "pretraining_rate": pretraining[describe(cell.network), "group" if arm == "group" else "batch"],
            "target": cell.target,
            "arm": arm,
            "per_class": cell.per_class,
            "batch_size": cell.batch_size,
        }
        for cell in every
        for arm in ARMS
    }
    seed = experiment.tuning_seed
    trained = [key for key in arms if key[1] != "untrained"]
    exponents = tune(
        experiment,
        [arms[key] for key in trained],
        score,
        make=lambda arm, exponent: _trial(experiment, arm, rate=2.0**exponent, seed=seed),
    )
    best = dict(zip(trained, exponents, strict=True))
    rates = {key: 2.0 ** best[key] if key in best else 0.0 for key in arms}
    results = experiment.grid(
        list(arms), [seed], lambda key, seed: _trial(experiment, arms[key], rate=rates[key], seed=seed)
    )
    return Tuned(arms, rates, {key: result for key, (result,) in results.items()})


_OTHERS = ("frozen_all", "recalibrated", "group", "untrained")


def _room(
    experiment: Experiment, every: Sequence[Cell], tuning: Mapping[Key, Mapping[str, Any]]
) -> tuple[list[Cell], Room]:
    """Return the cells that can be judged, and what was seen."""
    judged, least = [], 2 * chance(experiment.task)
    gains = []
    for cell in every:
        still = tuning[cell.name, "untrained"]
        gain = 100 * (still["error"] - min(score(tuning[cell.name, arm]) for arm in TRAINED))
        gains.append(gain)
        if still["source_accuracy"] > least and gain > MARGIN:
            judged.append(cell)
    before = {
        f"{describe(cell.network)} before {TARGETS[cell.target]}": tuning[cell.name, "untrained"]["source_accuracy"]
        for cell in every
    }
    seen = ", ".join(f"{name} {accuracy:.2f}" for name, accuracy in before.items())
    control = (
        f"pretrained accuracy above {least:.2f}: {seen}; best arm's gain over no training {min(gains):.1f} to "
        f"{max(gains):.1f} points, above {MARGIN:g} in {sum(gain > MARGIN for gain in gains)} of {len(every)} cells"
    )
    return judged, Room(bool(judged), control)


def _sentence(each: Sequence[Effect], found: Found, regimes: Mapping[str, Verdict]) -> str:
    """Tell how frozen statistics compare in every cell, and over what range of cells each other arm does."""
    if not each:
        return "no cell has room: the network is not pretrained, or fine-tuning gains nothing over no training"
    cells = "; ".join(f"{e.name} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict})" for e in each)
    gains = {arm: [mean(found[e.name, arm]) - mean(found[e.name, "all"]) for e in each] for arm in _OTHERS}
    others = ", ".join(f"{ARMS[arm]} {min(of_arm):+.1f} to {max(of_arm):+.1f}" for arm, of_arm in gains.items())
    without = len(regimes) - len(each)
    return (
        "points of test accuracy by which frozen statistics are above everything trained on batch statistics: "
        f"{cells}; the other arms: {others}" + (f"; {without} cells without room" if without else "")
    )


def _heat(name: str, mine: Sequence[Cell], found: Found) -> Picture:
    z = [[mean(found[cell.name, arm]) for arm in ARMS] for cell in mine]
    return Picture(
        f"{name}: test accuracy after fine-tuning",
        "Each arm at its best learning rate in the cell; mean over seeds.",
        "heatmap",
        Axis("arm"),
        Axis("target, images, batch size"),
        heat=Heat(
            list(ARMS.values()), [cell.regime for cell in mine], z, [[f"{value:.1f}" for value in row] for row in z]
        ),
    )


def _table(every: Sequence[Cell], found: Found, tuned: Tuned, regimes: Mapping[str, Verdict]) -> Table:
    rows = []
    for cell in every:
        for arm, label in ARMS.items():
            key = (cell.name, arm)
            rows.append(
                [
                    describe(cell.network),
                    TARGETS[cell.target],
                    cell.per_class,
                    cell.batch_size,
                    label,
                    tuned.rates[key] or None,
                    mean(found[key]),
                    "exact" if by_exact(tuned.results[key]) else "running",
                    regimes[cell.name] if arm == "frozen" else "",
                ]
            )
    return Table(
        "Test accuracy after fine-tuning, mean over seeds",
        [
            "network",
            "target",
            "images per class",
            "batch size",
            "arm",
            "learning rate",
            "test accuracy, %",
            "statistics in evaluation",
            "frozen better than all trained?",
        ],
        rows,
    )
