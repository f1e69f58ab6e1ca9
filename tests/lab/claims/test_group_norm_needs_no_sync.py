"""GroupNorm does not communicate; a norm that does, or that depends on its companions, contradicts the claim."""

import pytest
from tests.lab.claims.made_up_rates import chosen, independence, plant

from gammabeta.lab.claims import group_norm_needs_no_sync as claim

# Replicates that hardly differ, and a split of many images, so that the difference alone decides.
WOBBLE = (0.0, 0.1, 0.2, 0.1)


def planted(monkeypatch, batch, group):
    errors = {claim.CONTROL: batch, claim.JUDGED: group}
    plant(monkeypatch, claim, lambda arm: chosen(errors[arm.rpartition(" ")[2]], wobble=WOBBLE))


def test_group_norm_makes_no_collective_and_has_no_companions(experiment, monkeypatch):
    planted(monkeypatch, 3.0, 4.0)
    outcome = claim.measure(experiment)
    assert outcome.room.holds, outcome.room.control
    accuracy, *_, identity = outcome.effects
    assert identity.verdict == "supported"
    assert identity.name == "GroupNorm's passes that communicate or depend on companions, of 4"
    assert outcome.verdict == accuracy.verdict == "supported"
    rows = {(row[0], row[1]): row[2:] for row in outcome.tables[0].rows}
    # one all-gather of 2C + 2 and one all-reduce of 2C float32 values per layer, two layers of 64 channels
    assert rows["MLP 2 layers relu", "synchronized BatchNorm"][:3] == [4, 2 * 4 * (4 * 64 + 2), 1]
    assert rows["MLP 2 layers relu", "GroupNorm"] == [0, 0, 1, 0.0]
    assert rows["ResNet", "GroupNorm"][:3] == [0, 0, 1]


@pytest.fixture
def independent(monkeypatch):
    """Leave the processes out: the identity holds, and the controls see what they should."""
    monkeypatch.setattr(claim, "_independence", independence)


@pytest.mark.parametrize(
    ("batch", "group", "verdict"),
    [
        (3.0, 4.0, "supported"),
        (3.0, 10.8, "contradicted"),  # 7.8 points are not slight
        (5.0, 3.0, "contradicted"),  # better is not slightly worse
        (3.0, 3.0, "inconclusive"),
        (3.0, 5.1, "inconclusive"),
        (60.0, 61.0, "no room here"),
    ],
)
def test_slightly_worse_has_two_bounds(experiment, independent, monkeypatch, batch, group, verdict):
    planted(monkeypatch, batch, group)
    outcome = claim.measure(experiment)
    assert outcome.verdict == verdict, outcome.sentence


def test_a_norm_that_depends_on_companions_and_communicates_is_contradicted(experiment, monkeypatch):
    monkeypatch.setattr(claim, "JUDGED", "ghost")
    monkeypatch.setattr(claim, "SYNCED", ("batch", "ghost"))
    planted(monkeypatch, 3.0, 4.0)
    outcome = claim.measure(experiment)
    assert outcome.verdict == "contradicted"
    assert "GroupNorm communicates or depends on companions in 4 of 4 checks" in outcome.sentence


def test_the_accuracies_of_a_tiny_study(experiment, independent, monkeypatch):
    monkeypatch.setattr(claim, "EPOCHS", 1)
    monkeypatch.setattr(claim, "COARSE", (-3,))
    experiment.seed_count = 2
    outcome = claim.measure(experiment)
    assert outcome.room.holds, outcome.room.control
    assert [row[2] for row in outcome.tables[1].rows] == [31, 31]
