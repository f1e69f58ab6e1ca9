"""Groups of Parameters for an optimizer, with and without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from gammabeta.introspection.norms import STATISTICS, norm_of


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Build groups for an optimizer: weight decay on the weights, none on norms and biases.

    Norms are torch's and gammabeta's, with their subclasses, and those of other libraries: a module with a class, or
    base class, whose name ends in "Norm", as LlamaRMSNorm, or has it before digits, as LayerNorm2d; and what `check`
    takes for a norm by its name. Of a module that holds a running mean and variance the vectors are spared.

    A bias is a Parameter called "bias", or "…_bias". A shared Parameter appears once, and does not decay where one of
    its owners is a norm. Parameters that require no gradient are included: optimizers leave them alone until they are
    unfrozen.

    Args:
        model: any module.
        weight_decay: for the weights, at least 0: a factor, passed on to the optimizer as it is.

    Returns:
        `[{"params", "weight_decay": weight_decay}, {"params", "weight_decay": 0.0}]`, in the order of
        `model.parameters()`. An empty group is left out.

    Raises:
        ValueError: `weight_decay` is negative, or the model has no Parameters.
    """
    if not weight_decay >= 0:
        raise ValueError(f"parameter_groups: expected weight_decay of at least 0, got {weight_decay}.")
    spared: set[nn.Parameter] = set()
    for module in model.modules():
        norm = norm_of(module, probe=True)
        # A module known only by its running statistics may be a layer and its norm in one, with a weight that decays.
        whole = norm is not None and norm.known_by != STATISTICS
        for name, parameter in module._parameters.items():
            vector = norm is not None and parameter is not None and parameter.ndim == 1
            if parameter is not None and (whole or vector or _is_bias(name)):
                spared.add(parameter)
        if isinstance(getattr(module, "parametrizations", None), nn.ModuleDict) and parametrize.is_parametrized(module):
            for name, behind in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if whole or _is_bias(name):
                    spared |= set(behind.parameters())
    everyone = list(model.parameters())
    if not everyone:
        raise ValueError("parameter_groups: expected a model with Parameters, got one without.")
    groups = [
        {"params": [p for p in everyone if p not in spared], "weight_decay": float(weight_decay)},
        {"params": [p for p in everyone if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_bias(name: str) -> bool:
    return name == "bias" or name.endswith("_bias")
