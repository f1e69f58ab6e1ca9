"""BatchNorm relieves vanishing and exploding gradients.

Question: How different are the gradients of the first and the last layer of a deep network, with BatchNorm and without?

Claim: With BatchNorm the gradient's norm is more even over depth.

Criterion: The unevenness is |log₁₀(gradient norm of the first hidden layer's weights over that of the last layer of the
same shape)|. For each seed and cell (activation × initialization × depth × moment in training), the effect is the
unevenness without BatchNorm minus that with it, in decades. The margin is 0.5 decades, a factor of 3. Each cell is a
regime. A separate effect compares relu with BatchNorm with its theory: Yang et al. derive that in wide networks with
large batches each layer multiplies the gradient's norm by √(π/(π − 1)) = 1.211. The slope of log ‖g‖ per layer, over
log 1.211, should be 1 within 5 %.

Room: Without BatchNorm at least one cell is uneven by more than the margin in the median of its seeds, so that there is
something to relieve. A cell that is not, neither without BatchNorm nor with it, does not count.

Method: An MLP of equal width, with BatchNorm before the activation or none, in float64 so that 10⁻³⁰⁰ is still a
number. The gradient is taken on one batch of 64 training images at the start, and again on that batch after 20 steps.
Every arm trains by SGD at a learning rate of 0.05. That rate is not tuned: 20 steps should show the state into which
training moves, not its end. Both arms share initialization and batches. A gradient that is zero or not finite counts as
30 decades, and every value is clamped to that. The slope is a least-squares line through log ‖g‖ of all hidden layers
of one shape at the start, with He's initialization.

Settings: width 32; sigmoid, tanh and relu; matched initialization (He, Xavier with gain) and torch's default; depths 10
and 20 with 3 seeds (quick), 10, 20 and 50 with 6 seeds (full). The slope: width 256, 20 layers, 256 training images or
all where there are fewer, 5 seeds (quick), 10 (full).

Sources: Ioffe & Szegedy 2015, section 3.3 (arXiv 1502.03167); Yang et al. 2019, A Mean Field Theory of Batch
Normalization (1902.08129); Glorot & Bengio 2010; He et al. 2015 (1502.01852)

Known: sigmoid at depth 20: −11 decades without, 0.23 with BatchNorm; tanh with Xavier is a tie. relu with He: 0.18
without, 1.5 with; here BatchNorm is worse, as Yang et al. derive: a factor of 1.211 a layer is 1.5 decades in 18.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.training import batches
from gammabeta.lab.outcome import Axis, Criterion, Effect, Line, Outcome, Picture, Room, Series, Table
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes

EXACT = False
KIND = "images"

WIDTH, BATCH, STEPS, RATE = 32, 64, 20, 0.05
MARGIN = 0.5
LIMIT = 30.0
NORMS = ("none", "batch")
CRITERION = Criterion(unit="decades nearer to even", margin=(-MARGIN, MARGIN), direction="above")
WIDE, LAYERS, IMAGES = 256, 20, 256
THEORY = 0.5 * math.log(math.pi / (math.pi - 1))
SLOPE = Criterion(unit="times log √(π/(π − 1))", margin=(0.95, 1.05), direction="within", null=1.0)
MOMENTS = ("at the start", f"after {STEPS} steps")
INITS = {"matched": "matched init", "default": "torch's init"}


@versioned(1)
def unevenness(*, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, seed: int) -> dict[str, Any]:
    """Return log₁₀ of the first over the last same-shaped layer's gradient norm, and the norms by layer.

    Both are taken at the start and after the steps.
    """
    data = load(task)
    model = build(data, network, norm, seed).double()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    hidden = [weight for weight in weights if weight.shape == (network["width"], network["width"])]
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    stream = list(batches(data.train, BATCH, STEPS + 1, seed))
    profiles = []
    for step, (x_nchw, y_n) in enumerate([*stream[1:], stream[0]]):
        if step in (0, STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(model(stream[0][0].double()), stream[0][1]).backward()
            profiles.append([gradient_norm(weight) for weight in hidden])
        if step < STEPS:
            optimizer.zero_grad()
            functional.cross_entropy(model(x_nchw.double()), y_n).backward()
            optimizer.step()
    return {"decades": [decades(profile[0], profile[-1]) for profile in profiles], "profiles": profiles}


@versioned(1)
def slope(*, task: Mapping[str, Any], network: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Return by how much log ‖g‖ grows per layer towards the input with BatchNorm, over log √(π/(π − 1))."""
    data = load(task)
    model = build(data, network, "batch", seed).double()
    x_nchw, y_n = data.train.x_nchw[:IMAGES].double(), data.train.y_n[:IMAGES]
    functional.cross_entropy(model(x_nchw), y_n).backward()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    norms = [gradient_norm(weight) for weight in weights if weight.shape == (network["width"], network["width"])]
    return {"over_theory": growth(norms) / THEORY}


