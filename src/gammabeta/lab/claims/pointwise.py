"""A pointwise function can replace LayerNorm.

Question: In a language model, does DyT, γ·tanh(αx) + β, do as well as LayerNorm, with little data and with more?

Claim: A Transformer does as well with a pointwise function in LayerNorm's place, however much data it has.

Criterion: Test loss with DyT minus that with LayerNorm, in nats per character, paired by replicate, each at the
learning rate that the replicate chose by its validation part, is within ±0.03. The two amounts of data are regimes. The
difference of the two regimes' differences (more data minus little) is a separate effect: it is above 0 where a
pointwise function helps with little data and harms with more.

Room: With LayerNorm and all data the best validation loss is 0.5 nats below that of always predicting the characters'
frequencies, and with little data it is worse than that by 0.03: the amount of data matters.

Method: The causal pre-norm decoder over characters of layernorm_in_transformers, trained by the recipe: AdamW, decay
0.1 on the weights of linear layers, 10 % warm-up, half a cosine, clipping at 1. Little data are the first characters of
the replicate's training part; both regimes take as many steps. DyT's α starts at 0.5 and is learned, one for each
place. Every replicate trains at every rate of a factor-2 grid, extended until both ends are worse than the best by
0.03.

Settings: quick: the quick decoder, 200 steps, 5,000 characters and all, 3 replicates. Full: the whole decoder, 20,000
characters and all, 8 replicates.

Sources: Zhu et al. 2025, Transformers without Normalization (arXiv 2503.10622); removing normalization at two amounts
of data (2604.23434)

Known: Zhu et al.: DyT equals or exceeds normalization in vision and language models. 2604.23434: removing LayerNorm
helps on 1 M tokens and harms on 118 M.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import ARMS
from gammabeta.lab.text.rates import Grid, on_grid
from gammabeta.lab.text.training import blind_loss, precision_of, shape_of, steps_of
from gammabeta.lab.verdict import Direction, over_regimes

EXACT = False
KIND = "text"

MARGIN = (-0.03, 0.03)
JUDGED = ("layer", "dyt")
LITTLE, ALL = "little data", "all data"
Cell = tuple[str, str]  # amount of data, arm


def measure(experiment: Experiment) -> Outcome:
    """Compare DyT with LayerNorm on two amounts of data."""
    replicates = experiment.seeds(3, 8)
    few = 5_000 if experiment.quick else 20_000
    base = {**shape_of(experiment), "steps": steps_of(experiment)}
    cells = {f"{arm}, {amount}": (amount, arm) for amount in (LITTLE, ALL) for arm in JUDGED}
    settings: dict[str, dict[str, Any]] = {
        name: {**base, "arm": arm, **({"characters": few} if amount == LITTLE else {})}
        for name, (amount, arm) in cells.items()
    }
    found = on_grid(experiment, settings, replicates, MARGIN[1])
    grids = {cell: found[name] for name, cell in cells.items()}
    judged = {amount: worse(grids, amount) for amount in (LITTLE, ALL)}
    flip = _effect(
        "the difference with all data minus that with little", "above", differences(*map(_values(grids), (ALL, LITTLE)))
    )
    regimes = {amount: effect.verdict for amount, effect in judged.items()}
    room = _room(experiment, grids)
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence="test loss of DyT minus that of LayerNorm: "
        + ", ".join(
            f"{amount} {effect.value:+.3f} [{effect.low:.3f}, {effect.high:.3f}] nats ({effect.verdict})"
            for amount, effect in judged.items()
        ),
        effects=[*judged.values(), flip],
        room=room,
        pictures=[
            bars(
                "Test loss of DyT minus that of LayerNorm",
                "Above 0: LayerNorm is better. 95 % interval over replicates.",
                "amount of data",
                Axis("difference", "nats per character"),
                [*judged.values(), flip],
            )
        ],
        tables=[_table(grids)],
        settings=f"{len(replicates)} replicates, {few:,} characters and all, {base}",
        regimes=regimes,
        trials=experiment.trials,
    )


def _values(grids: Mapping[Cell, Grid]) -> Any:
    def of(amount: str) -> list[float]:
        losses = {arm: [float(result["loss"]) for result in grids[amount, arm].chosen()[1]] for arm in JUDGED}
        return differences(losses["dyt"], losses["layer"])

    return of


def worse(grids: Mapping[Cell, Grid], amount: str) -> Effect:
    """Return the effect of DyT's test loss minus LayerNorm's, each replicate at its own best rates."""
    results = {arm: grids[amount, arm].chosen()[1] for arm in JUDGED}
    precision = precision_of(results["dyt"], results["layer"])
    criterion = Criterion(unit="nats per character", margin=MARGIN, direction="within")
    return criterion.effect(f"{amount}: DyT minus LayerNorm", _values(grids)(amount), precision)


def _effect(name: str, direction: Direction, values: list[float]) -> Effect:
    return Criterion(unit="nats per character", margin=MARGIN, direction=direction).effect(name, values)


def _room(experiment: Experiment, grids: Mapping[Cell, Grid]) -> Room:
    blind = blind_loss(load_text(experiment.sources["text"]))
    reached = {amount: min(grids[amount, "layer"].means().values()) for amount in (LITTLE, ALL)}
    return Room(
        reached[ALL] < blind - 0.5 and reached[LITTLE] > reached[ALL] + MARGIN[1],
        f"validation loss with LayerNorm: all data {reached[ALL]:.2f}, little data {reached[LITTLE]:.2f}; of the "
        f"characters' frequencies {blind:.2f}",
    )


def _table(grids: Mapping[Cell, Grid]) -> Table:
    rows: list[list[Any]] = []
    for (amount, arm), grid in grids.items():
        losses = [float(result["loss"]) for result in grid.chosen()[1]]
        rows.append([amount, ARMS[arm], 2.0**grid.best, fmean(losses), grid.usable(MARGIN[1])])
    return Table(
        "Each replicate at its own best learning rate",
        ["data", "arm", "best learning rate", "test loss, nats", "usable rates"],
        rows,
    )
