"""GroupNorm: one mean and variance for each sample and group of channels, over the group and all positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gammabeta import arguments
from gammabeta.functional import group_norm
from gammabeta.layers.additions import mark_ours
from gammabeta.layers.float32 import Float32State
from gammabeta.layers.integrations.unseen_by_opacus import refuse_unseen_by_opacus
from gammabeta.layers.tool_guard import ToolGuard


class GroupNorm(ToolGuard, Float32State, nn.GroupNorm):
    """torch's GroupNorm with `activation`, `residual` and `mask`.

    y = activation((x − μ)/√(σ² + ε)·γ + β + residual), with μ and σ² (divided by n) of each group of C/num_groups
    channels.

    Args:
        num_groups: G, a divisor of num_channels.
        num_channels: C, the size of axis 1.
        eps: ε, in the squared unit of x.
        affine: whether there are γ and β, (C,).
        device, dtype: of the parameters, which stay float32 in a model cast by `.half()` or `.bfloat16()`.
        bias: whether there is β.
        activation: None, or a name that the docstring of `gammabeta.functional` lists.
        activation_slope: leaky_relu's slope for negative values.
        keep_float32: whether a cast of the model to 16 bits leaves the layer in float32; False casts it as torch does.

    `forward(x, residual=None, mask=None)`: mask is boolean, x's shape without axis 1. Where it is False, x enters no
    statistic and y is zero.

    Source: Wu & He 2018 (1803.08494), eq. 1, 2, 6 and 7.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        activation_slope: float = 0.01,
        keep_float32: bool = True,
    ) -> None:
        arguments.activation_name("GroupNorm", activation)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)
        self.activation = activation
        self.activation_slope = activation_slope
        if not keep_float32:
            self.keep_float32 = False

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if residual is not None or mask is not None:
            refuse_unseen_by_opacus(self, residual, mask)
        try:  # faster than by attribute
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # parametrized
            weight, bias = self.weight, self.bias
        return group_norm(
            input, self.num_groups, weight, bias, self.eps,
            residual=residual, activation=self.activation, activation_slope=self.activation_slope, mask=mask,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + mark_ours(self)
