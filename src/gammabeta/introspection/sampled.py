"""The moments of one batch, with their sampling error estimated from the batch itself.

Positions of one sample are correlated; samples are not. The error therefore comes from how much the samples' own means
differ, which needs no model of the correlation: var(mean) = var over samples of (mean over positions)/N. The effective
number of values is how many independent values would have this error: σ²/var(mean).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gammabeta import ops

# A batch of a single sample is divided into this many pieces.
_PIECES = 8


class Sampled(NamedTuple):
    """Moments of a batch, by channel.

    Attributes:
        mean, var: (C,); the variance is divided by n.
        error: (C,), the variance of the mean; NaN where one sample is too small to estimate it.
        samples: N.
    """

    mean: Tensor
    var: Tensor
    error: Tensor
    samples: int

    def effective(self) -> Tensor:
        """Return the effective number of values, a scalar: σ²/var(mean), of all channels together.

        The batch's variance about its own mean is σ² − var(mean) on average, however its positions are correlated, so
        var + error is an estimate of σ² without bias. On (N, C) the number is exactly N. Elsewhere it tends to the
        truth with N; of two samples whose positions are half alike it is high by 0.4 of it, of eight by 0.06.
        """
        # In units of each channel's own variance, every channel counts equally.
        total = self.var + self.error
        live = self.var > 0
        share = torch.where(live, self.error / torch.where(live, total, 1.0), 0.0).sum() / live.sum()
        return 1 / share


def sample(x: Tensor) -> Sampled | None:
    """Return the moments of x (N, C, …); None where x is empty or has no channel axis."""
    if x.dim() < 2 or x.numel() == 0:
        return None
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    axes = tuple(range(2, x.dim()))
    if axes and x.is_contiguous() and x.device.type == "cpu" and ops.has_kernel("cpu"):
        # One pass at the speed of memory, which takes each channel of each sample for a channel.
        mean, m2, _ = torch.ops.gammabeta.channel_moments(x.flatten(2).flatten(0, 1)[None], None)
        mean_NC, var_NC = mean.view(x.shape[:2]), (m2 / x[0, 0].numel()).view(x.shape[:2])
    elif axes:
        var_NC, mean_NC = torch.var_mean(x, axes, correction=0)
    else:
        var_NC, mean_NC = torch.zeros_like(x), x
    mean = mean_NC.mean(0)
    var = var_NC.mean(0) + mean_NC.var(0, correction=0)
    if x.shape[0] > 1:
        error = mean_NC.var(0, correction=1) / x.shape[0]
    else:
        pieces = x[0].flatten(1)
        length = pieces.shape[1] // _PIECES
        if length < 2:
            error = torch.full_like(mean, torch.nan)
        else:
            means = pieces[:, : length * _PIECES].reshape(x.shape[1], _PIECES, length).mean(2)
            error = means.var(1, correction=1) / _PIECES
    return Sampled(mean, var, error, x.shape[0])


def mean_distance(one: Sampled, other: Sampled) -> Tensor:
    """Return the distance between the means of two batches, (2,).

    The first value is the squared distance over its expectation under sampling, which is 1 where both batches are
    samples of one distribution. The second is the distance in standard deviations, then √(2/n) of n effective values.
    """
    spread = 0.5 * (one.var + one.error + other.var + other.error)  # σ² without bias, as in `effective`
    live = spread > 0
    scale = torch.where(live, spread, 1.0)
    squared = torch.where(live, (one.mean - other.mean).square() / scale, 0.0).sum()
    errors = torch.where(live, (one.error + other.error) / scale, 0.0).sum()
    return torch.stack((squared / errors, (squared / live.sum()).sqrt()))


class InputOrder:
    """A measure of how much more successive batches differ than shuffled ones would.

    It looks at the model's input, which does not drift as the inputs of layers do while the model learns. One tensor
    keeps, for the last 64 batches, the means of up to 128 features and their errors.
    """

    FEATURES, WINDOW, LEAST = 128, 64, 16

    def __init__(self) -> None:
        self._ring: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self._seen = 0

    def add(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[0] < 2 or not x.is_floating_point():
            return
        features = _thinned(x, self.FEATURES)
        if self._ring is None or self._shape != tuple(x.shape[1:]) or self._ring.device != x.device:
            self._shape, self._seen = tuple(x.shape[1:]), 0
            self._ring = torch.zeros(self.WINDOW, 2, features.shape[1], device=x.device)
        var, mean = torch.var_mean(features, 0, correction=1)
        row = self._ring[self._seen % self.WINDOW]
        row[0], row[1] = mean, var / x.shape[0]
        self._seen += 1
        self._samples = x.shape[0]

    def measure(self) -> Tensor | None:
        """Return (2,): the variance between batches over that of shuffled ones, and its root over σ.

        None while fewer than LEAST batches were added.
        """
        count = min(self._seen, self.WINDOW)
        if self._ring is None or count < self.LEAST:
            return None
        means, errors = self._ring[:count].unbind(1)
        between, error = means.var(0, correction=1), errors.mean(0)
        total = between + error * self._samples
        live = total > 0
        scale = torch.where(live, total, 1.0)
        between, error = (torch.where(live, part / scale, 0.0).sum() for part in (between, error))
        return torch.stack((between / error, (between / live.sum()).sqrt()))


def _thinned(x: Tensor, most: int) -> Tensor:
    """Return x's values on a coarse grid, (N, F) with F at most `most`."""
    axes = x.dim() - 1
    each = max(1, int(most ** (1 / axes) + 1e-9)) if axes > 1 else most
    for axis in range(1, x.dim()):
        step = -(-x.shape[axis] // each)
        if step > 1:
            x = x[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return x.float().flatten(1)[:, :most]
