"""The rules, by code."""

from gammabeta.rule import Rule
from gammabeta.rules import (
    averaged_model_statistics,
    batch_dependent_inference,
    conversion_drops_forward,
    dead_scale,
    decay_on_norm,
    exported_in_training,
    extreme_variance,
    frozen_norm_thaws,
    low_precision_statistics,
    norm_not_optimized,
    poisoned_statistics,
    sync_without_group,
    tensorflow_momentum,
    untrained_statistics,
    unusual_epsilon,
)

_MODULES = (
    averaged_model_statistics,
    batch_dependent_inference,
    conversion_drops_forward,
    dead_scale,
    decay_on_norm,
    exported_in_training,
    extreme_variance,
    frozen_norm_thaws,
    low_precision_statistics,
    norm_not_optimized,
    poisoned_statistics,
    sync_without_group,
    tensorflow_momentum,
    untrained_statistics,
    unusual_epsilon,
)

RULES: tuple[Rule, ...] = tuple(sorted(map(Rule.of, _MODULES), key=lambda rule: rule.code))
