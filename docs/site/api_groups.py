"""The groups of the reference: every public name, and what else users import by its module."""

from typing import NamedTuple


class Group(NamedTuple):
    """A group of names, which has a page.

    Attributes:
        stem: of the page's file.
        title: of the page.
        about: what the names have in common.
        names: behind "gammabeta.".
    """

    stem: str
    title: str
    about: str
    names: tuple[str, ...]


GROUPS = (
    Group(
        "layers",
        "Layers",
        "Subclasses of torch.nn's layers, with their constructors and state_dicts, and what belongs to them.",
        (
            "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "RMSNorm", "GroupNorm",
            "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "lengths_to_mask", "frozen_statistics",
            "accumulate_statistics", "Moments", "compile_options", "warm_allocator",
        ),
    ),
    Group(
        "functions",
        "Functions",
        "The layers as functions, with the signatures of torch.nn.functional.",
        (
            "functional.batch_norm", "functional.layer_norm", "functional.rms_norm", "functional.group_norm",
            "functional.instance_norm", "functional.add_layer_norm", "functional.add_rms_norm",
        ),
    ),
    Group(
        "sources",
        "Sources of statistics",
        "Where a BatchNorm takes its mean and variance from in training.",
        (
            "statistics.Batch", "statistics.Ghost", "statistics.Renorm", "statistics.Synced", "statistics.Running",
            "statistics.Statistics", "statistics.groups",
        ),
    ),
    Group(
        "surgery",
        "Surgery",
        "Changes to a model that exists. Each returns a `Change`, which says what was done and can be undone.",
        (
            "adopt", "release", "set_statistics", "freeze", "unfreeze", "recalibrate", "reconcile", "merge_statistics",
            "fold", "Folded", "convert", "fuse", "recompute", "parameter_groups", "Change",
        ),
    ),
    Group(
        "checking",
        "Check",
        "What is wrong with a model's normalization, before and after training.",
        (
            "check", "Diagnosis", "Finding", "ignore", "train_eval_gap", "explain_error", "explained_errors",
            "Explanation",
        ),
    ),
    Group(
        "watching",
        "Watch",
        "What the norms do while a model trains.",
        (
            "watch", "monitoring.callbacks.lightning_callback", "monitoring.callbacks.transformers_callback",
        ),
    ),
    Group(
        "studying",
        "Study",
        "The study from Python; the command `gammabeta study` calls the same functions.",
        ("lab.study.study", "pages.report.read_results", "pages.report.write_report"),
    ),
    Group(
        "verifying",
        "Verify",
        "Whether the norms compute what they should on this machine.",
        ("verify", "Verification"),
    ),
    Group(
        "benchmarks",
        "Benchmarks",
        "Timing beside torch and torch.compile, and the parts for a subject of your own.",
        ("benchmarks.bench.bench", "benchmarks.contest.Row", "benchmarks.contest.Field", "benchmarks.contest.contest"),
    ),
    Group(
        "exceptions",
        "Exceptions",
        "What gammabeta raises of its own; all else is Python's or torch's.",
        (
            "diagnostics.check.ForwardError", "lab.study.StudyError", "lab.study.Interrupted",
            "pages.validation.ReportError", "proof.verify.VerifyError", "benchmarks.plan.BenchError",
            "benchmarks.plan.Interrupted",
        ),
    ),
)  # fmt: skip
NAMES = tuple(name for group in GROUPS for name in group.names)
