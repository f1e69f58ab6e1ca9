"""What is recommended from a comparison, whose numbers are made up here."""

import dataclasses

from gammabeta.lab.comparison import ERROR, LOSS, Compared, Comparison, side_by_side
from gammabeta.lab.outcome import Effect, Outcome, Room
from gammabeta.lab.recommendation import choose, failed, not_compared, recommend

BATCH = (3.0, 3.2, 3.1, 3.1)
NEAR = (2.0, 2.6, 3.4, 2.8)  # 0.4 below on average, with a spread of 0.5
LEVEL = (1.1, 3.1, 2.1, 2.1)  # 1 below on average: the margin itself
BETTER = (1.0, 1.1, 0.9, 1.0)
NAMES = {"batch": "BatchNorm", "group": "GroupNorm", "none": "no normalization", "layer": "LayerNorm", "rms": "RMSNorm"}


def compared(values, *, scale=ERROR, kind="images", devices=1, learned=True, seconds=None, saved=None):
    """Compare norms with these values, one per seed; the first is the usual one."""
    arms = side_by_side(
        [
            Compared(
                norm,
                NAMES.get(norm, norm),
                0.5,
                of_norm,
                (seconds or {}).get(norm, 0.01),
                (saved or {}).get(norm, 1000),
            )
            for norm, of_norm in values.items()
        ],
        scale,
    )
    return Comparison(kind, "digits", "ResNet", 4, devices, 400, scale, learned, arms)


def test_the_usual_norm_is_chosen_unless_another_is_better_by_the_margin():
    assert choose(compared({"batch": BATCH, "group": (2.8, 3.0, 2.9, 2.9)})).norm == "batch"
    # a norm that is surely better comes before one that is better by luck
    both = compared({"batch": BATCH, "group": BETTER, "renorm": (0.0, 4.0, -1.0, 0.0)})
    assert both.arms[2].gain.verdict == "inconclusive"
    assert choose(both).norm == "group"
    # of two about equally good norms the first: 0.3 is not worth a less usual norm, 1.3 is
    level = {"batch": BATCH, "group": BETTER, "none": (0.7, 0.8, 0.6, 0.7)}
    assert choose(compared(level)).norm == "group"
    assert choose(compared({**level, "group": (1.7, 2.1, 1.8, 1.9)})).norm == "none"


def test_the_recommendation_says_how_far_it_reaches():
    of_study = compared({"layer": BATCH, "none": BETTER}, kind="sequences")
    effect = Effect("x", 1.5, 1.0, 2.0, "decades", (-1, 1), 0.0, "supported", 2)
    said = recommend(of_study, {"init_robustness": Outcome("supported", "", [effect], Room(True, ""))})
    assert said["scope"] == (
        "After 400 steps, each norm at its own best learning rate, in one of the study's own networks: a deeper "
        "network may behave differently."
    )
    assert said["evidence"][-1] == {
        "text": "What is given up without a norm: Supported: 1.5 [1, 2] decades (x).", "claim": "init_robustness"
    }  # fmt: skip
    by_another = dataclasses.replace(of_study, rates_by="exact statistics")
    assert "at its own best learning rate by exact statistics, in one" in recommend(by_another, {})["scope"]
    own = dataclasses.replace(of_study, own=True)
    assert recommend(own, {})["scope"] == "After 400 steps, each norm at its own best learning rate."


def test_the_recommendation_says_what_by_how_much_at_what_cost_and_what_to_avoid():
    effect = Effect("x", 1.5, -3.0, 6.0, "points", (-1, 1), 0.0, "supported", 2)
    outcome = Outcome("supported", "it rises", [effect], Room(True, ""))
    values = {"batch": BATCH, "group": BETTER, "none": (9.0, 9.1, 9.2, 9.1)}
    said = recommend(compared(values, seconds={"group": 0.012}, saved={"group": 900}), {"small_batch": outcome})
    assert said["headline"] == (
        "For ResNet on digits with batches of 4 on one device: GroupNorm, test error 1.0 %, 2.1 points [2.0, 2.2] "
        "below BatchNorm; 20 % more time per step, 10 % less memory kept for the backward pass."
    )
    assert said["how"] == "gb.GroupNorm"
    assert said["avoid"] == [
        "BatchNorm: test error 3.1 %",
        "no normalization: test error 9.1 %, 6.0 points [5.9, 6.1] above BatchNorm; the same time per step, the same "
        "memory kept for the backward pass",
    ]
    assert said["uncertain"] is None
    assert said["evidence"][-1] == {"text": "Supported: 1.5 [-3, 6] points (x).", "claim": "small_batch"}


