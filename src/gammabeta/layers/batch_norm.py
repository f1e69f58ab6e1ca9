"""BatchNorm: one mean and variance for each channel, over batch and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta import arguments
from gammabeta.aten import Finish
from gammabeta.distributed import agreement
from gammabeta.functional import NormCall, normalize_by_running
from gammabeta.layers.additions import mark_ours
from gammabeta.layers.converter_guard import ConverterGuard
from gammabeta.layers.float32 import Float32State
from gammabeta.layers.tool_guard import ToolGuard
from gammabeta.running_statistics import (
    GatheredMoments,
    RunningStatistics,
    carry_skipped,
    forget_skipped,
    skipped_counts,
    skipped_updates,
)
from gammabeta.statistics import Batch, Running, Statistics, Synced
from gammabeta.subclasses.parts import by_channels, in_parts


class _BatchNorm(ToolGuard, ConverterGuard, Float32State, nn.modules.batchnorm._BatchNorm):
    """torch's BatchNorm with `statistics`, `activation`, `residual` and `mask`.

    y = activation((x − μ)/√(σ² + ε)·γ + β + residual) for each channel of x. In training `statistics` chooses μ and σ²
    (by default those of the batch, σ² divided by n), and the running statistics move by
    new = (1 − momentum)·old + momentum·batch, with the variance divided by n − 1. In evaluation μ and σ² are the
    running ones.

    Args:
        num_features: C, the size of axis 1.
        eps: ε, in the squared unit of x.
        momentum: weight of the batch in the running statistics, 0 to 1; None averages all batches equally.
        affine: whether there are γ and β.
        track_running_stats: whether there are running statistics; without them evaluation uses the batch's too.
        device, dtype: of parameters and running statistics.
        bias: whether there is β.
        activation: None, or a name that the docstring of `gammabeta.functional` lists.
        activation_slope: leaky_relu's slope for negative values.
        statistics: source of the statistics in training, from `gammabeta.statistics`.
        keep_float32: whether a cast of the model to 16 bits leaves the layer in float32; False casts it as torch does.

    `forward(x, residual=None, mask=None)`: residual has x's shape; mask is boolean, x's shape without axis 1. Values
    where it is False are left out of the statistics and give zero.

    Its state_dict is that of torch's layer. It differs from torch's layer in four ways:

    - Parameters and running statistics stay float32 in a model cast by `.half()` or `.bfloat16()`.
    - A batch whose statistics are not finite leaves the running ones unchanged, channel by channel. `skipped_updates`
      counts such batches, and num_batches_tracked does not count one that moves no channel.
    - A forward repeated for activation checkpointing moves the running statistics once.
    - momentum=None compiles without a graph break.

    Source: Ioffe & Szegedy 2015 (1502.03167), Algorithms 1 and 2.
    """

    # Set only inside a context, and so neither copied nor saved.
    holds_statistics: bool = False
    gathered: GatheredMoments | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        activation_slope: float = 0.01,
        statistics: Statistics | None = None,
        keep_float32: bool = True,
    ) -> None:
        arguments.activation_name(type(self).__name__, activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation
        self.activation_slope = activation_slope
        if not keep_float32:
            self.keep_float32 = False
        self.statistics = Batch() if statistics is None else statistics
        skipped_counts(self._running())  # now: making them while compiling would cost another graph

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        try:  # three times as fast as by attribute, which falls back to nn.Module's search
            weight, bias = self._parameters["weight"], self._parameters["bias"]
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        except KeyError:  # parametrized
            weight, bias, mean, var = self.weight, self.bias, self.running_mean, self.running_var
        affine = weight, bias
        arguments.check_channels("batch_norm", input, affine, (mean, var), residual)
        finish = Finish("batch_norm", residual, self.activation, self.activation_slope, mask)
        if not self.training and not (mean is None and var is None):
            if agreement.WAIT and isinstance(self.statistics, Synced) and not torch.compiler.is_compiling():
                agreement.note_evaluation(self.statistics.peers())
            return normalize_by_running(input, (mean, var), affine, self.eps, finish)
        if self.training and self.track_running_stats:
            running = RunningStatistics(
                mean, var, self.momentum, self._tracked(),
                skipped_counts(var if mean is None else mean), self.holds_statistics, self.gathered,
            )  # fmt: skip
        elif isinstance(self.statistics, Running):  # frozen: it reads them, whether or not training would move them
            running = RunningStatistics(mean, var)
        else:
            running = RunningStatistics()
        normalize: Callable[[NormCall], Tensor] = self.statistics.normalize
        if in_parts(input, weight):
            normalize = by_channels(normalize)
        return normalize(NormCall(input, running, affine, self.eps, finish))

    def reset_running_stats(self) -> None:
        """Set running mean and counts to 0 and the variance to 1; do nothing where they are frozen (`Running`)."""
        # torch's constructor resets before there is a source.
        if isinstance(getattr(self, "statistics", None), Running):
            return
        super().reset_running_stats()
        forget_skipped(self._running())

    @property
    def skipped_updates(self) -> Tensor | None:
        """Number of batches that skipped each channel since the statistics were made, reset or loaded: int64, (C,).

        It is not part of the state_dict, which is that of torch's layer. The counts are kept when the layer is moved,
        cast, copied or pickled. None without running statistics.
        """
        running = self._running()
        return None if running is None else skipped_updates(running, self._tracked())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "running_mean" in state_dict:
            forget_skipped(self._running())

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        before = self._running()
        module = super()._apply(fn, *args, **kwargs)
        carry_skipped(before, self._running())
        skipped_counts(self._running())
        return module

    def _tracked(self) -> Tensor | None:
        try:
            return self._buffers["num_batches_tracked"]
        except KeyError:  # a plain attribute, or parametrized
            return self.num_batches_tracked

    def _running(self) -> Tensor | None:
        mean = self._buffers.get("running_mean")
        return self._buffers.get("running_var") if mean is None else mean

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # without what compiling in place has set
        state.pop("holds_statistics", None)
        state.pop("gathered", None)
        return state

    def extra_repr(self) -> str:
        statistics = "" if self.statistics == Batch() else f", statistics={self.statistics}"
        text: str = super().extra_repr()
        return text + statistics + mark_ours(self)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    __doc__ = f"BatchNorm of x (N, C) or (N, C, L): {_BatchNorm.__doc__}"

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.check_rank("BatchNorm1d", input, "(N, C) or (N, C, L)", (2, 3))


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    __doc__ = f"BatchNorm of x (N, C, H, W): {_BatchNorm.__doc__}"

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.check_rank("BatchNorm2d", input, "(N, C, H, W)", (4,))


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    __doc__ = f"BatchNorm of x (N, C, D, H, W): {_BatchNorm.__doc__}"

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.check_rank("BatchNorm3d", input, "(N, C, D, H, W)", (5,))


class BatchNorm(_BatchNorm):
    """BatchNorm of x (N, C, *positions) with any number of positions: what torch's SyncBatchNorm becomes."""

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.refuse_proxy("BatchNorm", input)
        if input.ndim < 2:
            arguments.check_rank("BatchNorm", input, "(N, C) or (N, C, *positions)", (2, 3, 4, 5))
