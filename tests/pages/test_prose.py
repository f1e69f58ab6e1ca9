"""Texts as HTML."""

import json

import pytest
from tests.example_results import HOSTILE

from gammabeta.pages.prose import calls, capitalized, coded, duration, embed, listed, prose


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.42, "0.42 s"), (12.34, "12 s"), (184, "3 min 4 s"), (4320, "1 h 12 min")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


def test_prose_knows_paragraphs_items_code_and_arxiv():
    assert str(prose("one\ntwo\n\n- a <b>\n- `c`\n\n(1502.03167)")) == (
        "<p>one two</p><ul><li>a &lt;b&gt;</li><li><code>c</code></li></ul>"
        '<p>(<a href="https://arxiv.org/abs/1502.03167">1502.03167</a>)</p>'
    )


def test_embedded_json_cannot_end_its_element():
    text = str(embed({"x": HOSTILE}))
    assert "<" not in text
    assert json.loads(text) == {"x": HOSTILE}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gb.GroupNorm(1, channels); gb.LayerNorm where", ["gb.GroupNorm(1, channels)", "gb.LayerNorm"]),
        ("gb.BatchNorm2d(statistics=gb.statistics.Renorm())", ["gb.BatchNorm2d(statistics=gb.statistics.Renorm())"]),
        ("model = gb.convert(model, 'group', (x,)).", ["model = gb.convert(model, 'group', (x,))"]),
        ("`gb.convert(model)`, then `gb.check(model)`", ["gb.convert(model)", "gb.check(model)"]),
        ("no normalization layer", []),
    ],
)
def test_calls_in_a_text_are_found_and_shown_as_code(text, found):
    assert calls(text) == found
    assert str(coded(text)).count("<code>") == len(found)


def test_code_is_escaped():
    assert str(coded("gb.check(<b>)")) == "<code>gb.check(&lt;b&gt;)</code>"


def test_a_sentence_begins_with_a_capital_and_ends_with_a_stop():
    assert [capitalized(text) for text in ("a ratio of 2", "γ and β fit.", "")] == [
        "A ratio of 2.",
        "γ and β fit.",
        ".",
    ]


def test_names_are_listed():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
