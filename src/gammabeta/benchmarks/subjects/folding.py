"""Inference of real networks with their norms folded away, and unchanged.

Ours is the result of `gammabeta.fold`. torch is the network as timm builds it, with random weights, statistics and
affine parameters. Both run in evaluation mode without gradients. A row is not timed if a norm was refused.
"""

from __future__ import annotations

import torch
from torch import nn

from gammabeta.benchmarks import networks
from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row
from gammabeta.surgery.fold import fold

UNIT = "ms"

SHAPE = (8, 3, 160, 160)
NETWORKS = ("mobilenetv2_100", "efficientnet_b0", "mobilenetv3_large_100", "resnet50", "regnetx_004")

missing = networks.missing


def rows(quick: bool) -> list[Row]:
    """Return each network; quick: only the first."""
    return [_row(name) for name in (NETWORKS[:1] if quick else NETWORKS)]


def _row(name: str) -> Row:
    def build(compiled: bool) -> Field:
        torch.manual_seed(0)
        model = networks.load_timm().create_model(name).eval()
        networks.randomize_norms(model)
        x = torch.randn(SHAPE)
        result = fold(model, x[:2])
        if result.refused:
            raise RuntimeError(f"{name}: expected every norm to be folded, got {len(result.refused)} refused: {result}")
        return Field({OURS: _inference(result.model, x), TORCH: _inference(model, x)})

    return Row(f"{name}, inference", SHAPE, torch.float32, "contiguous", build, at_most_of_torch=1.0)


def _inference(model: nn.Module, x: torch.Tensor) -> Contestant:
    def call() -> object:
        with torch.no_grad():
            return model(x)

    timed: Call = call
    return lambda number: timed
