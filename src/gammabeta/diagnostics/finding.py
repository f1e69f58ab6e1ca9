"""One finding of the check, and its fix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gammabeta.introspection.forward import Forward
from gammabeta.surgery.change import Change

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A norm whose running statistics should be estimated from data.

    Attributes:
        name: its qualified name in the model that was checked.
        module: the norm.
        model: the model that contains the norm and runs on the batches.
        batches: batches in the form that the model takes.
        forward: `forward(model, batch)`, if they go through the model in a way of their own.
        broken_only: whether only channels whose statistics are not finite, or a negative variance, get new ones.
    """

    name: str
    module: nn.Module
    model: nn.Module
    batches: Any
    forward: Forward | None = None
    broken_only: bool = False


@dataclass(frozen=True)
class Fix:
    """How to fix a finding.

    Attributes:
        what: a sentence or call that says what to do.
        apply: does it and returns the change; None if a person has to, or if something needed for it is missing.
        recalibrations: the norms to recalibrate after that, all of one model. All such norms of a model are
            recalibrated in one pass over the batches.
        together: returns one sentence or call that does it all, given the names of all modules with this fix. None
            where `what` says it; a `where='name'` in it then becomes the list of all names.
        keeps_checkpoints: whether the keys of the state_dict stay, so that checkpoints from before still load.
        freezes: the norm whose running statistics it freezes as they are; None where it freezes none.
    """

    what: str
    apply: Callable[[], Change] | None = field(default=None, compare=False, repr=False)
    recalibrations: tuple[Recalibration, ...] = field(default=(), compare=False, repr=False)
    together: Callable[[Sequence[str]], str] | None = field(default=None, compare=False, repr=False)
    keeps_checkpoints: bool = field(default=True, compare=False, repr=False)
    freezes: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def mends(self) -> bool:
        """Whether the fix can be done without a person."""
        return self.apply is not None or bool(self.recalibrations)

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, at one module.

    Attributes:
        code, name: code and name of the rule: "GB101", "frozen-norm-thaws".
        severity: "error", "warning" or "note".
        where: the module's qualified name; "" is the model itself.
        message: what is wrong, with its numbers.
        evidence: the numbers by name. "layers" lists the modules if one finding is about several.
        fix: how to fix it.
    """

    code: str
    name: str
    severity: str
    where: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: Fix | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that the finding is about."""
        layers = self.evidence.get("layers")
        return tuple(layers) if isinstance(layers, list | tuple) else (self.where,)

    def __str__(self) -> str:
        return f"{self.where or '(the model)'}: {self.code} {self.name}: {self.message}"


def plain_evidence(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return evidence that fits into JSON, which has no NaN and no infinity."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {str(key): plain(value) for key, value in evidence.items()}


def as_plain(finding: Finding) -> dict[str, Any]:
    """Return a finding as values that fit into JSON."""
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "where": finding.where,
        "message": finding.message,
        "evidence": plain_evidence(finding.evidence),
        "fix": None if finding.fix is None else finding.fix.what,
    }
