"""The small convolutional network with Dropout, several at once, and the variance that its last norm sees."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.lab.images import stacked
from gammabeta.lab.images.descent import judged
from gammabeta.lab.images.dropout_net import ConvNet, build_conv_net
from gammabeta.lab.images.stacked import Trained, results, train_together
from gammabeta.lab.images.together import GroupedLinear
from gammabeta.lab.images.training import exact_statistics


def joinable(settings: Mapping[str, Any]) -> bool:
    """Whether a trial can run together with others: all of them can."""
    return True


def dropped(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``claims.replaces_dropout:dropped`` that differ only in ``rate``, ``seed`` and split."""
    return stacked.one_by_one(_dropped, several)


def _dropped(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first = several[0]
    trained = train_together(
        several,
        make=lambda task, settings: build_conv_net(task, first["norm"], first["dropout"], settings["seed"]),
    )
    with exact_statistics(trained.model, torch.cat(trained.populations, dim=1)):
        fits = judged(trained.model, trained.own)
    ratios: Sequence[tuple[float, float] | None] = [None] * len(several)
    if first["dropout"] and first["norm"] == "batch":
        ratios = variance_ratios(trained, first["dropout"])
    return [
        {**result, "train_loss": fit.loss if finite else None, "log_ratios": ratio if finite else None}
        for result, fit, ratio, finite in zip(
            results(trained, first["report"]), fits, ratios, trained.finite, strict=True
        )
    ]


def variance_ratios(trained: Trained, dropout: float) -> list[tuple[float, float]]:
    """Return of each member two log ratios of variances, means over channels; variances divide by n − 1.

    They are of the input of the norm after the hidden linear layer, in training over evaluation with exact statistics
    of the same images, so that Dropout before the layer is the only difference: measured, and derived. With weights w
    and inputs x of the layer, the derived ratio is 1 + p/(1 − p)·Σᵢ wᵢ²·E[xᵢ²] / Var(w·x).
    """
    model, members = trained.model, len(trained.own)
    assert isinstance(model, ConvNet)
    layer = next(module for module in model.hidden if isinstance(module, GroupedLinear | nn.Linear))
    x = torch.cat(trained.populations, dim=1)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, given, output: seen.append((given[0].double(), output.double())))
    with torch.no_grad():
        with exact_statistics(model, x):
            model(x)
        # As in training, but the statistics of the norms before Dropout are still those of the same images.
        modes = [(module, module.training) for module in model.modules()]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train()
        model(x)
        for module, mode in modes:
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    hook.remove()
    (inputs, still), (_, moving) = seen[0], seen[-1]
    weight = layer.weight.detach().double().reshape(members, -1, inputs.shape[1] // members)
    squares = inputs.square().mean(dim=0).reshape(members, -1, 1)
    added = dropout / (1 - dropout) * (weight.square() @ squares).squeeze(2)
    variance = still.var(dim=0).reshape(members, -1)
    measured = torch.log(moving.var(dim=0).reshape(members, -1) / variance)
    derived = torch.log(1 + added / variance)
    alive = variance > 1e-12
    return [(float(measured[m][alive[m]].mean()), float(derived[m][alive[m]].mean())) for m in range(members)]
