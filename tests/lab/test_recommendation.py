"""What is recommended from a comparison, in words; the numbers are made up here."""

import dataclasses

from tests.lab.made_up import BATCH, BETTER, LEVEL, NEAR, WORSE, compared

from gammabeta.lab.comparison import LOSS, WHOM
from gammabeta.lab.outcome import Effect, Outcome, Room
from gammabeta.lab.recommendation import Run, failed, not_compared, recommend

WHERE = "For ResNet on digits with batches of 4 on one device: "


def effect(verdict="supported"):
    return Effect("x", 1.5, 1.0, 2.0, "points", (-1, 1), 0.0, verdict, 2)


def recommended(comparison, outcomes=None, **run):
    return recommend(comparison, outcomes or {}, Run(**run))


def test_where_nothing_is_shown_to_be_better_the_usual_norm_is_kept():
    said = recommended(compared({"layer": BATCH, "group": LEVEL}))
    assert said["headline"] == (
        f"{WHERE}keep LayerNorm. Nothing was shown to be better by 1 point (test error 3.1 %, over 4 replicates)."
    )
    assert (said["settled"], said["seeds"], said["costs"], said["avoid"]) == (True, 4, None, [])
    assert said["uncertain"] is None


def test_a_better_norm_is_quoted_by_what_it_gains_at_least():
    said = recommended(
        compared(
            {"batch": BATCH, "group": BETTER, "none": WORSE}, timings={"group": (0.012, 0.012)}, saved={"group": 900}
        )
    )
    assert said["headline"] == (
        f"{WHERE}use GroupNorm. Its test error is at least 1.9 points below BatchNorm's (2.1 [1.9, 2.3]), over 4 "
        "replicates."
    )
    assert said["how"] == 'gb.convert(model, "group")'
    assert said["costs"] == "20 % more time per step, 10 % less memory kept for the backward pass."
    assert said["avoid"] == [
        "BatchNorm: test error 3.1 %; that of GroupNorm is at least 1.9 points below BatchNorm's (2.1 [1.9, 2.3]).",
        "no normalization: test error 9.1 %, at least 5.8 points above BatchNorm's (6.0 [5.8, 6.2]); the same time per "
        "step, the same memory kept for the backward pass.",
    ]
    assert [(item["side"], item["text"].partition(":")[0]) for item in said["evidence"]] == [
        ("for", "GroupNorm"), ("for", "BatchNorm"), ("for", "no normalization")
    ]  # fmt: skip


def test_what_recompute_leaves_of_the_memory_is_said_of_the_recommended_norm():
    bytes_of = {"saved": {"batch": 1000, "group": 900}, "recomputed": {"batch": 440, "group": 450}}
    usual = compared({"batch": BATCH, "group": WORSE}, **bytes_of)
    other = compared({"batch": BATCH, "group": BETTER}, **bytes_of)
    assert recommended(usual)["costs"] == "gb.recompute(model) leaves 44 % of the memory kept for the backward pass."
    assert recommended(other)["costs"] == (
        "the same time per step, 10 % less memory kept for the backward pass. gb.recompute(model) leaves 50 % of the "
        "memory kept for the backward pass."
    )
    little = compared({"batch": BATCH, "group": WORSE}, recomputed={"batch": 950})
    assert recommended(little)["costs"] is None
    table = usual.to_json()["table"]
    at = table["columns"].index("memory after gb.recompute")
    assert {row[0]: row[at] for row in table["rows"]} == {"BatchNorm": 0.44, "GroupNorm": 0.45}
    assert "memory after gb.recompute" not in compared({"batch": BATCH}).to_json()["table"]["columns"]


def test_an_equally_good_norm_is_recommended_for_what_it_saves():
    said = recommended(compared({"layer": BATCH, "rms": LEVEL}, timings={"rms": (0.008, 0.0083)}))
    assert said["headline"] == (
        f"{WHERE}use RMSNorm. It is as good as LayerNorm to within 1 point, at 18 % less time per step, the same "
        "memory kept for the backward pass (4 replicates)."
    )
    assert said["avoid"] == []
    assert said["evidence"][0]["text"].startswith("RMSNorm: test error 3.1 %, within 1 point of LayerNorm's (0.0 [")


