"""Weight decay acts through the learning rate.

Question: Is a network with BatchNorm insensitive to the scale of its weights, and does weight decay matter
nevertheless?

Claim: Weights that BatchNorm follows may be scaled without effect on the output, while the gradient shrinks by the same
factor. Decay still changes what is learned, since smaller weights make a larger effective learning rate.

Criterion: First an identity in float64: BN(aWx; a²ε) = BN(Wx; ε), and the gradient with respect to aW is that with
respect to W, divided by a. The same must hold for the trained network with every layer scaled that a norm follows. If
the identity fails, the claim is contradicted. (The network was added so that a norm that does nothing cannot pass in
BatchNorm's place.) Then the effect: decay at its best strength changes the test loss by more than 5 %. The ratio of
test losses without decay over with it, paired by seed, must lie outside [1/1.05, 1.05] on the side of improvement. A
constant and a decaying learning rate are separate effects, and the verdict rests on the median of the two. Test
accuracy is reported as a separate effect.

Room: Without decay the network's training error is below half of that of chance, and its test loss is above 0.02.

Method: An MLP with BatchNorm, SGD, batches of 32, 300 training images. Learning rates are tuned without decay on a
separate seed, and the same rate then serves with decay. Its strength is tuned over four values on the same seed. (In
full it is tuned on six separate seeds, by the mean log loss; with one seed, luck chose a strength that did harm.) Decay
is L2 on weights, never on γ and β. Replay: a third arm has no decay. Its weights are reset to their initial norm after
each step. Each layer's learning rate is multiplied by the square of that norm over that of the same layer under decay
at the same step, which is the effective rate that decay caused (van Laarhoven 2017). The fraction of decay's effect on
the loss that the replay reproduces is reported. Decay of the last layer, which no norm follows, stays the same in both.

Settings: 2 hidden layers of 64, relu, decay of 0.001, 0.003, 0.01, 0.03; 600 steps and 5 seeds (quick), 1,200 steps and
40 seeds (full; 10 at first, which was inconclusive); constant learning rate, and half a cosine down to 0.

Sources: van Laarhoven 2017 (arXiv 1706.05350); Zhang et al. 2018, Three Mechanisms of Weight Decay (1810.12281); Hoffer
et al. 2018, Norm Matters (1803.01814)

Known: In a pilot run on digits the test loss fell from 0.244 to 0.205 with decay, at 0.076 of ‖w‖².
"""

import math
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.training import POPULATION, batches, chance, error_and_loss, exact_statistics, subset
from gammabeta.lab.outcome import Axis, Effect, Outcome, Picture, Room, Series, Table, bars, measured
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import tune
from gammabeta.lab.verdict import weakest

EXACT = False
KIND = "images"

DECAYS = (0.001, 0.003, 0.01, 0.03)
SCHEDULES = ("constant", "cosine")
MARGIN = (1 / 1.05, 1.05)
POINTS = (-0.5, 0.5)
IMAGES, BATCH = 300, 32
ARMS = ("none", "decay", "replay")
WORST = 10.0  # what a loss that is not finite counts as


