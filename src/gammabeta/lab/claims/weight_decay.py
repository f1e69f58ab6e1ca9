"""Weight decay acts through the learning rate.

Question: Is a network with BatchNorm insensitive to the scale of its weights, and does weight decay matter
nevertheless?

Claim: Weights that BatchNorm follows may be scaled without effect on the output, while the gradient shrinks by the same
factor. Decay still changes what is learned, since smaller weights make a larger effective learning rate.

Criterion: First an identity in float64: BN(aWx; a²ε) = BN(Wx; ε), and the gradient with respect to aW is that with
respect to W, divided by a. The same must hold for the trained network with every layer scaled that a norm follows. If
the identity fails, the claim is contradicted. Then the effect: decay at its best strength changes the test loss by more
than 5 %. The ratio of test losses without decay over with it, paired by replicate, must lie outside [1/1.05, 1.05] on
the side of improvement. A constant and a decaying learning rate are the regimes. Test accuracy is reported as a
separate effect, and so is the same network without BatchNorm: the ratio there, and that with BatchNorm over that
without.

Room: Without decay the mean validation error is below half of that of chance, and the median test loss is above 0.02.

Method: An MLP with BatchNorm, SGD, batches of 32, 300 training images. Every replicate draws its own split,
initialization and order, and chooses by the loss of its own validation split: first the learning rate without decay, ½,
1 or 2 times a rate that a search on three further replicates found; then, at this rate, the strength of decay among
four values. Only then is the test split looked at. Test images are drawn from the same data and overlap, so that
intervals hold Nadeau & Bengio's term for it; where the data keeps its test images, they speak of these. Decay is L2 on
weights, never on γ and β. Replay: a third arm has no decay. Its weights are reset to their initial norm after each
step. Each layer's learning rate is multiplied by the square of that norm over that of the same layer under decay at the
same step. This is the effective rate that decay caused (van Laarhoven 2017). The fraction of decay's effect on the loss
that the replay reproduces is reported. Decay of the last layer, which no norm follows, stays the same in both. In the
network without BatchNorm learning rates and strengths of decay are chosen in the same way; it has no replay.

Settings: 2 hidden layers of 64, relu, decay of 0.001, 0.003, 0.01, 0.03; 400 steps and 5 replicates (quick; without
BatchNorm only half a cosine), 1,200 steps and 40 replicates (full); constant learning rate, and half a cosine down to
0. The norms of the weights without decay are shown for two replicates.

Sources: van Laarhoven 2017 (arXiv 1706.05350); Zhang et al. 2018, Three Mechanisms of Weight Decay (1810.12281); Hoffer
et al. 2018, Norm Matters (1803.01814); Nadeau & Bengio 2003, Inference for the Generalization Error

Known: In a pilot run on digits the test loss fell from 0.244 to 0.205 with decay, at 0.076 of ‖w‖².
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.answers import precision_of
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.losses import precision_of_losses
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.training import POPULATION, batches, chance, error_and_loss, exact_statistics, subset
from gammabeta.lab.interval import Precision
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences, logs_of_ratios
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import over_regimes, weakest

EXACT = False
KIND = "images"

DECAYS = (0.001, 0.003, 0.01, 0.03)
SCHEDULES = ("constant", "cosine")
MARGIN = (1 / 1.05, 1.05)
POINTS = (-0.5, 0.5)
IMAGES, BATCH = 300, 32
ARMS = ("none", "decay", "replay")
START = (-2, 0)  # exponents of 2 with which the search of learning rates begins
SHOWN = 2  # replicates whose norms without decay are shown
WORST = 10.0  # the value of a loss that is not finite
SCALES = (1e-3, 0.1, 10.0, 1e3)  # of the weights, for the identity
CRITERION = Criterion(unit="times the test loss", margin=MARGIN, direction="above", null=1.0, ratio=True)


# --- the trials ---


@versioned(1)
def rescaled(*, scale: float, seed: int) -> dict[str, Any]:
    """Return the distance of output and gradient from the identity when weights are scaled, in units of rounding."""
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
    """Do the same as :func:`rescaled` for the task's network: every layer but the last is scaled, and ε along."""
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

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max() / one.abs().max() / allowed)

    return {"output": distance(*outputs), "gradient": max(distance(a, b) for a, b in zip(*gradients, strict=True))}


