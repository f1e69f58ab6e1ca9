"""BatchNorm smooths the loss surface.

Question: Along the gradient direction, how far do the loss and the gradient depart from the gradient's linear
prediction, with BatchNorm and without?

Claim: With BatchNorm the loss surface is smoother: along the gradient, loss and gradient change less.

Criterion: Two forms, each as a ratio with BatchNorm over without, paired by replicate, at equal training loss. Loss
form: the range, over the steps, of the loss minus the line that the gradient predicts (what exceeds the wanted
decrease). Gradient form: the largest change of the gradient over the steps, relative to the gradient at the start. Each
cell (network × training loss) is a regime. There the claim is supported if both are below 1/1.25, contradicted if one
is entirely above 1.25, equivalent if one is entirely between, otherwise inconclusive. BatchNorm trained at the
unnormalized arm's learning rate is a separate effect in every cell, since a larger learning rate alone leads to other
places.

Room: A cell is judged where both arms reach its training loss in every replicate. A positive control must also hold.
The weights before every BatchNorm are multiplied by 3 and 1/3 in alternation, which changes no output (ε is scaled
along). Neither measure may move by more than 0.1 %. Where the control fails, the measure depends on the size of the
weights, and nothing is judged.

Method: A fixed batch of 256 training images in training mode, in float64; BatchNorm normalizes by that batch. Every
replicate draws its own split, initialization and order, and trains each arm by SGD without momentum on batches of 32,
at the learning rate that it chose: by its own validation error after 100 steps, among ½, 1 and 2 times a rate that a
search on three further replicates found. The measures are taken on training images, so that the interval is Student's.
For each level, training yields the step at which the loss of the fixed batch first falls below it. Bisection then finds
the point of that loss on the line between the weights before and after that step; the walk starts there. Steps are
relative to the layers' weight norms. The metric is Σ ‖dw‖²/‖w‖² over linear and convolutional weights, in which the
steepest descent of layer l is −‖w‖² g. A step of 0.05 moves all layers together by 5 % of their norms (root of the sum
of squares). A step in absolute units would measure the size of the weights instead; biases, γ and β stay fixed. The
gradient is compared in the same metric, ‖w‖ g with ‖w‖ at the start. The table also gives the control for steps in an
absolute unit, to show that it can fail. A user's model that holds float32 tensors which are neither parameters nor
buffers cannot be walked in float64; it is walked in float32, and the control's text says so.

Settings: steps of 0.01, 0.02, 0.05, 0.1, 0.15 and 0.2; training losses of 1, 0.5 and 0.2. MLP of 4 layers of 64, relu
and tanh, matched initialization, and the user's model; 3 replicates (quick). Full: also 8 layers and the small ResNet,
6 replicates.

Sources: Santurkar et al. 2018, section 3.1 (arXiv 1805.11604); Li et al. 2018, Visualizing the Loss Landscape
(1712.09913), on steps relative to weight norms; van Laarhoven 2017 (1706.05350)

Known: Santurkar et al., with steps in absolute units: loss and gradient vary less with BatchNorm. In a pilot run on
digits, the steepness that absolute steps assign to BatchNorm was 18.8, 6.4 and 1.8 at initial gains of 1/3, 1 and 3.
Such steps measure the size of the weights.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.best_rates import ARMS, BATCH, best_rates, networks
from gammabeta.lab.images.layers import in_front_of_norms, is_layer, same_draws, weight_of
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.training import Training, fit
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.procedure import Chosen
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes, weakest

EXACT = False
KIND = "images"

TUNED_BY, LIMIT, IMAGES = 100, 300, 256
STEPS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
LEVELS = (1.0, 0.5, 0.2)
EQUAL = "batch at the other's rate"
# Each arm's norm, and whose learning rate it has.
TRAINED_AS = {**{norm: (norm, norm) for norm in ARMS}, EQUAL: ("batch", "none")}
SCALES = (3.0, 1 / 3)
TOLERANCE = 1e-3
MARGIN = (1 / 1.25, 1.25)
FORMS = {"loss": "range of the loss beyond the wanted decrease", "gradient": "change of the gradient"}
CRITERION = Criterion(unit="times", margin=MARGIN, direction="below", null=1.0, ratio=True)


# --- the measure ---


class Surface:
    """The training loss of one batch as a function of a model's linear and convolutional weights."""

    def __init__(self, model: nn.Module, x_nchw: Tensor, y_n: Tensor, seed: int) -> None:
        self.model, self.x_nchw, self.y_n, self.seed = model, x_nchw, y_n, seed
        layers = [weight_of(module) for module in model.modules() if is_layer(module)]
        self.weights = [weight for weight in layers if weight.requires_grad]

    def loss(self) -> Tensor:
        with gb.frozen_statistics(self.model), same_draws(self.model, self.seed):
            return functional.cross_entropy(self.model(self.x_nchw), self.y_n)

    def gradient(self) -> tuple[float, list[Tensor]]:
        loss = self.loss()
        # a user's model may hold layers that its forward does not call
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True, materialize_grads=True)
        return float(loss.detach()), list(gradients)

    def unit(self) -> float:
        """Return the root of the mean squared norm of the weights, for steps in absolute units."""
        return float(torch.stack([weight.detach().norm() for weight in self.weights]).square().mean().sqrt())

    def walk(self, unit: float | None = None) -> dict[str, Any]:
        """Follow steepest descent, and measure how far loss and gradient depart from the linear prediction.

        Every layer's length is measured in its weight norm s = ‖w‖: the gradient in that metric is s g, and the step of
        size η is w − η s (s g)/‖s g‖. With ``unit``, s is that for every layer instead: steps of an absolute size.

        Returns:
            ``promised`` and ``losses``: the predicted line and the loss at each step.
            ``turns``: the change of the gradient at each step relative to the gradient at the start.
            ``loss`` and ``gradient``: the two measures.
        """
        start = [weight.detach().clone() for weight in self.weights]
        sizes = [float(weight.norm()) if unit is None else unit for weight in start]
        height, gradients = self.gradient()
        scaled = [s * g for s, g in zip(sizes, gradients, strict=True)]
        slope = _length(scaled)
        losses, promised, turns = [], [], []
        for step in STEPS:
            self._move(start, [-step * s * g / slope for s, g in zip(sizes, scaled, strict=True)])
            there, gradients = self.gradient()
            losses.append(there)
            promised.append(height - step * slope)
            turned = [s * g - was for s, g, was in zip(sizes, gradients, scaled, strict=True)]
            turns.append(_length(turned) / slope)
        self._move(start, [torch.zeros_like(weight) for weight in start])
        beyond = [0.0, *(a - b for a, b in zip(losses, promised, strict=True))]
        return {
            "height": height,
            "losses": losses,
            "promised": promised,
            "turns": turns,
            "loss": max(beyond) - min(beyond),
            "gradient": max(turns),
        }

    @torch.no_grad()
    def _move(self, start: Sequence[Tensor], by: Sequence[Tensor]) -> None:
        for weight, origin, step in zip(self.weights, start, by, strict=True):
            weight.copy_(origin + step)


