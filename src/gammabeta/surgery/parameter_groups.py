"""Groups of Parameters for an optimizer, with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from gammabeta.introspection.norms import STATISTICS, norm_of


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Build groups for an optimizer: weight decay on the weights, none on norms, biases and scales.

    Without decay are:

    - Parameters of norms. Norms are torch's and gammabeta's, with their subclasses, and those of other libraries: a
      module with a class, or base class, whose name ends in "Norm", as LlamaRMSNorm, or has it before digits, as
      LayerNorm2d; and what `check` takes for a norm by its name. Of a module that holds a running mean and variance
      the vectors are spared.
    - Biases: Parameters called "bias", "…_bias" or "bias_…", as `bias_ih_l0` of an LSTM or GRU and `in_proj_bias` of
      an attention.
    - All other Parameters of one axis or none, whatever they are called: scales such as LayerScale's and CLIP's
      `logit_scale`, and a weight of PReLU. So are those with further axes of length 1 that are not called "weight", as
      ConvNeXt's `layer_scale`. In a model that FSDP1 has flattened the number of axes says nothing, and
      this is left out: build the groups before wrapping it.
    - What the model asks for itself: the names that a module's `no_weight_decay()` gives, as timm's do, names that
      contain a word of its `no_weight_decay_keywords()`, and Parameters with a true `_no_weight_decay`, as Mamba's.

    So position embeddings decay unless the model spares them. A shared Parameter appears once, and does not decay where
    one of its owners spares it. Parameters that require no gradient are included: optimizers leave them alone until
    they are unfrozen.

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
    everyone = list(model.parameters())
    if not everyone:
        raise ValueError("parameter_groups: expected a model with Parameters, got one without.")
    flattened = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    spared: set[nn.Parameter] = set()
    for module in model.modules():
        spared.update(_spared(module, flattened), _asked_for(module))
    groups = [
        {"params": [p for p in everyone if p not in spared], "weight_decay": float(weight_decay)},
        {"params": [p for p in everyone if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _spared(module: nn.Module, flattened: bool) -> Iterable[nn.Parameter]:
    """Yield the Parameters of a module, not of its children, that do not decay."""
    norm = norm_of(module, probe=True)
    # A module known only by its running statistics may be a layer and its norm in one, with a weight that decays.
    whole = norm is not None and norm.known_by != STATISTICS
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        vector = parameter.ndim <= 1 and (norm is not None or not flattened)
        vector = vector or (not flattened and _is_scale(module, name, parameter))
        if whole or vector or _is_bias(name) or getattr(parameter, "_no_weight_decay", False):
            yield parameter
    if isinstance(getattr(module, "parametrizations", None), nn.ModuleDict) and parametrize.is_parametrized(module):
        for name, behind in module.parametrizations.items():  # type: ignore[union-attr, operator]
            if whole or _is_bias(name):
                yield from behind.parameters()


def _asked_for(module: nn.Module) -> Iterable[nn.Parameter]:
    """Yield the Parameters inside a module that its own `no_weight_decay` names."""
    names, words = _told(module, "no_weight_decay"), _told(module, "no_weight_decay_keywords")
    if names or words:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in names or any(word in name for word in words):
                yield parameter


def _told(module: nn.Module, attribute: str) -> frozenset[str]:
    """Return the names that a method or an attribute of a module gives."""
    told = getattr(module, attribute, None)
    names = told() if callable(told) else told
    return frozenset(names) if isinstance(names, set | frozenset | list | tuple) else frozenset()


def _is_scale(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a Parameter has one axis that is not of length 1, as ConvNeXt's (C, 1, 1), and is no part of a weight."""
    if name.startswith("weight") or isinstance(module, parametrize.ParametrizationList):
        return False
    return parameter.numel() == max(parameter.shape, default=1)


def _is_bias(name: str) -> bool:
    return name == "bias" or name.endswith("_bias") or name.startswith("bias_")