@versioned(2)
def decayed(
    *, task: Mapping[str, Any], network: Mapping[str, Any], rate: float, decay: float, schedule: str, steps: int,
    seed: int, report: str, replay: bool = False, norm: str = "batch",
) -> dict[str, Any]:  # fmt: skip
    """Train with decay; with ``replay`` train once more without it, at the effective rates that decay caused.

    The learning rates of a replay are for layers that a norm follows: all but the last one, where ``norm`` is a norm.
    """
    data = load(task)
    own = subset(data.train, IMAGES, data.classes, 0.0, seed)
    norms: list[list[float]] = []  # of each layer that a norm follows, by step
    runs = ("decay", "replay") if replay else ("decay",)
    for run in runs:
        model = build(data, network, norm, seed)
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
    """Return the test loss, at most ``WORST``."""
    return WORST if result["loss"] is None else min(float(result["loss"]), WORST)


# --- the claim ---


@dataclass(frozen=True)
class Trained:
    """The runs of every schedule and arm.

    Attributes:
        chosen: each schedule's learning rates without decay, and the runs.
        strengths: of decay, of each schedule, one per replicate.
        found: by (schedule, arm), one result of the test split per replicate.
        norms: by (schedule, arm), of some replicates Σ‖w‖² of the layers that a norm follows, by step.
        steps: of every run.
        plain: the same without BatchNorm, where there is no replay; None within itself.
    """

    chosen: Mapping[str, Chosen]
    strengths: Mapping[str, Sequence[float]]
    found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
    norms: Mapping[tuple[str, str], Sequence[Sequence[float]]]
    steps: int
    plain: "Trained | None" = None

    def losses(self, schedule: str, arm: str) -> list[float]:
        return [test_loss(result) for result in self.found[schedule, arm]]

    def errors(self, schedule: str, arm: str) -> list[float]:
        return [100 * result["error"] for result in self.found[schedule, arm]]


def measure(experiment: Experiment) -> Outcome:
    """Check that the scale of weights cancels, and measure what decay changes all the same."""
    seeds = experiment.seeds(5, 40)
    trained = _trained(experiment, seeds)
    exact = _identity_holds(experiment)
    logs = {s: logs_of_ratios(trained.losses(s, "none"), trained.losses(s, "decay")) for s in SCHEDULES}
    precision = precision_of_losses(experiment)
    each = {s: CRITERION.effect(f"{s} learning rate", values, precision) for s, values in logs.items()}
    accuracy = [
        Criterion(unit="percentage points", margin=POINTS, direction="above").effect(
            f"{s} learning rate, test error without decay minus that with it",
            differences(trained.errors(s, "none"), trained.errors(s, "decay")),
            precision_of(
                trained.found[s, "none"],
                trained.found[s, "decay"],
                len(experiment.task.test),
                len(experiment.task.train),
            ),
        )
        for s in SCHEDULES
    ]
    beside = _without_norm(trained, logs, precision)
    regimes = {effect.name: effect.verdict for effect in each.values()}
    room = _room(experiment, trained)
    return Outcome(
        verdict=weakest([over_regimes(list(regimes.values())), exact.verdict]) if room.holds else "no room here",
        sentence=_sentence(each, exact, trained)
        + "; without BatchNorm it is "
        + " and ".join(
            f"{effect.value:.2f} times [{effect.low:.2f}, {effect.high:.2f}] with a {schedule} one ({effect.verdict})"
            for schedule, effect in zip(trained.plain.chosen if trained.plain else (), beside[::2], strict=True)
        ),
        effects=[*each.values(), *accuracy, *beside, exact],
        room=room,
        pictures=[
            bars(
                "Test loss without weight decay over that with it",
                "Above 1: decay helps. 95 % interval over replicates.",
                "learning rate",
                Axis("ratio of test losses", log=True),
                [*each.values(), *beside[::2]],
            ),
            _norms(trained),
        ],
        tables=[_table(trained)],
        settings=f"{len(seeds)} replicates, {trained.steps} steps",
        regimes=regimes,
        trials=experiment.trials,
    )


