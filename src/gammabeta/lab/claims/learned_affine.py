"""Training moves γ and β back towards the distribution before BatchNorm.

Question: Where do γ and β end: nearer to restoring the distribution that BatchNorm standardized, or not? And do they
take sigmoid units out of their linear part?

Claim: γ restores the original spread and β the original mean as far as that serves the next layer, so that sigmoid is
not confined to its linear part near 0.

Criterion: μ and σ are a channel's mean and standard deviation before BatchNorm. The original distribution is restored
at γ = σ, β = μ, and left standardized at γ = 1, β = 0. A common factor of a layer's σ has no meaning, since BatchNorm
cancels it, so that two distances are taken which ignore it. Mean: |β/γ − μ/σ|. Spread: |log(|γ|/σ) − m|, m the mean of
log(|γ|/σ) over the layer's channels. Each is the mean over channels and layers, over what it is at γ = 1, β = 0 with
the same μ and σ, paired by replicate. Each activation is a regime; there the claim is supported if both ratios are
below 1/1.1, contradicted if one is entirely above 1.1. For sigmoid there is a third condition: the share of units whose
input lies in sigmoid's linear part falls from the start of training to its end by more than 5 percentage points.

Room: The trained network's test error is below half of that of chance, and γ and β have moved by more than 0.02 (root
mean square over channels, in the standardized signal's units).

Method: MLPs with BatchNorm before the activation, SGD with momentum, warm-up, half a cosine to 0 and weight decay on
weights only, batches of 64, 20 epochs. Every replicate draws its own split, initialization and order, and chooses its
learning rate by its own validation error, among ½, 1 and 2 times a rate that a search on three further replicates
found. The distances and shares are taken on training images, so that the interval is Student's. μ and σ are those of
256 training images under the weights at the end; σ divides by n − 1. An input z is in sigmoid's linear part where the
tangent at 0 is right within 10 % of sigmoid(z) − ½, which is |z| ≤ 1.11. A channel with |γ| < 0.01 counts with 0.01.
The distances from the identity of the standardized signal, γ − 1 and β, are in the table.

Settings: 4 hidden layers of 64; sigmoid, tanh and relu; 5 replicates (quick), 20 (full).

Sources: Ioffe & Szegedy 2015, section 3 (arXiv 1502.03167); Frankle, Schwab & Morcos 2020, Training BatchNorm and Only
BatchNorm (2003.00152)

Known: Ioffe & Szegedy introduce γ and β so that the layer can represent the identity. They do not report where these
end. Near 0 sigmoid is linear, so that standardizing, without γ and β, keeps it in its linear part.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import POPULATION, Training, chance, error_and_loss, exact_statistics, fit
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences, logs_of_ratios
from gammabeta.lab.procedure import choose_rates
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import error_then_loss
from gammabeta.lab.verdict import Verdict, over_regimes, weakest

EXACT = False
KIND = "images"

DEPTH, BATCH, EPOCHS = 4, 64, 20
ACTIVATIONS = ("sigmoid", "tanh", "relu")
FORMS = {"mean": "distance to the original mean", "spread": "distance to the original spread"}
MOVED = 0.02
SMALLEST = 0.01
START = (-5, -3)  # exponents of 2 with which the search of learning rates begins
TANGENT = 0.1
RATIO = Criterion(
    unit="times the distance at γ = 1, β = 0", margin=(1 / 1.1, 1.1), direction="below", null=1.0, ratio=True
)
SHARE = Criterion(unit="percentage points", margin=(-5.0, 5.0), direction="above")


# --- the measures ---


def distances(gamma_c: Tensor, beta_c: Tensor, mu_c: Tensor, sigma_c: Tensor) -> dict[str, float]:
    """Return the two distances of γ and β from what restores the distribution with mean μ and standard deviation σ.

    Args:
        gamma_c, beta_c, mu_c, sigma_c: (C,). A common factor of μ and σ changes nothing.
    """
    signed = torch.where(gamma_c < 0, -1.0, 1.0) * gamma_c.abs().clamp_min(SMALLEST)
    logs = (signed.abs() / sigma_c).log()
    return {
        "mean": float((beta_c / signed - mu_c / sigma_c).abs().mean()),
        "spread": float((logs - logs.mean()).abs().mean()),
    }


def linear(z: Tensor) -> Tensor:
    """Tell for each input of sigmoid whether z/4, the tangent at 0, is right within 10 % of sigmoid(z) − ½."""
    z = z.double()  # in float32 the difference from ½ is lost near 0
    risen = torch.sigmoid(z) - 0.5
    return (z / 4 - risen).abs() <= TANGENT * risen.abs()


def norms_of(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """List the BatchNorms that have γ and β."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.weight is not None]