def growth(norms: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logs of the norms, from the last layer to the first."""
    return float(np.polyfit(range(len(norms)), np.log(norms[::-1]), 1)[0])


def gradient_norm(weight: torch.Tensor) -> float:
    return float("nan") if weight.grad is None else float(weight.grad.norm())


def decades(first: float, last: float) -> float | None:
    """Return log₁₀(first / last), or None where one of them is zero or not finite."""
    if not (math.isfinite(first) and math.isfinite(last)) or first <= 0 or last <= 0:
        return None
    return math.log10(first) - math.log10(last)


def clamped(value: float | None) -> float:
    """Return the size of the value, at most ``LIMIT``; that also where there is none."""
    return LIMIT if value is None else min(abs(value), LIMIT)


Regime = tuple[str, str, int]  # activation, initialization, depth
Runs = Mapping[tuple[Regime, str], list[dict[str, Any]]]  # (regime, norm) -> one result per seed


def measure(experiment: Experiment) -> Outcome:
    """Compare how even the gradient norms are, in every cell."""
    seeds = experiment.seeds(3, 6)
    depths = (10, 20) if experiment.quick else (10, 20, 50)
    chosen = list(itertools.product(("sigmoid", "tanh", "relu"), INITS, depths))
    seen = _runs(experiment, chosen, seeds)
    uneven = {
        (regime, moment): [[clamped(result["decades"][moment]) for result in seen[regime, norm]] for norm in NORMS]
        for regime in chosen
        for moment in range(len(MOMENTS))
    }
    cells = {_name(*cell): differences(*of_cell) for cell, of_cell in uneven.items()}
    each = [CRITERION.effect(name, values) for name, values in cells.items()]
    regimes: dict[str, Verdict] = {
        effect.name: effect.verdict if _is_uneven(pair) else "no room here"
        for effect, pair in zip(each, uneven.values(), strict=True)
    }
    without = {_name(*cell): median(plain) for cell, (plain, _) in uneven.items()}
    most = max(without, key=lambda name: without[name])
    room = Room(
        without[most] > MARGIN,
        f"without BatchNorm some cell uneven by more than {MARGIN} decades; most: {most}, {without[most]:.1f}",
    )
    steepness = _steepness(experiment)
    rows = [
        [activation, INITS[init], depth, MOMENTS[moment], *(median(values) for values in of_cell), effect.verdict]
        for (((activation, init, depth), moment), of_cell), effect in zip(uneven.items(), each, strict=True)
    ]
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=(
            f"{_sentence(each, regimes, chosen)}; relu's gradient with BatchNorm grows by {steepness.value:.2f} "
            f"[{steepness.low:.2f}, {steepness.high:.2f}] times the rate that theory derives ({steepness.verdict})"
        ),
        effects=[*each, steepness],
        room=room,
        pictures=[_by_cell(each), _by_layer(seen, depths[-1])],
        tables=[
            Table(
                "|log₁₀ of first over last layer's gradient norm|, median over seeds",
                ["activation", "initialization", "depth", "moment", "without", "with BatchNorm", "more even with it?"],
                rows,
            )
        ],
        settings=f"{len(seeds)} seeds, depths {', '.join(map(str, depths))}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, regimes: Sequence[Regime], seeds: Sequence[int]) -> Runs:
    def trial(arm: tuple[Regime, str], seed: int) -> Trial:
        (activation, init, depth), norm = arm
        network = experiment.mlp(depth, width=WIDTH, activation=activation, init=init)
        settings = {"task": experiment.drawn(seed), "network": network, "norm": norm, "seed": seed}
        return Trial(f"{__name__}:unevenness", settings)

    return experiment.grid([(regime, norm) for regime in regimes for norm in NORMS], seeds, trial)


def _steepness(experiment: Experiment) -> Effect:
    """Compare the growth of relu's gradient norm per layer with its theory."""
    network = experiment.mlp(LAYERS, width=WIDE)
    trials = [
        Trial(f"{__name__}:slope", {"task": experiment.drawn(seed), "network": dict(network), "seed": seed})
        for seed in experiment.seeds(5, 10)
    ]
    values = [result["over_theory"] for result in experiment.run(trials)]
    return SLOPE.effect("relu with BatchNorm, growth of log ‖g‖ per layer", values)


def _name(regime: Regime, moment: int) -> str:
    activation, init, depth = regime
    return f"{activation}, {INITS[init]}, depth {depth}, {MOMENTS[moment]}"


def _is_uneven(pair: Sequence[Sequence[float]]) -> bool:
    """Judge whether a cell's gradients are uneven by more than the margin, without BatchNorm or with it."""
    return max(median(values) for values in pair) > MARGIN


def _sentence(each: list[Effect], regimes: Mapping[str, Verdict], chosen: Sequence[Regime]) -> str:
    """Tell by activation and initialization how many cells were decided which way."""
    parts = []
    for activation, init in dict.fromkeys((activation, init) for activation, init, _ in chosen):
        mine = [effect for effect in each if effect.name.startswith(f"{activation}, {INITS[init]},")]
        better = sum(effect.verdict == "supported" for effect in mine)
        worse = sum(effect.verdict == "contradicted" for effect in mine)
        even = sum(regimes[effect.name] == "no room here" for effect in mine)
        values = [effect.value for effect in mine]
        parts.append(
            f"{activation} with {INITS[init]} {round(min(values), 1) + 0.0:+.1f} to {round(max(values), 1) + 0.0:+.1f} "
            f"(better in {better}, worse in {worse} of {len(mine)}" + (f", {even} without room)" if even else ")")
        )
    return f"decades by which BatchNorm brings the gradients nearer to even: {'; '.join(parts)}"


def _by_cell(each: list[Effect]) -> Picture:
    return Picture(
        "Decades nearer to even with BatchNorm",
        "Above 0: BatchNorm makes the gradients of the first and last layer more alike; below: less alike. Interval "
        "over seeds.",
        "bar",
        Axis("activation, initialization, depth, moment"),
        Axis("|log₁₀ ratio| without BatchNorm minus with it", "decades"),
        [
            Series(
                "difference",
                [effect.name for effect in each],
                [effect.value for effect in each],
                [effect.low for effect in each],
                [effect.high for effect in each],
            )
        ],
        [Line("y", MARGIN, "margin"), Line("y", -MARGIN, "margin")],
    )


def _by_layer(seen: Runs, depth: int) -> Picture:
    """Draw the gradient norms by layer at the start, relative to the last layer's, matched initialization."""
    series = []
    for activation, norm in itertools.product(("sigmoid", "tanh", "relu"), NORMS):
        profiles = [result["profiles"][0] for result in seen[(activation, "matched", depth), norm]]
        layers = range(len(profiles[0]))
        ratios = [
            [profile[layer] / profile[-1] for profile in profiles if profile[layer] and profile[-1]] for layer in layers
        ]
        name = "BatchNorm" if norm == "batch" else "no normalization"
        middle = [median(of_layer) if of_layer else None for of_layer in ratios]
        series.append(Series(f"{activation}, {name}", [layer + 2 for layer in layers], middle, dash=norm == "none"))
    return Picture(
        f"Gradient norm by layer, depth {depth}",
        "At the start, matched initialization, relative to the last hidden layer's; median over seeds. Even is flat.",
        "line",
        Axis("layer"),
        Axis("gradient norm over the last layer's", log=True),
        series,
        [Line("y", 1.0, "even")],
    )
