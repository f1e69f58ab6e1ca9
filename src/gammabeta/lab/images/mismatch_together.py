"""Networks with running statistics of any momentum, evaluated with them and with recalibrated ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gammabeta.lab.images import stacked
from gammabeta.lab.images.corruption import corrupted
from gammabeta.lab.images.stacked import Trained, judge_both, result_of, train_together
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.training import exact_statistics

joinable = stacked.joinable
SHIFT = "noise"


def mismatch(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``claims.train_eval_mismatch:mismatch`` that differ only in ``rate``, ``seed`` and split."""
    return stacked.one_by_one(_mismatch, several)


def _batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _mismatch(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    def prepare(model: nn.Module) -> None:
        for layer in _batch_norms(model):
            layer.momentum = several[0]["momentum"]

    trained = train_together([{**settings, "norm": "batch"} for settings in several], prepare)
    seeds, tested = [settings["seed"] for settings in several], several[0]["report"] == "test"
    checks = [task.validation for task in trained.tasks]
    ends = [task.test for task in trained.tasks] if tested else checks
    usual = [judge_both(trained, splits, trained.populations) for splits in (ends, checks)]
    shifted = [
        judge_both(
            trained,
            [Split(corrupted(split.x_nchw, SHIFT, seed), split.y_n) for split, seed in zip(splits, seeds, strict=True)],
            [corrupted(x, SHIFT, seed + 1) for x, seed in zip(trained.populations, seeds, strict=True)],
        )
        for splits in (ends, checks)
    ]
    gaps = _gaps(trained, len(several))
    return [
        {
            **result_of([of[member] for of in usual], trained, member, tested),
            "shifted": result_of([of[member] for of in shifted], trained, member, tested),
            "gaps": gaps[member] if trained.finite[member] else [],
        }
        for member in range(len(several))
    ]


def _gaps(trained: Trained, members: int) -> list[list[float]]:
    """Return by member and layer the root mean square over channels of the mean's gap, in standard deviations.

    The standard deviation divides by the count less 1, as running variances do.
    """
    layers = _batch_norms(trained.model)
    running = [layer.running_mean.clone() for layer in layers]
    with exact_statistics(trained.model, torch.cat(trained.populations, dim=1)):
        shifts = [
            ((mean - layer.running_mean) / (layer.running_var + layer.eps).sqrt()).reshape(members, -1)
            for mean, layer in zip(running, layers, strict=True)
        ]
    rms = [shift.square().mean(dim=1).sqrt() for shift in shifts]
    return [[float(of_layer[member]) for of_layer in rms] for member in range(members)]
