"""Norms side by side on sequences of variable length: a GRU and Transformers, trained as for the claim `sequences`.

Errors are those that a user would get, and learning rates are chosen by them: BatchNorm evaluates with moving averages,
though inside a recurrence one moving average over all steps fits none of them. Errors with exact statistics are shown
too. Over d devices with b sequences each, a batch holds b·d sequences; time and memory are those of b
sequences on one device, with the exchange of synced statistics as modelled over ``--link``. The usual norm is
LayerNorm.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.comparison import ERROR, WHOM, Compared, Comparison, kept_bytes, seconds_per_step, side_by_side
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.training import chance
from gammabeta.lab.links import LINKS, communication, exchange, of_synced
from gammabeta.lab.procedure import headroom
from gammabeta.lab.sequences.networks import ARMS, networks_of, users_own
from gammabeta.lab.sequences.training import (
    BATCH,
    WIDEST,
    batch_of,
    build_network,
    precision,
    seeds_of,
    settings_of,
    steps_of,
    trained,
)
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.trials.trial import Trial, versioned

TIMED = 20


# Norms that a quick study leaves out.
LEFT_OUT = ("rms", "group")


def norms(batch_size: int, devices: int, *, quick: bool = False) -> dict[str, str]:
    """Return the arms with the names that readers know them by; the usual one is first."""
    found = {norm: ARMS[norm] for norm in ("layer", "rms", "group")}
    # With a batch of one sequence, a step inside the recurrence has one value per statistic.
    if devices > 1:
        found |= {f"masked:{batch_size}": "masked BatchNorm of each device's own batch"} if batch_size > 1 else {}
        found |= {"masked": "masked BatchNorm synced over the devices"}
    elif batch_size > 1:
        found |= {norm: ARMS[norm] for norm in ("masked", "padded")}
    found |= {"none": ARMS["none"]}
    return {norm: name for norm, name in found.items() if not quick or norm not in LEFT_OUT}


@versioned(4)
def costs(
    *,
    task: Mapping[str, Any],
    network: str | Mapping[str, Any],
    norms: Sequence[str],
    batch_size: int,
    seed: int,
    steps: int = TIMED,
) -> dict[str, Any]:
    """Measure memory and time of each norm.

    Returns:
        ``bytes``: by norm, what one forward pass on a batch keeps for the backward pass. ``recomputed``: the same after
        `gammabeta.recompute`. ``messages``: by norm, the collectives of one step if its BatchNorms were synchronized
        (`gammabeta.lab.links.of_synced`). ``timing``: by norm, seconds per training step, medians over steps in turns.
    """
    data = load_sequences(task)
    models = {norm: build_network(network, data, norm, seed).train() for norm in norms}
    generator = torch.Generator().manual_seed(seed)
    batches = [
        batch_of(data.train, torch.randint(len(data.train), (batch_size,), generator=generator)) for _ in range(steps)
    ]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, mask, y = batch
        return functional.cross_entropy(model(x, mask), y)

    kept = {norm: kept_bytes(model, lambda model=model: loss(model, batches[0])) for norm, model in models.items()}  # type: ignore[misc]
    sent = {}
    for norm, model in models.items():
        sent[norm] = of_synced(model, lambda model=model: loss(model, batches[0]))  # type: ignore[misc]
    return {
        "bytes": {norm: of_norm.as_it_is for norm, of_norm in kept.items()},
        "recomputed": {norm: of_norm.with_recompute for norm, of_norm in kept.items()},
        "messages": sent,
        "steps": steps,
        "timing": seconds_per_step(models, loss, batches),
    }


def _costs(
    experiment: Experiment, networks: Sequence[str], plain: Sequence[str], batch_size: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the records of :func:`costs` by network, one per replicate of those that are timed.

    A batch of one sequence is timed as two, which give BatchNorm statistics.
    """
    at = {"task": dict(experiment.sources["sequences"]), "norms": list(plain), "batch_size": max(batch_size, 2)}
    return experiment.grid_of_records(
        networks,
        seeds_of(experiment)[:3],
        lambda network, seed: Trial(
            f"{__name__}:costs",
            {**at, "network": settings_of(experiment, network, "layer")["network"], "seed": seed},
        ),
    )


def compare(experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Train each network with every norm, each at its own best learning rate, and measure what it costs."""
    batch_size = batch_size or BATCH
    whole = batch_size * devices
    named = norms(batch_size, devices, quick=experiment.quick)
    networks = networks_of(experiment)
    chosen = trained(experiment, list(named), whole)
    data = load_sequences(experiment.sources["sequences"])
    by_chance = 100 * (1 - chance(data))
    plain = {norm: norm.partition(":")[0] for norm in named}
    records = _costs(experiment, networks, sorted(set(plain.values())), batch_size)
    made, link = [], LINKS[experiment.link]
    for network, of_network in records.items():
        sent = of_network[0]["result"]["messages"].get("masked", []) if devices > 1 else []
        exchanged = exchange(sent, devices, link) if sent else 0.0
        found = {norm: chosen[network, norm] for norm in named}
        compared = side_by_side(
            [
                Compared(
                    norm,
                    name,
                    found[norm].rate,
                    tuple(100 * result["moving_error"] for result in found[norm].results),
                    tuple(
                        record["timing"][plain[norm]] + (exchanged if norm == "masked" else 0.0)
                        for record in of_network
                    ),
                    of_network[0]["result"]["bytes"][plain[norm]],
                    tuple(100 * result["error"] for result in found[norm].results),
                    recomputed=of_network[0]["result"]["recomputed"][plain[norm]],
                    headroom=None if experiment.quick else headroom(found[norm].coarse, WIDEST),
                    fragile=found[norm].usual_exponent + 1 in found[norm].lost,
                )
                for norm, name in named.items()
            ],
            ERROR,
            precisions={
                norm: (
                    precision(data, found["layer"], found[norm], ("moving_wrong", "moving_wrong")),
                    precision(data, found[norm], found[norm], ("moving_wrong", "wrong")),
                )
                for norm in named
            },
            confidence=experiment.confidence,
        )
        learned = min(arm.value for arm in compared) <= 0.5 * by_chance
        made.append(
            Comparison(
                "sequences",
                data.name,
                network,
                batch_size,
                devices,
                steps_of(experiment),
                ERROR,
                learned,
                compared,
                left_out=tuple(name for norm, name in norms(batch_size, devices).items() if norm not in named),
                whom=WHOM[data.keeps_test].replace("images", "sequences"),
                trained=f"{steps_of(experiment)} steps",
                communication=communication(sent, compared[0].seconds, devices, link) if sent else "",
                own=users_own(experiment, "sequences") is not None,
            )
        )
    return made
