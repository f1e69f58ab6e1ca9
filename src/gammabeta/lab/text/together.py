"""Several training runs on text as one: decoders of one shape side by side (`gammabeta.lab.sequences.stacked`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gammabeta.lab.sequences.stacked import AdamW, put_back, stack, stackable
from gammabeta.lab.sources import load_text
from gammabeta.lab.text.training import CLIP, DECAY, Judge, Run, losses_of

# With more activations in a batch a step is arithmetic, of which stacking saves nothing: 16 windows of 48 characters at
# width 48 take 0.95 to 1.2 times as long one by one, at width 128 0.85 to 0.97 times.
MOST_ACTIVATIONS = 16 * 32 * 32


def joinable(settings: Mapping[str, Any]) -> bool:
    """Whether a trial of ``training:language_model`` can run together with others, and gains by it."""
    small = settings["batch"] * settings["context"] * settings["width"] <= MOST_ACTIVATIONS
    return small and settings.get("user") is None and stackable(settings["arm"])


def language_model(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``training:language_model`` that differ only in ``rate``, ``seed`` and split; equal to rounding."""
    runs = [Run(**settings) for settings in several]
    data = [load_text(run.task) for run in runs]
    models = [run.build(task).train() for run, task in zip(runs, data, strict=True)]
    judges = [Judge(run, task) for run, task in zip(runs, data, strict=True)]
    batches = [run.batches(task) for run, task in zip(runs, data, strict=True)]
    whole = stack(models).train()
    optimizer = AdamW(whole, [run.rate for run in runs], DECAY, CLIP)
    finite = torch.ones(len(runs), dtype=torch.bool)
    for step in range(1, runs[0].steps + 1):
        losses = losses_of(whole, torch.stack([each.draw() for each in batches])).mean(dim=1)
        finite &= torch.isfinite(losses.detach())
        if not finite.any():
            break
        optimizer.step(losses, runs[0].rate_factor(step))
        if step % 100 == 0:
            put_back(whole, models)
            for judge, model, good in zip(judges, models, finite.tolist(), strict=True):
                if good:
                    judge.look(step, model)
    put_back(whole, models)
    return [
        judge.result(model if good else None)
        for judge, model, good in zip(judges, models, finite.tolist(), strict=True)
    ]
