"""Refusal of other libraries' converters that would silently drop what a BatchNorm of ours holds.

`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, `torch.nn.utils.fuse_conv_bn_eval` and similar functions take any
instance of torch's BatchNorm, read its tensors, and build another layer from them. They know neither an activation nor
a source of statistics, and offer no place to register one. They only read the layer's attributes, so that is where we
can react without replacing a function of torch. Parameters and buffers are not plain attributes: Python calls
`__getattr__` for them. There, and only where the layer holds something that would be lost, we look at the function that
reads. Its name and what it reads tell whether it is a converter, since many repositories have copies of these
functions. Our own forward reads `_parameters` and `_buffers` and never gets there; nor does compiled code.
"""

from __future__ import annotations

import re
import sys
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from gammabeta.statistics import Batch, Synced

_TENSORS = frozenset(("weight", "bias", "running_mean", "running_var"))
_BATCH = Batch()
# Names of functions that build another layer from a BatchNorm's tensors: torch's and timm's
# convert_sync_batchnorm, apex' convert_syncbn_model, detectron2's convert_frozen_batchnorm, timm's
# freeze_batch_norm_2d, Lightning's revert, transformers' replace_batch_norm, torch's fuse_conv_bn_eval,
# fuse_conv_and_bn of the YOLO repositories, _fuse_bn_tensor of RepVGG, the constructor of torch's MkldnnBatchNorm, …
_CONVERTER = re.compile(r"_*(my_)?(convert|revert|replace|freeze|fuse|fold|merge|absorb|from)(_|$)|__init__$")
# Converters read both running statistics, and what the new layer is built with.
_READ = {"running_mean", "running_var"}
_BUILT_WITH = {"eps", "num_features"}
_FREEZES = re.compile(r"freeze|frozen|replace_batch_norm")
_FOLDS = re.compile(r"_*(fuse|fold|merge|absorb)")
_SYNC_INSTEAD = (
    "gammabeta.set_statistics(model, gammabeta.statistics.Synced()), which synchronizes the layer and keeps all else; "
    "where= leaves out layers whose statistics have to stay"
)
_FREEZE_INSTEAD = "gammabeta.freeze(model), which keeps the activation"
_FOLD_INSTEAD = "gammabeta.fold(model, inputs), which keeps the activation"
_OTHERWISE = "gammabeta.release(model) before, which says of each layer whether torch's can take its place"


class ConverterGuard(nn.Module):
    """A BatchNorm that raises where a converter reads its tensors and would drop its activation or statistics."""

    def __getattr__(self, name: str) -> Any:
        # Dynamo cannot look at frames, and no converter is compiled.
        if name in _TENSORS and not torch.compiler.is_compiling():
            state = self.__dict__
            if state.get("activation") is not None or state.get("statistics", _BATCH) != _BATCH:
                caller = sys._getframe(1)
                if _CONVERTER.match(caller.f_code.co_name):
                    _check(self, caller)
        return super().__getattr__(name)


def _check(layer: Any, caller: FrameType) -> None:
    """Raise where the caller is a converter that would drop something of the layer."""
    code, lost = caller.f_code, []
    names = {*code.co_names}
    if not (names >= _READ and names & _BUILT_WITH):
        return
    if str(caller.f_globals.get("__name__")).startswith("gammabeta.") or caller.f_locals.get("self") is layer:
        return
    name, source = code.co_name, layer.statistics
    if _FREEZES.search(name):
        keeps_source, instead = True, _FREEZE_INSTEAD
    elif _FOLDS.match(name):
        keeps_source, instead = True, _FOLD_INSTEAD  # in evaluation every source takes the running statistics
    elif "sync" in name and not name.startswith("revert"):
        keeps_source, instead = source in (_BATCH, Synced()), _SYNC_INSTEAD
    else:
        keeps_source, instead = isinstance(source, Batch | Synced), _OTHERWISE
    if layer.activation is not None and not _takes_activation(layer, code):
        lost.append(f"activation={layer.activation!r}")
    if not keeps_source and "statistics" not in code.co_names:
        lost.append(f"statistics={source}")
    if lost:
        raise TypeError(
            f"{getattr(code, 'co_qualname', name)}: expected a BatchNorm that computes what torch's does, got a "
            f"{type(layer).__name__} of gammabeta with {' and '.join(lost)}, which the layer built from it would not "
            f"have. Call {instead}."
        )


def _takes_activation(layer: Any, converter: CodeType) -> bool:
    """Return whether the converter keeps the activation: reads it, or takes over timm's `act` of an adopted layer."""
    origin = layer.__dict__.get("adopted_from")
    same = origin is not None and "act" in layer._modules and origin.activation == layer.activation
    return "activation" in converter.co_names or (same and "act" in converter.co_names)
