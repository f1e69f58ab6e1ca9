"""Measurement of the norms' inputs as training would give them: behind BatchNorms that normalize by the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.measurement import Given
from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.unchanged import unchanged
from gammabeta.surgery.recalibrate import measuring, why_not_recalibrated


def measure_as_training(
    model: nn.Module, inputs: Any, layers: Mapping[str, nn.Module], forward: Forward | None = None
) -> dict[str, tuple[Given, ...]]:
    """Measure the inputs of BatchNorms as `run_as_training` does, without the outputs."""
    return run_as_training(model, inputs, layers, forward)[1]


def run_as_training(
    model: nn.Module, inputs: Any, layers: Mapping[str, nn.Module], forward: Forward | None = None
) -> tuple[Any, dict[str, tuple[Given, ...]]]:
    """Run a forward in which each of some BatchNorms normalizes by the batch, and measure their inputs; dropout is off.

    In evaluation, a layer behind one with wrong statistics is given other inputs than in training. Here it is not: what
    differs from its running statistics differs by itself. The model stays as it was.

    Args:
        model: any eager module.
        inputs: as for `observe`.
        layers: BatchNorms of the model, by name; those that cannot normalize by the batch are left as they are.
        forward: as for `observe`.

    Returns:
        The model's result, and by name one measurement per call. None and nothing if the forward raises, as it does on
        a batch with one value per channel.
    """
    measured = {name: layer for name, layer in layers.items() if why_not_recalibrated(layer) is None}
    found: dict[str, _Calls] = {name: _Calls() for name in measured}
    run, given = forward_batch("check", forward), copied(inputs)
    try:
        with (
            unchanged(model),
            torch.no_grad(),
            eagerly(),
            measuring(model, measured, found, by_batch=True),
        ):
            out = run(model, given)
    except Exception:
        return None, {}
    return out, {name: tuple(calls.given) for name, calls in found.items()}


class _Calls:
    """The measurements of one layer's inputs."""

    def __init__(self) -> None:
        self.given: list[Given] = []

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim >= 2 and x.numel() > 0:
            self.given.append(Given.of(x))