def test_the_recommendation_says_how_far_it_reaches():
    of_study = compared({"layer": BATCH, "none": BETTER}, kind="sequences")
    assert recommended(of_study)["scope"] == (
        "After 400 steps. Each norm has its own best learning rate. It is one of the study's own networks: a deeper "
        "one may behave differently."
    )
    by_another = dataclasses.replace(of_study, rates_by="exact statistics")
    assert "its own best learning rate by exact statistics. It is one" in recommended(by_another)["scope"]
    own = dataclasses.replace(of_study, own=True)
    assert recommended(own)["scope"] == "After 400 steps. Each norm has its own best learning rate."
    whole = dataclasses.replace(own, trained="20 epochs", whom=WHOM[True], left_out=("RMSNorm", "InstanceNorm"))
    assert recommended(whole)["scope"] == (
        "Trained for 20 epochs. Each norm has its own best learning rate. Intervals speak of training again, on other "
        "images of the same kind as the test set's. Left out: RMSNorm, InstanceNorm; a whole study compares them."
    )


def test_what_is_not_distinguished_is_named_with_the_whole_command_that_would_decide():
    near = compared({"batch": BATCH, "layer": NEAR})
    needed = near.arms[1].gain.seeds_needed
    said = recommended(near, command="gammabeta study axes --quick --seeds 4 --out 'my dir'", data="digits")
    assert said["headline"].startswith(f"{WHERE}keep BatchNorm.")
    assert said["settled"] is False
    assert said["uncertain"] == (
        "Not distinguished from BatchNorm by the margin of 1 point after 4 replicates: LayerNorm (about "
        f"{needed} replicates would decide)."
    )
    assert said["settle"] == (
        "gammabeta study --quick --out 'my dir-again' --compare --until-settled --seed 1 --data digits"
    )
    # fresh replicates: a second look at the same ones would decide wrongly more often
    again = Run(command="gammabeta study --data mnist:m.npz --seed 3 --seeds 20").again()
    assert again == (
        "gammabeta study --data mnist:m.npz --seed 4 --compare --until-settled --out gammabeta-study-again"
    )
    first = Run(quick=True, command="gammabeta study --first-look").again()
    assert first == "gammabeta study --compare --until-settled --seed 1 --out gammabeta-study-again --quick"


def test_what_looked_until_it_was_settled_is_not_advised_to_look_again():
    near = compared({"batch": BATCH, "layer": NEAR})
    said = recommended(near, command="gammabeta study --compare --until-settled", until_settled=True)
    assert (said["settled"], said["settle"]) == (False, None)
    assert said["uncertain"].startswith("Not distinguished from BatchNorm by the margin of 1 point after 4 replicates")


def test_where_no_number_of_replicates_decides_it_says_so():
    level = (1.1, 3.1, 2.1, 2.1)  # 1 below on average: the margin itself
    said = recommended(compared({"batch": BATCH, "group": level}))
    assert said["uncertain"] == (
        "Not distinguished from BatchNorm by the margin of 1 point after 4 replicates: GroupNorm (no number of "
        "replicates would decide). More data would, or another margin."
    )


def test_a_better_norm_whose_learning_rate_has_no_room_is_not_recommended_and_the_page_says_why():
    fragile = compared({"batch": BATCH, "group": BETTER}, headroom={"batch": 7, "group": 3}, fragile=("group",))
    said = recommended(fragile)
    assert said["headline"].startswith(f"{WHERE}keep BatchNorm.")
    assert said["evidence"][-1] == {
        "side": "neither",
        "claim": "comparison",
        "text": "GroupNorm is not recommended, although its test error is at least 1.9 points below BatchNorm's (2.1 "
        "[1.9, 2.3]): at twice its learning rate training fails and 3 learning rates serve, and 7 with BatchNorm.",
    }


def test_over_devices_the_costs_have_the_communication():
    shared = dataclasses.replace(compared({"batch": BATCH, "group": WORSE}), communication="synchronizing adds 2 %")
    assert recommended(shared)["costs"] == "Synchronizing adds 2 %."


