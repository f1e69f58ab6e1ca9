"""Measure what docs/anchors.md puts beside published numbers, and draw the page.

    python docs/anchors.py    measure again, and keep the figures in docs/anchors.json; a minute or two on one core

The text is docs/anchors_text.md, where $name stands for a figure. docs/generate.py writes the page.
"""

import json
import math
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from string import Template
from typing import Any

import torch
from findings import Study, effect, present, study_of
from findings_first_edition import FIRST, FURTHER, SECOND
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.images.networks import Dropout
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import Training, exact_statistics, fit, judge, subset
from gammabeta.lab.interval import interval
from gammabeta.lab.sources import load, source

HERE = Path(__file__).parent
KEPT = HERE / "anchors.json"
RUNS = HERE / "long_runs.json"
Json = dict[str, Any]

YANG = math.sqrt(math.pi / (math.pi - 1))  # of the gradient's norm per layer
WIDTH, BATCH, DEPTH = 512, 512, 24


def estimate(values: Sequence[float]) -> Json:
    """Return mean and 95 % interval (Student's) of one value per seed."""
    found = interval(list(values))
    return {"value": found.value, "low": found.low, "high": found.high}


# --- random networks ---


def standardized(x: Tensor) -> Tensor:
    """Standardize each column of x (n, c) over the n samples."""
    return functional.batch_norm(x, None, None, training=True, eps=1e-12)


