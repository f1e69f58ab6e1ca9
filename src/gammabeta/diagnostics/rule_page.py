"""The page of a rule, read from its file. Nothing is imported, so listing and explaining rules needs no torch."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

HEADINGS = ("What it does", "Why it matters", "Example", "Use instead", "Evidence", "Limits")
# What a rule can see, and what the user gives for it.
SEES = {
    "S": "the model",
    "F": "a checkpoint",
    "D": "inputs",
    "W": "watching the training",
    "O": "the optimizer",
    "L": "the loader",
}


# How the user gives it: the call, and the option of the command line ("" where there is one way).
FEEDS = {
    "S": ("gammabeta.check(model)", "gammabeta check my_model.py:build"),
    "F": ("gammabeta check weights.safetensors", ""),
    "D": ("gammabeta.check(model, inputs)", "--inputs"),
    "W": ("with gammabeta.watch(model, optimizer):", ""),
    "O": ("gammabeta.check(model, optimizer=optimizer)", "--optimizer"),
    "L": ("gammabeta.check(model, loader=loader)", "--loader"),
}


@dataclass(frozen=True)
class RulePage:
    """A rule's text.

    Attributes:
        code, name, severity: "GB101", "frozen-norm-thaws", and the severity of most of its findings.
        sees: letters of `SEES`; the rule runs if any of them is available.
        title: the docstring's first line.
        sections: the docstring's text by heading.
        flagged, clean: the lines of the examples, as they are tested.
    """

    code: str
    name: str
    severity: str
    sees: str
    title: str
    sections: dict[str, str]
    flagged: str
    clean: str

    @classmethod
    def of(cls, code: str, file: str) -> RulePage:
        """Read the rule of a row of `rules.CODES`: its code, and its file."""
        source = (Path(__file__).parent / "rules" / f"{file}.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        constants: dict[str, str] = {}
        builders: dict[str, str] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                if node.targets[0].id in ("severity", "sees"):
                    constants[node.targets[0].id] = ast.literal_eval(node.value)
            elif isinstance(node, ast.FunctionDef) and node.name in ("flagged", "clean"):
                builders[node.name] = _body(ast.get_source_segment(source, node) or "")
        title, sections = title_and_sections(ast.get_docstring(tree, clean=False), file)
        return cls(code, name_of(file), title=title, sections=sections, **constants, **builders)

    def line(self, heading: str) -> str:
        """Return a section as one line of text."""
        return " ".join(self.sections[heading].split())

    def runs_with(self) -> str:
        """Say what makes the rule run: a call, or an option of the command line."""
        ways = []
        for letter in self.sees:
            call, option = FEEDS[letter]
            ways.append(f"`{call}`" + (f" (`{option}`)" if option else ""))
        return f"Runs with {' or '.join(ways)}."

    def text(self) -> str:
        """Return the page in Markdown, without a heading."""
        sees = " or ".join(SEES[letter] for letter in self.sees)
        parts = [f"*{self.title}.* {self.severity.capitalize()}; sees {sees}.", self.runs_with()]
        for heading in HEADINGS:
            parts.append(f"**{heading}**. {self.line(heading)}")
            if heading in ("Example", "Use instead"):
                parts.append(f"```python\n{self.flagged if heading == 'Example' else self.clean}\n```")
        return "\n\n".join(parts)


def name_of(file: str) -> str:
    """Return the name of the rule in that file."""
    return file.replace("_", "-")


def title_and_sections(docstring: str | None, file: str) -> tuple[str, dict[str, str]]:
    """Read a rule's docstring: its first line, and its text by heading; the headings must all be there, in order."""
    title, _, rest = inspect.cleandoc(docstring or "").partition("\n")
    parts = re.split(rf"^({'|'.join(HEADINGS)}):\s*", rest, flags=re.MULTILINE)
    headings = tuple(parts[1::2])
    assert headings == HEADINGS, f"{file}: expected the headings {HEADINGS}, got {headings}"
    bodies = (inspect.cleandoc(body).strip() for body in parts[2::2])
    return title.rstrip("."), dict(zip(headings, bodies, strict=True))


def _body(builder: str) -> str:
    """Return the lines of a builder without its return statement, which is for the tests."""
    lines = builder.splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if line.startswith("    return "))
    last = lines[end].partition("Example(")[2]
    shown = lines[:end]
    # The return statement may set the mode: Example(model.eval(), …).
    mode = re.match(r"(\w+)\.(eval|train)\(\)", last)
    return textwrap.dedent("\n".join([*shown, f"    {mode[0]}"] if mode else shown))
