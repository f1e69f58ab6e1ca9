"""A norm widens the range of usable learning rates in a Transformer.

Question: Over how many factors of 2 may the learning rate vary before the loss is worse than the best by the margin,
with each norm at each place?

Claim: Normalization before each part of a Transformer (pre-norm), or before and after it (peri-norm), widens the range
of usable learning rates.

Criterion: The range is log2 of the largest over the smallest learning rate whose validation loss lies within 0.03 nats
per character of the replicate's best, interpolated between the points of a factor-2 grid. The effect is the range with
LayerNorm minus that without normalization, paired by replicate; it is above 1, a factor of 2. Regimes: pre-norm and
peri-norm at each depth. RMSNorm, post-norm and QK-norm against no normalization, and pre-norm against post-norm, are
separate effects.

Room: At each depth the best validation loss with pre-norm is 0.5 nats below that of always predicting the characters'
frequencies: the rates are those of networks that learn.

Method: A causal decoder of width 16 over characters, trained by the recipe: AdamW, decay 0.1 on the weights of linear
layers, 10 % warm-up, half a cosine, clipping at 1. Each replicate has its own validation part, initialization and
windows. The grid of rates is extended until both ends are worse than the best by more than 0.03 in the mean over
replicates. Where a replicate's range goes on beyond the grid, it counts up to the grid's end, and "equivalent" is not
concluded. A network whose loss is not finite has loss 10. QK-norm is LayerNorm of queries and keys, head by head.

Settings: quick: 3 layers, 150 steps, 3 replicates; no normalization, LayerNorm at three places. Full: 3, 6 and 12
layers, 400 steps, 8 replicates; also RMSNorm and QK-norm.

Sources: Kim et al. 2025, Peri-LN (arXiv 2502.02732); Xiong et al. 2020 (2002.04745); Henry et al. 2020, Query-Key
Normalization (2010.04245); Zhang & Sennrich 2019 (1910.07467)

Known: Kim et al.: peri-norm trains at rates at which pre-norm diverges; post-norm has the narrowest range.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Picture, Room, Series, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.deep import VARIANTS, depths_of, settings_of
from gammabeta.lab.text.rates import Grid, on_grid
from gammabeta.lab.text.training import blind_loss
from gammabeta.lab.verdict import over_regimes

EXACT = False
KIND = "text"

MARGIN = 0.03
CRITERION = Criterion(unit="factors of 2", margin=(-1.0, 1.0), direction="above")
NONE, PRE, POST, PERI = list(VARIANTS)[:4]
Cell = tuple[int, str]  # layers, variant


def measure(experiment: Experiment) -> Outcome:
    """Measure the range of usable rates of every variant at every depth."""
    replicates = experiment.seeds(3, 8)
    variants = [NONE, PRE, POST, PERI] if experiment.quick else list(VARIANTS)
    depths = depths_of(experiment)
    cells = {f"{depth} layers, {variant}": (depth, variant) for depth in depths for variant in variants}
    settings = {name: settings_of(experiment, variant, depth) for name, (depth, variant) in cells.items()}
    found = on_grid(experiment, settings, replicates, MARGIN)
    grids = {cell: found[name] for name, cell in cells.items()}
    judged = {
        f"{depth} layers, {variant.partition(', ')[2]}": wider(grids, depth, variant, NONE)
        for depth in depths
        for variant in (PRE, PERI)
    }
    beside = [wider(grids, depth, variant, NONE) for depth in depths for variant in variants if variant not in
              (NONE, PRE, PERI)]  # fmt: skip
    beside += [wider(grids, depth, PRE, POST) for depth in depths]
    regimes = {name: effect.verdict for name, effect in judged.items()}
    room = _room(experiment, {depth: grids[depth, PRE] for depth in depths})
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence="usable learning rates (factor-2 grid): "
        + "; ".join(
            f"{depth} layers: " + ", ".join(f"{variant} {grids[depth, variant].usable(MARGIN)}" for variant in variants)
            for depth in depths
        ),
        effects=[*judged.values(), *beside],
        room=room,
        pictures=[
            *(_curves(grids, depth, variants) for depth in depths),
            bars(
                "Range of usable learning rates, differences",
                "95 % interval over replicates.",
                "pair",
                Axis("difference", "factors of 2"),
                [*judged.values(), *beside],
            ),
        ],
        tables=[_table(grids)],
        settings=f"{len(replicates)} replicates, {settings[next(iter(settings))]['steps']} steps, depths {depths}",
        regimes=regimes,
        trials=experiment.trials,
    )


def wider(grids: Mapping[Cell, Grid], depth: int, one: str, other: str) -> Effect:
    """Return the effect of one variant's range of rates minus another's."""
    widths = [grids[depth, variant].widths(MARGIN) for variant in (one, other)]
    values = differences(*([width.factors for width in of_one] for of_one in widths))
    censored = sum(a.open or b.open for a, b in zip(*widths, strict=True))
    return CRITERION.effect(f"{depth} layers: {one} minus {other}", values, censored=censored)


def _room(experiment: Experiment, of_depth: Mapping[int, Grid]) -> Room:
    blind = blind_loss(load_text(experiment.sources["text"]))
    reached = {depth: min(grid.means().values()) for depth, grid in of_depth.items()}
    return Room(
        all(loss < blind - 0.5 for loss in reached.values()),
        "validation loss with pre-norm: "
        + ", ".join(f"{depth} layers {loss:.2f}" for depth, loss in reached.items())
        + f"; of the characters' frequencies {blind:.2f}",
    )


def _curves(grids: Mapping[Cell, Grid], depth: int, variants: Sequence[str]) -> Picture:
    series = []
    for variant in variants:
        means = grids[depth, variant].means()
        series.append(Series(variant, [2.0**e for e in means], list(means.values())))
    return Picture(
        f"Validation loss by learning rate, {depth} layers",
        "Mean over replicates; 10 stands for a loss that is not finite.",
        "line",
        Axis("learning rate", log=True),
        Axis("validation loss", "nats per character"),
        series,
    )


def _table(grids: Mapping[Cell, Grid]) -> Table:
    rows: list[list[Any]] = []
    for (depth, variant), grid in grids.items():
        means = grid.means()
        good = [e for e in means if means[e] <= means[grid.best] + MARGIN]
        rows.append(
            [depth, variant, grid.usable(MARGIN), 2.0 ** min(good), 2.0**grid.best, 2.0 ** max(good), means[grid.best]]
        )
    return Table(
        f"Learning rates within {MARGIN} nats of the best, by the mean over replicates",
        ["layers", "norms", "usable rates", "smallest", "best", "largest", "validation loss at the best"],
        rows,
    )
