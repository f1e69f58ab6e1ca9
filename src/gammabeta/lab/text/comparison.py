"""Norms side by side on text: a causal Transformer over characters, trained as for layernorm_in_transformers.

Losses are those of evaluation, in which BatchNorm uses moving averages and is therefore causal. Over d devices with b
windows each, a batch holds b·d windows. Time and memory are those of b windows on one device, with the exchange of
synced statistics as modelled over ``--link``. The usual norm is LayerNorm.
"""

from collections.abc import Mapping
from typing import Any

from gammabeta.lab.comparison import LOSS, WHOM, Compared, Comparison, kept_bytes, side_by_side
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import Precision
from gammabeta.lab.links import LINKS, communication, exchange, of_synced
from gammabeta.lab.procedure import Chosen, headroom
from gammabeta.lab.sequences.networks import USERS, users_own
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import ARMS
from gammabeta.lab.text.training import (
    BATCH,
    Run,
    blind_loss,
    loss_of,
    precision_of,
    shape_of,
    shorter_of,
    steps_of,
    timed,
    trained,
)
from gammabeta.lab.trials.trial import Trial, versioned


def norms(batch_size: int, devices: int) -> dict[str, str]:
    """Return the arms with the names that readers know them by; the usual one is first."""
    found = {norm: ARMS[norm] for norm in ("layer", "rms")}
    if devices > 1:
        found |= {
            f"padded:{batch_size}": "BatchNorm of each device's own batch",
            "padded": "BatchNorm synced over the devices",
        }
    else:
        found |= {"padded": ARMS["padded"]}
    return found | {"none": ARMS["none"]}


@versioned(4)
def saved_bytes(
    *, task: Mapping[str, Any], norm: str, user: Mapping[str, Any] | None = None, **shape: int
) -> dict[str, Any]:  # fmt: skip
    """Measure memory and messages.

    Returns:
        ``bytes``: what one forward pass on a batch keeps for the backward pass. ``recomputed``: the same after
        `gammabeta.recompute`. ``messages``: the collectives of one step if its BatchNorms were synchronized
        (`gammabeta.lab.links.of_synced`).
    """
    data = load_text(task)
    at: dict[str, Any] = {"task": task, "rate": 0.0, "steps": 1, "seed": 0, "report": "validation", "user": user}
    run = Run(arm=norm, **{**at, **shape})
    model, tokens = run.build(data).train(), run.batches(data).draw()
    sent = of_synced(model, lambda: loss_of(model, tokens))
    kept = kept_bytes(model, lambda: loss_of(model, tokens))
    return {"bytes": kept.as_it_is, "recomputed": kept.with_recompute, "messages": sent}


def _precision(usual: Chosen, own: Chosen) -> Precision:
    return precision_of(usual.results, own.results)


def compare(experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Train the decoder with every norm, each replicate at its own best learning rate, and measure what it costs."""
    batch_size = batch_size or BATCH
    named = norms(batch_size, devices)
    shape = shape_of(experiment, batch_size * devices)
    steps, margin = steps_of(experiment), LOSS.margin[1]
    chosen = trained(experiment, {norm: {"arm": norm} for norm in named}, shape, margin, shorter_of(experiment))
    source, user = dict(experiment.sources["text"]), users_own(experiment, "text")
    data = load_text(source)
    plain = {norm: norm.partition(":")[0] for norm in named}
    of_one = shape_of(experiment, batch_size)
    timings = timed(experiment, list(dict.fromkeys(plain.values())), of_one)
    at = {"task": source, **of_one, **({} if user is None else {"user": dict(user)})}
    sizes = experiment.grid(
        list(named), [at], lambda norm, at: Trial(f"{__name__}:saved_bytes", {**at, "norm": plain[norm]})
    )
    link = LINKS[experiment.link]
    sent = sizes["padded"][0]["messages"] if devices > 1 else []
    exchanged = exchange(sent, devices, link) if sent else 0.0
    compared = side_by_side(
        [
            Compared(
                norm,
                name,
                chosen[norm].rate,
                tuple(result["loss"] for result in chosen[norm].results),
                tuple(timing[plain[norm]] + (exchanged if norm == "padded" else 0.0) for timing in timings),
                sizes[norm][0]["bytes"],
                recomputed=sizes[norm][0]["recomputed"],
                headroom=headroom(chosen[norm].coarse, margin),
                fragile=chosen[norm].usual_exponent + 1 in chosen[norm].lost,
            )
            for norm, name in named.items()
        ],
        LOSS,
        precisions={norm: (_precision(chosen["layer"], chosen[norm]),) * 2 for norm in named},
        confidence=experiment.confidence,
    )
    learned = min(arm.value for arm in compared) < blind_loss(data) - 0.5
    network = USERS if user is not None else f"Transformer, {shape['layers']} layers of width {shape['width']}"
    return [
        Comparison(
            "text", data.name, network, batch_size, devices, steps, LOSS, learned, compared, own=user is not None,
            whom=WHOM[True].replace("images", "windows"), trained=f"{steps} steps",
            communication=communication(sent, compared[0].seconds, devices, link) if sent else "",
        )
    ]  # fmt: skip
