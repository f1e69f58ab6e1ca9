"""RMSNorm and LayerNorm by the formulas of other libraries, for layers that were adopted from these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gammabeta import arguments
from gammabeta.activations import activate
from gammabeta.functional import layer_norm, rms_norm
from gammabeta.layers.additions import describe_additions
from gammabeta.layers.form import LOW, OUTPUT, Form
from gammabeta.layers.integrations.unseen_by_opacus import refuse_unseen_by_opacus
from gammabeta.layers.layer_norm import LayerNorm
from gammabeta.layers.rms_norm import RMSNorm


class _Formed(nn.Module):
    """A norm that computes its `form`, with activation, residual and mask as all of ours.

    A layer that a cast of the model left in float32 rounds once, to its input's dtype: the class that it had would
    have been cast too, and would not have changed the dtype of what goes through it.

    Attributes:
        form: what it computes.
        stayed_float32: the dtype of the cast that left it in float32; None where none did.
    """

    form: Form
    stayed_float32: torch.dtype | None = None
    activation: str | None
    activation_slope: float
    normalized_shape: tuple[int, ...]

    def _stayed_float32(self, dtype: torch.dtype) -> None:
        self.stayed_float32 = dtype

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0, for a class that had no `reset_parameters`."""
        form = self.form
        with torch.no_grad():
            for name, value in ((form.weight, 1.0 - form.offset), (form.bias, 0.0)):
                held = self._held(name)
                if held is not None:
                    held.fill_(value)

    def _held(self, name: str | None) -> Tensor | None:
        held: Tensor | None = None if name is None else getattr(self, name)
        return held

    def _normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, **more: Any) -> Tensor:
        # A norm without weight may not know its size.
        shape = x.shape[-1:] if weight is None else (self.form.size,)
        if self.form.kind == "rms":
            return rms_norm(x, shape, weight, self._epsilon, **more)
        return layer_norm(x, shape, weight, bias, self._epsilon, **more)

    def forward(
        self, input: Tensor | None = None, residual: Tensor | None = None, mask: Tensor | None = None, **named: Tensor
    ) -> Tensor:
        if input is None or named:
            input = self._named(input, named)
        if residual is not None or mask is not None:
            refuse_unseen_by_opacus(self, residual, mask)
        arguments.refuse_proxy(type(self).__name__, input)
        form = self.form
        if form.axis == -1:
            return form.laid_out(self._last(input, residual, mask), input)
        if form.ranks and input.ndim not in form.ranks:
            self._refuse_rank(input)
        y = self._last(input.movedim(1, -1), None if residual is None else residual.movedim(1, -1), mask)
        return form.laid_out(y.movedim(-1, 1), input)

    def _named(self, input: Tensor | None, named: dict[str, Tensor]) -> Tensor:
        """Return the input, where it is given by the name that it has in the class."""
        argument = self.form.argument
        if input is None and list(named) == [argument]:
            return named[argument]
        given = [*([] if input is None else ["input"]), *named]
        raise TypeError(
            f"{type(self).__name__}: expected one input, by position or as {argument}, and residual and mask at most, "
            f"got {' and '.join(given) or 'none'}: pass the tensor to be normalized first."
        )

    @property
    def _epsilon(self) -> float:
        held: float = self.form.eps if self.form.epsilon is None else getattr(self, self.form.epsilon)
        return held

    def _refuse_rank(self, x: Tensor) -> None:
        ranks, name = " or ".join(map(str, self.form.ranks)), type(self).__name__
        raise ValueError(
            f"{name}: expected an input of {ranks} axes with the channels on axis 1, got {x.ndim} axes from input "
            f"{tuple(x.shape)}: {name} was adopted by what it computes of {ranks} axes, and need not take axis 1 of "
            "others. gammabeta.release gives the layer its own class back."
        )

    def _last(self, x: Tensor, residual: Tensor | None, mask: Tensor | None) -> Tensor:
        """Compute the form over the last axis."""
        form, weight, bias = self.form, self._held(self.form.weight), self._held(self.form.bias)
        scale = form.scale(weight)
        bias = None if bias is None else bias.reshape(-1)
        middle, out = None, x.dtype
        if weight is not None and self.stayed_float32 is None and form.rounds != OUTPUT:
            middle, out = form.rounded_to(x.dtype, weight.dtype), form.result(x.dtype, weight, bias)
        # Our RMSNorm has no β.
        added = bias if form.kind == "rms" or middle is not None else None
        if middle is None and added is None:
            x = x if x.dtype == out else x.to(out)
            more = {"residual": residual, "activation": self.activation, "activation_slope": self.activation_slope}
            return self._normalize(x, scale, bias, mask=mask, **more)
        if middle is None:
            y = self._normalize(x.float() if x.dtype in LOW else x, scale, None)
        else:
            # x̂ is rounded before it is multiplied, so that the results have the bits of the class.
            x = x if x.dtype == middle or x.dtype not in LOW else x.float()
            y = self._normalize(x, None, None).to(middle)
            y = y if scale is None else y * scale
        y = (y if added is None else y + added).to(out)
        y = activate(y if residual is None else y + residual, self.activation or "none", self.activation_slope)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)

    def extra_repr(self) -> str:
        form = self.form
        name = "RMSNorm" if form.kind == "rms" else "LayerNorm"
        parts = [f"gammabeta's {name}" + (f", {form.size}" if form.weight else ""), f"eps={self._epsilon}"]
        parts += [] if form.axis == -1 else ["axis=1"]
        parts += ["scale=1 + " + form.weight] if form.offset and form.weight else []
        parts += [] if form.weight else ["no weight"]
        return ", ".join(parts) + describe_additions(self)


class FormedRMSNorm(_Formed, RMSNorm):  # type: ignore[misc]  # input may be given by another name
    """RMSNorm by the formula of another library's class."""


class FormedLayerNorm(_Formed, LayerNorm):
    """LayerNorm by the formula of another library's class."""

    def _stayed_float32(self, dtype: torch.dtype) -> None:
        _Formed._stayed_float32(self, dtype)
        LayerNorm._stayed_float32(self, dtype)


FORMED: dict[str, type[nn.Module]] = {"rms": FormedRMSNorm, "layer": FormedLayerNorm}
"""The class for each kind of form."""
