"""The sources of the site, without building it: links, groups of the reference, examples, errors, named tests."""

import ast
import re

import pytest
from tests.site.loading import ROOT, SITE, loaded

import gammabeta as gb
from gammabeta.diagnostics.explain_error import CALLS, INPUTS, STATES

links, groups, works_with = loaded("links"), loaded("api_groups"), loaded("works_with")
faq_page, faq_cases = loaded("faq_page"), loaded("faq_cases")

# Names of the reference without an example. The list may only shrink.
WITHOUT_EXAMPLE = {
    "statistics.Statistics", "benchmarks.bench.bench",
    "lab.study.Interrupted", "benchmarks.plan.BenchError", "benchmarks.plan.Interrupted",
}  # fmt: skip

# What functions return: their examples need not name the class.
RETURNED = {"Change", "Diagnosis", "Explanation", "Finding", "Folded", "Verification"}

# Messages that the page of errors has no case for, by the function that explains them.
WITHOUT_CASE = {
    "_one_dtype": "FSDP needs several processes",
    "_not_ddp": "DistributedDataParallel needs several processes",
    "_devices": "needs a second device",
    "_needs_torchs": "one case stands for the tools that accept only torch's classes",
}


PLACES = {"docs/rules.md": "rules/on-one-page.md", "docs/a.md": "a.md", "docs/recipes/b.md": "recipes/b.md"}


@pytest.mark.parametrize(
    ("file", "text", "there"),
    [
        ("docs/a.md", "[x](rules.md#gb101)", "[x](rules/on-one-page.md#gb101)"),
        ("docs/recipes/b.md", "[x](../a.md)", "[x](../a.md)"),
        ("docs/recipes/b.md", "[`x`](../rules.md) y", "[`x`](../rules/on-one-page.md) y"),
        ("docs/a.md", "[`f.py`](../src/f.py)", "`f.py`"),
        ("docs/a.md", "[x](#here) [y](https://example.org/z)", "[x](#here) [y](https://example.org/z)"),
        ("docs/a.md", "`[x](rules.md)` and ``[`x`](rules.md)``", "`[x](rules.md)` and ``[`x`](rules.md)``"),
        ("docs/a.md", "```\n[x](rules.md)\n```\n[y](rules.md)", "```\n[x](rules.md)\n```\n[y](rules/on-one-page.md)"),
    ],
)  # fmt: skip
def test_links_lead_to_the_site_s_places(file, text, there):
    assert links.rewritten(text, file, PLACES.get, "") == there


def test_links_to_sources_lead_to_the_repository_where_one_is_named():
    there = links.rewritten("[f](../src/f.py#L3)", "docs/a.md", PLACES.get, "https://example.org/tree/main/")
    assert there == "[f](https://example.org/tree/main/src/f.py#L3)"


def test_the_reference_has_every_public_name_once():
    assert len(groups.NAMES) == len({*groups.NAMES})
    modules = {"functional", "statistics"}
    assert {name for name in gb.__all__ if name not in modules} <= {*groups.NAMES}
    assert {f"statistics.{name}" for name in gb.statistics.__all__} <= {*groups.NAMES}
    functions = {
        node.name
        for node in ast.parse((ROOT / "src/gammabeta/functional.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "norm" in node.name and not node.name.startswith(("_", "normalize"))
    }
    assert {f"functional.{name}" for name in functions} <= {*groups.NAMES}


def test_names_without_an_example_are_listed():
    there = {path.stem for path in (SITE / "examples").glob("*.py")}
    assert {*groups.NAMES} - there == WITHOUT_EXAMPLE
    assert there <= {*groups.NAMES}, "an example of no name of the reference is on no page"


@pytest.mark.parametrize("path", sorted((SITE / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_uses_the_name_that_it_is_of(path):
    name = path.stem.rpartition(".")[2]
    assert name in RETURNED or re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))


def test_every_row_of_what_works_names_a_test():
    for rows in works_with.SECTIONS.values():
        for row in rows:
            file, _, name = row.test.partition("::")
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^ *def {name}\(" if name else r"^def test_", text, re.MULTILINE), row.test


def test_every_message_that_is_explained_has_a_case_or_a_reason():
    messages = [str(faq_page.answer(case).error) for case in faq_cases.CASES]
    without = {
        explain.__qualname__.partition(".")[0]
        for pattern, explain in (*CALLS, *INPUTS, *STATES)
        if not any(re.search(pattern, message) for message in messages)
    }
    assert without <= {*WITHOUT_CASE}, "add a case to docs/site/faq_cases.py"
