"""What measured claims say for a norm and against it: by their verdicts, at the batch in question."""

import math

import pytest
from tests.lab.made_up import BATCH, BETTER, compared

from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.evidence import SEVERAL, SPEAKS, said, summary
from gammabeta.lab.images.comparison import norms
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.outcome import Effect, Outcome, Room
from gammabeta.lab.sequences.networks import ARMS


def outcome(verdict, **more):
    effect = Effect("rise", 1.5, 1.0, 2.0, "points", (-1, 1), 0.0, verdict, 2)
    return Outcome(verdict, "it rises", [effect], Room(True, ""), **more)


def sides(comparison, chosen, **verdicts):
    """Return by claim on which side each of these verdicts is."""
    arm = next(arm for arm in comparison.arms if arm.norm == chosen)
    outcomes = {name: outcome(verdict) for name, verdict in verdicts.items()}
    return {name: side for side, name, _ in said(outcomes, comparison, arm)}


@pytest.mark.parametrize(
    ("verdict", "of_batch", "of_group"),
    [
        ("supported", "against", "for"),
        ("contradicted", "for", "against"),
        ("equivalent", "neither", "neither"),
        ("mixed", "neither", "neither"),
        ("inconclusive", "neither", "neither"),
    ],
)
def test_a_claim_is_on_the_side_that_its_verdict_puts_it(verdict, of_batch, of_group):
    small = compared({"batch": BATCH, "group": BETTER}, batch_size=2)
    assert sides(small, "batch", small_batch=verdict) == {"small_batch": of_batch}
    assert sides(small, "group", small_batch=verdict) == {"small_batch": of_group}


def test_a_claim_that_speaks_against_the_choice_is_never_evidence_for_it():
    """BatchNorm trains faster than no normalization: a reason against a recommendation of none."""
    without = compared({"batch": BATCH, "none": BETTER})
    assert sides(without, "none", faster_convergence="supported") == {"faster_convergence": "against"}
    assert sides(without, "batch", faster_convergence="supported") == {"faster_convergence": "for"}
    assert sides(without, "none", faster_convergence="contradicted") == {"faster_convergence": "for"}


def test_what_speaks_against_the_usual_norm_speaks_for_leaving_it():
    other = compared({"batch": BATCH, "rms": BETTER}, batch_size=2)
    assert sides(other, "rms", small_batch="supported") == {"small_batch": "for"}


def test_small_batches_are_quoted_only_at_small_batches():
    large = compared({"batch": BATCH, "group": BETTER}, batch_size=32)
    assert sides(large, "batch", small_batch="supported") == {}
    devices = compared({"ghost:2": BATCH, "batch": BETTER}, batch_size=2, devices=8)
    # the synchronized norm sees 16 images; what speaks against the usual one speaks for it
    assert sides(devices, "batch", small_batch="supported", sync_cost="reported") == {
        "small_batch": "for", "sync_cost": "neither"
    }  # fmt: skip
    assert sides(devices, "ghost:2", small_batch="supported") == {"small_batch": "against"}


def test_of_a_claim_that_says_several_things_contradicted_names_no_side():
    text = compared({"layer": BATCH, "rms": BETTER}, kind="text")
    assert sides(text, "rms", layernorm_in_transformers="supported") == {"layernorm_in_transformers": "for"}
    assert sides(text, "rms", layernorm_in_transformers="contradicted") == {"layernorm_in_transformers": "neither"}


@pytest.mark.parametrize("verdict", ["no room here", "does not apply", "interrupted", "failed"])
def test_what_was_not_judged_is_not_quoted(verdict):
    assert sides(compared({"batch": BATCH, "none": BETTER}), "batch", gradient_flow=verdict) == {}


def test_a_sentence_has_the_claims_title_for_its_subject_and_counts_regimes():
    title = "BatchNorm needs a large enough batch"
    assert summary("small_batch", outcome("supported")) == f"{title}: supported, 1.5 [1, 2] points (rise)."
    mixed = outcome("mixed", regimes={"a": "supported", "b": "contradicted", "c": "no room here"})
    assert summary("small_batch", mixed) == f"{title}: mixed (supported in 1 of 2 regimes, contradicted in 1)."
    without = Outcome("no room here", "1 of 3", [], Room(False, "nothing learned"), regimes={"a": "supported"})
    assert summary("small_batch", without) == f"{title}: no room here (nothing learned)."
    bare = Outcome("reported", "it takes long", [], Room(True, ""))
    assert summary("unheard_of", bare) == "unheard_of: reported; it takes long."


def test_only_claims_and_norms_that_exist_are_spoken_of():
    known = {norm.partition(":")[0] for devices in (1, 2) for norm in norms(4, devices, flat=False)} | set(ARMS)
    claims = {claim.name for claim in CLAIMS}
    assert {norm for of_claim in SPEAKS.values() for norm in of_claim} <= known
    assert set(SPEAKS) | set(SEVERAL) <= claims
    assert {name for row in KINDS.values() for name in row.claims} <= set(SPEAKS)


def test_an_interval_that_bounds_nothing_is_called_unknown():
    effect = Effect("rise", 0.0, -math.inf, math.inf, "points", (-1, 1), 0.0, "inconclusive", 2)
    sentence = f"it rises by {effect.value:+.3f} [{effect.low:.3f}, {effect.high:+.3f}] points"
    made = Outcome("inconclusive", sentence, [effect], Room(True, ""))
    assert made.sentence == "it rises by +0.000 [unknown] points"
    assert made.to_json()["sentence"] == made.sentence
