"""The running statistics as the source of statistics in training too: frozen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gammabeta.functional import NormCall, normalize_by_running


@dataclass(frozen=True)
class Running:
    """The running μ and σ² in training as in evaluation: constants to the backward, which never move.

    σ² is the running variance as it is; the batches that moved it gave theirs divided by n − 1.

    For fine-tuning a pretrained network on few images. `train()` does not undo it, and `reset_running_stats()`, which
    `torch.optim.swa_utils.update_bn` calls, leaves them unchanged.

    Raises:
        ValueError: in forward, the layer has no running statistics.

    Source: Ioffe & Szegedy 2015 (1502.03167), Algorithm 2, line 11.
    """

    def normalize(self, call: NormCall) -> Tensor:
        running = call.running
        if running.mean is None or running.var is None:
            raise ValueError(
                "Running: expected a layer with running statistics, got one without: "
                "build it with track_running_stats=True, or give it another source, gammabeta.statistics.Batch()."
            )
        return normalize_by_running(call.x, (running.mean, running.var), call.affine, call.eps, call.finish)
