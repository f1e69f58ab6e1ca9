"""γ and β restore what standardizing removes.

Question: Does a network with BatchNorm fit its training data better with γ and β than without?

Claim: Forcing mean 0 and variance 1 limits what a layer can express; γ and β restore it.

Criterion: The ratio of training losses, without γ and β over with them, is above 1.1. Ratios are paired by replicate,
which chooses each arm's learning rate. Each activation is a regime. In addition an exact part must hold in float64.
With γ = √(σ² + ε) and β = μ, BatchNorm is the identity on that batch, to the rounding of its input. If this fails, the
claim is contradicted.

Room: Without γ and β the network exceeds twice the accuracy of chance, and its training loss stays above 0.005, so that
something is left to fit.

Method: An MLP of 3 narrow layers with BatchNorm before the activation, trained by SGD on batches of 32 for a fixed
number of steps. The loss is that of all training images, with exact statistics. Every replicate draws its own split,
initialization and order, which both arms share, and chooses one of three learning rates: ½, 1 and 2 times a rate that a
search on three further replicates found. The question is how well the data can be fitted, so the best rate is the one
with the smallest training loss; both arms' losses are the smallest of three runs. No held-out images are involved, so
that the interval is Student's. The learning rate falls to 0 along half a cosine. At a constant rate the noise of the
last batches makes the final loss vary by more than the effect.

Settings: width 16; sigmoid and relu; 300 steps, 4 replicates (quick); also tanh, 600 steps, 20 replicates (full).

Sources: Ioffe & Szegedy 2015, section 3 (arXiv 1502.03167); Frankle et al. 2020, Training BatchNorm and Only BatchNorm
(2003.00152)

Known: In a pilot run on digits with sigmoid, the training loss was 0.082 without and 0.046 with γ and β. After relu the
next linear layer can rescale on its own, so a smaller effect is expected there.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.training import chance
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import logs_of_ratios
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import over_regimes, weakest

EXACT = False
KIND = "images"

ARMS = ("batch_plain", "batch")
MARGIN = (1 / 1.1, 1.1)
LEAST = 0.005
START = (1, 3)  # exponents of 2 with which the search of learning rates begins
WORST = 10.0  # the value of a loss that is not finite
# Inputs on which BatchNorm must be the identity.
CASES = [
    {"mean": mean, "spread": spread, "eps": eps}
    for mean in (0.0, 1.0, 1e3)
    for spread in (1e-3, 1.0, 1e3)
    for eps in (1e-5, 1e-2)
]
CRITERION = Criterion(unit="times the training loss", margin=MARGIN, direction="above", null=1.0, ratio=True)


@versioned(1)
def identity(*, mean: float, spread: float, eps: float) -> dict[str, Any]:
    """Return the largest deviation of BatchNorm with γ = √(σ² + ε), β = μ from its input, in units of rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((64, 8), generator=generator, dtype=torch.float64) * spread + mean
    layer = gb.BatchNorm1d(8, eps=eps, dtype=torch.float64).train()
    variance, mu = torch.var_mean(x, dim=0, correction=0)
    with torch.no_grad():
        layer.weight.copy_((variance + eps).sqrt())
        layer.bias.copy_(mu)
        y = layer(x)
    # Rounding of x itself, and of each of the few operations on it.
    allowed = 16 * 2.0**-53 * (x.abs() + mu.abs() + spread)
    return {"deviation": float(((y - x).abs() / allowed).max())}


def training_loss(result: Mapping[str, Any]) -> float:
    """Return the training loss, at most ``WORST``."""
    loss = result["train_loss"]
    return WORST if loss is None else min(float(loss), WORST)


def measure(experiment: Experiment) -> Outcome:
    """Compare the training loss with and without γ and β, and check the identity."""
    seeds = experiment.seeds(4, 20)
    activations = ("sigmoid", "relu") if experiment.quick else ("sigmoid", "relu", "tanh")
    chosen = _chosen(experiment, activations, seeds)
    found = {name: of.results for name, of in chosen.items()}
    exact = _identity_holds(experiment)
    losses = {name: [training_loss(result) for result in results] for name, results in found.items()}
    logs = {a: logs_of_ratios(*(losses[f"{a}, {arm}"] for arm in ARMS)) for a in activations}
    each = [CRITERION.effect(activation, values) for activation, values in logs.items()]
    regimes = {effect.name: effect.verdict for effect in each}
    accuracy = min(1 - median(r["error"] for r in found[f"{a}, {ARMS[0]}"]) for a in activations)
    least = min(median(losses[f"{a}, {ARMS[0]}"]) for a in activations)
    room = Room(
        accuracy > 2 * chance(experiment.task) and least > LEAST,
        f"without γ and β: accuracy at least {accuracy:.2f}, training loss at least {least:.4f} (above {LEAST})",
    )
    return Outcome(
        verdict=weakest([over_regimes(list(regimes.values())), exact.verdict]) if room.holds else "no room here",
        sentence=_sentence(each, exact),
        effects=[*each, exact],
        room=room,
        pictures=[
            bars(
                "Training loss without γ and β over that with them",
                "Above 1: γ and β let the network fit better. 95 % interval over replicates.",
                "activation",
                Axis("ratio of training losses", log=True),
                each,
            )
        ],
        tables=[_table(chosen, losses)],
        settings=f"{len(seeds)} replicates",
        regimes=regimes,
        trials=experiment.trials,
    )


def _chosen(experiment: Experiment, activations: Sequence[str], seeds: Sequence[int]) -> dict[str, Chosen]:
    """Let every replicate choose each arm's learning rate by the training loss, and return the runs at these rates."""
    arms = {
        f"{activation}, {arm}": {
            "network": experiment.mlp(3, width=16, activation=activation),
            "norm": arm,
            "batch_size": 32,
            "steps": 300 if experiment.quick else 600,
            "report": "train",
            "schedule": "cosine",
        }
        for activation in activations
        for arm in ARMS
    }
    return choose_rates(
        experiment,
        arms,
        seeds,
        training_loss,
        START,
        # Nothing is taken from a test split.
        lambda settings, exponent, seed, _: experiment.train(**settings, rate=2.0**exponent, seed=seed),
    )


def _identity_holds(experiment: Experiment) -> Effect:
    """Count the inputs on which the identity fails."""
    deviations = [r["deviation"] for r in experiment.run([Trial(f"{__name__}:identity", case) for case in CASES])]
    wrong = sum(deviation > 1 for deviation in deviations)
    return Effect.exactly("inputs on which γ = √(σ² + ε), β = μ is not the identity", wrong, len(CASES), "inputs")


def _sentence(each: Sequence[Effect], exact: Effect) -> str:
    return (
        "the training loss without γ and β over that with them: "
        + ", ".join(f"{e.name} {e.value:.2f} times [{e.low:.2f}, {e.high:.2f}] ({e.verdict})" for e in each)
        + f"; the identity holds on {len(CASES) - int(exact.value)} of {len(CASES)} inputs"
    )


def _table(chosen: Mapping[str, Chosen], losses: Mapping[str, list[float]]) -> Table:
    rows = [
        [
            name.partition(", ")[0],
            NORMS[name.partition(", ")[2]],
            of.rate,
            median(losses[name]),
            100 * median(result["error"] for result in of.results),
        ]
        for name, of in chosen.items()
    ]
    columns = ["activation", "arm", "learning rate chosen by most", "training loss", "training error, %"]
    return Table("Training loss, median over replicates", columns, rows)
