"""With BatchNorm training ends in a less sharp minimum.

Question: By how much does a small change of the weights raise the training loss where training ends, with BatchNorm and
without, and does it go with the generalization gap?

Claim: With BatchNorm there is less risk of a sharp minimum, which helps generalization.

Criterion: Two forms, each as a ratio with BatchNorm over without, paired by replicate, which chooses each arm's
learning rate: sharpness, and sharpness over the training loss, because near 0 cross entropy curves in proportion to the
loss, so that whoever trains longer is less sharp. Each network is a regime. There the claim is supported if both are
below 1/1.25, contradicted if one is entirely above 1.25. A separate effect asks whether sharpness tells anything:
Kendall's τ between sharpness and the generalization gap (test loss minus training loss) over the runs of one arm and
replicate with other learning rates and batch sizes, above 0.2 in the mean over both arms.

Room: Both arms reach a training loss below 0.1 in the median of the replicates, so that there is a minimum to measure.

Method: Every filter of the linear and convolutional layers (all weights of one output) moves by ρ times its own norm in
a random direction, all at once. Sharpness is the mean rise of the training loss of 256 training images over eight
directions, each with its opposite, so that the slope cancels. In this unit the scale of weights before a norm or a relu
has no influence. The change of the weights is relative, as in adaptive sharpness and filter normalization. Biases, γ
and β stay. BatchNorm normalizes by the 256 images, in training mode. A rise below 10⁻⁸ counts as 10⁻⁸. Training: SGD
with momentum, warm-up, half a cosine to 0 and weight decay, 20 epochs. Every replicate draws its own split,
initialization and order. At batches of 128 it trains each arm at three learning rates: ½, 1 and 2 times a rate that a
search on three further replicates found. The ratio is taken at the one that it chooses by its own validation error. For
τ the same three rates are trained with batches of 64 too. Sharpness and training loss are measured on training images,
so that the interval of the ratios is Student's. The gap is measured on test images drawn from the same data, which
overlap: the interval of τ holds Nadeau & Bengio's term for it, where the data does not keep its test images. As a
control, sharpness is measured again with the first layer before a norm multiplied by 3, and ε along, which must not
change it: where it moves by more than 1 %, nothing is judged.

Settings: ρ of 0.1; ρ of 0.2 is in the table. Quick: MLP of 4 layers of 64, relu, matched initialization, and the user's
model, 4 replicates. Full: also 8 layers and the small ResNet, 12 replicates.

Sources: Keskar et al. 2017, On Large-Batch Training (arXiv 1609.04836); Dinh et al. 2017, Sharp Minima Can Generalize
(1703.04933); Li et al. 2018, Visualizing the Loss Landscape (1712.09913); Kwon et al. 2021, ASAM (2102.11600);
Andriushchenko et al. 2023, A Modern Look at Sharpness and Generalization (2302.07011); Nadeau & Bengio 2003, Inference
for the Generalization Error

Known: Dinh et al. show that sharpness in absolute units is whatever the scale of the weights makes it. With relative
units Andriushchenko et al. find no consistent relation to generalization.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.layers import in_front_of_norms, is_layer, same_draws, weight_of
from gammabeta.lab.images.losses import precision_of_losses
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import POPULATION, Training, error_and_loss, exact_statistics, fit
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences, logs_of_ratios
from gammabeta.lab.procedure import Settings, choose_rates
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss
from gammabeta.lab.verdict import Verdict, over_regimes, weakest

EXACT = False
KIND = "images"

EPOCHS, DIRECTIONS, SCALE = 20, 8, 3.0
SIZES, FACTORS = (64, 128), (-1, 0, 1)  # batch sizes, and exponents of 2 of the rate over the middle one
START = (-5, -3)  # exponents of 2 with which the search of learning rates begins
RADII = ("0.1", "0.2")
LOWEST, REACHED, TOLERANCE = 1e-8, 0.1, 0.01
ARMS = ("none", "batch")
CRITERION = Criterion(unit="times the sharpness", margin=(1 / 1.25, 1.25), direction="below", null=1.0, ratio=True)
TELLS = Criterion(unit="Kendall's τ", margin=(-0.2, 0.2), direction="above")


# --- the measure ---


def directions(weights: Sequence[Tensor], seed: int) -> list[list[Tensor]]:
    """Draw directions in which every filter moves by its own norm: for each, one tensor like each weight."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(DIRECTIONS):
        of_layers = []
        for weight in weights:
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype).flatten(1)
            filters = weight.detach().flatten(1)
            length = filters.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
            of_layers.append((noise * length).reshape(weight.shape))
        drawn.append(of_layers)
    return drawn


