"""Post-norm needs a warm-up of the learning rate; pre-norm does not.

Question: What does a Transformer lose without the warm-up, with norms after and before the skip connections?

Claim: With post-norm the training of a Transformer depends on a warm-up of the learning rate. With pre-norm the warm-up
can be left out.

Criterion: Test loss without warm-up minus that with it, in nats per character, paired by replicate, each at the
learning rate that the replicate chose by its validation part. With post-norm it is above 0.03; with pre-norm it is
within ±0.03. A regime (a depth) is supported if both hold, and contradicted if one is decided the other way. The same
difference at the rate that is best with warm-up is a separate effect.

Room: At each depth the best validation loss with warm-up, with post-norm and with pre-norm, is 0.5 nats below that of
always predicting the characters' frequencies.

Method: The decoders of rate_headroom: width 16, over characters, AdamW, decay 0.1 on the weights of linear layers, half
a cosine, clipping at 1. The warm-up rises linearly over 10 % of the steps; without it the cosine starts at once. Every
replicate trains at every rate of a factor-2 grid, which is extended until both ends are worse than the best by 0.03.

Settings: quick: 3 layers, 150 steps, 3 replicates. Full: 3, 6 and 12 layers, 400 steps, 8 replicates.

Sources: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture (arXiv 2002.04745); Vaswani et al.
2017 (1706.03762)

Known: Xiong et al.: on IWSLT14 post-norm without warm-up reaches a BLEU of 8.45 where it reaches 34 with it; pre-norm
does as well without.
"""

from collections.abc import Mapping
from typing import Any

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Axis, Criterion, Effect, Outcome, Room, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.deep import depths_of, settings_of
from gammabeta.lab.text.rates import Grid, on_grid
from gammabeta.lab.text.training import blind_loss, precision_of
from gammabeta.lab.verdict import Direction, Verdict, over_regimes, weakest

EXACT = False
KIND = "text"

MARGIN = (-0.03, 0.03)
PLACES: Mapping[str, Direction] = {"post-norm": "above", "pre-norm": "within"}
Cell = tuple[int, str, bool]  # layers, place, whether there is a warm-up


def measure(experiment: Experiment) -> Outcome:
    """Compare training with and without warm-up, with post-norm and pre-norm."""
    replicates, depths = experiment.seeds(3, 8), depths_of(experiment)
    cells = {
        f"{depth} layers, {place}, {'with' if warm else 'without'} warm-up": (depth, place, warm)
        for depth in depths
        for place in PLACES
        for warm in (True, False)
    }
    settings: dict[str, dict[str, Any]] = {
        name: {**settings_of(experiment, f"LayerNorm, {place}", depth), **({} if warm else {"warm_up": 0.0})}
        for name, (depth, place, warm) in cells.items()
    }
    found = on_grid(experiment, settings, replicates, MARGIN[1])
    grids = {cell: found[name] for name, cell in cells.items()}
    judged = {(depth, place): lost(grids, depth, place) for depth in depths for place in PLACES}
    beside = [lost_at_one_rate(grids, depth, place) for depth in depths for place in PLACES]
    regimes: dict[str, Verdict] = {
        f"{depth} layers": weakest([judged[depth, place].verdict for place in PLACES]) for depth in depths
    }
    room = _room(experiment, grids)
    return Outcome(
        verdict=over_regimes(list(regimes.values())) if room.holds else "no room here",
        sentence="test loss without warm-up minus with it: "
        + "; ".join(
            f"{depth} layers, {place} {effect.value:+.3f} [{effect.low:.3f}, {effect.high:.3f}] ({effect.verdict})"
            for (depth, place), effect in judged.items()
        ),
        effects=[*judged.values(), *beside],
        room=room,
        pictures=[
            bars(
                "Test loss without warm-up minus that with it",
                "Above 0: the warm-up helps. 95 % interval over replicates.",
                "network",
                Axis("difference", "nats per character"),
                [*judged.values(), *beside],
            )
        ],
        tables=[_table(grids)],
        settings=f"{len(replicates)} replicates, {next(iter(settings.values()))['steps']} steps, depths {depths}",
        regimes=regimes,
        trials=experiment.trials,
    )


def lost(grids: Mapping[Cell, Grid], depth: int, place: str) -> Effect:
    """Return the effect of leaving the warm-up out, each replicate at its own best rates."""
    results = {warm: grids[depth, place, warm].chosen()[1] for warm in (True, False)}
    return _effect(f"{depth} layers, {place}, at the best rates", PLACES[place], results)


def lost_at_one_rate(grids: Mapping[Cell, Grid], depth: int, place: str) -> Effect:
    """Return the effect at the largest rate of both grids that is no larger than the best one with warm-up."""
    best = grids[depth, place, True].best
    rate = max(e for e in grids[depth, place, True].results if e <= best and e in grids[depth, place, False].results)
    results = {warm: grids[depth, place, warm].results[rate] for warm in (True, False)}
    return _effect(f"{depth} layers, {place}, at rate 2^{rate}", PLACES[place], results)


def _effect(name: str, direction: Direction, results: Mapping[bool, Any]) -> Effect:
    criterion = Criterion(unit="nats per character", margin=MARGIN, direction=direction)
    losses = {warm: [float(result["loss"]) for result in of_warm] for warm, of_warm in results.items()}
    values = differences(losses[False], losses[True])
    return criterion.effect(name, values, precision_of(results[False], results[True]))


def _room(experiment: Experiment, grids: Mapping[Cell, Grid]) -> Room:
    blind = blind_loss(load_text(experiment.sources["text"]))
    reached = {
        f"{depth} layers, {place}": min(grid.means().values()) for (depth, place, warm), grid in grids.items() if warm
    }
    return Room(
        all(loss < blind - 0.5 for loss in reached.values()),
        "validation loss with warm-up: "
        + "; ".join(f"{name} {loss:.2f}" for name, loss in reached.items())
        + f"; of the characters' frequencies {blind:.2f}",
    )


def _table(grids: Mapping[Cell, Grid]) -> Table:
    rows: list[list[Any]] = []
    for (depth, place, warm), grid in grids.items():
        losses = [float(result["loss"]) for result in grid.chosen()[1]]
        mean = sum(losses) / len(losses)
        rows.append([depth, place, "yes" if warm else "no", 2.0**grid.best, mean, grid.usable(MARGIN[1])])
    return Table(
        "Each replicate at its own best learning rate",
        ["layers", "norms", "warm-up", "best learning rate", "test loss, nats", "usable rates"],
        rows,
    )