def growth(seed: int, batch: int, normalize: Callable[[Tensor], Tensor]) -> float:
    """Return the factor by which the gradient's norm grows per layer towards the input, in a random relu network.

    It is exp(−slope) of log‖∂L/∂h_l‖ over the layers l in the middle half of the depth, with L a random linear function
    of the output. Weights are He's.
    """
    torch.manual_seed(seed)
    h = torch.randn(batch, WIDTH, dtype=torch.float64, requires_grad=True)
    layers = []
    x = h
    for _ in range(DEPTH):
        weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64) * math.sqrt(2 / WIDTH)
        h = x @ weight
        h.retain_grad()
        layers.append(h)
        x = normalize(h).relu()
    (x * torch.randn_like(x)).sum().backward()
    logs = [math.log(float(layer.grad.norm())) for layer in layers][DEPTH // 4 : -DEPTH // 4]
    return math.exp(-statistics.linear_regression(range(len(logs)), logs).slope)


def residual_variances(seed: int, normalize: Callable[[Tensor], Tensor]) -> list[float]:
    """Return the variance of the stream after 0, 1, 2, … blocks x ← x + W relu(norm(x)), over that of the input."""
    torch.manual_seed(seed)
    x = torch.randn(BATCH, WIDTH)
    found = [float(x.var())]
    for _ in range(DEPTH):
        x = x + normalize(x).relu() @ (torch.randn(WIDTH, WIDTH) * math.sqrt(2 / WIDTH))
        found.append(float(x.var()))
    return [value / found[0] for value in found]


def dropout_ratio(seed: int, p: float) -> float:
    """Return the variance of relu(z), z of N(0, 1), with Dropout of p over that without, from a million draws."""
    torch.manual_seed(seed)
    x = torch.randn(1_000_000, dtype=torch.float64).relu()
    return float(functional.dropout(x, p).var() / x.var())


def derived_ratio(p: float) -> float:
    """Return the same by the formula (1 + μ²/σ²)/(1 − p) − μ²/σ², with μ² = 1/(2π) and σ² = 1/2 − 1/(2π)."""
    share = 1 / (math.pi - 1)
    return (1 + share) / (1 - p) - share


# --- trained networks ---


@torch.no_grad()
def trained_ratio(seed: int, p: float) -> tuple[float, float, float]:
    """Train an MLP with BatchNorm and Dropout of p, and look at the inputs of its BatchNorms after the first.

    Returns:
        Geometric means over channels, for the weights w and the inputs h of a unit: of the variance with Dropout over
        that without, measured; of the same predicted by 1 + p/(1 − p)·Σ w²E[h²]/Var(Σ w h); and of
        Var(Σ w h)/Σ w²Var(h), which is 1 where the inputs are uncorrelated.
    """
    data = load(source("digits"))
    own = subset(data.train, 300, data.classes, 0.0, seed)
    network = {"kind": "mlp", "depth": 3, "width": 64, "activation": "relu", "dropout": p, "init": "matched"}
    with torch.enable_grad():
        fitted = fit(data, own, Training(network=network, norm="batch", rate=0.25, batch_size=32, steps=400, seed=seed))
    hidden = list(fitted.model.hidden)
    logs: list[list[float]] = [[], [], []]
    with exact_statistics(fitted.model, own.x_nchw):
        h = own.x_nchw.flatten(1)
        for index, layer in enumerate(hidden[:-1]):  # behind the last Dropout is no BatchNorm
            if not isinstance(layer, Dropout):
                h = layer(h)
                continue
            weight = hidden[index + 1].weight
            several = torch.cat([functional.dropout(h, p) for _ in range(400)])
            without, with_it = (h @ weight.T).var(0), (several @ weight.T).var(0)
            apart, second = h.var(0) @ weight.T.square(), h.square().mean(0) @ weight.T.square()
            of_layer = (with_it / without, 1 + p / (1 - p) * second / without, without / apart)
            for values, found in zip(logs, of_layer, strict=True):
                values += found.log().tolist()
    measured, predicted, correlation = (math.exp(statistics.mean(values)) for values in logs)
    return measured, predicted, correlation


@contextmanager
def own_share(model: nn.Module, share: float) -> Any:
    """Evaluate every BatchNorm by (1 − share) of its running moments and ``share`` of the image's own.

    In training a sample has the share 1/n in the statistics of a batch of n, and none in those of evaluation. EvalNorm
    gives it one back, learned by layer (Singh & Shrivastava 2019); here it is 1/n itself.
    """

    def mixed(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        x = inputs[0]
        mean = x.mean((2, 3), keepdim=True)
        square = x.square().mean((2, 3), keepdim=True)
        shape = (1, -1, 1, 1)
        running, running_square = layer.running_mean, layer.running_var + layer.running_mean.square()
        mean = share * mean + (1 - share) * running.view(shape)
        variance = share * square + (1 - share) * running_square.view(shape) - mean.square()
        x = (x - mean) * torch.rsqrt(variance + layer.eps)
        return x * layer.weight.view(shape) + layer.bias.view(shape)

    hooks = [module.register_forward_hook(mixed) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def at_batches_of_2(seed: int) -> Json:
    """Train the small ResNet on digits with batches of 2 for 2 epochs; return its test errors, in percent.

    Evaluated with moving averages, with exact statistics of training images, and with each image's own share of 1/2.
    """
    data = load({**source("digits"), "split": seed})
    steps = len(data.train)
    network = {"kind": "resnet", "init": "matched"}
    training = Training(network=network, norm="batch", rate=2.0**-6, batch_size=2, steps=steps, seed=seed, **RECIPE)
    fitted = fit(data, data.train, training)
    model = fitted.model.eval()
    found = {"moving": judge(model, data.test)}
    with exact_statistics(model, data.train.x_nchw[:256]):
        found["exact"] = judge(model, data.test)
    with exact_statistics(model, data.train.x_nchw[:256]), torch.no_grad(), own_share(model, 0.5):
        found["own share"] = judge(model, data.test)
    return {name: 100 * judged.error for name, judged in found.items()}


def measure() -> Json:
    """Measure everything, and return what is kept."""
    torch.set_num_threads(1)
    seeds = range(5)
    plain: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    growths = {
        f"batch {batch}": estimate([growth(seed, batch, standardized) for seed in seeds]) for batch in (32, BATCH)
    }
    growths["none"] = estimate([growth(seed, BATCH, plain) for seed in seeds])
    variances = {
        name: [statistics.mean(values) for values in zip(*(residual_variances(s, norm) for s in seeds), strict=True)]
        for name, norm in (("batch", standardized), ("none", plain))
    }
    measured, predicted, correlation = zip(*(trained_ratio(seed, 0.5) for seed in seeds), strict=True)
    at_2 = [at_batches_of_2(seed) for seed in range(1, 7)]
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "growth": growths,
        "residual": variances,
        "dropout": {
            str(p): {"derived": derived_ratio(p), "drawn": estimate([dropout_ratio(seed, p) for seed in seeds])}
            for p in (0.1, 0.3, 0.5)
        },
        "trained dropout": {
            "measured": estimate(measured),
            "predicted": estimate(predicted),
            "correlation": estimate(correlation),
        },
        "batches of 2": {
            **{name: estimate([one[name] for one in at_2]) for name in at_2[0]},
            "gain of exact": estimate([one["moving"] - one["exact"] for one in at_2]),
            "gain of own share": estimate([one["moving"] - one["own share"] for one in at_2]),
            "own share beyond exact": estimate([one["exact"] - one["own share"] for one in at_2]),
        },
    }


# --- the page ---

# What the table at the page's end repeats of the kept studies.
CLAIMS_BESIDE = (
    "gradient_flow",
    "skip_init",
    "replaces_dropout",
    "faster_convergence",
    "small_batch",
    "weight_decay",
    "train_eval_mismatch",
    "test_time_statistics",
)


def said(found: Json, digits: int) -> str:
    """Format an estimate with its interval."""
    text = f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return text.replace("-", "−")


def count(value: float) -> str:
    """Format a variance between 1 and millions."""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def numbers(kept: Json) -> dict[str, str]:
    """Return what stands in the place of each name in anchors_text.md."""
    residual, blocks = kept["residual"], range(len(kept["residual"]["batch"]))
    shown = [0, 1, 2, 4, 8, 16, blocks[-1]]
    found = {name: str(kept[name]) for name in ("date", "torch", "python")}
    for name, value in kept["growth"].items():
        found["growth_" + name.replace(" ", "_")] = said(value, 4)
    for name, value in kept["batches of 2"].items():
        found[name.replace(" ", "_")] = said(value, 1)
    for p, value in kept["dropout"].items():
        found[f"derived_{p.replace('.', '')}"] = f"{value['derived']:.3f}"
        found[f"drawn_{p.replace('.', '')}"] = said(value["drawn"], 3)
    for name, value in kept["trained dropout"].items():
        found[f"trained_{name}"] = said(value, 2)
    return {
        **found,
        "growth_off": f"{100 * abs(kept['growth'][f'batch {BATCH}']['value'] / YANG - 1):.1f} %",
        "residual_slope": f"{statistics.linear_regression(blocks, residual['batch']).slope:.2f}",
        "residual_factor": f"{residual['none'][-1] ** (1 / blocks[-1]):.2f}",
        "residual_table": table(
            ("blocks", *map(str, shown)),
            [
                ("BatchNorm", *(count(residual["batch"][block]) for block in shown)),
                ("1 + l", *(f"{1 + block}" for block in shown)),
                ("without", *(count(residual["none"][block]) for block in shown)),
                ("2^l", *(f"{2**block:,}" for block in shown)),
            ],
        ),
        **confirmed(present()),
        **long_runs(json.loads(RUNS.read_text(encoding="utf-8"))),
        "now": now(),
    }


def long_runs(runs: Json) -> dict[str, str]:
    """Return the figures of docs/long_runs.py by their names in anchors_text.md."""
    found = {}
    for name, run in runs.items():
        value = f"{run['loss']:.2f}" if name == "text" else f"{100 * run['error']:.1f} %"
        found |= {f"long_{name}": value, f"long_{name}_minutes": f"{run['minutes']:.0f}"}
        found[f"long_{name}_epochs"] = f"{run['epochs']:.1f}".removesuffix(".0")
    return found


# A figure of the text, from the first confirmatory study that is kept: claim, effect, digits.
QUOTED = {
    "relu_start": ("gradient_flow", "relu, matched init, depth 20, at the start", 2),
    "relu_later": ("gradient_flow", "relu, matched init, depth 20, after 20 steps", 2),
    "relu_growth": ("gradient_flow", "relu with BatchNorm, growth of log ‖g‖ per layer", 3),
    "skip_init": ("skip_init", "residual MLP of 8 blocks, SkipInit: behind BatchNorm", 1),
    "fixup": ("skip_init", "residual MLP of 8 blocks, Fixup: behind BatchNorm", 1),
    "dropout_shift": ("replaces_dropout", "variance in training over that in evaluation, Dropout before BatchNorm", 2),
    "dropout_derived": ("replaces_dropout", "measured ratio of variances over the derived one", 3),
    "mismatch_at_2": ("train_eval_mismatch", "MLP 2 layers relu, batches of 2", 1),
    "rise_at_2": ("small_batch", "MLP 2 layers relu, batches of 2: BatchNorm's rise", 1),
    "steps_4": ("faster_convergence", "MLP 4 layers relu, best learning rates", 1),
    "steps_12": ("faster_convergence", "MLP 12 layers relu, best learning rates", 1),
}


def confirmed(studies: Sequence[tuple[Study, Json]]) -> dict[str, str]:
    """Return the figures and tables of the confirmatory studies, by their names in anchors_text.md.

    Args:
        studies: those that are kept, that in quick settings first.
    """
    claims = {claim["name"]: claim for claim in studies[0][1]["claims"]}
    found = {}
    for name, (claim, effect_name, digits) in QUOTED.items():
        (one,) = (one for one in claims[claim]["effects"] if one["name"] == effect_name)
        found[name] = said(one, digits)
    rate = r"(?P<network>.+), both at the best learning rate of no normalization, (?P<rate>.+)"
    return {
        **found,
        "confirmed_steps": joined(
            studies,
            "faster_convergence",
            ("each at its own best rate", "both at the best rate without BatchNorm"),
            (r"(?P<network>.+), best learning rates", rate),
        ),
        "confirmed_batches": joined(
            studies,
            "small_batch",
            ("rise of BatchNorm", "rise of GroupNorm"),
            (r"(?P<network>.+): BatchNorm's rise", r"(?P<network>.+): GroupNorm's rise"),
        ),
        "confirmed_decay": decay(studies),
    }


def joined(studies: Sequence[tuple[Study, Json]], claim: str, columns: Sequence[str], patterns: Sequence[str]) -> str:
    """Draw a table of a claim's effects, one row for each study and network.

    Args:
        studies: those that are kept.
        claim: its name.
        columns: what each column is of.
        patterns: of the effects' names, one for each column, with a group ``network``.
    """
    rows = []
    for study, kept in studies:
        cells: dict[str, list[str]] = {}
        for one in (one for entry in kept["claims"] if entry["name"] == claim for one in entry["effects"]):
            for column, pattern in enumerate(patterns):
                if match := re.fullmatch(pattern, one["name"]):
                    row = cells.setdefault(match["network"], [""] * len(columns))
                    row[column] = said(one, 1 if abs(one["value"]) >= 1 else 2)
        rows += [(study.title, network, *row) for network, row in cells.items()]
    return table(("study", "network", *columns), rows)


def decay(studies: Sequence[tuple[Study, Json]]) -> str:
    """Draw what decay gains and how much of that is replayed, one row for each study and schedule."""
    rows = []
    for study, kept in studies:
        for entry in (entry for entry in kept["claims"] if entry["name"] == "weight_decay"):
            replayed = re.findall(
                r"(\w+) learning rate [^;]*; reproduced by learning rates alone: ([^)]*)\)", entry["sentence"]
            )
            effects = {one["name"]: one for one in entry["effects"]}
            rows += [
                (study.title, schedule, said(effects[f"{schedule} learning rate"], 2), share)
                for schedule, share in replayed
            ]
    return table(("study", "learning rate", "test loss without decay over with it", "replayed by rates alone"), rows)


def now() -> str:
    """Draw what the kept studies say about the claims that stand beside an anchor, the confirmatory ones first."""
    confirmed = [
        (study.title, "findings.md", {claim["name"]: claim for claim in kept["claims"]}) for study, kept in present()
    ]
    titles = {FIRST: "embedded tasks", SECOND: "the same, other seeds", **FURTHER}
    explored = [
        (f"first edition: {title}", "findings_first_edition.md", study_of(name)[1]) for name, title in titles.items()
    ]
    rows = [
        (f"[{claim}]({page}#{claim})", title, claims[claim]["verdict"], effect(claims[claim]))
        for claim in CLAIMS_BESIDE
        for title, page, claims in (*confirmed, *explored)
        if claim in claims
    ]
    return table(("claim", "study", "verdict", "effect"), rows)


def anchors() -> str:
    """Return docs/anchors.md: published numbers beside this repository's."""
    kept: Json = json.loads(KEPT.read_text(encoding="utf-8"))
    return Template((HERE / "anchors_text.md").read_text(encoding="utf-8")).substitute(numbers(kept))


if __name__ == "__main__":
    KEPT.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {KEPT.name}: now run docs/generate.py")