@torch.no_grad()
def sharpness(model: nn.Module, x_nchw: Tensor, y_n: Tensor, radius: float, seed: int) -> float:
    """Return the mean rise of the loss when every filter moves by ``radius`` times its norm; the model stays as it is.

    Source: Li et al. 2018, section 4, for directions in filters' norms.
    """
    weights = [weight_of(module) for module in model.modules() if is_layer(module)]
    before = [weight.detach().clone() for weight in weights]

    def height(direction: Sequence[Tensor] | None, sign: float) -> float:
        for place, weight in enumerate(weights):
            weight.copy_(before[place] if direction is None else before[place] + sign * radius * direction[place])
        with gb.frozen_statistics(model), same_draws(model, seed):
            return float(functional.cross_entropy(model(x_nchw), y_n))

    base = height(None, 0.0)
    rises = [height(direction, sign) - base for direction in directions(before, seed) for sign in (-1.0, 1.0)]
    height(None, 0.0)
    return mean(rises)


@versioned(2)
def minimum(
    *, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, rate: float, batch_size: int, seed: int
) -> dict[str, Any]:
    """Train, and measure the minimum.

    Returns:
        A dict with ``sharpness`` by radius, ``rescaled``, the first of them with the first layer that a BatchNorm
        follows multiplied by 3 (None without any), ``train_loss`` and ``test_loss`` with exact statistics, and
        ``error`` on the test split. All are None where the loss was not finite. ``validation`` holds error and loss of
        the validation split.
    """
    data = load(task)
    size = min(batch_size, len(data.train))
    steps = EPOCHS * (len(data.train) // size)
    training = Training(network=network, norm=norm, rate=rate, batch_size=size, steps=steps, seed=seed, **RECIPE)
    fitted = fit(data, data.train, training)
    x_nchw, y_n = data.train.x_nchw[:POPULATION], data.train.y_n[:POPULATION]
    nothing = dict.fromkeys(("sharpness", "rescaled", "train_loss", "test_loss", "error"))
    if fitted.diverged is not None:
        return {**nothing, "validation": {"error": 1.0, "loss": None}}
    model = fitted.model
    with exact_statistics(model, x_nchw):
        error, test_loss = error_and_loss(model, data.test)
        _, train_loss = error_and_loss(model, data.train)
        validation = dict(zip(("error", "loss"), error_and_loss(model, data.validation), strict=True))
    if test_loss is None or train_loss is None:
        return {**nothing, "validation": validation}
    model.train()
    found = {radius: sharpness(model, x_nchw, y_n, float(radius), seed) for radius in RADII}
    rescaled = None
    if rescale_first(model, x_nchw):
        rescaled = sharpness(model, x_nchw, y_n, float(RADII[0]), seed)
    return {
        "sharpness": found,
        "rescaled": rescaled,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "error": error,
        "validation": validation,
    }


def rescale_first(model: nn.Module, x_nchw: Tensor) -> bool:
    """Multiply the first layer that a BatchNorm directly follows, and ε along: no output changes. Tell if there is one.

    Source: van Laarhoven 2017, eq. 3, with ε, as BN(aWx; a²ε) = BN(Wx; ε).
    """
    for layer, norm in in_front_of_norms(model, x_nchw)[:1]:
        with torch.no_grad():
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(SCALE)
        norm.eps *= SCALE**2  # type: ignore[operator, assignment]
        return True
    return False


# --- the claim ---


Cell = tuple[int, str, int, int]  # network, norm, exponent of the factor of the rate, batch size
Found = Mapping[Cell, Sequence[dict[str, Any]]]


@dataclass(frozen=True)
class Minima:
    """The minima of all runs, one per replicate.

    Attributes:
        chosen: by (network, norm), at the learning rates that the replicates chose at the larger batch size.
        found: at every rate and batch size.
    """

    chosen: Mapping[tuple[int, str], Sequence[dict[str, Any]]]
    found: Found


def measure(experiment: Experiment) -> Outcome:
    """Compare the sharpness of the minima, and relate it to the generalization gap."""
    chosen, replicates = networks(experiment), experiment.seeds(4, 12)
    names = [describe(network) for network in chosen]
    minima = _runs(experiment, chosen, replicates)
    found, precision = minima.found, precision_of_losses(experiment)
    holds = [all(_reached(minima.chosen[i, norm]) for norm in ARMS) for i, _ in enumerate(names)]
    worst = _moved(found)
    blind = worst is not None and worst <= TOLERANCE
    judged = [i for i, room in enumerate(holds) if room]
    ratios = {i: _ratios(names[i], i, minima) for i in judged}
    tells = {
        i: TELLS.effect(f"{names[i]}: sharpness against the generalization gap", _taus(i, found), precision)
        for i in judged
    }
    regimes: dict[str, Verdict] = {
        name: weakest([effect.verdict for effect in ratios[i]]) if i in ratios and blind else "no room here"
        for i, name in enumerate(names)
    }
    each = [effect for of_network in ratios.values() for effect in of_network]
    room = Room(
        bool(judged) and blind,
        "; ".join(
            f"{name}: both arms' training loss below {REACHED:g}" if holds[i] else f"{name}: no minimum (no room)"
            for i, name in enumerate(names)
        )
        + "; a rescaled layer before BatchNorm changes sharpness by "
        + ("nothing: there is none" if worst is None else f"at most {worst:.1e} of itself"),
    )
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(names, ratios, tells, regimes),
        effects=[*each, *tells.values()],
        room=room,
        pictures=[
            bars(
                "Sharpness with BatchNorm over that without",
                "Below 1: less sharp with BatchNorm. 95 % interval over replicates.",
                "network",
                Axis("ratio", log=True),
                each,
            ),
            *(_against_gap(names[i], i, found) for i in judged),
        ],
        tables=[_table(names, found)],
        settings=f"{len(replicates)} replicates, {EPOCHS} epochs, {DIRECTIONS} directions and their opposites",
        regimes=regimes,
        trials=experiment.trials,
    )