@versioned(1)
def rescaled(*, scale: float, seed: int) -> dict[str, Any]:
    """How far output and gradient are from the identity when weights are scaled, in units of rounding."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, seen = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((48, 12), (7, 12), (48, 7))
    )
    outputs, gradients = [], []
    for factor in (1.0, scale):
        w = (factor * weight).requires_grad_()
        y = gb.functional.batch_norm(functional.linear(x, w), None, None, training=True, eps=1e-3 * factor**2)
        (y * seen).sum().backward()
        assert w.grad is not None
        outputs.append(y.detach())
        gradients.append(w.grad * factor)
    allowed = 1e4 * 2.0**-53
    return {
        "output": float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max() / allowed),
        "gradient": float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max() / allowed),
    }


@versioned(1)
def rescaled_network(*, task: Mapping[str, Any], network: Mapping[str, Any], scale: float, seed: int) -> dict[str, Any]:
    """As :func:`rescaled`, for the network of the task: every layer but the last is scaled, and ε along."""
    data = load(task)
    x_nchw, y_n = data.train.x_nchw[:48].double(), data.train.y_n[:48]
    outputs, gradients = [], []
    for factor in (1.0, scale):
        model = build(data, network, "batch", seed).double().train()
        *normed, _ = (module for module in model.modules() if isinstance(module, nn.Linear))
        for layer in normed:
            for parameter in layer.parameters():
                parameter.data.mul_(factor)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps *= factor**2
        scores = model(x_nchw)
        functional.cross_entropy(scores, y_n).backward()
        outputs.append(scores.detach())
        gradients.append([layer.weight.grad * factor for layer in normed if layer.weight.grad is not None])
    allowed = 1e6 * 2.0**-53

    def off(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max() / one.abs().max() / allowed)

    return {"output": off(*outputs), "gradient": max(off(a, b) for a, b in zip(*gradients, strict=True))}


@versioned(1)
def decayed(
    *, task: Mapping[str, Any], network: Mapping[str, Any], rate: float, decay: float, schedule: str, steps: int,
    seed: int, report: str, replay: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train with decay, and where ``replay`` says so once more without, at the effective rates that decay brought."""
    data = load(task)
    own = subset(data.train, IMAGES, data.classes, 0.0, seed)
    norms: list[list[float]] = []  # of each layer that a norm follows, by step
    runs = ("decay", "replay") if replay else ("decay",)
    for run in runs:
        model = build(data, network, "batch", seed)
        *normed, last = (module for module in model.modules() if isinstance(module, nn.Linear))
        start = [float(layer.weight.detach().norm()) for layer in normed]
        diverged = False
        for step, (x_nchw, y_n) in enumerate(batches(own, BATCH, steps, seed)):
            now = rate * (0.5 * (1 + math.cos(math.pi * step / steps)) if schedule == "cosine" else 1.0)
            if run == "decay":
                norms.append([float(layer.weight.detach().norm()) for layer in normed])
            model.zero_grad()
            loss = functional.cross_entropy(model(x_nchw), y_n)
            loss.backward()
            if not torch.isfinite(loss):
                diverged = True
                break
            with torch.no_grad():
                rates = {id(layer.weight): now for layer in (*normed, last)}
                if run == "replay":
                    for layer, before, under in zip(normed, start, norms[step], strict=True):
                        rates[id(layer.weight)] = now * (before / under) ** 2
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    of_layer = run == "decay" or parameter is last.weight
                    if id(parameter) in rates and of_layer:
                        parameter.grad.add_(parameter, alpha=decay)
                    parameter.sub_(parameter.grad, alpha=rates.get(id(parameter), now))
                if run == "replay":
                    for layer, before in zip(normed, start, strict=True):
                        layer.weight.mul_(before / layer.weight.norm())
    if diverged:
        return {"error": 1.0, "loss": None, "train_error": 1.0, "norms": []}
    with exact_statistics(model, own.x_nchw[:POPULATION]):
        error, test_loss = error_and_loss(model, getattr(data, report))
        train_error, _ = error_and_loss(model, own)
    squares = [sum(norm**2 for norm in of_step) for of_step in norms[:: max(1, steps // 40)]]
    return {"error": error, "loss": test_loss, "train_error": train_error, "norms": squares}


def test_loss(result: Mapping[str, Any]) -> float:
    return WORST if result["loss"] is None else min(float(result["loss"]), WORST)


def measure(experiment: Experiment) -> Outcome:
    seeds = experiment.seeds(5, 40)
    steps = 600 if experiment.quick else 1200
    base = {"task": dict(experiment.source), "network": dict(experiment.mlp(2)), "steps": steps}

    def trial(schedule: str, decay: float, exponent: int, seed: int, **more: Any) -> Trial:
        settings = {**base, "schedule": schedule, "decay": decay, "rate": 2.0**exponent, "seed": seed, **more}
        return Trial(f"{__name__}:decayed", settings)

    tuned = experiment.tuning_seed
    exponents = tune(
        experiment,
        [{"schedule": schedule} for schedule in SCHEDULES],
        test_loss,
        make=lambda arm, exponent: trial(arm["schedule"], 0.0, exponent, tuned, report="validation"),
    )
    rate = dict(zip(SCHEDULES, exponents, strict=True))
    tried = [(schedule, decay) for schedule in SCHEDULES for decay in DECAYS]
    several = experiment.tuning_seeds(1, 6)
    scores = iter(
        experiment.run([trial(s, d, rate[s], seed, report="validation") for s, d in tried for seed in several])
    )
    score = {key: mean(math.log(test_loss(next(scores))) for _ in several) for key in tried}
    best: dict[str, float] = {}
    for schedule in SCHEDULES:
        mine = {d: score[schedule, d] for d in DECAYS}
        best[schedule] = min(mine, key=lambda decay: mine[decay])
    wanted = [(schedule, arm) for schedule in SCHEDULES for arm in ARMS]
    results = iter(
        experiment.run(
            [
                trial(s, 0.0 if arm == "none" else best[s], rate[s], seed, report="test", replay=arm == "replay")
                for s, arm in wanted
                for seed in seeds
            ]
        )
    )
    found = {key: [next(results) for _ in seeds] for key in wanted}
    losses = {key: [test_loss(r) for r in of_key] for key, of_key in found.items()}
    errors = {key: [100 * r["error"] for r in of_key] for key, of_key in found.items()}
    scales = [(scale, seed) for scale in (1e-3, 0.1, 10.0, 1e3) for seed in range(3)]
    identities = experiment.run(
        [
            *(Trial(f"{__name__}:rescaled", {"scale": a, "seed": s}) for a, s in scales),
            *(
                Trial(
                    f"{__name__}:rescaled_network",
                    {"task": base["task"], "network": base["network"], "scale": a, "seed": s},
                )
                for a, s in scales
            ),
        ]
    )
    wrong = sum(max(result["output"], result["gradient"]) > 1 for result in identities)
    exact = Effect.exactly("scales at which output or gradient is not as derived", wrong, len(identities), "cases")
    logs = {s: [math.log(a / b) for a, b in zip(losses[s, "none"], losses[s, "decay"], strict=True)] for s in SCHEDULES}
    settings: dict[str, Any] = {
        "unit": "times the test loss", "margin": MARGIN, "direction": "above", "null": 1.0, "ratio": True
    }  # fmt: skip
    overall = measured(
        "test loss without over with decay, median of the schedules",
        [median(of_seed) for of_seed in zip(*logs.values(), strict=True)],
        **settings,
    )
    each = [measured(f"{schedule} rate", values, **settings) for schedule, values in logs.items()]
    accuracy = [
        measured(
            f"{s} rate, test error without less with decay",
            [a - b for a, b in zip(errors[s, "none"], errors[s, "decay"], strict=True)],
            unit="percentage points",
            margin=POINTS,
            direction="above",
        )
        for s in SCHEDULES
    ]
    # A share of an effect that may be none says nothing.
    replayed = {
        s: _share(losses[s, "none"], losses[s, "decay"], losses[s, "replay"]) if effect.verdict == "supported" else None
        for s, effect in zip(SCHEDULES, each, strict=True)
    }
    train_error = max(median(r["train_error"] for r in found[s, "none"]) for s in SCHEDULES)
    least = min(median(losses[s, "none"]) for s in SCHEDULES)
    room = Room(
        train_error < 0.5 * (1 - chance(experiment.task)) and least > 0.02,
        f"without decay: training error at most {train_error:.3f}, test loss at least {least:.3f}",
    )
    shown = ", ".join(
        f"{s} rate {e.value:.2f} ({e.verdict}; replayed by rates alone: "
        + (f"{replayed[s]:.0%}" if replayed[s] is not None else "not judged")
        + ")"
        for s, e in zip(SCHEDULES, each, strict=True)
    )
    verdict = "contradicted" if wrong else weakest([overall.verdict, exact.verdict])
    return Outcome(
        verdict=verdict if room.holds else "no room here",
        sentence=(
            f"{'the scale of the weights cancels exactly' if not wrong else f'the identity fails in {wrong} cases'}; "
            f"without decay the test loss is {overall.value:.2f} times that with it [{overall.low:.2f}, "
            f"{overall.high:.2f}]: {shown}"
        ),
        effects=[overall, *each, *accuracy, exact],
        room=room,
        pictures=[
            bars(
                "Test loss without over with weight decay",
                "Above 1: decay helps. 95 % interval over seeds.",
                "learning rate",
                Axis("ratio of test losses", log=True),
                [overall, *each],
            ),
            _norms(found, steps),
        ],
        tables=[
            Table(
                "Decay and its replay, mean over seeds",
                ["schedule", "arm", "rate", "decay", "test loss", "test error, %", "‖w‖² at the end over the start"],
                [
                    [s, arm, 2.0 ** rate[s], 0.0 if arm == "none" else best[s], mean(losses[s, arm]),
                     mean(errors[s, arm]), None if arm == "replay" else _shrunk(found[s, arm])]
                    for s, arm in wanted
                ],
            )
        ],
        settings=f"{len(seeds)} seeds, {steps} steps",
        trials=experiment.trials,
    )  # fmt: skip


def _share(none: list[float], decay: list[float], replay: list[float]) -> float:
    """The part of decay's mean effect on the loss that the replay has."""
    return (mean(none) - mean(replay)) / (mean(none) - mean(decay))


def _shrunk(runs: list[dict[str, Any]]) -> float | None:
    ratios = [run["norms"][-1] / run["norms"][0] for run in runs if run["norms"]]
    return mean(ratios) if ratios else None


def _norms(found: Mapping[tuple[str, str], list[dict[str, Any]]], steps: int) -> Picture:
    series = []
    for schedule in SCHEDULES:
        for arm in ("none", "decay"):
            curves = [run["norms"] for run in found[schedule, arm] if run["norms"]]
            if curves:
                middle = [median(of_step) for of_step in zip(*curves, strict=True)]
                at = [index * max(1, steps // 40) for index in range(len(middle))]
                name = f"{schedule} rate, {'decay' if arm == 'decay' else 'no decay'}"
                series.append(Series(name, at, middle, dash=arm == "none"))
    return Picture(
        "Squared norm of the weights that BatchNorm follows",
        "Smaller weights turn further at the same rate. Median over seeds.",
        "line",
        Axis("step"),
        Axis("‖w‖²", log=True),
        series,
    )
