"""Synced statistics equal those of the whole batch; averaged ones do not."""

import pytest

from gammabeta.lab.claims import sync_equals_large_batch as claim


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    monkeypatch.setattr(claim, "QUICK", (2,))


def test_it_holds(experiment):
    outcome = claim.measure(experiment)
    assert outcome.verdict == "supported", outcome.sentence
    assert outcome.room.holds
    assert outcome.effects[0].name == "comparisons in which ranks and the whole batch differ, of 24"
    rows = outcome.tables[0].rows
    assert {(row[0], row[2]) for row in rows} == {(case, sizes) for case in claim.CASES for sizes in claim.SIZES}
    # something was compared: float64 sums in another order are not equal bit by bit
    assert max(row[4] for row in rows) > 0
    # the control is far off in every kind
    assert all(value > 1e-4 for row in rows for value in row[6:])


def test_averaging_the_ranks_variances_is_contradicted(experiment, monkeypatch):
    monkeypatch.setattr(claim, "JUDGED", "averaged")
    outcome = claim.measure(experiment)
    assert outcome.verdict == "contradicted"
    assert outcome.sentence.startswith("ranks and the whole batch differ in 24 of 24 comparisons")
