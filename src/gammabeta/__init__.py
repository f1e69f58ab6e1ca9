"""Normalization for PyTorch: layers, statistics, and a study that measures what they do."""

from gammabeta import functional, statistics
from gammabeta.allocator import warm_allocator
from gammabeta.compile_options import compile_options
from gammabeta.diagnostics.check import check
from gammabeta.diagnostics.explain_error import Explanation, explain_error, explained_errors
from gammabeta.diagnostics.findings import Diagnosis, Finding
from gammabeta.diagnostics.gap import train_eval_gap
from gammabeta.diagnostics.selection import ignore
from gammabeta.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from gammabeta.layers.group_norm import GroupNorm
from gammabeta.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from gammabeta.layers.layer_norm import LayerNorm
from gammabeta.layers.rms_norm import RMSNorm
from gammabeta.masks import lengths_to_mask
from gammabeta.moments import Moments
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
