"""The pages of the reference: one a group, and one a name, which autodoc fills from the docstring."""

import importlib
import inspect
from pathlib import Path
from typing import Any

from api_groups import GROUPS, Group

EXAMPLES = Path(__file__).parent / "examples"


def found(name: str) -> Any:
    """Return the object of a name behind "gammabeta."."""
    module, _, attribute = f"gammabeta.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def first_sentence(target: Any) -> str:
    """Return the first sentence of a docstring, in Markdown."""
    text = (inspect.getdoc(target) or "").partition("\n\n")[0]
    return " ".join(text.split())


def api_pages() -> dict[str, str]:
    """Return the pages of the reference by their place on the site."""
    pages = {"api/index.md": index()}
    for group in GROUPS:
        made = {f"api/{group.stem}.md": group_page(group)} | {f"api/{name}.md": name_page(name) for name in group.names}
        assert not pages.keys() & made.keys(), f"expected pages of their own, got {pages.keys() & made.keys()} twice"
        pages |= made
    return pages


def index() -> str:
    """Return the page that lists the groups."""
    rows = [f"| [{group.title}]({group.stem}.md) | {group.about} |" for group in GROUPS]
    return "\n".join(
        [
            "# API reference",
            "",
            "Generated from the docstrings. `import gammabeta as gb` is assumed; a name with a module in front is",
            "imported from that module.",
            "",
            "| group | what it holds |",
            "|---|---|",
            *rows,
            "",
            *tree([group.stem for group in GROUPS]),
        ]
    )


def group_page(group: Group) -> str:
    """Return the page of a group: its names with their first sentences."""
    rows = [
        f"| [{name}]({name}.md) | {first_sentence(found(name)).replace('|', chr(92) + '|')} |" for name in group.names
    ]
    return "\n".join(
        [f"# {group.title}", "", group.about, "", "| name | what it is |", "|---|---|", *rows, "", *tree(group.names)]
    )


def name_page(name: str) -> str:
    """Return the page of a name: its docstring, and its example with what it prints."""
    target = found(name)
    directive = "autoclass" if inspect.isclass(target) else "autofunction"
    options = ["   :members:", "   :show-inheritance:"] if directive == "autoclass" else []
    parts = [f"# {name}", "", "```{eval-rst}", f".. {directive}:: gammabeta.{name}", *options, "```", ""]
    if (EXAMPLES / f"{name}.py").exists():
        parts += ["## Example", "", f"```{{example}} {name}", "```", ""]
    return "\n".join(parts)


def tree(names: Any) -> list[str]:
    """Return a hidden toctree."""
    return ["```{toctree}", ":hidden:", "", *names, "```", ""]
