"""Normalization for PyTorch: layers, statistics, and a study that measures what they do.

Importing the package registers our ops with torch, and loads what a forward may use: functions, layers, sources of
statistics. What changes, checks or watches models is loaded at its first use (PEP 562). In the process of the console
script everything is, so that its texts need no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from gammabeta.layers.integrations.libraries import tell_libraries

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Change",
    "Diagnosis",
    "Explanation",
    "Finding",
    "Folded",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "Verification",
    "accumulate_statistics",
    "adopt",
    "check",
    "compile_options",
    "convert",
    "explain_error",
    "explained_errors",
    "fold",
    "freeze",
    "frozen_statistics",
    "functional",
    "fuse",
    "ignore",
    "lengths_to_mask",
    "merge_statistics",
    "parameter_groups",
    "recalibrate",
    "recompute",
    "reconcile",
    "release",
    "set_statistics",
    "statistics",
    "train_eval_gap",
    "unfreeze",
    "verify",
    "warm_allocator",
    "watch",
]

_PLACES = {
    "BatchNorm1d": "layers.batch_norm",
    "BatchNorm2d": "layers.batch_norm",
    "BatchNorm3d": "layers.batch_norm",
    "Change": "surgery.change",
    "Diagnosis": "diagnostics.findings",
    "Explanation": "diagnostics.explain_error",
    "Finding": "diagnostics.findings",
    "Folded": "surgery.fold",
    "GroupNorm": "layers.group_norm",
    "InstanceNorm1d": "layers.instance_norm",
    "InstanceNorm2d": "layers.instance_norm",
    "InstanceNorm3d": "layers.instance_norm",
    "LayerNorm": "layers.layer_norm",
    "Moments": "moments",
    "RMSNorm": "layers.rms_norm",
    "Verification": "proof.outcome",
    "accumulate_statistics": "surgery.contexts",
    "adopt": "surgery.adopt",
    "check": "diagnostics.check",
    "compile_options": "kernels.inductor",
    "convert": "surgery.convert",
    "explain_error": "diagnostics.explain_error",
    "explained_errors": "diagnostics.explain_error",
    "fold": "surgery.fold",
    "freeze": "surgery.freeze",
    "frozen_statistics": "surgery.contexts",
    "functional": "functional",
    "fuse": "surgery.fuse",
    "ignore": "diagnostics.selection",
    "lengths_to_mask": "masks",
    "merge_statistics": "surgery.merge_statistics",
    "parameter_groups": "surgery.parameter_groups",
    "recalibrate": "surgery.recalibrate",
    "recompute": "surgery.recompute",
    "reconcile": "surgery.reconcile",
    "release": "surgery.adopt",
    "set_statistics": "surgery.set_statistics",
    "statistics": "statistics",
    "train_eval_gap": "diagnostics.gap",
    "unfreeze": "surgery.freeze",
    "verify": "proof.verify",
    "warm_allocator": "allocator",
    "watch": "monitoring.watch",
}
"""The module of each public name."""

if TYPE_CHECKING or not getattr(sys.modules.get("gammabeta_command"), "running", False):
    from gammabeta import functional, statistics
    from gammabeta.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
    from gammabeta.layers.group_norm import GroupNorm
    from gammabeta.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
    from gammabeta.layers.layer_norm import LayerNorm
    from gammabeta.layers.rms_norm import RMSNorm
    from gammabeta.masks import lengths_to_mask
    from gammabeta.moments import Moments

if TYPE_CHECKING:
    from gammabeta.allocator import warm_allocator
    from gammabeta.diagnostics.check import check
    from gammabeta.diagnostics.explain_error import Explanation, explain_error, explained_errors
    from gammabeta.diagnostics.findings import Diagnosis, Finding
    from gammabeta.diagnostics.gap import train_eval_gap
    from gammabeta.diagnostics.selection import ignore
    from gammabeta.kernels.inductor import compile_options
    from gammabeta.monitoring.watch import watch
    from gammabeta.proof.outcome import Verification
    from gammabeta.proof.verify import verify
    from gammabeta.surgery.adopt import adopt, release
    from gammabeta.surgery.change import Change
    from gammabeta.surgery.contexts import accumulate_statistics, frozen_statistics
    from gammabeta.surgery.convert import convert
    from gammabeta.surgery.fold import Folded, fold
    from gammabeta.surgery.freeze import freeze, unfreeze
    from gammabeta.surgery.fuse import fuse
    from gammabeta.surgery.merge_statistics import merge_statistics
    from gammabeta.surgery.parameter_groups import parameter_groups
    from gammabeta.surgery.recalibrate import recalibrate
    from gammabeta.surgery.recompute import recompute
    from gammabeta.surgery.reconcile import reconcile
    from gammabeta.surgery.set_statistics import set_statistics
else:

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module 'gammabeta' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        module = importlib.import_module(f"gammabeta.{_PLACES[name]}")
        value = module if name == _PLACES[name] else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


tell_libraries()
