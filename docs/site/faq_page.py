"""The page of torch's errors about norms: each case is run, and explained by `explain_error`."""

import copy
import warnings
from typing import NamedTuple

import torch
from faq_cases import CASES, Case
from torch import nn

import gammabeta as gb


class Answer(NamedTuple):
    """A case that was run: the exception, and its explanation."""

    error: Exception
    explanation: gb.Explanation


def answer(case: Case) -> Answer:
    """Run a case, which raises, and return its exception with the explanation."""
    names: dict[str, object] = {"torch": torch, "nn": nn, "gb": gb, "copy": copy, "__name__": "__faq__"}
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(case.code, case.question, "exec"), names)
    except Exception as error:
        explanation = gb.explain_error(error, names.get("model"))  # type: ignore[arg-type]
        if explanation is None:
            raise AssertionError(f"{case.question}: expected an error that is explained, got {error!r}") from error
        return Answer(error, explanation)
    raise AssertionError(f"{case.question}: expected an error, and nothing was raised")


def short(message: str) -> str:
    """Return an error's message without what comes after its first lines."""
    lines = message.strip().splitlines()
    return "\n".join([line[:200] for line in lines[:4]] + ["..."] * (len(lines) > 4))


def faq_pages() -> dict[str, str]:
    """Return the page by its place on the site."""
    parts = [
        "# Errors and what to do",
        "torch's messages about norms, each with the explanation that {py:func}`gammabeta.explain_error` gives. In\n"
        "your own code, `with gb.explained_errors(model):` adds it to the traceback. Every case here was run for this\n"
        "page, with `import torch`, `from torch import nn` and `import gammabeta as gb`.",
    ]
    for case in CASES:
        error, explanation = answer(case)
        parts += [
            f"## {case.question}",
            f"```python\n{case.code.strip()}\n```",
            f"```text\n{type(error).__name__}: {short(str(error))}\n```",
            f"**Why**: {explanation.why}",
            f"**What to do**: {explanation.fix}",
        ]
    return {"faq.md": "\n\n".join(parts) + "\n"}
