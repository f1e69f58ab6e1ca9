"""The tables of docs/claims.md: every sentence of the text is carried, and every claim belongs to a sentence."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from gammabeta.cli.main import app
from gammabeta.diagnostics.rules import RULES
from gammabeta.lab.claims import CLAIMS

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("statements", ROOT / "docs" / "statements.py")
statements = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(statements)

EVERY = [statement for _, of_section in statements.sections() for statement in of_section]
COMMANDS = typer.main.get_command(app).commands


def exists(carrier):
    """Whether a carrier is there: a claim, a rule, a command with its option, a recipe, or a public name."""
    if carrier in {claim.name for claim in CLAIMS} | {rule.code for rule in RULES}:
        return True
    if carrier.startswith("gammabeta "):
        _, name, *options = carrier.split()
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts} if name in COMMANDS else ()
        return name in COMMANDS and set(options) <= set(known)
    if carrier.startswith("recipes/"):
        return (ROOT / "docs" / carrier).is_file()
    try:
        return callable(statements.public(carrier))
    except AttributeError:
        return False


def test_every_sentence_has_carriers_that_exist():
    for statement in EVERY:
        assert statement.carriers, statement.says
        assert len(set(statement.carriers)) == len(statement.carriers), statement.says
    absent = {carrier for statement in EVERY for carrier in statement.carriers if not exists(carrier)}
    assert absent == set(), "no claim, rule, command, recipe or public name has these names"


@pytest.mark.parametrize(
    "absent",
    ["no_such_claim", "GB999", "gammabeta no", "gammabeta study --no-such-option", "recipes/no.md", "statistics.No"],
)
def test_a_carrier_that_does_not_exist_is_found_out(absent):
    assert not exists(absent)


def test_every_claim_carries_a_sentence_or_is_beyond_the_text():
    carriers = {carrier for statement in EVERY for carrier in statement.carriers}
    beyond = statements.beyond()
    assert {claim.name for claim in CLAIMS} <= carriers | set(beyond)
    assert not carriers & set(beyond)
    assert all(exists(name) and reason for name, reason in beyond.items())


def test_every_section_of_the_text_is_there():
    assert [len(of_section) > 0 for _, of_section in statements.sections()] == [True] * 10


def test_a_sentence_is_short_and_ends():
    for statement in EVERY:
        assert statement.says.endswith("."), statement.says
        assert len(statement.says.split()) <= 25, statement.says
        assert not statement.errs or statement.errs.endswith("."), statement.errs


def test_errors_refer_to_sentences_that_exist():
    numbers = {statement.number for statement in EVERY}
    for statement in EVERY:
        assert set(re.findall(r"(?:As|By|and) (\d+\.\d+)", statement.errs)) <= numbers, statement.errs


def test_the_errors_that_must_be_named_are_named():
    said = " ".join(statement.errs for statement in EVERY)
    for error in ("Two moments are set, not N(0, 1)", "Near 0 the sigmoid is linear", "ConvNeXt has LayerNorm through"):
        assert error in said


def test_the_page_has_a_row_for_each_sentence_and_links_to_its_claims():
    page = statements.table()
    for statement in EVERY:
        row = next(row for row in page.splitlines() if row.startswith(f"| {statement.number} |"))
        assert statements.cell(statement.says) in row
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, row
    anchors = {claim.name for claim in CLAIMS}
    assert {anchor for anchor in re.findall(r"\]\(#(\w+)\)", page)} <= anchors
    assert statements.link("GB202") == "[GB202](rules.md#gb202-tiny-batch)"
    assert statements.link("statistics.Ghost") == "[`statistics.Ghost`](../src/gammabeta/statistics/ghost.py)"
    assert statements.carried("sharpness")
    assert statements.carried("no_such_claim") == []
