"""Rules as modules: the docstring says what a rule finds and why, `check` finds it, and two builders show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from gammabeta.diagnostics.findings import SEVERITIES, Finding, Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule_page import SEES, RulePage, name_of, title_and_sections


@dataclass(frozen=True)
class Example:
    """A case that a rule finds, or a clean one.

    Attributes:
        model: the model.
        where: qualified names of the modules that the rule finds; () in a clean example.
        inputs, loader, optimizer, batch_size, intent: further arguments of `check`.
        train: for rules that see W, trains the model for a few steps while it is watched.
        processes: number of processes that run it, under torch.distributed.
    """

    model: nn.Module
    where: tuple[str, ...] = ()
    inputs: Any = None
    loader: Any = None
    optimizer: Any = None
    batch_size: int | None = None
    intent: str | None = None
    train: Callable[[], None] | None = None
    processes: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `check` besides the model."""
        names = ("inputs", "loader", "optimizer", "batch_size", "intent")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Match:
    """What a rule's `check` yields: a `Finding` without what the rule itself knows.

    Attributes:
        where, message, evidence, fix: those of the `Finding`.
        severity: that of this match; None is the rule's own.
    """

    where: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: Fix | None = None
    severity: str | None = None


@dataclass(frozen=True)
class Rule:
    """A rule, read from its module.

    Attributes:
        code, name, severity: "GB101", "frozen-norm-thaws", and the severity of most of its findings.
        sees: letters of `SEES`; the rule runs if any of them is available.
        title: the docstring's first line.
        sections: the docstring's text by heading.
        flagged, clean: the builders of the examples.
        module: the module.
    """

    code: str
    name: str
    severity: str
    sees: str
    title: str
    sections: dict[str, str]
    flagged: Callable[[], Example]
    clean: Callable[[], Example]
    module: ModuleType

    @classmethod
    def of(cls, code: str, module: ModuleType) -> Rule:
        """Read a module of `rules/`; the headings must all be there, in order."""
        file = module.__name__.rpartition(".")[2]
        title, sections = title_and_sections(module.__doc__, file)
        assert module.severity in SEVERITIES, file
        assert set(module.sees) <= set(SEES), file
        return cls(
            code=code,
            name=name_of(file),
            severity=module.severity,
            sees=module.sees,
            title=title,
            sections=sections,
            flagged=module.flagged,
            clean=module.clean,
            module=module,
        )

    def check(self, record: Record) -> Iterator[Finding]:
        """Yield what the rule finds in a record."""
        for match in self.module.check(record):
            severity = match.severity or self.severity
            yield Finding(self.code, self.name, severity, match.where, match.message, match.evidence, match.fix)

    def line(self, heading: str) -> str:
        """Return a section as one line of text."""
        return " ".join(self.sections[heading].split())

    def page(self) -> str:
        """Return the rule's page in Markdown, with its examples as they are tested."""
        return RulePage.of(self.code, self.module.__name__.rpartition(".")[2]).text()
