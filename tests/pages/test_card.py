"""Recommendations as cards."""

import pytest
from tests.example_results import example_results

from gammabeta.pages.card import card


def made(headline):
    one = card({"headline": headline}, {})
    return one["where"], one["what"], one["because"], one["long"]


@pytest.mark.parametrize(
    ("headline", "parts"),
    [
        (
            "For ResNet on digits with batches of 32 on one device: keep BatchNorm. Nothing was shown to be better by "
            "1 point (test error 1.8 %, over 4 replicates).",
            (
                "ResNet on digits with batches of 32 on one device",
                "Keep BatchNorm",
                "Nothing was shown to be better by 1 point (test error 1.8 %).",
                False,
            ),
        ),
        (
            "For my.py:Net on x: use GroupNorm. Its test error is at least 0.4 points below, over 8 replicates.",
            ("my.py:Net on x", "Use GroupNorm", "Its test error is at least 0.4 points below.", False),
        ),
        (
            "No recommendation for GRU on strokes: no norm trained well enough in 150 steps.",
            ("GRU on strokes", "No recommendation", "no norm trained well enough in 150 steps.", False),
        ),
        ("Words of another version.", ("", "Words of another version.", "", True)),
    ],
)
def test_a_headline_is_taken_apart(headline, parts):
    assert made(headline) == parts


def test_evidence_has_its_claim_s_title_apart_its_side_and_its_replicates():
    results = example_results()
    one = card(results["recommendations"][0], {claim["name"]: claim for claim in results["claims"]})
    (quoted,) = one["evidence"]["for"]
    assert quoted["title"] == "With BatchNorm training takes far fewer steps"
    assert quoted["text"] == "contradicted, 0.7 [0.6, 0.9]."
    assert (quoted["link"], quoted["replicates"]) == ("#claim-faster_convergence", 6)
    assert one["evidence"]["against"] == []
    assert [item["link"] for item in one["evidence"]["neither"]] == ["", ""]
    assert one["write"] == "gb.GroupNorm(8, channels)"
    assert one["and_then"] == "after training gb.recalibrate(model, batches)"


def test_what_is_no_call_is_said_in_words():
    one = card({"headline": "Use none.", "how": "no normalization layer"}, {})
    assert (one["write"], one["and_then"]) == ("", "no normalization layer")
