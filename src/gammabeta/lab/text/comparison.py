"""Norms side by side on text: a causal Transformer over characters, trained as for layernorm_in_transformers.

Losses are those of evaluation, in which BatchNorm uses moving averages and is therefore causal. Over d devices with b
windows each, a batch holds b·d windows. Time and memory are those of b windows on one device, without communication.
The usual norm is LayerNorm.
"""

from collections.abc import Mapping
from typing import Any

import torch

from gammabeta.lab.comparison import LOSS, Compared, Comparison, kept_bytes, side_by_side
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.networks import ARMS, decoder
from gammabeta.lab.text.training import BATCH, blind_loss, loss_of, shape_of, steps_of, timed, trained, windows
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


@versioned(1)
def saved_bytes(
    *, task: Mapping[str, Any], norm: str, width: int, layers: int, context: int, batch: int
) -> dict[str, Any]:
    """Return the bytes that one forward pass on a batch keeps for the backward pass."""
    data = load_text(task)
    model = decoder(data, norm, width, layers, context, 0)
    tokens = windows(data.train_n, batch, context, torch.Generator().manual_seed(0))
    return {"bytes": kept_bytes(model, lambda: loss_of(model, tokens))}


def compare(experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Train the decoder with every norm, each at its own best learning rate, and measure what it costs."""
    batch_size = batch_size or BATCH
    named = norms(batch_size, devices)
    shape = shape_of(experiment, batch_size * devices)
    exponents, results, _ = trained(experiment, list(named), shape)
    source = dict(experiment.sources["text"])
    data = load_text(source)
    plain = {norm: norm.partition(":")[0] for norm in named}
    of_one = shape_of(experiment, batch_size)
    timings = timed(experiment, of_one)
    at = {"task": source, **of_one}
    sizes = experiment.grid(
        list(named), [at], lambda norm, at: Trial(f"{__name__}:saved_bytes", {**at, "norm": plain[norm]})
    )
    compared = side_by_side(
        [
            Compared(
                norm,
                name,
                2.0 ** exponents[norm],
                tuple(result["loss"] for result in results[norm]),
                tuple(timing[plain[norm]] for timing in timings),
                sizes[norm][0]["bytes"],
            )
            for norm, name in named.items()
        ],
        LOSS,
    )
    learned = min(arm.value for arm in compared) < blind_loss(data) - 0.5
    network = f"Transformer, {shape['layers']} layers"
    return [Comparison("text", data.name, network, batch_size, devices, steps_of(experiment), LOSS, learned, compared)]
