"""BatchNorm reduces internal covariate shift.

Question: As earlier layers learn, how much does a layer's input change, and how much the gradient by which it learns,
with BatchNorm and without?

Claim: While earlier layers learn, the distribution of a later layer's inputs changes; normalizing reduces that.

Criterion: Two forms, each as a ratio with BatchNorm over without, paired by replicate, which chooses each arm's
learning rate. Input form: 1 − linear CKA (centered kernel alignment) of a layer's input on a fixed probe batch before
and after 10 steps. Gradient form: 1 − cosine and the relative l2 distance between a layer's gradient before and after
the earlier layers' update; both count. Each network is a regime. There the claim is supported if all three ratios are
below 1/1.25, contradicted if one is entirely above 1.25, equivalent if one is entirely between, otherwise inconclusive.
Separate effects ask whether shift is the cause of slow training: the steps to a target without normalization over those
with BatchNorm and noise after it that shifts its outputs further. If shift is the cause, that ratio is at most 1.25.

Room: A network is judged if, in the median of the replicates and without normalization, it exceeds twice the accuracy
of chance and there is a shift to reduce. That requires 1 − CKA above 0.001 and a relative l2 distance above 0.01.

Method: SGD without momentum, batches of 32, 100 steps. Every replicate draws its own split, initialization and order,
and chooses each arm's learning rate by its own validation error, among ½, 1 and 2 times a rate that a search on three
further replicates found. CKA ignores rotation, scale and mean of the input, which a norm fixes by construction; the
change of the moments is plotted and not judged. The probe is 256 validation images in evaluation mode, normalized by
their own statistics. Validation images are drawn from the same data and overlap: the interval of the input form holds
Nadeau & Bengio's term for it, while the gradient form is measured on training images and has Student's. Inputs are
those of every linear or convolutional layer except the first one called, whose input never changes. The gradient form
is that of Santurkar et al. At every tenth step a layer's weight gradient is taken twice on that step's own batch: at
the current weights, and after updating only the parameters of all earlier layers (norms' too). Each number is the mean
over layers, then the median over the ten windows. A second run of BatchNorm at the learning rate chosen for the
unnormalized arm is a separate effect, because a larger rate on its own moves inputs further. Noise: at each step
and in each channel the BatchNorm's output is scaled and moved, by a factor from 1 to 1.25 and a mean from −1 to 1,
drawn anew, as in Santurkar et al. with means twice as large; evaluation is without it. The target is that of
faster_convergence, within 300 steps; each replicate chooses each arm's learning rate by the steps that it takes on the
replicate's own validation images, so that this interval holds the term for overlap too. The effect is judged only where
the noise makes the means of the activations' inputs move from batch to batch at least 1.25 times as far, in their
standard deviations, as without normalization.

Settings: MLP of 4 layers of 64, relu and tanh, matched initialization, and the user's model; 3 replicates (quick).
Full: also 8 layers and the small ResNet, 16 replicates.

Sources: Ioffe & Szegedy 2015, section 2 (arXiv 1502.03167); Santurkar et al. 2018, definition 2.1 (1805.11604);
Kornblith et al. 2019, equation 4 (1905.00414); Nadeau & Bengio 2003, Inference for the Generalization Error

Known: Santurkar et al. find that BatchNorm does not reduce the gradient form. In a pilot run on digits with relu at a
learning rate of 0.1, 1 − CKA was 0.026 without and 0.013 with BatchNorm, and the cosine 0.41 and 0.94. With tanh
BatchNorm's shift was larger, 0.009 and 0.013.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.best_rates import ARMS, BATCH, START, accuracy_without, best_rates, networks
from gammabeta.lab.images.layers import is_layer, same_draws, weight_of
from gammabeta.lab.images.losses import precision_on_validation
from gammabeta.lab.images.networks import describe
from gammabeta.lab.images.training import Training, batches, chance, exact_statistics, fit
from gammabeta.lab.interval import CONTINUOUS, Precision
from gammabeta.lab.norms import NORMS
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import log_ratios
from gammabeta.lab.procedure import Chosen, Settings, choose_rates
from gammabeta.lab.race import EVERY as LOOKS
from gammabeta.lab.race import LIMIT, target
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.verdict import Verdict, over_regimes, weakest

EXACT = False
KIND = "images"

STEPS, EVERY, PROBE = 100, 10, 256
MARGIN = (1 / 1.25, 1.25)
EQUAL = "batch at the other's rate"
# The smallest shifts without normalization that leave something to reduce.
LEAST = {"input": 1e-3, "l2": 1e-2}
FORMS = {"input": "1 − CKA", "cosine": "1 − cosine", "l2": "relative l2"}
CRITERION = Criterion(unit="times the shift", margin=MARGIN, direction="below", null=1.0, ratio=True)
CAUSE = Criterion(unit="times fewer steps", margin=(1.25, 1.25), direction="below", null=1.0, ratio=True)
# The arms of the race, and whether noise shifts their outputs.
RACERS = {"none": ("none", False), "batch": ("batch", False), "noisy": ("batch", True)}
RACE = "gammabeta.lab.images.injected_shift:race"


# --- the two forms ---


def cka(x_nd: Tensor, y_ne: Tensor) -> float | None:
    """Return the linear CKA ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centered X (n, d) and Y (n, e).

    It is 1 for a rotated and scaled copy, and 0 for unrelated features. None where X or Y is the same for all samples.

    Source: Kornblith et al. 2019, eq. 4, by Gram matrices, whose size is the number of samples.
    """
    gram_x, gram_y = (_gram(z.flatten(1)) for z in (x_nd, y_ne))
    scale = gram_x.norm() * gram_y.norm()
    if not bool(torch.isfinite(scale)) or scale <= 0:
        return None
    return float((gram_x * gram_y).sum() / scale)


def _gram(z_nd: Tensor) -> Tensor:
    centered = z_nd.double() - z_nd.double().mean(dim=0)
    return centered @ centered.T


def moments_moved(before_nd: Tensor, after_nd: Tensor) -> float:
    """Return √(Δμ²/σ² + ln²(σ'/σ)), the root mean square over the features that vary before and after."""
    x, y = before_nd.flatten(1).double(), after_nd.flatten(1).double()
    x_std, y_std = x.std(dim=0, correction=0), y.std(dim=0, correction=0)
    varies = (x_std > 1e-6) & (y_std > 1e-6)
    if not bool(varies.any()):
        return 0.0
    shift = ((y.mean(dim=0) - x.mean(dim=0)) / x_std)[varies]
    return float((shift.square() + (y_std / x_std)[varies].log().square()).mean().sqrt())


def called(model: nn.Module, x_nchw: Tensor) -> list[nn.Module]:
    """List the modules with parameters of their own, in the order in which a forward pass first calls them."""
    order: dict[nn.Module, None] = {}
    owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    hooks = [owner.register_forward_pre_hook(lambda module, _: order.setdefault(module)) for owner in owners]
    with gb.frozen_statistics(model), torch.no_grad():
        model(x_nchw)
    for hook in hooks:
        hook.remove()
    return list(order)


def inputs(model: nn.Module, layers: Sequence[nn.Module], x_nchw: Tensor) -> list[Tensor]:
    """Return each layer's input on the probe in evaluation mode, normalized by the probe's own statistics."""
    given: dict[nn.Module, Tensor] = {}
    with exact_statistics(model, x_nchw):
        hooks = [
            layer.register_forward_pre_hook(lambda module, args: given.setdefault(module, args[0].clone()))
            for layer in layers
        ]
        model(x_nchw)
        for hook in hooks:
            hook.remove()
    return [given[layer] for layer in layers]


class GradientShift:
    """The change of each layer's gradient on one batch when the parameters of all layers before it are updated."""

    def __init__(self, model: nn.Module, order: Sequence[nn.Module], seed: int) -> None:
        self.model, self.order, self.seed = model, order, seed
        layers = [place for place, module in enumerate(order) if is_layer(module)]
        self.places = [place for place in layers[1:] if weight_of(order[place]).requires_grad]

    def before(self, x_nchw: Tensor, y_n: Tensor) -> None:
        """Record the gradients and the parameters before the step."""
        self.batch = x_nchw, y_n
        self.old = self._values()
        self.gradients = self._gradients(self.places)

    def after(self) -> dict[str, float] | None:
        """Return the mean over layers of 1 − cosine and of the relative l2 distance.

        None where a gradient is zero or not finite, or where there is no layer but the first and frozen ones.
        """
        new = self._values()
        cosine, l2 = [], []
        for place, g in zip(self.places, self.gradients, strict=True):
            self._set({**self.old, **{module: new[module] for module in self.order[:place]}})
            moved = self._gradients([place])[0]
            size = g.norm() * moved.norm()
            if not bool(torch.isfinite(size)) or size <= 0:
                self._set(new)
                return None
            cosine.append(1.0 - float((g * moved).sum() / size))
            l2.append(float((moved - g).norm() / g.norm()))
        self._set(new)
        return {"cosine": mean(cosine), "l2": mean(l2)} if cosine else None

    def _values(self) -> dict[nn.Module, list[Tensor]]:
        return {
            module: [parameter.detach().clone() for parameter in module.parameters(recurse=False)]
            for module in self.order
        }

    @torch.no_grad()
    def _set(self, values: Mapping[nn.Module, list[Tensor]]) -> None:
        for module, of_module in values.items():
            for parameter, value in zip(module.parameters(recurse=False), of_module, strict=True):
                parameter.copy_(value)

    def _gradients(self, places: Sequence[int]) -> list[Tensor]:
        if not places:
            return []
        x_nchw, y_n = self.batch
        with gb.frozen_statistics(self.model), same_draws(self.model, self.seed):
            loss = functional.cross_entropy(self.model(x_nchw), y_n)
        return [g.double() for g in torch.autograd.grad(loss, [weight_of(self.order[place]) for place in places])]


@versioned(1)
def shift(
    *, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, rate: float, seed: int
) -> dict[str, list[list[float | None]]]:
    """Train; return (step, shift) of every window, mean over layers, by form.

    The forms are ``input``, ``moments``, ``cosine`` and ``l2``.
    """
    data = load(task)
    probe_nchw = data.validation.x_nchw[:PROBE]
    stream = list(batches(data.train, BATCH, STEPS, seed))
    found: dict[str, list[list[float | None]]] = {form: [] for form in (*FORMS, "moments")}
    last: list[Tensor] = []
    gradients: GradientShift | None = None

    def look(step: int, model: nn.Module) -> bool:
        nonlocal last, gradients
        if gradients is None:
            gradients = GradientShift(model, called(model, stream[0][0]), seed)
        if step % EVERY == 1:
            moved = gradients.after()
            for form in ("cosine", "l2"):
                found[form].append([step, moved[form] if moved else None])
        if step % EVERY == 0:
            now = inputs(model, [gradients.order[place] for place in gradients.places], probe_nchw)
            if step:
                alike = [cka(x, y) for x, y in zip(last, now, strict=True)]
                known = [1.0 - value for value in alike if value is not None]
                found["input"].append([step, mean(known) if known and len(known) == len(alike) else None])
                moved_by = [moments_moved(x, y) for x, y in zip(last, now, strict=True)]
                found["moments"].append([step, mean(moved_by) if moved_by else None])
            last = now
            if step < STEPS:
                gradients.before(*stream[step])
        return False

    training = Training(network=network, norm=norm, rate=rate, batch_size=BATCH, steps=STEPS, seed=seed)
    fit(data, data.train, training, look)
    return found


def size(result: Mapping[str, list[list[float | None]]], form: str) -> float | None:
    """Return the median over the windows; None where one is missing, as after a divergence."""
    values = [value for _, value in result[form]]
    known = [value for value in values if value is not None]
    return median(known) if len(known) == STEPS // EVERY and median(known) > 0 else None


# --- the claim ---


Runs = dict[tuple[str, str], list[dict[str, Any]]]  # (network, arm) -> one result per replicate
Rates = Mapping[tuple[str, str], Chosen]  # (network, norm) -> the learning rates that replicates chose


def measure(experiment: Experiment) -> Outcome:
    """Compare the shift of inputs and gradients with BatchNorm and without."""
    chosen, seeds = networks(experiment), experiment.seeds(3, 16)
    rates = best_rates(experiment, chosen, STEPS, seeds)
    precision = {form: precision_on_validation(experiment) if form == "input" else CONTINUOUS for form in FORMS}
    judged, room, runs = _runs(experiment, chosen, rates, seeds)
    ratios = {form: {name: _log_ratios(runs, name, "batch", form) for name in judged} for form in FORMS}
    of_network = {
        name: [
            CRITERION.effect(f"{name}, {label}", ratios[form][name], precision[form]) for form, label in FORMS.items()
        ]
        for name in judged
    }
    regimes: dict[str, Verdict] = {
        name: weakest([effect.verdict for effect in of_network[name]]) if name in of_network else "no room here"
        for name in map(describe, chosen)
    }
    each = [effect for forms in of_network.values() for effect in forms]
    races = _races(experiment, chosen, seeds)
    causes = {
        name: effect
        for name, race in races.items()
        if name in judged and (effect := _cause(name, race, precision["input"]))
    }
    return Outcome(
        verdict=over_regimes(list(regimes.values())),
        sentence=_sentence(of_network, regimes) + _of_causes(causes),
        effects=[*each, *_at_equal_rates(runs, judged, rates, precision), *causes.values()],
        room=room,
        pictures=[
            bars(
                "Shift with BatchNorm over that without, each at chosen learning rates",
                "Below 1: less shift with BatchNorm. 95 % interval over replicates.",
                "network and form",
                Axis("ratio", log=True),
                each,
            ),
            *(
                _by_step(name, form, label, runs)
                for name in dict.fromkeys(name for name, _ in runs)
                for form, label in (*FORMS.items(), ("moments", "distance of the moments"))
            ),
        ],
        tables=[_table(runs, rates), _table_of_races(races)],
        settings=f"{len(seeds)} replicates, {STEPS} steps, windows of {EVERY}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _runs(
    experiment: Experiment, chosen: Sequence[Mapping[str, Any]], rates: Rates, seeds: Sequence[int]
) -> tuple[list[str], Room, Runs]:
    """Run every arm; return the networks that can be judged, what was seen, and the results."""
    network_of = {describe(network): network for network in chosen}

    trained_as = {**{norm: (norm, norm) for norm in ARMS}, EQUAL: ("batch", "none")}  # norm, and whose rates

    def trial(key: tuple[str, str], place: int) -> Trial:
        name, (norm, whose) = key[0], trained_as[key[1]]
        rate = 2.0 ** rates[name, whose].exponents[place]
        settings = {"network": dict(network_of[name]), "norm": norm, "rate": rate, "seed": seeds[place]}
        return Trial(f"{__name__}:shift", {"task": experiment.drawn(seeds[place]), **settings})

    runs = experiment.grid([(name, arm) for name in network_of for arm in trained_as], range(len(seeds)), trial)
    least = 2 * chance(experiment.task)
    judged, seen = [], []
    for name in network_of:
        accuracy = accuracy_without(rates, name)
        there = {form: median(size(run, form) or 0.0 for run in runs[name, "none"]) for form in LEAST}
        holds = accuracy > least and all(there[form] > bound for form, bound in LEAST.items())
        whole = all(size(run, form) is not None for arm in ARMS for run in runs[name, arm] for form in FORMS)
        if holds and whole:
            judged.append(name)
        numbers = ", ".join(f"{FORMS[form]} {there[form]:.3g}" for form in LEAST)
        verdict = "room" if holds and whole else "no room" if whole else "no room: a run with no finite shift"
        seen.append(f"{name} without normalization: accuracy {accuracy:.2f}, {numbers} ({verdict})")
    return judged, Room(bool(judged), "; ".join(seen)), runs


def _at_equal_rates(
    runs: Runs, judged: Sequence[str], rates: Rates, precision: Mapping[str, Precision]
) -> list[Effect]:
    """Compare both arms at the unnormalized one's learning rates; nothing where a run has no finite shift."""
    ratios = {form: {name: _log_ratios(runs, name, EQUAL, form) for name in judged} for form in FORMS}
    comparable = all(
        len(values) == len(runs[name, EQUAL]) for of_form in ratios.values() for name, values in of_form.items()
    )
    if not judged or not comparable:
        return []
    return [
        CRITERION.effect(f"equal learning rates, {name}, {label}", ratios[form][name], precision[form])
        for name in judged
        for form, label in FORMS.items()
        if rates[name, "none"].exponents != rates[name, "batch"].exponents
    ]


Races = Mapping[str, Mapping[str, list[dict[str, Any]]]]  # network -> racer -> a result per replicate


def _races(experiment: Experiment, chosen: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Races:
    """Run every network to the target without normalization, with BatchNorm, and with noise after it."""
    goal = target(experiment)
    network_of = {describe(network): network for network in chosen}

    def trial(settings: Settings, exponent: int, seed: int, _: str) -> Trial:
        fixed = {"batch_size": BATCH, "limit": LIMIT, "every": LOOKS, "target": goal}
        return Trial(RACE, {"task": experiment.drawn(seed), **settings, **fixed, "rate": 2.0**exponent, "seed": seed})

    arms = {
        (name, racer): {"network": dict(network_of[name]), "norm": norm, "inject": inject}
        for name in network_of
        for racer, (norm, inject) in RACERS.items()
    }
    found = choose_rates(
        experiment, arms, seeds, lambda result: (result["steps"] or 2 * LIMIT) + result["error"], START, trial
    )
    return {name: {racer: found[name, racer].results for racer in RACERS} for name in network_of}


def _cause(
    name: str, race: Mapping[str, Sequence[Mapping[str, Any]]], precision: Precision = CONTINUOUS
) -> Effect | None:
    """Judge whether noise that shifts outputs further makes BatchNorm as slow as no normalization.

    None where the noise does not shift them at least 1.25 times as far, or where nothing was shifted.
    """
    moved = {racer: [result["moved"] for result in results] for racer, results in race.items()}
    if any(value is None for racer in ("none", "noisy") for value in moved[racer]):
        return None
    if median(moved["noisy"]) < MARGIN[1] * median(moved["none"]):
        return None
    steps = {racer: [result["steps"] for result in results] for racer, results in race.items()}
    found = log_ratios(steps["none"], steps["noisy"], LIMIT)
    return CAUSE.effect(f"{name}, noise after BatchNorm", found.log_ratios, precision, censored=found.censored)


def _of_causes(causes: Mapping[str, Effect]) -> str:
    if not causes:
        return ""
    each = ", ".join(f"{name} {e.value:.1f} [{e.low:.1f}, {e.high:.1f}] ({e.verdict})" for name, e in causes.items())
    return f"; steps without normalization over those with BatchNorm and noise that shifts more than that: {each}"


def _table_of_races(races: Races) -> Table:
    names = {"none": NORMS["none"], "batch": NORMS["batch"], "noisy": "BatchNorm, then noise"}
    rows = []
    for name, race in races.items():
        for racer, results in race.items():
            moved = [result["moved"] for result in results if result["moved"] is not None]
            steps = median(result["steps"] or LIMIT for result in results)
            rows.append([name, names[racer], steps, median(moved) if moved else None])
    return Table(
        "Shift as a cause, median over replicates",
        ["network", "arm", "steps to the target (limit where not reached)", "how far means move from batch to batch"],
        rows,
    )


def _log_ratios(runs: Runs, name: str, arm: str, form: str) -> list[float]:
    """Return the log of an arm's shift over the unnormalized one's by replicate; skip those that lack either."""
    pairs = [(size(a, form), size(b, form)) for a, b in zip(runs[name, arm], runs[name, "none"], strict=True)]
    return [math.log(a / b) for a, b in pairs if a is not None and b is not None]


def _sentence(of_network: Mapping[str, Sequence[Effect]], regimes: Mapping[str, Verdict]) -> str:
    if not of_network:
        return "no network has room: without normalization it does not train, or nothing shifts"
    networks = [f"{name} ({regimes[name]}) {', '.join(map(_short, forms))}" for name, forms in of_network.items()]
    without = len(regimes) - len(of_network)
    return f"times the shift with BatchNorm over that without: {'; '.join(networks)}" + (
        f"; {without} without room" if without else ""
    )


def _short(effect: Effect) -> str:
    form = effect.name.rpartition(", ")[2]
    return f"{form} {effect.value:.2f} [{effect.low:.2f}, {effect.high:.2f}]"


def _by_step(name: str, form: str, label: str, runs: Runs) -> Picture:
    series = []
    for arm in (*ARMS, EQUAL):
        windows: dict[float, list[float]] = {}
        for run in runs[name, arm]:
            for step, value in run[form]:
                if value is not None:
                    windows.setdefault(step, []).append(value)
        series.append(
            Series(
                _arm_name(arm),
                list(windows),
                [median(values) for values in windows.values()],
                [min(values) for values in windows.values()],
                [max(values) for values in windows.values()],
                dash=arm == EQUAL,
            )
        )
    what = "Plotted, not judged: a norm fixes the moments." if form == "moments" else "Lower is less shift."
    return Picture(
        f"{name}: {label} by step",
        f"Mean over layers; median and range over replicates. {what}",
        "line",
        Axis("step"),
        Axis(label, log=True),
        series,
    )


def _arm_name(arm: str) -> str:
    return "BatchNorm at the learning rates of no normalization" if arm == EQUAL else NORMS[arm]


def _table(runs: Runs, rates: Rates) -> Table:
    rows = []
    for (name, arm), of_arm in runs.items():
        rate = rates[name, "none" if arm == EQUAL else arm].rate
        sizes = [[value for run in of_arm if (value := size(run, form)) is not None] for form in (*FORMS, "moments")]
        rows.append([name, _arm_name(arm), rate, *(median(of) if of else None for of in sizes)])
    return Table(
        "Shift, median over windows and replicates",
        ["network", "arm", "learning rate chosen by most", *FORMS.values(), "distance of the moments"],
        rows,
    )
