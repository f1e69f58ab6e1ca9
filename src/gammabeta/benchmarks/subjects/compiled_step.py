"""Networks under torch.compile: a training step with our norms and with torch's, and inference with norms folded away.

| row | ours | torch |
|---|---|---|
| training step | a copy after `gammabeta.adopt`, compiled | the network as its library builds it, compiled |
| inference | the result of `gammabeta.fold`, compiled | the network in evaluation, compiled |

Inductor compiles both, for the row's shapes and number of threads, and forgets what it compiled for earlier rows. The
networks are those of `training_step`. Rows of dtype bfloat16 run their forward under autocast, with float32 weights.
They are contiguous only, since a row costs two compilations. Inference has the networks with BatchNorms, with random
statistics and affine parameters, and runs without gradients.

Before a training step is timed, outputs, gradients and running statistics of both compiled networks are compared with
those in float64, as in `training_step`. `fold` compares its result itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gammabeta.benchmarks import networks
from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row
from gammabeta.benchmarks.networks import NETWORKS, Batch, Network, in_layout, randomize_norms
from gammabeta.benchmarks.ring import LAYOUTS
from gammabeta.benchmarks.step import check_step, steps
from gammabeta.surgery.adopt import adopt
from gammabeta.surgery.fold import fold

UNIT = "ms"
NAMES = {OURS: "gammabeta, compiled", TORCH: "torch, compiled"}
COMPILES = True

AT_MOST = 1.0
OBSERVED = 2  # samples on which `fold` compares

missing = networks.missing


def rows(quick: bool) -> list[Row]:
    """Return the training steps, then inference; quick: the first network only, contiguous and in float32."""
    if quick:
        return [_training(NETWORKS[0], "contiguous", torch.float32), _inference(NETWORKS[0])]
    cases = [(layout, torch.float32) for layout in LAYOUTS] + [("contiguous", torch.bfloat16)]
    steps_ = [_training(n, layout, dtype) for n in NETWORKS for layout, dtype in cases if layout in n.layouts]
    return steps_ + [_inference(network) for network in NETWORKS if network.batch_norms]


def _training(network: Network, layout: str, dtype: torch.dtype) -> Row:
    def build(compiled: bool) -> Field:
        reason = network.missing()
        return Field({}, refused={OURS: reason}) if reason is not None else training_field(network, layout, dtype)

    return Row(f"{network.name}, training step", network.shape, dtype, layout, build, at_most_of_torch=AT_MOST)


def training_field(network: Network, layout: str, dtype: torch.dtype) -> Field:
    """Return both compiled networks, compared with float64; without them, why one of them does not run."""
    theirs = in_layout(network.seeded(), layout)
    ours = copy.deepcopy(theirs)
    adopt(ours)
    batch = network.batches(layout)[0]
    compiled = _compiled(theirs, ours)
    try:
        check_step(network, compiled[TORCH], {OURS: compiled[OURS]}, batch, dtype, exactly=theirs)
    except Exception as error:  # whatever a compiler raises
        return Field({}, refused={OURS: _first_line(error)})
    return Field({name: steps(network, model, layout, dtype) for name, model in compiled.items()})


def _inference(network: Network) -> Row:
    def build(compiled: bool) -> Field:
        return inference_field(network)

    shape, dtype = network.shape, torch.float32
    return Row(f"{network.name}, inference", shape, dtype, "contiguous", build, at_most_of_torch=AT_MOST)


def inference_field(network: Network) -> Field:
    """Return both compiled networks in evaluation; without them, why one of them does not run."""
    model = network.seeded().eval()
    randomize_norms(model)
    batch = network.batches("contiguous")[0]
    folded = fold(model, batch.first(OBSERVED).inputs, forward=lambda m, given: network.call(m, given))
    compiled = _compiled(model, folded.model)
    contestants = {name: _evaluations(network, each, batch) for name, each in compiled.items()}
    try:
        for contestant in contestants.values():
            contestant(0)()
    except Exception as error:  # whatever a compiler raises
        return Field({}, refused={OURS: _first_line(error)})
    return Field(contestants)


def _compiled(theirs: nn.Module, ours: nn.Module) -> dict[str, nn.Module]:
    """Compile both networks for the shapes that they are called with, forgetting what was compiled for other rows."""
    torch._dynamo.reset()
    pair: Any = {TORCH: torch.compile(theirs, dynamic=False), OURS: torch.compile(ours, dynamic=False)}
    compiled: dict[str, nn.Module] = pair
    return compiled


def _evaluations(network: Network, model: nn.Module, batch: Batch) -> Contestant:
    def call() -> object:
        with torch.no_grad():
            return network.call(model, batch.inputs)

    timed: Call = call
    return lambda number: timed


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
