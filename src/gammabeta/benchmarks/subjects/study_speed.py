"""The speed of a study: six training runs of one network, as the study runs them and one by one with torch.

Ours runs the six as one network of six groups, with gammabeta's norms. torch's runs them one after the other, with
torch.nn's norms and torch.optim.SGD. Both run 50 steps with batches of 32 digits; each run has its own seed and
learning rate. The time per run is a sixth of the figure; trials per second are six divided by it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row

UNIT = "ms"
STEPS, BATCH, RUNS = 50, 32, 6
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "MLP of 4 layers": {"kind": "mlp", "depth": 4, "width": 64, "activation": "relu", "init": "matched"},
    "small ResNet": {"kind": "resnet", "init": "matched"},
}
NORMS = ("batch", "group", "none")


def missing() -> str | None:
    """Return what must be installed for the digits."""
    if importlib.util.find_spec("sklearn") is None:
        return 'scikit-learn is not installed: pip install "gammabeta[study]".'
    return None


def rows(quick: bool) -> list[Row]:
    """Return each network and norm; quick: only the MLP with BatchNorm."""
    chosen = [(name, norm) for name in NETWORKS for norm in NORMS]
    return [_row(name, norm) for name, norm in (chosen[:1] if quick else chosen)]


def _row(name: str, norm: str) -> Row:
    network = NETWORKS[name]

    def build(compiled: bool) -> Field:
        return Field({OURS: _together(network, norm), TORCH: _one_by_one(network, norm)})

    return Row(
        f"{RUNS} runs of {STEPS} steps, {name}, {norm}", (BATCH, 1, 8, 8), torch.float32, "contiguous", build,
        at_most_of_torch=1.0,
    )  # fmt: skip


def _settings(network: Mapping[str, Any], norm: str) -> list[dict[str, Any]]:
    task = {"data": "digits", "fingerprint": "scikit-learn"}
    common = {"task": task, "network": dict(network), "norm": norm, "batch_size": BATCH, "steps": STEPS}
    return [{**common, "rate": 0.05 * (1 + index), "seed": index + 1} for index in range(RUNS)]


def _together(network: Mapping[str, Any], norm: str) -> Contestant:
    from gammabeta.lab.images.together import train

    settings = _settings(network, norm)

    def call() -> object:
        return train(settings)

    timed: Call = call
    return lambda number: timed


def _one_by_one(network: Mapping[str, Any], norm: str) -> Contestant:
    from gammabeta.lab.images.networks import build
    from gammabeta.lab.images.training import batches, error_and_loss
    from gammabeta.lab.sources import load

    settings = _settings(network, norm)
    data = load(settings[0]["task"])

    def call() -> object:
        errors = []
        for run in settings:
            model = with_torchs_norms(build(data, network, norm, run["seed"]))
            optimizer = torch.optim.SGD(model.parameters(), run["rate"], foreach=True)
            for x, y in batches(data.train, BATCH, STEPS, run["seed"]):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            model.eval()
            # what a trial evaluates at its end: the split twice, by moving averages and by exact statistics
            errors.append([error_and_loss(model, data.validation) for _ in range(2)])
        assert all(math.isfinite(loss or math.inf) for of_run in errors for _, loss in of_run)
        return errors

    timed: Call = call
    return lambda number: timed


def with_torchs_norms(model: nn.Module) -> nn.Module:
    """Replace gammabeta's BatchNorm and GroupNorm by torch.nn's, with the same parameters. Returns the network."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            ours: nn.Module | None = None
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                of = nn.BatchNorm2d if isinstance(child, nn.BatchNorm2d) else nn.BatchNorm1d
                ours = of(child.num_features, child.eps, child.momentum)
            elif isinstance(child, nn.GroupNorm):
                ours = nn.GroupNorm(child.num_groups, child.num_channels, child.eps)
            if ours is not None:
                ours.load_state_dict(child.state_dict())
                setattr(parent, name, ours)
    return model
