"""Claims as sections: regimes, replicates, and the command that settles one."""

from tests.example_results import claim, effect

from gammabeta.pages.claim_section import section
from gammabeta.pages.summary import groups, replicates_of


def mixed():
    return claim(
        "gradient_flow",
        "Gradients are even",
        "mixed",
        tally="supported in 1 of 2 regimes, contradicted in 1",
        regimes={"relu": "contradicted", "relu, He": "supported"},
        effects=[
            effect("relu, seconds", 1.0, 0.9, 1.1, verdict="equivalent", seeds=3),
            effect("relu", 0.5, 0.4, 0.6, verdict="contradicted", seeds=5),
            effect("relu, He", 2.0, 1.5, 2.5, seeds=5),
            effect("cases, of 18", 0, 0, 0, margin=[0, 0], seeds=1),
        ],
    )


def test_a_mixed_verdict_is_explained_by_its_regimes():
    one = section(mixed(), {}, "")
    shown = [(regime["name"], regime["verdict"], regime["effect"]["value"]) for regime in one["regimes"]]
    assert shown == [("relu, He", "supported", 2.0), ("relu", "contradicted", 0.5)]
    assert [effect["name"] for effect in one["further"]] == ["relu, seconds", "cases, of 18"]
    assert one["deciding"] == []
    table = one["regime_table"]
    assert dict(zip(table["columns"], table["rows"][1], strict=True)) == {
        "regime": "relu",
        "verdict of the regime": "contradicted",
        "effect": "relu",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "unit": "ratio of steps",
        "margin, lower": 0.8,
        "margin, upper": 1.25,
        "verdict": "contradicted",
        "replicates": 5,
    }


def test_replicates_are_those_of_estimates_and_not_of_counts():
    assert section(mixed(), {}, "")["replicates"] == "3 to 5 replicates"
    assert replicates_of([effect("one", 1.0, None, None, seeds=1)]) == "1 replicate"
    assert section(claim("axes", "Axes", "supported", exact=True), {}, "")["replicates"] == ""


def test_the_summary_groups_by_verdict_with_identities_last():
    sections = [
        section(claim("axes", "Axes", "supported", exact=True), {}, ""),
        section(mixed(), {}, ""),
        section(claim("small_batch", "Small", "supported"), {}, ""),
    ]
    found = [(group["heading"], [(one["name"], one["short"]) for one in group["claims"]]) for group in groups(sections)]
    assert found == [
        ("Holds here", [("small_batch", "1.9 [1.5, 2.2] ratio of steps; 6 replicates")]),
        (
            "Holds in some regimes, not in others",
            [("gradient_flow", "supported in 1 of 2 regimes, contradicted in 1; 3 to 5 replicates")],
        ),
        ("Identities: holds here", [("axes", "")]),
    ]


def test_a_claim_without_room_shows_no_verdict_of_its_parts():
    found = section({**mixed(), "verdict": "no room here"}, {}, "")
    assert found["tally"] == ""
    assert {regime["verdict"] for regime in found["regimes"]} == {"no room here"}
    assert {one["verdict"] for one in found["effects"]} == {"no room here", "supported"}  # supported: the identity
    single = section(claim("axes", "Axes", "no room here"), {}, "")
    assert (single["deciding"], single["effects"][0]["verdict"]) == ([], "no room here")
    assert [one["short"] for group in groups([found, single]) for one in group["claims"]] == ["", ""]


def command(run, *, needed=9, verdict="inconclusive", **more):
    effects = [effect("a", 1.0, 0.5, 2.0, verdict=verdict, seeds_needed=needed)]
    return section(claim("axes", "Axes", verdict, effects=effects, **more), {}, run)["command"]


def test_an_open_claim_has_the_whole_command_that_settles_it():
    assert command("gammabeta study --quick --claims axes --out a/") == (
        "gammabeta study axes --quick --out a-again --seed 1 --seeds 9"
    )
    assert command("gammabeta study --first-look --seed 4 --data 'mnist:a b.npz'") == (
        "gammabeta study axes --seed 5 --data 'mnist:a b.npz' --quick --seeds 9 --out gammabeta-study-again"
    )
    own = "gammabeta study sequences --compare --until-settled --batch-size 4 --devices 2 --link 25gbe"
    assert command("another", command=own) == "gammabeta study axes --seed 1 --seeds 9 --out gammabeta-study-again"


def test_no_command_is_given_where_none_would_settle_it():
    assert command("gammabeta study", needed=None) == ""
    assert command("gammabeta study", needed=65) == ""
    assert command("gammabeta study", verdict="supported") == ""
    assert command("") == ""
