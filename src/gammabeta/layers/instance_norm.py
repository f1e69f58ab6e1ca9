"""InstanceNorm: one mean and variance for each channel of each sample, over the positions."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta import arguments
from gammabeta.functional import instance_norm
from gammabeta.layers.additions import mark_ours
from gammabeta.layers.float32 import Float32State
from gammabeta.layers.integrations.unseen_by_opacus import refuse_unseen_by_opacus
from gammabeta.layers.tool_guard import ToolGuard


class _InstanceNorm(ToolGuard, Float32State, nn.modules.instancenorm._InstanceNorm):
    """torch's InstanceNorm with `activation`, `residual` and `mask`.

    y = activation((x − μ)/√(σ² + ε)·γ + β + residual), with μ and σ² (divided by n) of each channel of each sample.
    With track_running_stats the averages of μ and σ² (divided by n − 1) over the samples move the running statistics,
    which evaluation uses. Channels whose averages are not finite keep their running statistics.

    Args:
        num_features: C.
        eps: ε, in the squared unit of x.
        momentum: weight of the batch in the running statistics, 0 to 1; None means 0, as in torch's layer.
        affine: whether there are γ and β.
        track_running_stats: whether there are running statistics.
        device, dtype: of parameters and running statistics, which stay float32 in a model cast by `.half()`.
        bias: whether there is β.
        activation: None, or a name that the docstring of `gammabeta.functional` lists.
        activation_slope: leaky_relu's slope for negative values.
        keep_float32: whether a cast of the model to 16 bits leaves the layer in float32; False casts it as torch does.

    `forward(x, residual=None, mask=None)`: mask is boolean, x's shape without the channel axis.

    Source: Ulyanov, Vedaldi & Lempitsky 2016 (1607.08022).
    """

    # Set only inside a context, and so neither copied nor saved.
    holds_statistics: bool = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        activation_slope: float = 0.01,
        keep_float32: bool = True,
    ) -> None:
        arguments.activation_name(type(self).__name__, activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation
        self.activation_slope = activation_slope
        if not keep_float32:
            self.keep_float32 = False

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if residual is not None or mask is not None:
            refuse_unseen_by_opacus(self, residual, mask)
        self._check_input_dim(input)
        unbatched = input.ndim == self._get_no_batch_dim()
        feature_axis = 0 if unbatched else 1
        if unbatched:
            input = input.unsqueeze(0)
            residual = None if residual is None else residual.unsqueeze(0)
            mask = None if mask is None else mask.unsqueeze(0)
        # A nested input has no such size, and is refused below.
        known = not (self.affine or input.is_nested)
        if known and input.shape[1] != self.num_features and not torch.compiler.is_compiling():
            warnings.warn(
                f"{type(self).__name__}: input's size at dim={feature_axis} does not match num_features: expected "
                f"{self.num_features}, got {input.shape[1]}. Without affine parameters and running statistics nothing "
                "depends on num_features, and the input is normalized all the same.",
                stacklevel=2,
            )
        y = instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None or self.holds_statistics else self.momentum, self.eps,
            residual=residual, activation=self.activation, activation_slope=self.activation_slope, mask=mask,
        )  # fmt: skip
        return y.squeeze(0) if unbatched else y

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # without what compiling in place has set
        state.pop("holds_statistics", None)
        return state

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text + mark_ours(self)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    __doc__ = f"InstanceNorm of x (N, C, L) or (C, L): {_InstanceNorm.__doc__}"

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.check_rank("InstanceNorm1d", input, "(N, C, L) or (C, L)", (2, 3))


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    __doc__ = f"InstanceNorm of x (N, C, H, W) or (C, H, W): {_InstanceNorm.__doc__}"

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.check_rank("InstanceNorm2d", input, "(N, C, H, W) or (C, H, W)", (3, 4))


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    __doc__ = f"InstanceNorm of x (N, C, D, H, W) or (C, D, H, W): {_InstanceNorm.__doc__}"

    def _check_input_dim(self, input: Tensor) -> None:
        arguments.check_rank("InstanceNorm3d", input, "(N, C, D, H, W) or (C, D, H, W)", (4, 5))