def _without_norm(trained: Trained, logs: Mapping[str, list[float]], precision: Precision) -> list[Effect]:
    """Judge decay without BatchNorm, and its effect with BatchNorm over that without, for each schedule in turn."""
    plain = trained.plain
    assert plain is not None
    effects = []
    for schedule in plain.chosen:
        own = logs_of_ratios(plain.losses(schedule, "none"), plain.losses(schedule, "decay"))
        name = f"{schedule} learning rate, without BatchNorm"
        effects.append(CRITERION.effect(name, own, precision))
        with_over = differences(logs[schedule], own)
        effects.append(CRITERION.effect(f"{schedule} learning rate, with over without", with_over, precision))
    return effects


def _trained(experiment: Experiment, seeds: Sequence[int]) -> Trained:
    """Run all arms with BatchNorm, and those but the replay without it."""
    plain = _of_norm(experiment, seeds, "none", SCHEDULES[1:] if experiment.quick else SCHEDULES)
    return replace(_replayed(experiment, seeds, _of_norm(experiment, seeds, "batch", SCHEDULES)), plain=plain)


def _of_norm(experiment: Experiment, seeds: Sequence[int], norm: str, schedules: Sequence[str]) -> Trained:
    """Let every replicate choose a learning rate without decay, then a strength of decay at that rate."""
    steps = 400 if experiment.quick else 1200
    base = {"network": experiment.mlp(2), "norm": norm, "batch_size": BATCH, "steps": steps, "images": IMAGES}
    arms = {schedule: {**base, "schedule": schedule, "decay": 0.0} for schedule in schedules}
    chosen = choose_rates(experiment, arms, seeds, test_loss, START)

    def decayed_one(cell: tuple[str, float], place: int) -> Trial:
        schedule, decay = cell
        settings = {**arms[schedule], "decay": decay, "rate": 2.0 ** chosen[schedule].exponents[place]}
        return experiment.train(**settings, seed=seeds[place], report="test")

    places = range(len(seeds))
    tried = experiment.grid([(schedule, decay) for schedule in schedules for decay in DECAYS], places, decayed_one)
    strengths = {
        schedule: [
            min(DECAYS, key=lambda decay: test_loss(tried[schedule, decay][place]["validation"])) for place in places
        ]
        for schedule in schedules
    }
    found: dict[tuple[str, str], Sequence[Mapping[str, Any]]] = {}
    for schedule in schedules:
        found[schedule, "none"] = chosen[schedule].results
        found[schedule, "decay"] = [tried[schedule, strengths[schedule][place]][place] for place in places]
    return Trained(chosen, strengths, found, {}, steps)


def _replayed(experiment: Experiment, seeds: Sequence[int], trained: Trained) -> Trained:
    """Add the replay of every replicate, and the norms of the weights."""

    def trial(cell: tuple[str, bool], place: int) -> Trial:
        schedule, replay = cell
        settings = {
            "network": dict(experiment.mlp(2)),
            "norm": "batch",
            "steps": trained.steps,
            "schedule": schedule,
            "decay": trained.strengths[schedule][place] if replay else 0.0,
            "rate": 2.0 ** trained.chosen[schedule].exponents[place],
            "seed": seeds[place],
        }
        return Trial(
            f"{__name__}:decayed",
            {"task": experiment.drawn(seeds[place]), **settings, "report": "test", "replay": replay},
        )

    replayed = experiment.grid([(schedule, True) for schedule in SCHEDULES], range(len(seeds)), trial)
    plain = experiment.grid([(schedule, False) for schedule in SCHEDULES], range(min(SHOWN, len(seeds))), trial)
    found = dict(trained.found)
    norms: dict[tuple[str, str], Sequence[Sequence[float]]] = {}
    for schedule in SCHEDULES:
        found[schedule, "replay"] = replayed[schedule, True]
        norms[schedule, "decay"] = [result["norms"] for result in replayed[schedule, True] if result["norms"]]
        norms[schedule, "none"] = [result["norms"] for result in plain[schedule, False] if result["norms"]]
    return replace(trained, found=found, norms=norms)


