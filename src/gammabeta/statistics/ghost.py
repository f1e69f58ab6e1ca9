"""Sub-batches of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gammabeta import arguments
from gammabeta.autograd import channel_norm
from gammabeta.functional import NormCall, normalize_by_batch
from gammabeta.moments import Moments


@dataclass(frozen=True)
class Ghost:
    """μ and σ² (divided by n) of each sub-batch of `size` samples in turn; the last one may be smaller.

    The running statistics move once, by the merged moments of all sub-batches. These are the moments of the whole
    batch, so evaluation uses those of the population. With a size of at least the batch size it is `Batch`, to the bit.

    Args:
        size: number of samples of a sub-batch, at least 1.

    Raises:
        ValueError: size is under 1, or (in forward) a sub-batch has one value per channel.

    Source: Hoffer, Hubara & Soudry 2017 (1705.08741), section 4. Their running statistics follow each ghost batch.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Ghost: expected size of at least 1 sample, got {self.size}.")

    def normalize(self, call: NormCall) -> Tensor:
        x, running = call.x, call.running
        if self.size >= x.shape[0]:
            return normalize_by_batch(call)
        arguments.check_eps("batch_norm", call.eps, positive=True)
        finish = call.finish.of_channels(x, call.eps)
        outputs, moments = [], []
        for start in range(0, x.shape[0], self.size):
            part = slice(start, start + self.size)
            arguments.check_values_per_channel(x[part])
            of_part = finish._replace(
                residual=None if finish.residual is None else finish.residual[part],
                mask=None if finish.mask is None else finish.mask[part],
            )
            y, mean, var, count = channel_norm(x[part], call.affine, of_part)
            outputs.append(y)
            moments.append(Moments(count, mean, var * count.to(var.dtype)))
        if running.tracked:
            merged = Moments.merge_all(moments)
            running.update(merged.mean, merged.var(), merged.count)
        return torch.cat(outputs)
