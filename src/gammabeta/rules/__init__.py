"""The rules, by code."""

from gammabeta.rule import Rule
from gammabeta.rules import (
    accumulation_splits_batch,
    averaged_model_statistics,
    batch_dependent_inference,
    conversion_drops_forward,
    dead_scale,
    decay_on_norm,
    exported_in_training,
    extreme_variance,
    frozen_norm_thaws,
    low_precision_statistics,
    mixed_domains,
    norm_not_optimized,
    ordered_batches,
    poisoned_statistics,
    recompute_updates_twice,
    statistics_polluted,
    sync_without_group,
    tensorflow_momentum,
    tiny_batch,
    untrained_statistics,
    unusual_epsilon,
)

_MODULES = (
    accumulation_splits_batch,
    averaged_model_statistics,
    batch_dependent_inference,
    conversion_drops_forward,
    dead_scale,
    decay_on_norm,
    exported_in_training,
    extreme_variance,
    frozen_norm_thaws,
    low_precision_statistics,
    mixed_domains,
    norm_not_optimized,
    ordered_batches,
    poisoned_statistics,
    recompute_updates_twice,
    statistics_polluted,
    sync_without_group,
    tensorflow_momentum,
    tiny_batch,
    untrained_statistics,
    unusual_epsilon,
)

RULES: tuple[Rule, ...] = tuple(sorted(map(Rule.of, _MODULES), key=lambda rule: rule.code))