def test_a_norm_that_gains_by_recalibration_comes_with_the_call():
    values = {"batch": BATCH, "group": BETTER}
    assert recommended(compared(values, recalibrated={"batch": BATCH}))["how"] == 'gb.convert(model, "group")'
    kept = {"batch": BATCH, "group": LEVEL}
    by_far = tuple(value - gain for value, gain in zip(BATCH, (2.0, 2.1, 1.9, 2.0), strict=True))
    said = recommended(compared(kept, recalibrated={"batch": by_far, "group": LEVEL}))
    assert said["how"] == (
        "gb.BatchNorm2d(channels); after training gb.recalibrate(model, batches), which lowers the test error by at "
        "least 1.8 points"
    )
    by_little = tuple(value - 0.5 for value in BATCH)
    assert recommended(compared(kept, recalibrated={"batch": by_little}))["how"] == "gb.BatchNorm2d(channels)"


def test_on_text_it_goes_by_the_loss_and_quotes_the_claim_about_text():
    outcomes = {
        "layernorm_in_transformers": Outcome("supported", "", [effect()], Room(True, "")),
        "small_batch": Outcome("supported", "about images", [effect()], Room(True, "")),
    }
    values = {"layer": (1.70, 1.71, 1.72), "rms": (1.66, 1.669, 1.68), "padded": (1.80, 1.81, 1.821)}
    said = recommended(compared(values, scale=LOSS, kind="text"), outcomes)
    assert said["headline"] == (
        f"{WHERE}use RMSNorm. Its test loss is at least 0.038 nats below LayerNorm's (0.040 [0.038, 0.043]), over 3 "
        "replicates."
    )
    assert said["how"] == "gb.RMSNorm(features)"
    assert [item["claim"] for item in said["evidence"]] == ["comparison"] * 3 + ["layernorm_in_transformers"]
    assert said["evidence"][-1]["side"] == "for"
    assert [text.partition(":")[0] for text in said["avoid"]] == ["LayerNorm", "padded"]
    # A tenth of a point of test error would be negligible; as a difference of the loss it is three margins.
    assert recommended(compared(values))["headline"].startswith(f"{WHERE}keep LayerNorm.")


def test_a_norm_for_several_devices_is_named_with_its_source_of_statistics():
    values = {"ghost:4": BATCH, "batch": BETTER}
    several = recommended(compared(values, devices=8))
    assert several["how"] == "gb.set_statistics(model, gb.statistics.Synced())"
    assert "with batches of 4 on each of 8 devices" in several["headline"]
    assert several["costs"] == ("the same time per step on one device, the same memory kept for the backward pass.")
    values = {"layer": BATCH, "masked": BETTER, "masked:4": NEAR}
    said = recommended(compared(values, kind="sequences", devices=8))
    assert said["how"] == "gb.BatchNorm1d(features, statistics=gb.statistics.Synced()), called with mask="
    alone = recommended(compared({"layer": BATCH, "masked": BETTER}, kind="sequences"))
    assert alone["how"] == "gb.BatchNorm1d(features), called with mask="


def test_what_is_level_has_no_sign():
    slightly = tuple(value - 0.001 * index for index, value in enumerate(BATCH))
    level = recommended(compared({"batch": BATCH, "group": slightly}))
    assert level["evidence"][1]["text"] == (
        "GroupNorm: test error 3.1 %, within 1 point of BatchNorm's (0.0 [-0.1, 0.1] below); the same time per step, "
        "the same memory kept for the backward pass."
    )


def test_without_training_or_comparison_there_is_no_recommendation():
    untrained = recommended(compared({"batch": (80.0, 81.0)}, learned=False))
    assert untrained["headline"].startswith(
        "No recommendation for ResNet on digits with batches of 4 on one device: no"
    )
    assert untrained["uncertain"] == "Name another model with --model."
    elsewhere = compared({"layer": (80.0, 81.0)}, learned=False, kind="sequences")
    assert recommended(elsewhere)["uncertain"] is None  # a model can only be given for images
    assert recommended(elsewhere, quick=True)["uncertain"] == "A run without --quick trains longer."
    broken = failed("text", "it died")
    assert broken["headline"] == "No recommendation on text: the comparison of the norms failed."
    assert broken["uncertain"] == "it died"
    said = not_compared("vowels", {"sequences": Outcome("inconclusive", "", [effect("inconclusive")], Room(True, ""))})
    assert said["uncertain"] == "Run gammabeta study --compare, or all claims."
    (item,) = said["evidence"]
    assert (item["side"], item["claim"]) == ("neither", "sequences")
    assert item["text"].endswith(": inconclusive, 1.5 [1, 2] points (x).")
