"""GroupNorm does not communicate; a norm that does, or that depends on its companions, contradicts the claim."""

import pytest

from gammabeta.lab.claims import group_norm_needs_no_sync as claim


@pytest.fixture
def fixed_rates(monkeypatch):
    """Start tuning from the rate that it finds on digits, to save time."""
    whole = claim.at_best

    def at_best(experiment, arms, score, seeds, **more):
        return whole(experiment, arms, score, seeds, coarse=(-2,), **more)

    monkeypatch.setattr(claim, "at_best", at_best)


def test_group_norm_makes_no_collective_and_has_no_companions(experiment, fixed_rates):
    outcome = claim.measure(experiment)
    assert outcome.room.holds, outcome.room.control
    accuracy, *_, identity = outcome.effects
    assert identity.verdict == "supported"
    assert identity.name == "GroupNorm's passes that communicate or depend on companions, of 4"
    assert outcome.verdict == accuracy.verdict
    rows = {(row[0], row[1]): row[2:] for row in outcome.tables[0].rows}
    # one all-gather of 2C + 2 and one all-reduce of 2C float32 values per layer, two layers of 64 channels
    assert rows["MLP 2 layers relu", "synchronized BatchNorm"][:3] == [4, 2 * 4 * (4 * 64 + 2), 1]
    assert rows["MLP 2 layers relu", "GroupNorm"] == [0, 0, 1, 0.0]
    assert rows["ResNet", "GroupNorm"][:3] == [0, 0, 1]


@pytest.mark.parametrize(("synced", "failed"), [(("batch",), 2), (("batch", "ghost"), 4)])
def test_a_norm_that_depends_on_companions_or_communicates_is_contradicted(
    experiment, fixed_rates, monkeypatch, synced, failed
):
    monkeypatch.setattr(claim, "JUDGED", "ghost")
    monkeypatch.setattr(claim, "SYNCED", synced)
    outcome = claim.measure(experiment)
    assert outcome.verdict == "contradicted"
    assert f"GroupNorm communicates or depends on companions in {failed} of 4 checks" in outcome.sentence
