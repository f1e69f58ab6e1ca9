"""A rule is a module: its docstring says what it finds and why, its `check` finds it, two builders show it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from gammabeta.diagnostics.findings import SEVERITIES, Finding
from gammabeta.diagnostics.record import Record

HEADINGS = ("What it does", "Why it matters", "Example", "Use instead", "Evidence", "Limits")
# What a rule sees, and what the user gives for it.
SEES = {
    "S": "the model",
    "F": "a checkpoint",
    "D": "inputs",
    "W": "watching the training",
    "O": "the optimizer",
    "L": "the loader",
}


@dataclass(frozen=True)
class Example:
    """A case that a rule finds, or does not.

    Attributes:
        model: the model.
        where: the modules that are found, by qualified name; () in a clean example.
        inputs, loader, optimizer, batch_size, intent: what `check` is handed besides.
        train: for rules that see W: runs the training of the model, some steps, while it is watched.
        processes: how many run it, under torch.distributed.
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
        """What `check` is handed besides the model."""
        names = ("inputs", "loader", "optimizer", "batch_size", "intent")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Rule:
    """What a rule's module says.

    Attributes:
        code, name, severity: "GB101", "frozen-norm-thaws", the severity of most of its findings.
        sees: letters of `SEES`; it runs where any of them is there.
        title: the docstring's first line.
        sections: the docstring's text by heading.
        check: from a record to the findings.
        flagged, clean: the examples.
        source: of `flagged` and `clean`, their bodies.
    """

    code: str
    name: str
    severity: str
    sees: str
    title: str
    sections: dict[str, str]
    check: Callable[[Record], Iterator[Finding]]
    flagged: Callable[[], Example]
    clean: Callable[[], Example]
    module: ModuleType

    @classmethod
    def of(cls, module: ModuleType) -> Rule:
        """Reads a module of `rules/`; the headings must all be there, in order."""
        text = inspect.cleandoc(module.__doc__ or "")
        title, _, rest = text.partition("\n")
        parts = re.split(rf"^({'|'.join(HEADINGS)}):\s*", rest, flags=re.MULTILINE)
        names = tuple(parts[1::2])
        assert names == HEADINGS, f"{module.__name__}: expected the headings {HEADINGS}, got {names}"
        assert module.severity in SEVERITIES, module.__name__
        assert set(module.sees) <= set(SEES), module.__name__
        assert module.__name__.rpartition(".")[2] == module.name.replace("-", "_"), module.__name__
        sections = {name: inspect.cleandoc(body).strip() for name, body in zip(names, parts[2::2], strict=True)}
        return cls(
            module.code,
            module.name,
            module.severity,
            module.sees,
            title.rstrip("."),
            sections,
            module.check,
            module.flagged,
            module.clean,
            module,
        )

    def line(self, heading: str) -> str:
        """A section as one line of text."""
        return " ".join(self.sections[heading].split())

    def page(self) -> str:
        """What the rule says of itself, in Markdown, with its examples as they are tested."""
        sees = " or ".join(SEES[letter] for letter in self.sees)
        parts = [f"*{self.title}.* {self.severity.capitalize()}; sees {sees}."]
        for heading in HEADINGS:
            parts.append(f"**{heading}**. {self.line(heading)}")
            if heading in ("Example", "Use instead"):
                parts.append(f"```python\n{_body(self.flagged if heading == 'Example' else self.clean)}\n```")
        return "\n\n".join(parts)


def _body(builder: Callable[[], Example]) -> str:
    """The lines of a builder, up to what it returns, which is for the tests."""
    lines = inspect.getsource(builder).splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if line.startswith("    return "))
    last = lines[end].partition("Example(")[2]
    shown = lines[:end]
    # model.eval() where the example is handed on so.
    mode = re.match(r"(\w+)\.(eval|train)\(\)", last)
    return textwrap.dedent("\n".join([*shown, f"    {mode[0]}"] if mode else shown))
