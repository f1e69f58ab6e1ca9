"""LayerNorm: one mean and variance for each sample, over its last axes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta import arguments
from gammabeta.functional import layer_norm
from gammabeta.layers.additions import mark_ours
from gammabeta.layers.float32 import Float32State
from gammabeta.layers.integrations.unseen_by_opacus import refuse_unseen_by_opacus
from gammabeta.layers.tool_guard import ToolGuard


def computes_itself(*_: Any) -> None:
    """Do nothing: a forward hook whose presence is all that counts.

    In evaluation torch.nn.TransformerEncoderLayer passes the weights of its norms to one fused op, which applies no
    activation and takes one dtype. It does so only where none of its modules has a hook.
    """


def _keep_to_forward(layer: nn.Module) -> None:
    if computes_itself not in layer._forward_hooks.values():
        layer.register_forward_hook(computes_itself)


class LayerNorm(ToolGuard, Float32State, nn.LayerNorm):
    """torch's LayerNorm with `activation`, `residual` and `mask`.

    y = activation((x − μ)/√(σ² + ε)·γ + β + residual), with μ and σ² (divided by n) over the last axes of each sample.

    Args:
        normalized_shape: the sizes of the normalized axes; an int means one axis.
        eps: ε, in the squared unit of x.
        elementwise_affine: whether there are γ and β, of normalized_shape.
        bias: whether there is β.
        device, dtype: of the parameters, which stay float32 in a model cast by `.half()` or `.bfloat16()`.
        activation: None, or a name that the docstring of `gammabeta.functional` lists.
        activation_slope: leaky_relu's slope for negative values.
        keep_float32: whether a cast of the model to 16 bits leaves the layer in float32; False casts it as torch does.

    `forward(x, residual=None, mask=None)`: mask is boolean, x's shape without the normalized axes. Where it is False, y
    is zero.

    Source: Ba, Kiros & Hinton 2016 (1607.06450), eq. 3.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        activation_slope: float = 0.01,
        keep_float32: bool = True,
    ) -> None:
        arguments.activation_name("LayerNorm", activation)
        # Any integral type, including numpy's.
        shape = int(normalized_shape) if isinstance(normalized_shape, (int, Integral)) else list(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, bias, device, dtype)
        self.activation = activation
        self.activation_slope = activation_slope
        if not keep_float32:
            self.keep_float32 = False
        if activation is not None:
            _keep_to_forward(self)

    def _stayed_float32(self, dtype: torch.dtype) -> None:
        _keep_to_forward(self)

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if residual is not None or mask is not None:
            refuse_unseen_by_opacus(self, residual, mask)
        try:  # faster than by attribute
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # parametrized
            weight, bias = self.weight, self.bias
        return layer_norm(
            input, self.normalized_shape, weight, bias, self.eps,
            residual=residual, activation=self.activation, activation_slope=self.activation_slope, mask=mask,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + mark_ours(self)