def networks(experiment: Experiment) -> list[Mapping[str, Any]]:
    chosen = [experiment.mlp(depth) for depth in ((4,) if experiment.quick else (4, 8))]
    return [*chosen, experiment.convolutional] if experiment.user or not experiment.quick else chosen


def _runs(experiment: Experiment, chosen: Sequence[Mapping[str, Any]], replicates: Sequence[int]) -> Minima:
    images = len(experiment.task.train)
    size = min(SIZES[-1], images)
    arms = {
        (index, norm): {
            **RECIPE,
            "network": dict(network),
            "norm": norm,
            "batch_size": size,
            "steps": EPOCHS * (images // size),
        }
        for index, network in enumerate(chosen)
        for norm in ARMS
    }

    def minimum_of(arm: tuple[int, str], exponent: int, batch_size: int, seed: int) -> Trial:
        index, norm = arm
        settings = {"network": dict(chosen[index]), "norm": norm, "rate": 2.0**exponent, "batch_size": batch_size}
        return Trial(f"{__name__}:minimum", {"task": experiment.drawn(seed), **settings, "seed": seed})

    def trial(settings: Settings, exponent: int, seed: int, report: str) -> Trial:
        if report == "validation":
            return experiment.train(**settings, rate=2.0**exponent, seed=seed)
        return minimum_of(arm_of[describe(settings["network"]), settings["norm"]], exponent, SIZES[-1], seed)

    arm_of = {(describe(network), norm): (index, norm) for index, network in enumerate(chosen) for norm in ARMS}
    rates = choose_rates(experiment, arms, replicates, error_then_loss, START, trial)
    found = experiment.grid(
        [(*arm, factor, batch_size) for arm in arms for factor in FACTORS for batch_size in SIZES],
        replicates,
        lambda cell, seed: minimum_of(cell[:2], rates[cell[:2]].centre + cell[2], cell[3], seed),
    )
    return Minima({arm: of.results for arm, of in rates.items()}, found)


def _reached(results: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether every run has a sharpness, and their median training loss is that of a minimum."""
    losses = [result["train_loss"] for result in results]
    return None not in losses and median(losses) < REACHED


def _of(result: Mapping[str, Any], radius: str = RADII[0]) -> float:
    return max(float(result["sharpness"][radius]), LOWEST)


def _moved(found: Found) -> float | None:
    """Return the largest relative change of sharpness by a rescaled layer before BatchNorm; None without any."""
    changes = [
        abs(result["rescaled"] - result["sharpness"][RADII[0]]) / _of(result)
        for results in found.values()
        for result in results
        if result["rescaled"] is not None
    ]
    return max(changes, default=None)


def _ratios(name: str, index: int, minima: Minima) -> list[Effect]:
    """Compare sharpness, and sharpness over the training loss."""
    none, batch = (minima.chosen[index, norm] for norm in ARMS)
    sharp = logs_of_ratios([_of(r) for r in batch], [_of(r) for r in none])
    losses = logs_of_ratios(*([max(r["train_loss"], LOWEST) for r in results] for results in (batch, none)))
    return [
        CRITERION.effect(f"{name}, sharpness", sharp),
        CRITERION.effect(f"{name}, sharpness over the training loss", differences(sharp, losses)),
    ]


def _taus(index: int, found: Found) -> list[float]:
    """Return Kendall's τ of sharpness and gap over rates and batch sizes, mean over both arms, by replicate.

    It is 0 where fewer than three runs of an arm have a finite loss.
    """
    values = []
    for place in range(len(found[index, "none", 0, SIZES[-1]])):
        of_arms = []
        for norm in ARMS:
            runs = [found[index, norm, factor, size][place] for factor in FACTORS for size in SIZES]
            finite = [run for run in runs if run["sharpness"] is not None]
            gaps = [run["test_loss"] - run["train_loss"] for run in finite]
            tau = float(stats.kendalltau([_of(run) for run in finite], gaps)[0]) if len(finite) > 2 else 0.0
            of_arms.append(tau if math.isfinite(tau) else 0.0)
        values.append(mean(of_arms))
    return values


def _sentence(
    names: Sequence[str],
    ratios: Mapping[int, Sequence[Effect]],
    tells: Mapping[int, Effect],
    regimes: Mapping[str, Verdict],
) -> str:
    if not ratios:
        return "no network has room: without a small training loss there is no minimum to measure"
    parts = []
    for i, forms in ratios.items():
        sharp, over_loss = (f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in forms)
        tau = tells[i]
        parts.append(
            f"{names[i]} {sharp}, over the training loss {over_loss} ({regimes[names[i]]}), τ {tau.value:+.2f} "
            f"[{tau.low:.2f}, {tau.high:.2f}] ({tau.verdict})"
        )
    return (
        "times the sharpness with BatchNorm over that without, and Kendall's τ of sharpness with the generalization "
        f"gap: {'; '.join(parts)}"
    )


def _against_gap(name: str, index: int, found: Found) -> Picture:
    series = []
    for norm in ARMS:
        cells = [found[index, norm, factor, size] for factor in FACTORS for size in SIZES]
        points = sorted(
            (mean(_of(run) for run in finite), mean(run["test_loss"] - run["train_loss"] for run in finite))
            for results in cells
            if (finite := [run for run in results if run["sharpness"] is not None])
        )
        series.append(Series(NORMS[norm], [x for x, _ in points], [y for _, y in points]))
    return Picture(
        f"{name}: generalization gap over sharpness",
        "Each point is a learning rate and batch size, mean over replicates. Rising: sharper minima generalize worse.",
        "line",
        Axis("sharpness", log=True),
        Axis("test loss minus training loss"),
        series,
    )


def _table(names: Sequence[str], found: Found) -> Table:
    rows = []
    for (index, norm, factor, size), results in found.items():
        finite = [result for result in results if result["sharpness"] is not None]
        numbers: list[float | None] = [None] * (len(RADII) + 3)
        if finite:
            numbers = [
                *(mean(_of(result, radius) for result in finite) for radius in RADII),
                *(mean(result[key] for result in finite) for key in ("train_loss", "test_loss")),
                100 * mean(result["error"] for result in finite),
            ]
        rows.append([names[index], NORMS[norm], 2.0**factor, size, *numbers])
    return Table(
        "Minima, mean over replicates",
        [
            "network",
            "arm",
            "learning rate over the middle one",
            "batch size",
            *(f"sharpness at ρ = {radius}" for radius in RADII),
            "training loss",
            "test loss",
            "test error, %",
        ],
        rows,
    )
