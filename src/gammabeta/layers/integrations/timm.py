"""Refusal of our layers as timm's `norm_layer` where timm would silently build its own instead.

timm builds many families (EfficientNet, RegNet, ResNetV2, …) of layers that normalize and activate. It looks up any
other `norm_layer` only by its lower-case name, so `gammabeta.BatchNorm2d` gives timm's `BatchNormAct2d`. timm has no
table by class in which ours could be entered with an activation. But before the name it asks whether the class is in
its set `_NORM_ACT_TYPES`. There ours are refused, with what to do instead. timm is not imported here; the set is
replaced when timm is imported.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

from gammabeta.layers.integrations.on_import import on_import

_INSTEAD = {
    "BatchNorm": "without norm_layer and then call gammabeta.adopt(model): its BatchNorms become gammabeta's, with "
    "their activation. For another source of statistics call gammabeta.set_statistics(model, source) after that",
    "GroupNorm": "without norm_layer and then call gammabeta.convert(model, 'group'), or with norm_layer='groupnorm', "
    "timm's own",
    "InstanceNorm": "without norm_layer and then call gammabeta.convert(model, 'instance')",
    "LayerNorm": "without norm_layer and then call gammabeta.convert(model, 'layer'), or with "
    "norm_layer='layernorm2d', timm's own",
    "RMSNorm": "with norm_layer='rmsnorm2d', timm's own",
}


class _Types(set[object]):
    """timm's set of norm-and-activation classes, which raises for ours where timm would use its own instead."""

    def __contains__(self, norm_layer: object) -> bool:
        if isinstance(norm_layer, type) and _is_ours(norm_layer):
            name = f"gammabeta.{norm_layer.__name__}"
            raise TypeError(
                f"timm: expected norm_layer as a layer that normalizes and activates, of which this family of networks "
                f"is built, got {name}, in place of which timm would take its own of that name. Build the network "
                f"{_INSTEAD[norm_layer.__name__.rstrip('123d')]}."
            )
        return super().__contains__(norm_layer)


def _is_ours(cls: type) -> bool:
    return issubclass(cls, nn.Module) and cls.__module__.startswith("gammabeta.layers.")


def _refuse_ours(create_norm_act: ModuleType) -> None:
    create_norm_act._NORM_ACT_TYPES = _Types(create_norm_act._NORM_ACT_TYPES)  # type: ignore[attr-defined]


on_import("timm.layers.create_norm_act", _refuse_ours)
