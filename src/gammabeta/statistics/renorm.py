"""The batch, corrected towards the running statistics, as the source of statistics."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gammabeta import arguments
from gammabeta.autograd import channel_moments, channel_norm_given
from gammabeta.functional import NormCall
from gammabeta.statistics.batch import Batch
from gammabeta.statistics.synced import Synced, moments_of_all


@dataclass(frozen=True)
class Renorm:
    """Batch renormalization: x̂ = (x − μ_B)/σ_B·r + d, which is (x − μ)/σ where r and d are not clipped.

        r = σ_B/σ clipped to [1/r_max, r_max]
        d = (μ_B − μ)/σ clipped to [−d_max, d_max]

    Both are constants to the backward. σ_B = √(var + ε) is that of the batch, var divided by n. μ and
    σ = √(running_var + ε) are the running statistics before they move.

    The schedule counts forwards by the layer's `num_batches_tracked`, so it continues from a checkpoint. The first
    `warmup` forwards are `Batch` (r_max = 1, d_max = 0). Over the next `r_steps` r_max grows linearly from 1, and over
    the next `d_steps` d_max grows from 0. The paper uses warmup=5000, r_steps=35000, d_steps=20000.

    Args:
        r_max: a ratio of standard deviations, at least 1; 1 with d_max = 0 is `Batch`.
        d_max: at least 0, in standard deviations.
        warmup, r_steps, d_steps: numbers of forwards in training, at least 0.
        over: the source of μ_B and σ_B: this process's batch, or with `Synced()` the batches of several.

    Raises:
        TypeError: over is another source.
        ValueError: r_max under 1; d_max or a number of steps under 0; in forward, a layer without running statistics.

    Source: Ioffe 2017 (1702.03275), Algorithm 1 and section 4.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup: int = 0
    r_steps: int = 0
    d_steps: int = 0
    over: Batch | Synced = field(default_factory=Batch)

    def __post_init__(self) -> None:
        if not (self.r_max >= 1 and self.d_max >= 0):
            raise ValueError(f"Renorm: expected r_max ≥ 1 and d_max ≥ 0, got {self.r_max} and {self.d_max}.")
        if min(self.warmup, self.r_steps, self.d_steps) < 0:
            raise ValueError(
                "Renorm: expected warmup, r_steps and d_steps of at least 0 forwards, got "
                f"{self.warmup}, {self.r_steps} and {self.d_steps}."
            )
        if not isinstance(self.over, (Batch, Synced)):
            raise TypeError(f"Renorm: expected over as Batch() or Synced(), got {self.over!r}.")

    def normalize(self, call: NormCall) -> Tensor:
        x, running, eps = call.x, call.running, call.eps
        if running.mean is None or running.var is None:
            if self.r_max == 1 and self.d_max == 0:
                return self.over.normalize(call)
            raise ValueError(
                "Renorm: expected a layer with running statistics, which the batch's are corrected towards, got "
                "track_running_stats=False: build the layer with them, or use gammabeta.statistics.Batch()."
            )
        peers = self.over.peers() if isinstance(self.over, Synced) else None
        if peers is None:
            arguments.check_values_per_channel(x)
        arguments.check_eps("batch_norm", eps, positive=True)
        finish = call.finish.of_channels(x, eps)
        with torch.no_grad():
            moments = channel_moments(x, finish.mask) if peers is None else moments_of_all(x, finish.mask, peers)
            var = moments.var()
            batch_std = torch.sqrt(var + eps)
            running_mean, running_var, forwards = _before(running.mean, running.var, running.num_batches_tracked)
            std = torch.sqrt(running_var.to(var.dtype) + eps)
            r_max, d_max = self._bounds(forwards, var)
            r = (batch_std / std).clamp(1 / r_max, r_max)
            d = ((moments.mean - running_mean.to(var.dtype)) / std).clamp(-d_max, d_max)
        # (x̂·r + d)·γ + β is a scale and shift of x̂ again, so the same op serves.
        weight, bias = call.affine
        gamma = r if weight is None else r * weight
        beta = d if weight is None else d * weight
        beta = beta if bias is None else beta + bias
        y = channel_norm_given(x, moments, (gamma, beta), finish, peers)
        running.update(moments.mean, var, moments.count)
        return y

    def _bounds(self, forwards: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return r_max and d_max after that many forwards, as tensors, so that nothing waits for the device."""
        r_max, d_max = like.new_full((), self.r_max), like.new_full((), self.d_max)
        if self.warmup == self.r_steps == self.d_steps == 0:
            return r_max, d_max
        if forwards is None:
            raise ValueError("Renorm: expected a layer with num_batches_tracked, by which its schedule goes, got None.")
        since = (forwards - self.warmup + 1).to(like.dtype)
        r_share, d_share = ((since / max(steps, 1)).clamp(0, 1) for steps in (self.r_steps, self.d_steps))
        return 1 + (r_max - 1) * r_share, d_max * d_share


def _before(mean: Tensor, var: Tensor, forwards: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Copy the three before this forward moves them.

    A compiler recomputes in the backward what it needs of them, from buffers that have moved by then. torch's own
    in-place ops have the same problem, silently. But it recomputes no op that it cannot look into, and the mean of one
    value is that value.
    """
    if not torch.compiler.is_compiling():
        return mean, var, forwards
    count = [] if forwards is None else [forwards.reshape(1).to(mean.dtype)]
    values, _, _ = torch.ops.gammabeta.channel_moments(torch.cat((mean, var, *count)).unsqueeze(0), None)
    c = mean.shape[0]
    return values[:c], values[c : 2 * c], None if forwards is None else values[2 * c]