def _identity_holds(experiment: Experiment) -> Effect:
    """Count the scales at which output or gradient is not as derived, for one layer and for the network."""
    cases = [{"scale": scale, "seed": seed} for scale in SCALES for seed in range(3)]
    whole = {"task": dict(experiment.source), "network": dict(experiment.mlp(2))}
    results = experiment.run(
        [
            *(Trial(f"{__name__}:rescaled", case) for case in cases),
            *(Trial(f"{__name__}:rescaled_network", {**whole, **case}) for case in cases),
        ]
    )
    wrong = sum(max(result["output"], result["gradient"]) > 1 for result in results)
    return Effect.exactly("scales at which output or gradient is not as derived", wrong, len(results), "cases")


def _room(experiment: Experiment, trained: Trained) -> Room:
    error = max(mean(r["validation"]["error"] for r in trained.found[s, "none"]) for s in SCHEDULES)
    least = min(median(trained.losses(s, "none")) for s in SCHEDULES)
    return Room(
        error < 0.5 * (1 - chance(experiment.task)) and least > 0.02,
        f"without decay: validation error at most {error:.3f}, test loss at least {least:.3f}",
    )


def _sentence(each: Mapping[str, Effect], exact: Effect, trained: Trained) -> str:
    shown = []
    for schedule, effect in each.items():
        # A fraction of an effect that may be zero says nothing.
        replayed = f"{_share_replayed(trained, schedule):.0%}" if effect.verdict == "supported" else "not judged"
        shown.append(
            f"{schedule} learning rate {effect.value:.2f} times [{effect.low:.2f}, {effect.high:.2f}] "
            f"({effect.verdict}; reproduced by learning rates only: {replayed})"
        )
    wrong = int(exact.value)
    return (
        f"{f'the identity fails in {wrong} cases' if wrong else 'the scale of the weights cancels exactly'}; "
        f"the test loss without decay over that with it: {', '.join(shown)}"
    )


def _share_replayed(trained: Trained, schedule: str) -> float:
    """Return the fraction of decay's mean effect on the loss that the replay reproduces."""
    none, decay, replay = (mean(trained.losses(schedule, arm)) for arm in ARMS)
    return (none - replay) / (none - decay)


def _norms(trained: Trained) -> Picture:
    series = []
    for schedule in SCHEDULES:
        for arm in ("none", "decay"):
            curves = trained.norms[schedule, arm]
            if curves:
                middle = [median(of_step) for of_step in zip(*curves, strict=True)]
                at = [index * max(1, trained.steps // 40) for index in range(len(middle))]
                name = f"{schedule} learning rate, {'decay' if arm == 'decay' else 'no decay'}"
                series.append(Series(name, at, middle, dash=arm == "none"))
    return Picture(
        "Squared norm of the weights that BatchNorm follows",
        "At the same learning rate smaller weights turn further. Median over replicates.",
        "line",
        Axis("step"),
        Axis("‖w‖²", log=True),
        series,
    )


def _table(trained: Trained) -> Table:
    assert trained.plain is not None
    rows = []
    for norm, of_norm in (("BatchNorm", trained), ("no normalization", trained.plain)):
        for schedule, arm in of_norm.found:
            strengths = of_norm.strengths[schedule]
            ratios = [curve[-1] / curve[0] for curve in of_norm.norms.get((schedule, arm), ())]
            rows.append(
                [
                    norm,
                    schedule,
                    arm,
                    of_norm.chosen[schedule].rate,
                    0.0 if arm == "none" else median(strengths),
                    mean(of_norm.losses(schedule, arm)),
                    mean(of_norm.errors(schedule, arm)),
                    mean(ratios) if ratios else None,
                ]
            )
    return Table(
        "Decay and its replay, mean over replicates",
        [
            "norm",
            "schedule",
            "arm",
            "learning rate chosen by most",
            "decay, median",
            "test loss",
            "test error, %",
            "‖w‖² at the end over the start",
        ],
        rows,
    )
