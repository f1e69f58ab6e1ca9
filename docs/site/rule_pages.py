"""The pages of the rules: a table, and one page a rule with its examples and what the check says of them."""

import warnings

import torch
from api_pages import tree

import gammabeta as gb
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rules import RULES


def rule_pages() -> dict[str, str]:
    """Return the pages of the rules by their place on the site."""
    rows = [f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.severity} | {rule.title} |" for rule in RULES]
    index = [
        "# Rules",
        "",
        "What `gammabeta check` and {py:func}`gammabeta.check` find. `gammabeta explain GB101` prints a rule in the",
        "terminal, and `gammabeta rules` lists them. [All rules on one page](on-one-page.md) says what a rule sees,",
        "and how to accept a finding.",
        "",
        "| code | name | severity | finds |",
        "|---|---|---|---|",
        *rows,
        "",
        *tree(["on-one-page", *(rule.code for rule in RULES)]),
    ]
    return {"rules/index.md": "\n".join(index)} | {f"rules/{rule.code}.md": page(rule) for rule in RULES}


def page(rule: Rule) -> str:
    """Return the page of one rule."""
    parts = [f"# {rule.code} {rule.name}", rule.page()]
    if (said := findings(rule)) is not None:
        parts += ["## What the check says", "Of the first example:", f"```text\n{said}\n```"]
    parts += [
        "## To accept a finding",
        f'```python\nimport gammabeta as gb\n\ngb.ignore(module, "{rule.code}", reason="…")\n```',
        f"On the command line, `--ignore {rule.code}` ignores the rule for the whole model.",
    ]
    return "\n\n".join(parts) + "\n"


def findings(rule: Rule) -> str | None:
    """Return what the check prints of the rule's own example; None where that takes a training or processes."""
    torch.manual_seed(0)
    try:
        example = rule.flagged()
    except ValueError as error:
        if "process group" not in str(error):
            raise
        return None
    if example.train is not None or example.processes != 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of models with a fault
        return str(gb.check(example.model, select=rule.code, **example.options))
