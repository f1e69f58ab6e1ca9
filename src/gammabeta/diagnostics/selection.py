"""Which rules run and which findings count: by code, by module, and by what is said at a module itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from gammabeta.arguments import did_you_mean
from gammabeta.diagnostics.findings import Finding
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rules import RULES

_ATTRIBUTE = "_gammabeta_ignored"


class SelectionError(ValueError):
    """No rule is called so."""


def ignore(module: nn.Module, code: str, *, reason: str) -> None:
    """Says of a module, and of all inside it, that findings of a rule are meant to be so.

    It is kept with the module, and so in copies and pickles of it, but not in a state_dict. The check lists what it
    ignored with the reason.

    Args:
        module: any module.
        code: the rule, as "GB101" or "frozen-norm-thaws".
        reason: why it is right here.

    Raises:
        ValueError: there is no such rule, or no reason.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"ignore: expected a reason for ignoring {code}, got {reason!r}: say why it is right here.")
    rule = _one("ignore", code)
    # A new dict each time: copies of the module share the old one.
    vars(module)[_ATTRIBUTE] = {**vars(module).get(_ATTRIBUTE, {}), rule.code: reason}


def check_patterns(select: str | Sequence[str] | None, ignored: str | Sequence[str] | None) -> None:
    """Whether the patterns name rules.

    Raises:
        ValueError: one does not; near ones are named.
    """
    chosen_rules(select, ignored_patterns(ignored))


def chosen_rules(select: str | Sequence[str] | None, ignored: Sequence[tuple[str, str | None]]) -> tuple[Rule, ...]:
    """The rules of codes, names or beginnings of codes in `select`, all where it is None, less those ignored."""
    patterns = None if select is None else [select] if isinstance(select, str) else list(select)
    if patterns is not None:
        for pattern in patterns:
            _known("select", pattern)
    return tuple(
        rule
        for rule in RULES
        if (patterns is None or any(_is(rule, pattern) for pattern in patterns))
        and not any(where is None and _is(rule, pattern) for pattern, where in ignored)
    )


def ignored_patterns(ignored: str | Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Of entries "GB101", "GB1" or "GB101:layer1.*" the rule's pattern and the glob on the module, if there is one."""
    entries = [] if ignored is None else [ignored] if isinstance(ignored, str) else list(ignored)
    found = []
    for entry in entries:
        pattern, colon, where = entry.partition(":")
        if not (pattern == "*" and colon):
            _known("ignore", pattern)
        found.append((pattern, where if colon else None))
    return found


def reason_to_ignore(
    finding: Finding, model: nn.Module | None, ignored: Iterable[tuple[str, str | None]], rule: Rule
) -> str | None:
    """Why a finding does not count; None where it counts."""
    for pattern, where in ignored:
        if where is not None and (pattern == "*" or _is(rule, pattern)) and fnmatchcase(finding.where, where):
            return f"by ignore={pattern}:{where}"
    module = model
    for part in ("", *finding.where.split(".")):
        if part:
            module = module._modules.get(part) if module is not None else None
        if module is None:
            return None
        reason = vars(module).get(_ATTRIBUTE, {}).get(finding.code)
        if reason is not None:
            return str(reason)
    return None


def rule_of(text: str) -> Rule:
    """The rule of that code or name.

    Raises:
        ValueError: there is none; near ones are named.
    """
    return _one("explain", text)


def _one(operation: str, text: str) -> Rule:
    for rule in RULES:
        if text.lower() in (rule.code.lower(), rule.name):
            return rule
    raise SelectionError(f"{operation}: expected the code or name of a rule, as GB101 or {RULES[0].name}, {_got(text)}")


def _known(operation: str, pattern: str) -> None:
    if not any(_is(rule, pattern) for rule in RULES):
        raise SelectionError(f"{operation}: expected codes or names of rules, or beginnings of codes, {_got(pattern)}")


def _got(text: str) -> str:
    every = [known for rule in RULES for known in (rule.code, rule.name)]
    return f"got {text!r}: " + did_you_mean(text, every, "`gammabeta rules` lists them.", most=2, show=str)


def _is(rule: Rule, pattern: str) -> bool:
    return bool(pattern) and (pattern.lower() == rule.name or rule.code.lower().startswith(pattern.lower()))
