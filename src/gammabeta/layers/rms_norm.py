"""RMSNorm: the root mean square of each sample, over its last axes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from gammabeta import arguments
from gammabeta.functional import rms_norm
from gammabeta.layers.additions import mark_ours
from gammabeta.layers.float32 import Float32State
from gammabeta.layers.integrations.unseen_by_opacus import refuse_unseen_by_opacus
from gammabeta.layers.tool_guard import ToolGuard


class RMSNorm(ToolGuard, Float32State, nn.RMSNorm):
    """torch's RMSNorm with `activation`, `residual` and `mask`.

    y = activation(x/√(mean(x²) + ε)·γ + residual), with the mean over the last axes of each sample.

    Args:
        normalized_shape: the sizes of the normalized axes; an int means one axis.
        eps: ε, in the squared unit of x; None means the machine epsilon of the
            arithmetic: 1.2e-7, also for 16-bit x (2.2e-16 for float64 x).
        elementwise_affine: whether there is γ, of normalized_shape.
        device, dtype: of the parameter, which stays float32 in a model cast by `.half()` or `.bfloat16()`.
        activation: None, or a name that the docstring of `gammabeta.functional` lists.
        activation_slope: leaky_relu's slope for negative values.
        keep_float32: whether a cast of the model to 16 bits leaves the layer in float32; False casts it as torch does.

    `forward(x, residual=None, mask=None)`: mask is boolean, x's shape without the normalized axes. Where it is False, y
    is zero.

    Source: Zhang & Sennrich 2019 (1910.07467), eq. 4.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        activation_slope: float = 0.01,
        keep_float32: bool = True,
    ) -> None:
        arguments.activation_name("RMSNorm", activation)
        # Any integral type, including numpy's.
        shape = int(normalized_shape) if isinstance(normalized_shape, (int, Integral)) else list(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, device, dtype)
        self.activation = activation
        self.activation_slope = activation_slope
        if not keep_float32:
            self.keep_float32 = False

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if residual is not None or mask is not None:
            refuse_unseen_by_opacus(self, residual, mask)
        try:  # faster than by attribute
            weight = self._parameters["weight"]
        except KeyError:  # parametrized
            weight = self.weight
        return rms_norm(
            input, self.normalized_shape, weight, self.eps,
            residual=residual, activation=self.activation, activation_slope=self.activation_slope, mask=mask,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + mark_ours(self)
