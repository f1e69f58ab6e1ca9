"""The rules, by code."""

from gammabeta.rule import Rule
from gammabeta.rules import frozen_norm_thaws, poisoned_statistics

RULES: tuple[Rule, ...] = tuple(
    Rule.of(module)
    for module in (
        frozen_norm_thaws,
        poisoned_statistics,
    )
)
