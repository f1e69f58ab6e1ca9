"""Draw the table of docs/claims.md that leads from each sentence of the text to what carries it.

docs/statements.json has the sentences, by the sections of the text, each with what carries it and where it errs. A
carrier is written as one of these:

| carrier | example |
|---|---|
| a claim of the study | ``small_batch`` |
| a rule of the check | ``GB202`` |
| a public name of gammabeta | ``BatchNorm2d``, ``statistics.Ghost`` |
| a command, with an option where one is meant | ``gammabeta study --compare`` |
| a recipe of docs/ | ``recipes/fine-tune.md`` |

``beyond`` has the claims that no sentence of the text makes, each with its reason.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gammabeta
from gammabeta.diagnostics.rules import RULES
from gammabeta.lab.claims import CLAIMS

KEPT = Path(__file__).with_name("statements.json")


@dataclass(frozen=True)
class Statement:
    """A sentence of the text: its number (section and place in it), what it says, its carriers, where it errs."""

    number: str
    says: str
    carriers: tuple[str, ...]
    errs: str


def sections() -> list[tuple[str, list[Statement]]]:
    """Return the text's sections, each a title with its statements, in order."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))["sections"]
    return [
        (
            section["title"],
            [
                Statement(f"{number}.{place}", entry["says"], tuple(entry["carriers"]), entry.get("errs", ""))
                for place, entry in enumerate(section["statements"], start=1)
            ],
        )
        for number, section in enumerate(kept, start=1)
    ]


def beyond() -> dict[str, str]:
    """Return the claims that no sentence of the text makes, each with its reason."""
    found: dict[str, str] = json.loads(KEPT.read_text(encoding="utf-8"))["beyond"]
    return found


def carried(name: str) -> list[str]:
    """Return the numbers of the statements that a claim carries."""
    return [statement.number for _, parts in sections() for statement in parts if name in statement.carriers]


def public(name: str) -> Callable[..., Any]:
    """Return the public class or function of that name.

    Raises:
        AttributeError: gammabeta has none.
    """
    owner, _, member = name.rpartition(".")
    found = getattr(gammabeta, owner) if owner else gammabeta
    if member not in getattr(found, "__all__", vars(found)):
        raise AttributeError(f"gammabeta has no public {name}")
    return getattr(found, member)


def link(carrier: str) -> str:
    """Return a carrier as a link of docs/claims.md.

    Raises:
        AttributeError: nothing has that name.
    """
    rules = {rule.code: rule.name for rule in RULES}
    if any(claim.name == carrier for claim in CLAIMS):
        return f"[{carrier}](#{carrier})"
    if carrier in rules:
        return f"[{carrier}](rules.md#{carrier.lower()}-{rules[carrier]})"
    if carrier.startswith("gammabeta "):
        return f"[`{carrier}`](guide.md#{'the-study' if ' study' in carrier else 'what-is-wrong-with-a-model'})"
    if carrier.startswith("recipes/"):
        return f"[recipe]({carrier})"
    path = Path(inspect.getsourcefile(inspect.unwrap(public(carrier))))
    return f"[`{carrier}`](../src/{path.relative_to(Path(gammabeta.__file__).parents[1]).as_posix()})"


def cell(text: str) -> str:
    """Return a text as it stands in a cell of a table."""
    return text.replace("|", "\\|")


def table() -> str:
    """Return the tables of all sections, and the claims that go beyond the text."""
    parts = []
    for number, (title, statements) in enumerate(sections(), start=1):
        rows = [
            f"| {statement.number} | {cell(statement.says)} | {', '.join(map(link, statement.carriers))} "
            f"| {cell(statement.errs)} |"
            for statement in statements
        ]
        parts += [
            f"### {number}. {title}",
            "\n".join(["| | the text says | carried by | where it errs |", "|---|---|---|---|", *rows]),
        ]
    if beyond():
        parts += [
            "### Beyond the text",
            "\n".join(f"- {link(name)}: {reason}" for name, reason in beyond().items()),
        ]
    return "\n\n".join(parts)
