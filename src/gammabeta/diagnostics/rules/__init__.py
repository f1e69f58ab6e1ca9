"""Rules of the check: one module each, registered in `CODES`. They are imported at the first use of `RULES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gammabeta.diagnostics.rule import Rule

    RULES: tuple[Rule, ...]

# Code -> module of this folder. A rule's name is its module's, with hyphens in place of underscores. To add a rule, add
# its file and its row here.
CODES = {
    "GB101": "frozen_norm_thaws",
    "GB102": "poisoned_statistics",
    "GB103": "untrained_statistics",
    "GB104": "extreme_variance",
    "GB105": "low_precision_statistics",
    "GB106": "batch_dependent_inference",
    "GB107": "shared_norm",
    "GB108": "averaged_model_statistics",
    "GB109": "train_eval_gap",
    "GB110": "statistics_polluted",
    "GB111": "recompute_updates_twice",
    "GB112": "ranks_diverge",
    "GB113": "frozen_at_initial",
    "GB114": "trained_in_evaluation",
    "GB201": "one_value_per_channel",
    "GB202": "tiny_batch",
    "GB203": "small_last_batch",
    "GB204": "accumulation_splits_batch",
    "GB205": "padding_in_statistics",
    "GB206": "mixed_domains",
    "GB207": "batch_leak",
    "GB208": "ordered_batches",
    "GB301": "bias_before_norm",
    "GB302": "dropout_before_norm",
    "GB303": "degenerate_group",
    "GB304": "wrong_axis",
    "GB305": "tensorflow_momentum",
    "GB306": "unusual_epsilon",
    "GB307": "norm_after_norm",
    "GB308": "conversion_drops_forward",
    "GB309": "constant_output",
    "GB310": "dead_channels",
    "GB401": "decay_on_norm",
    "GB402": "norm_not_optimized",
    "GB403": "dead_scale",
    "GB404": "not_finite",
    "GB501": "sync_without_group",
    "GB502": "local_statistics",
    "GB503": "sync_calls_differ",
    "GB601": "unfused_mixed_dtype",
    "GB602": "foldable",
    "GB603": "unsafe_fold",
    "GB604": "exported_in_training",
    "GB605": "kept_activations",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "RULES":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gammabeta.diagnostics.rule import Rule

        found = tuple(Rule.of(code, import_module(f"{__name__}.{file}")) for code, file in CODES.items())
        return globals().setdefault(name, found)
