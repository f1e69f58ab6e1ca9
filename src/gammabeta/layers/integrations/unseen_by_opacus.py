"""Refusal of arguments that Opacus does not record, and without which its per-sample gradients would be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_unseen_by_opacus(layer: Any, residual: Tensor | None, mask: Tensor | None) -> None:
    """Raise where Opacus has hooks on the layer and the call has a mask, or a residual with an activation.

    Opacus computes the gradients of each sample from a layer's input and the gradient of its output. A mask changes the
    statistics, and a residual shifts z before the activation. Opacus would ignore both without saying so.
    """
    given = "mask" if mask is not None else "residual"
    if (given == "residual" and (residual is None or layer.activation is None)) or torch.compiler.is_compiling():
        return
    for hook in layer._forward_hooks.values():
        if type(getattr(hook, "__self__", None)).__module__.startswith("opacus."):
            raise TypeError(
                f"{type(layer).__name__}: expected an input only, got a {given} while Opacus records the layer's "
                "calls, which does not see it and would compute wrong gradients for each sample. Call the layer "
                "without: multiply by the mask, or add the residual and apply the activation, outside of the layer."
            )