def linear_share(model: nn.Module, x_nchw: Tensor) -> float | None:
    """Return the share of all BatchNorms' outputs that lie in sigmoid's linear part; None without any."""
    shares: list[float] = []
    with exact_statistics(model, x_nchw), torch.no_grad():
        hooks = [
            norm.register_forward_hook(lambda _, given, y: shares.append(float(linear(y).float().mean())))
            for norm in norms_of(model)
        ]
        model(x_nchw)
        for hook in hooks:
            hook.remove()
    return mean(shares) if shares else None


@versioned(1)
def affine(*, task: Mapping[str, Any], network: Mapping[str, Any], rate: float, seed: int) -> dict[str, Any]:
    """Train, and return where γ and β end.

    Returns:
        A dict with ``layers``, for each BatchNorm its distances at the end, ``start``, the same at γ = 1, β = 0, and
        the root mean squares of γ − 1 and β; ``linear``, the share of inputs in sigmoid's linear part before and after
        training; and ``error``, on the test split.
    """
    data = load(task)
    x_nchw = data.train.x_nchw[:POPULATION]
    shares: list[float | None] = []

    def look(step: int, model: nn.Module) -> bool:
        if step == 0:
            shares.append(linear_share(model, x_nchw))
        return False

    size = min(BATCH, len(data.train))
    steps = EPOCHS * (len(data.train) // size)
    training = Training(network=network, norm="batch", rate=rate, batch_size=size, steps=steps, seed=seed, **RECIPE)
    fitted = fit(data, data.train, training, look)
    if fitted.diverged is not None:
        return {"layers": [], "linear": [], "error": 1.0}
    model = fitted.model
    shares.append(linear_share(model, x_nchw))
    layers = []
    with exact_statistics(model, x_nchw), torch.no_grad():
        error, _ = error_and_loss(model, data.test)
        for norm in norms_of(model):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gamma, beta = norm.weight.double(), norm.bias.double()
            mu, sigma = norm.running_mean.double(), norm.running_var.double().sqrt().clamp_min(1e-6)
            layers.append(
                {
                    **distances(gamma, beta, mu, sigma),
                    "start": distances(torch.ones_like(gamma), torch.zeros_like(beta), mu, sigma),
                    "gamma": float((gamma - 1).square().mean().sqrt()),
                    "beta": float(beta.square().mean().sqrt()),
                }
            )
    return {"layers": layers, "linear": shares, "error": error}


# --- the claim ---


def measure(experiment: Experiment) -> Outcome:
    """Compare where γ and β end with where they begin, and with what would restore the distribution."""
    seeds = experiment.seeds(5, 20)
    found = _runs(experiment, seeds)
    judged = [name for name, results in found.items() if _has_room(experiment, results)]
    effects = {name: _effects(name, found[name]) for name in judged}
    regimes: dict[str, Verdict] = {
        name: weakest([effect.verdict for effect in effects[name]]) if name in effects else "no room here"
        for name in found
    }
    room = Room(
        bool(judged),
        "; ".join(
            f"{name}: test error {median(result['error'] for result in results):.3f}, γ and β moved by "
            f"{_moved(results):.3f}" + ("" if name in judged else " (no room)")
            for name, results in found.items()
        ),
    )
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(effects, regimes),
        effects=[effect for of_network in effects.values() for effect in of_network],
        room=room,
        pictures=[
            bars(
                "Distance of γ and β from what restores the original distribution, over that at γ = 1, β = 0",
                "Below 1: training brings the original distribution nearer. 95 % interval over replicates.",
                "activation and distance",
                Axis("ratio", log=True),
                [effect for of_network in effects.values() for effect in of_network[:2]],
            ),
            _by_layer({name: found[name] for name in judged}),
        ],
        tables=[_table(found)],
        settings=f"{len(seeds)} replicates, {EPOCHS} epochs",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(experiment: Experiment, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    networks = {name: dict(experiment.mlp(DEPTH, activation=name)) for name in ACTIVATIONS}
    size = min(BATCH, len(experiment.task.train))
    steps = EPOCHS * (len(experiment.task.train) // size)
    arms = {
        name: {**RECIPE, "network": network, "norm": "batch", "batch_size": size, "steps": steps}
        for name, network in networks.items()
    }
    chosen = choose_rates(
        experiment,
        arms,
        seeds,
        error_then_loss,
        START,
        # These runs only choose, so that no test split is looked at.
        lambda settings, exponent, seed, _: experiment.train(**settings, rate=2.0**exponent, seed=seed),
    )

    def trial(name: str, place: int) -> Trial:
        settings = {"network": networks[name], "rate": 2.0 ** chosen[name].exponents[place], "seed": seeds[place]}
        return Trial(f"{__name__}:affine", {"task": experiment.drawn(seeds[place]), **settings})

    return experiment.grid(list(networks), range(len(seeds)), trial)


def _moved(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the smaller of the root mean squares of γ − 1 and β, median over replicates; 0 without BatchNorm."""
    values = [
        min(mean(layer[which] for layer in result["layers"]) for which in ("gamma", "beta"))
        for result in results
        if result["layers"]
    ]
    return median(values) if values else 0.0


def _has_room(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> bool:
    learned = median(result["error"] for result in results) < 0.5 * (1 - chance(experiment.task))
    return learned and all(result["layers"] for result in results) and _moved(results) > MOVED


def _effects(name: str, results: Sequence[Mapping[str, Any]]) -> list[Effect]:
    effects = [
        RATIO.effect(
            f"{name}, {label}",
            logs_of_ratios(
                [mean(layer[form] for layer in result["layers"]) for result in results],
                [mean(layer["start"][form] for layer in result["layers"]) for result in results],
            ),
        )
        for form, label in FORMS.items()
    ]
    if name == "sigmoid":
        before, after = zip(*(result["linear"] for result in results), strict=True)
        values = differences([100 * share for share in before], [100 * share for share in after])
        effects.append(SHARE.effect("sigmoid, fall of the share of units in the linear part", values))
    return effects


def _sentence(effects: Mapping[str, Sequence[Effect]], regimes: Mapping[str, Verdict]) -> str:
    if not effects:
        return "no network has room: it does not train, or γ and β do not move"
    parts = []
    for name, (to_mean, to_spread, *share) in effects.items():
        text = (
            f"{name} ({regimes[name]}) mean {to_mean.value:.2f} [{to_mean.low:.2f}, {to_mean.high:.2f}], spread "
            f"{to_spread.value:.2f} [{to_spread.low:.2f}, {to_spread.high:.2f}]"
        )
        if share:
            fall = share[0]
            text += (
                f", and the share of units in the linear part falls by {fall.value:.1f} points [{fall.low:.1f}, "
                f"{fall.high:.1f}] ({fall.verdict})"
            )
        parts.append(text)
    return (
        "distance of γ and β from what restores the original distribution, over that of the standardized signal: "
        + "; ".join(parts)
    )


def _by_layer(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    series = []
    for name, results in found.items():
        for which, label in (("gamma", "γ − 1"), ("beta", "β")):
            by_layer = zip(*([layer[which] for layer in result["layers"]] for result in results), strict=True)
            values = [mean(of_layer) for of_layer in by_layer]
            series.append(Series(f"{name}, {label}", list(range(1, len(values) + 1)), values, dash=which == "beta"))
    return Picture(
        "How far γ and β move from the standardized signal",
        "Root mean square over channels at the end of training; mean over replicates.",
        "line",
        Axis("layer"),
        Axis("root mean square"),
        series,
    )


def _table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = []
    for name, results in found.items():
        layers = [layer for result in results for layer in result["layers"]]
        shares = [result["linear"] for result in results if result["linear"] and None not in result["linear"]]
        rows.append(
            [
                name,
                100 * mean(result["error"] for result in results),
                *(mean(layer[which] for layer in layers) if layers else None for which in ("gamma", "beta")),
                *(100 * mean(pair[end] for pair in shares) if shares else None for end in (0, 1)),
            ]
        )
    return Table(
        "Where γ and β end, mean over layers and replicates",
        [
            "activation",
            "test error, %",
            "root mean square of γ − 1",
            "of β",
            "inputs within ±1.11 at the start, %",
            "at the end, %",
        ],
        rows,
    )
