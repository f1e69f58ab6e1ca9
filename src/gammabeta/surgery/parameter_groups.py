"""Which Parameters of a model decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from gammabeta.surgery.adopt import is_norm


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: weight decay on the weights, none on norms and biases.

    A norm is told by its class: torch's and gammabeta's norms with their subclasses, and any other whose class name
    ends in "Norm", as LlamaRMSNorm, or has it before digits, as LayerNorm2d. A bias is a Parameter called "bias", or
    "…_bias". A Parameter that is shared stands once, and does not decay where one of its owners is a norm. Parameters
    that require no gradient are included: optimizers leave them alone, and may be handed them before they are unfrozen.

    Args:
        model: any module.
        weight_decay: of the weights, at least 0.

    Returns:
        `[{"params", "weight_decay": weight_decay}, {"params", "weight_decay": 0.0}]`, in the order of
        `model.parameters()`; a group of none is left out.

    Raises:
        ValueError: weight_decay is negative, or the model has no Parameters.
    """
    if not weight_decay >= 0:
        raise ValueError(f"parameter_groups: expected weight_decay of at least 0, got {weight_decay}.")
    spared: set[nn.Parameter] = set()
    for module in model.modules():
        norm = _is_norm(module)
        for name, parameter in module._parameters.items():
            if parameter is not None and (norm or name == "bias" or name.endswith("_bias")):
                spared.add(parameter)
        if isinstance(getattr(module, "parametrizations", None), nn.ModuleDict) and parametrize.is_parametrized(module):
            for name, behind in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if norm or name == "bias" or name.endswith("_bias"):
                    spared |= set(behind.parameters())
    everyone = list(model.parameters())
    if not everyone:
        raise ValueError("parameter_groups: expected a model with Parameters, got one without.")
    groups = [
        {"params": [p for p in everyone if p not in spared], "weight_decay": float(weight_decay)},
        {"params": [p for p in everyone if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    return is_norm(module) or any(cls.__name__.rstrip("0123456789d").endswith("Norm") for cls in type(module).__mro__)