def test_the_recommendation_says_what_is_not_distinguished():
    said = recommend(compared({"batch": BATCH, "group": LEVEL}), {})
    assert said["headline"].startswith(
        "For ResNet on digits with batches of 4 on one device: BatchNorm, test error 3.1"
    )
    assert said["uncertain"] == (
        "Not distinguished from BatchNorm by the margin of 1 point: GroupNorm (no number of seeds would decide). No "
        "practical number of seeds would decide: the norms are about equally good here."
    )
    assert "--seeds 2 --data" not in said["uncertain"]
    near = compared({"batch": BATCH, "layer": NEAR})
    assert "--data digits, with the other" in recommend(near, {}, option=" --data digits")["uncertain"]
    needed = near.arms[1].gain.seeds_needed
    assert recommend(near, {})["uncertain"] == (
        f"Not distinguished from BatchNorm by the margin of 1 point: LayerNorm ({needed} seeds would decide). To "
        f"decide: gammabeta study --compare --seeds {needed}, with the other options unchanged."
    )
    of_both = recommend(compared({"batch": BATCH, "layer": NEAR, "group": LEVEL}), {})["uncertain"]
    assert "To decide where that is practical: gammabeta study" in of_both


def test_on_text_it_goes_by_the_loss_and_quotes_the_claim_about_text():
    effect = Effect(
        "BatchNorm less LayerNorm", 0.05, 0.04, 0.06, "nats per character", (-0.03, 0.03), 0.0, "supported", 2
    )
    outcomes = {
        "layernorm_in_transformers": Outcome("supported", "", [effect], Room(True, "")),
        "small_batch": Outcome("supported", "about images", [effect], Room(True, "")),
    }
    values = {"layer": (1.70, 1.71, 1.72), "rms": (1.66, 1.67, 1.679), "padded": (1.80, 1.81, 1.83)}
    said = recommend(compared(values, scale=LOSS, kind="text"), outcomes)
    assert said["headline"].startswith(
        "For ResNet on digits with batches of 4 on one device: RMSNorm, test loss 1.670 nats per character, 0.040 "
        "nats ["
    )
    assert said["how"] == "gb.RMSNorm"
    assert [item["claim"] for item in said["evidence"]] == ["comparison"] * 3 + ["layernorm_in_transformers"]
    assert said["evidence"][1]["text"] == "LayerNorm: test loss 1.710 nats per character, the usual choice."
    assert len(said["avoid"]) == 1  # LayerNorm is within twice the margin of the chosen norm
    assert said["avoid"][0].startswith("padded: test loss 1.813 nats per character, 0.103 nats [")
    # A tenth of a point of test error would be negligible; as a difference of the loss it is three margins.
    assert recommend(compared(values), {})["headline"].count("LayerNorm, test error 1.7 %, the usual choice") == 1


def test_a_norm_for_several_devices_is_named_with_its_source_of_statistics():
    values = {"ghost:4": BATCH, "batch": BETTER}
    assert recommend(compared(values, devices=8), {})["how"] == "gb.BatchNorm2d, with statistics=gb.statistics.Synced()"
    assert "with batches of 4 on each of 8 devices" in recommend(compared(values, devices=8), {})["headline"]
    values = {"layer": BATCH, "masked": BETTER, "masked:4": NEAR}
    said = recommend(compared(values, kind="sequences", devices=8), {})
    assert said["how"] == "gb.BatchNorm1d, called with mask=, with statistics=gb.statistics.Synced()"
    alone = recommend(compared({"layer": BATCH, "masked": BETTER}, kind="sequences"), {})
    assert alone["how"] == "gb.BatchNorm1d, called with mask="


def test_what_is_level_has_no_sign_and_time_over_devices_is_that_of_one():
    level = compared({"batch": BATCH, "group": BATCH}, devices=2)
    assert recommend(level, {})["evidence"][1]["text"] == (
        "GroupNorm: test error 3.1 %, 0.0 points [0.0, 0.0] above BatchNorm; the same time per step on one device, "
        "without communication, the same memory kept for the backward pass."
    )


def test_without_training_or_comparison_there_is_no_recommendation():
    untrained = recommend(compared({"batch": (80.0, 81.0)}, learned=False), {})
    assert untrained["headline"].startswith(
        "No recommendation for ResNet on digits with batches of 4 on one device: no"
    )
    assert untrained["uncertain"] == "Name another model with --model."
    elsewhere = compared({"layer": (80.0, 81.0)}, learned=False, kind="sequences")
    assert recommend(elsewhere, {})["uncertain"] is None  # a model can only be given for images
    assert recommend(elsewhere, {}, quick=True)["uncertain"] == "A run without --quick trains longer."
    broken = failed("text", "it died")
    assert broken["headline"] == "No recommendation on text: the comparison of the norms failed."
    assert broken["uncertain"] == "it died"
    effect = Effect("LayerNorm", 1.5, -3.0, 6.0, "points", (-2, 2), 0.0, "inconclusive", 2)
    said = not_compared("vowels", {"sequences": Outcome("inconclusive", "level", [effect], Room(True, ""))})
    assert said["uncertain"] == "Run gammabeta study --compare, or all claims."
    assert said["evidence"] == [{"text": "Inconclusive: 1.5 [-3, 6] points (LayerNorm).", "claim": "sequences"}]
