"""Several training runs on sequences as one: networks of one shape side by side (:mod:`.stacked`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.sequences.stacked import AdamW, put_back, stack, stackable
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.sequences.training import Run
from gammabeta.lab.sources import load_sequences


def joinable(settings: Mapping[str, Any]) -> bool:
    """Whether a trial of ``training:classified`` can run together with others: its network is known to stack."""
    return isinstance(settings["network"], str) and stackable(settings["arm"])


def batch_of(data: Sequence[SequenceTask], places: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the members' sequences (S, n, time, features), padded to the longest of all, with mask and labels."""
    lengths = torch.stack([task.train.lengths_n[index] for task, index in zip(data, places, strict=True)])
    longest = int(lengths.max())
    x = torch.stack(
        [_padded(task.train.x_ntf[index], longest) for task, index in zip(data, places, strict=True)]
    )  # fmt: skip
    y = torch.stack([task.train.y_n[index] for task, index in zip(data, places, strict=True)])
    return x, gb.lengths_to_mask(lengths.flatten(), longest).view(*lengths.shape, -1), y


def _padded(x_ntf: Tensor, longest: int) -> Tensor:
    return functional.pad(x_ntf[:, :longest], (0, 0, 0, max(0, longest - x_ntf.shape[1])))


def classified(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``training:classified`` that differ only in ``rate``, ``seed`` and split; equal to rounding."""
    runs = [Run(**settings) for settings in several]
    data = [load_sequences(run.task) for run in runs]
    models = [run.build(task) for run, task in zip(runs, data, strict=True)]
    whole = stack(models).train()
    optimizer = AdamW(whole, [run.rate for run in runs])
    places = [run.places(task) for run, task in zip(runs, data, strict=True)]
    finite = torch.ones(len(runs), dtype=torch.bool)
    for step, of_step in enumerate(zip(*places, strict=True), start=1):
        x, mask, y = batch_of(data, of_step)
        scores = whole(x, mask)
        losses = functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
        finite &= torch.isfinite(losses.detach())
        if not finite.any():
            break
        optimizer.step(losses, runs[0].rate_factor(step))
    put_back(whole, models)
    return [
        run.result(task, model if bool(good) else None)
        for run, task, model, good in zip(runs, data, models, finite, strict=True)
    ]