def _length(parts: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


def rescale(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Multiply layers before norms by 3 and 1/3 in alternation, and ε by the square: no output changes.

    Source: van Laarhoven 2017, eq. 3, with ε, as BN(aWx; a²ε) = BN(Wx; ε).
    """
    with torch.no_grad():
        for index, (layer, norm) in enumerate(pairs):
            scale = SCALES[index % len(SCALES)]
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(scale)
            norm.eps *= scale**2  # type: ignore[operator, assignment]


def lower_to(surface: Surface, before: Sequence[Tensor], after: Sequence[Tensor], level: float) -> None:
    """Move the model to the point between two states where the loss is the level.

    The loss is above the level before, and at or below it after.
    """
    low, high = 0.0, 1.0
    parameters = list(surface.model.parameters())
    for _ in range(20):
        middle = (low + high) / 2
        _set(parameters, [a + middle * (b - a) for a, b in zip(before, after, strict=True)])
        with torch.no_grad():
            low, high = (middle, high) if float(surface.loss()) > level else (low, middle)


def in_double(model: nn.Module, x_nchw: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a copy of the model and its input in float64; in float32 where the model does not compute in float64.

    That is so where it holds float32 tensors which ``.double()`` does not convert, or casts to float32 itself.
    """
    whole = copy.deepcopy(model).double()
    try:
        with gb.frozen_statistics(whole), torch.no_grad():
            computes = bool(whole(x_nchw[:2].double()).dtype == torch.float64)
    except RuntimeError as error:
        if "dtype" not in str(error) and "Double" not in str(error):
            raise
        computes = False
    return (whole, x_nchw.double()) if computes else (copy.deepcopy(model), x_nchw)


@torch.no_grad()
def _set(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@versioned(2)
def landscape(
    *, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, rate: float, seed: int, levels: Sequence[float]
) -> dict[str, Any]:
    """Train, and walk along the gradient at each level of the training loss that is reached.

    Returns:
        ``levels``: for each level ``walk``; ``absolute``, the two measures with steps in absolute units; and
        ``rescaled``, the two measures of ``walk`` with weights rescaled, None without a BatchNorm.
        ``double``: whether the model was walked in float64 (:func:`in_double`); None where no level was reached.
    """
    data = load(task)
    x_nchw, y_n = data.train.x_nchw[:IMAGES], data.train.y_n[:IMAGES]
    found: dict[str, Any] = {}
    last: list[Tensor] = []
    double: bool | None = None

    def look(step: int, model: nn.Module) -> bool:
        nonlocal last, double
        surface = Surface(model, x_nchw, y_n, seed)
        now = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            height = float(surface.loss())
        for level in levels:
            if f"{level:g}" not in found and height <= level and last:
                there = Surface(*in_double(model, x_nchw), y_n, seed)
                double = there.x_nchw.dtype == torch.float64
                found[f"{level:g}"] = walks(there, last, now, level)
        last = now
        return len(found) == len(levels)

    training = Training(network=network, norm=norm, rate=rate, batch_size=BATCH, steps=LIMIT, seed=seed)
    fit(data, data.train, training, look)
    return {"levels": found, "double": double}


def walks(surface: Surface, before: Sequence[Tensor], after: Sequence[Tensor], level: float) -> dict[str, Any]:
    """Walk from where the loss is the level, and repeat it with weights rescaled whose scale the norm cancels."""
    dtype = surface.x_nchw.dtype
    lower_to(surface, [value.to(dtype) for value in before], [value.to(dtype) for value in after], level)
    unit = surface.unit()
    found = {"walk": surface.walk(), "absolute": _measures(surface.walk(unit)), "rescaled": None}
    pairs = in_front_of_norms(surface.model, surface.x_nchw)
    if pairs:
        rescale(pairs)
        found["rescaled"] = _measures(surface.walk())
        found["rescaled absolute"] = _measures(surface.walk(unit))
    return found


def _measures(walk: Mapping[str, Any]) -> dict[str, float]:
    return {form: walk[form] for form in FORMS}


def moved(before: Mapping[str, float], after: Mapping[str, float] | None) -> float | None:
    """Return the relative change of a measure by rescaling, the larger of the two; None without a control."""
    if after is None:
        return None
    return max(abs(after[form] - before[form]) / max(abs(before[form]), 1e-12) for form in FORMS)


# --- the claim ---


Runs = dict[tuple[str, str], list[dict[str, Any]]]  # (network, arm) -> the levels of each replicate
Cell = tuple[str, str]  # (network, level)


def measure(experiment: Experiment) -> Outcome:
    """Compare the two measures with BatchNorm and without, at equal training loss."""
    chosen, seeds = networks(experiment), experiment.seeds(3, 6)
    network_of = {describe(network): network for network in chosen}
    rates = best_rates(experiment, chosen, TUNED_BY, seeds)

    def trial(arm: tuple[str, str], place: int) -> Trial:
        name, (norm, whose) = arm[0], TRAINED_AS[arm[1]]
        rate = 2.0 ** rates[name, whose].exponents[place]
        settings = {"network": dict(network_of[name]), "norm": norm, "rate": rate, "seed": seeds[place]}
        return Trial(f"{__name__}:landscape", {"task": experiment.drawn(seeds[place]), **settings, "levels": LEVELS})

    found = experiment.grid([(name, arm) for name in network_of for arm in TRAINED_AS], range(len(seeds)), trial)
    runs: Runs = {arm: [result["levels"] for result in results] for arm, results in found.items()}
    reached = {
        name: [level for level in map("{:g}".format, LEVELS) if all(level in run for run in runs[name, "none"])]
        for name in network_of
    }
    cells: list[Cell] = [
        (name, level)
        for name, levels in reached.items()
        for level in levels
        if all(level in run and _usable(run[level]) for norm in ARMS for run in runs[name, norm])
    ]
    single = sorted({name for (name, _), results in found.items() if any(r["double"] is False for r in results)})
    room = _room(runs, cells, reached, single)
    ratios = {form: {cell: _log_ratios(runs, cell, "batch", form) for cell in cells} for form in FORMS}
    of_cell = {
        f"{name} at a loss of {level}": [
            CRITERION.effect(f"{name} at a loss of {level}, {form}", ratios[form][name, level]) for form in FORMS
        ]
        for name, level in cells
    }
    regimes = {name: weakest([effect.verdict for effect in forms]) for name, forms in of_cell.items()}
    each = [effect for forms in of_cell.values() for effect in forms]
    equal = _at_equal_rates(runs, cells)
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence=_sentence(of_cell, regimes, room, equal),
        effects=[*each, *equal],
        room=room,
        pictures=[
            bars(
                "Measures with BatchNorm over those without, at equal training loss",
                "Below 1: smoother with BatchNorm. 95 % interval over replicates.",
                "network, training loss and form",
                Axis("ratio", log=True),
                each,
            ),
            *(
                [
                    bars(
                        "The same at equal learning rates, those chosen for the network without BatchNorm",
                        "Below 1: smoother with BatchNorm. 95 % interval over replicates.",
                        "network, training loss and form",
                        Axis("ratio", log=True),
                        equal,
                    )
                ]
                if equal
                else []
            ),
            *(_along(name, level, runs) for name, level in cells),
        ],
        tables=[_table(runs, cells, rates)],
        settings=f"{len(seeds)} replicates, training losses of {', '.join(f'{level:g}' for level in LEVELS)}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _at_equal_rates(runs: Runs, cells: Sequence[Cell]) -> list[Effect]:
    """Compare both arms at the unnormalized one's learning rates, in the cells that every replicate reaches with it."""
    return [
        CRITERION.effect(
            f"equal learning rates, {name} at a loss of {level}, {form}", _log_ratios(runs, (name, level), EQUAL, form)
        )
        for name, level in cells
        if all(level in run and _usable(run[level]) for run in runs[name, EQUAL])
        for form in FORMS
    ]


def _room(runs: Runs, cells: Sequence[Cell], reached: Mapping[str, Sequence[str]], single: Sequence[str]) -> Room:
    """Judge whether any cell is left, and whether rescaled weights leave both measures unchanged."""
    changes = [
        moved(run[level]["walk"], run[level]["rescaled"]) for name, level in cells for run in runs[name, "batch"]
    ]
    worst = max((change for change in changes if change is not None), default=None)
    blind = worst is not None and worst <= TOLERANCE and None not in changes
    return Room(
        bool(cells) and blind,
        "training losses that the unnormalized network reaches in every replicate: "
        + "; ".join(f"{name} {', '.join(levels) or 'none'}" for name, levels in reached.items())
        + f"; cells judged: {len(cells)}; rescaled weights before BatchNorm change a measure by "
        + ("nothing: there are none" if worst is None else f"at most {worst:.1e} of itself")
        + (f"; in float32, because of tensors that .double() does not convert: {', '.join(single)}" if single else ""),
    )


def _usable(walks: Mapping[str, Any]) -> bool:
    """Tell whether both measures are finite and above 0, so that they have a logarithm."""
    values = [walks["walk"][form] for form in FORMS]
    return all(value is not None and math.isfinite(value) and value > 0 for value in values)


def _log_ratios(runs: Runs, cell: Cell, arm: str, form: str) -> list[float]:
    name, level = cell
    return [
        math.log(a[level]["walk"][form] / b[level]["walk"][form])
        for a, b in zip(runs[name, arm], runs[name, "none"], strict=True)
    ]


def _sentence(
    of_cell: Mapping[str, Sequence[Effect]], regimes: Mapping[str, Verdict], room: Room, equal: Sequence[Effect]
) -> str:
    if not of_cell:
        return "no network has room: there is no training loss that both arms reach in every replicate"
    if not room.holds:
        return f"the measure depends on the size of weights, or there is no BatchNorm to rescale: {room.control}"
    parts = [
        f"{name} {' and '.join(f'{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]' for e in forms)} ({regimes[name]})"
        for name, forms in of_cell.items()
    ]
    return (
        "along the gradient, times the range of the loss and the change of the gradient with BatchNorm over without, "
        f"at equal training loss: {'; '.join(parts)}"
        + (
            f"; at equal learning rates {min(e.value for e in equal):.2f} to {max(e.value for e in equal):.2f} "
            f"(supported in {sum(e.verdict == 'supported' for e in equal)} of {len(equal)})"
            if equal
            else ""
        )
    )


def _along(name: str, level: str, runs: Runs) -> Picture:
    """Draw the loss along the walk, and the line that the gradient predicts."""
    series = []
    for norm in ARMS:
        walks = [run[level]["walk"] for run in runs[name, norm]]
        for what, label in (("losses", ""), ("promised", ", predicted")):
            at = [[walk["height"], *walk[what]] for walk in walks]
            of_step = list(zip(*at, strict=True))
            series.append(
                Series(
                    f"{NORMS[norm]}{label}",
                    [0.0, *STEPS],
                    [median(values) for values in of_step],
                    [min(values) for values in of_step],
                    [max(values) for values in of_step],
                    dash=what == "promised",
                )
            )
    return Picture(
        f"{name}: loss along the gradient from a training loss of {level}",
        "Steps relative to the layers' weight norms; median and range over replicates. Dashed: as predicted.",
        "line",
        Axis("step over weight norm"),
        Axis("training loss"),
        series,
    )


def _table(runs: Runs, cells: Sequence[Cell], rates: Mapping[tuple[str, str], Chosen]) -> Table:
    rows = []
    for name, level in cells:
        for arm, (norm, whose) in TRAINED_AS.items():
            walks = [run[level] for run in runs[name, arm] if level in run and _usable(run[level])]
            if not walks:
                continue
            control = [
                [moved(walk[before], walk.get(after)) for walk in walks]
                for before, after in (("walk", "rescaled"), ("absolute", "rescaled absolute"))
            ]
            rows.append(
                [
                    name,
                    level,
                    NORMS[norm],
                    rates[name, whose].rate,
                    *(mean(walk["walk"][form] for walk in walks) for form in FORMS),
                    *(max((change for change in changes if change is not None), default=None) for changes in control),
                ]
            )
    return Table(
        "Smoothness at equal training loss, mean over replicates",
        [
            "network",
            "training loss",
            "arm",
            "learning rate chosen by most",
            "range of the loss beyond the decrease, nats",
            "relative change of the gradient",
            "relative change by rescaled weights",
            "the same with absolute steps",
        ],
        rows,
    )
