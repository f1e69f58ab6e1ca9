"""Selection of rules and findings: by code, by module, and by reasons attached to a module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from gammabeta.arguments import did_you_mean
from gammabeta.diagnostics.findings import Finding
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rules import RULES
from gammabeta.introspection.held import child_of

_ATTRIBUTE = "_gammabeta_ignored"


class SelectionError(ValueError):
    """A pattern that names no rule."""


def ignore(module: nn.Module, code: str, *, reason: str) -> None:
    """Mark a rule's findings at a module, and at all modules inside it, as intended.

    The mark stays with the module, also in copies and pickles, but not in a state_dict. The check lists what it ignored
    with the reason.

    Args:
        module: any module.
        code: the rule's code or name, such as "GB101" or "frozen-norm-thaws".
        reason: why the finding is right here.

    Raises:
        ValueError: there is no such rule, or no reason is given.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"ignore: expected a reason for ignoring {code}, got {reason!r}: say why it is right here.")
    rule = _find("ignore", code)
    # A new dict each time: copies of the module share the old one.
    vars(module)[_ATTRIBUTE] = {**vars(module).get(_ATTRIBUTE, {}), rule.code: reason}


def check_patterns(select: str | Sequence[str] | None, ignored: str | Sequence[str] | None) -> None:
    """Check that all patterns name rules.

    Raises:
        ValueError: one does not; the error names similar ones.
    """
    chosen_rules(select, ignored_patterns(ignored))


def chosen_rules(select: str | Sequence[str] | None, ignored: Sequence[tuple[str, str | None]]) -> tuple[Rule, ...]:
    """Return the rules to run: those that `select` names, or all where it is None, minus the ignored ones.

    `select` names rules by code, prefix of a code, or name.
    """
    patterns = None if select is None else [select] if isinstance(select, str) else list(select)
    if patterns is not None:
        for pattern in patterns:
            _require_known("select", pattern)
    return tuple(
        rule
        for rule in RULES
        if (patterns is None or any(_matches(rule, pattern) for pattern in patterns))
        and not any(where is None and _matches(rule, pattern) for pattern, where in ignored)
    )


def ignored_patterns(ignored: str | Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Split entries such as "GB101", "GB1" or "GB101:layer1.*" into the rule's pattern and the glob for modules."""
    entries = [] if ignored is None else [ignored] if isinstance(ignored, str) else list(ignored)
    found = []
    for entry in entries:
        pattern, colon, where = entry.partition(":")
        if not (pattern == "*" and colon):
            _require_known("ignore", pattern)
        found.append((pattern, where if colon else None))
    return found


def reason_to_ignore(
    finding: Finding, model: nn.Module | None, ignored: Iterable[tuple[str, str | None]], rule: Rule
) -> str | None:
    """Return why a finding does not count; None if it counts."""
    for pattern, where in ignored:
        if where is not None and (pattern == "*" or _matches(rule, pattern)) and fnmatchcase(finding.where, where):
            return f"by ignore={pattern}:{where}"
    module = model
    for part in ("", *finding.where.split(".")):
        if part:
            module = child_of(module, part) if module is not None else None
        if module is None:
            return None
        reason = vars(module).get(_ATTRIBUTE, {}).get(finding.code)
        if reason is not None:
            return str(reason)
    return None


def rule_of(text: str) -> Rule:
    """Return the rule with a code or name.

    Raises:
        ValueError: there is none; the error names similar ones.
    """
    return _find("explain", text)


def _find(operation: str, text: str) -> Rule:
    for rule in RULES:
        if text.lower() in (rule.code.lower(), rule.name):
            return rule
    raise SelectionError(
        f"{operation}: expected the code or name of a rule, such as GB101 or {RULES[0].name}, {_got(text)}"
    )


def _require_known(operation: str, pattern: str) -> None:
    if not any(_matches(rule, pattern) for rule in RULES):
        raise SelectionError(f"{operation}: expected codes or names of rules, or prefixes of codes, {_got(pattern)}")


def _got(text: str) -> str:
    beginning = [rule.code for rule in RULES if text and rule.code.lower().startswith(text.lower())]
    if beginning:
        most = 12
        more = f" and {len(beginning) - most} more" if len(beginning) > most else ""
        return f"got {text!r}, with which {', '.join(beginning[:most])}{more} begin: name one of them."
    every = [known for rule in RULES for known in (rule.code, rule.name)]
    return f"got {text!r}: " + did_you_mean(text, every, "`gammabeta rules` lists all rules.", most=2, show=str)


def _matches(rule: Rule, pattern: str) -> bool:
    return bool(pattern) and (pattern.lower() == rule.name or rule.code.lower().startswith(pattern.lower()))
