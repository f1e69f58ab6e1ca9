"""Adaptations that differ only in learning rate and seed, as one stacked network."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import gammabeta as gb
from gammabeta.lab.answers import packed
from gammabeta.lab.images import stacked
from gammabeta.lab.images.descent import descend, epochs, judged
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.together import GroupedRMSNorm
from gammabeta.lab.images.training import Judged, error_and_loss, exact_statistics
from gammabeta.lab.images.transfer import Transfer, few, head, pretrained, transfer
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import canonical
from gammabeta.lab.tuning import error_then_loss

joinable = stacked.joinable
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, GroupedRMSNorm)


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How one pretrained network is adapted.

    Attributes:
        task: as :func:`gammabeta.lab.sources.load` takes it.
        network: as :func:`gammabeta.lab.images.networks.build` takes it.
        pretraining_rate: the pretraining's learning rate.
        target: one of `gammabeta.lab.images.transfer.TARGETS`. The head is drawn anew for new classes.
        arm: one of `gammabeta.lab.images.adaptation.ARMS`.
        per_class: images of each of the target's classes.
        batch_size: of the adaptation.
        images: how many images training takes in all; steps are images/batch_size.
        rate: the learning rate.
        seed: decides the pretraining, which images are drawn, their order, and a new head.
        report: the split that the error is taken from.
    """

    task: Mapping[str, Any]
    network: Mapping[str, Any]
    pretraining_rate: float
    target: str
    arm: str
    per_class: int
    batch_size: int
    images: int
    rate: float
    seed: int
    report: str = "validation"

    def start(self) -> nn.Module:
        """Return the pretrained network, which nobody else has."""
        how = {"task": self.task, "network": self.network, "rate": self.pretraining_rate, "seed": self.seed}
        norm = "group" if self.arm == "group" else "batch"
        return copy.deepcopy(pretrained(canonical({**how, "target": self.target, "norm": norm})))


def prepare(model: nn.Module, arm: str, own: Split) -> None:
    """Freeze and recalibrate the statistics as the arm requires."""
    if arm == "recalibrated":
        gb.recalibrate(model, [own.x_nchw])
    if arm not in ("all", "group", "untrained"):
        gb.freeze(model)


def choose_parameters(model: nn.Module, arm: str) -> None:
    """Let the arm's parameters be trained, and no others."""
    affine = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(False)}
    of_head = {id(parameter) for parameter in head(model).parameters()}
    for parameter in model.parameters():
        own = id(parameter)
        if arm in ("head", "affine"):
            parameter.requires_grad_(own in of_head or (arm == "affine" and own in affine))
        elif arm == "frozen_all":
            parameter.requires_grad_(own not in affine)
        else:
            parameter.requires_grad_(True)


def adapted(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``adaptation:adapted`` that differ only in ``rate``, ``seed`` and split."""
    return stacked.one_by_one(_adapted, several)


def _adapted(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    plans = [Adaptation(**settings) for settings in several]
    first = plans[0]
    parts = [transfer(load(plan.task), plan.target) for plan in plans]
    own = [few(part.pool, plan.per_class, plan.seed) for part, plan in zip(parts, plans, strict=True)]
    models, sources = [], []
    for plan, part, images in zip(plans, parts, own, strict=True):
        model = plan.start().eval()
        sources.append(1.0 - error_and_loss(model, part.source_validation)[0])
        if plan.target == "classes":
            torch.manual_seed(plan.seed)
            layer = head(model)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            layer.reset_parameters()
        prepare(model, plan.arm, images)
        models.append(model)
    whole = stacked.side_by_side(models)
    finite = [True for _ in plans]
    if first.arm != "untrained":
        choose_parameters(whole, first.arm)
        orders = [
            epochs(len(images), plan.batch_size, plan.images // plan.batch_size, plan.seed)
            for images, plan in zip(own, plans, strict=True)
        ]
        finite = descend(whole, own, orders, [plan.rate for plan in plans])
    ends = _ends(whole.eval(), plans, parts, own)
    return [
        {**_result(end, plan, good), "source_accuracy": accuracy}
        for end, plan, good, accuracy in zip(ends, plans, finite, sources, strict=True)
    ]


@dataclass(frozen=True)
class End:
    """A member's answers on the reported split and on the validation split, by running and by exact statistics."""

    running: tuple[Judged, Judged]
    exact: tuple[Judged, Judged]

    @property
    def recalibrated(self) -> bool:
        """Whether exact statistics are better on the validation split; a tie goes to the running ones."""
        return _score(self.exact[1]) < _score(self.running[1])


def _score(judged_on: Judged) -> float:
    return error_then_loss({"error": judged_on.error, "loss": judged_on.loss})


def _ends(model: nn.Module, plans: Sequence[Adaptation], parts: Sequence[Transfer], own: Sequence[Split]) -> list[End]:
    """Evaluate the members by running statistics, and the arm on batch statistics by those of its own images too."""

    def look() -> list[tuple[Judged, Judged]]:
        checks = judged(model, [part.validation for part in parts])
        if plans[0].report == "validation":
            return list(zip(checks, checks, strict=True))
        return list(zip(judged(model, [part.test for part in parts]), checks, strict=True))

    running = look()
    exact = running
    if plans[0].arm == "all":
        shortest = min(map(len, own))
        with exact_statistics(model, torch.cat([split.x_nchw[:shortest] for split in own], dim=1)):
            exact = look()
    return [End(*both) for both in zip(running, exact, strict=True)]


def _result(end: End, plan: Adaptation, finite: bool) -> dict[str, Any]:
    if not finite:
        test, check = (Judged(torch.ones_like(one.wrong), None) for one in end.running)
        end = End((test, check), (test, check))
    reported, validation = end.exact if end.recalibrated else end.running
    tested = plan.report == "test"
    return {
        "error": reported.error,
        "loss": reported.loss,
        "moving_error": end.running[0].error,
        "validation": {"error": validation.error, "loss": validation.loss} if tested else None,
        "wrong": packed(reported.wrong) if tested and load(plan.task).keeps_test else None,
        "recalibrated": end.recalibrated,
    }
