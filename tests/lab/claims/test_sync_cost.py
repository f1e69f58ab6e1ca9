"""What synchronizing costs: counted, timed, fitted, and the model's arithmetic."""

import pytest

from gammabeta.lab.claims import sync_cost as claim
from gammabeta.lab.links import GATHER, PART, REDUCE, Link, exchange, passes_at

SLOW = Link("slow", 1, 2)


def test_it_is_reported_with_what_it_rests_on(experiment, monkeypatch):
    monkeypatch.setattr(claim, "cores", lambda: 1)
    outcome = claim.measure(experiment)
    assert outcome.verdict == "reported", outcome.sentence
    assert outcome.room.control == "10 collectives of normalization per step in 2 processes"
    first = outcome.effects[0]
    assert first.name == "lengthening of a step by synchronization, 2 processes, oversubscribed"
    assert first.verdict == "reported"
    assert first.low <= first.value <= first.high
    # five BatchNorms of 12, 12, 12, 24 and 24 channels: 2C + 2 and 2C values of 4 bytes
    result, alone = (experiment.store[trial]["result"] for trial in reversed(outcome.trials))
    channels = (12, 12, 12, 24, 24)
    assert result["messages"] == [
        *([GATHER, 4 * (2 * c + 2)] for c in channels),
        *([REDUCE, 4 * 2 * c] for c in reversed(channels)),
    ]
    assert len(result["gradients"]) == 1
    # times are apart from what is the same each time
    assert "timing" not in result
    assert alone == {"messages": [], "gradients": []}
    # waiting for each other takes longer than not
    measured = {row[0]: row[1:] for row in outcome.tables[0].rows}
    norms, synced = measured["2 processes, oversubscribed"][2:4]
    assert synced > norms > 0
    assert all(alpha > 0 for _, _, alpha, _ in outcome.tables[1].rows)


def test_the_fit_finds_latency_and_bandwidth():
    alpha, slope = claim.fit([(m, 5e-5 + m / 2e9) for m in claim.MESSAGES])
    assert alpha == pytest.approx(5e-5)
    assert 1 / slope == pytest.approx(2e9)
    # never below 0, whatever the noise
    assert claim.fit([(64, 2e-3), (4**10, 1e-3)])[1] == 0


@pytest.mark.parametrize(
    ("name", "ranks", "ring", "expected"),
    [
        (GATHER, 8, True, 7 * (1 + 10 / 2)),
        (GATHER, 8, False, 3 * 1 + 7 * 10 / 2),
        (REDUCE, 8, True, 14 * (1 + 10 / 8 / 2)),
        (REDUCE, 8, False, 3 * (1 + 10 / 2)),
        (REDUCE, 9, False, 4 * (1 + 10 / 2)),
        (GATHER, 2, True, 1 + 10 / 2),
    ],
)
def test_the_model_s_formulas(name, ranks, ring, expected):
    assert exchange([(name, 10)], ranks, SLOW, ring=ring) == pytest.approx(expected)
    assert exchange([(name, 10)] * 3, ranks, SLOW, ring=ring) == pytest.approx(3 * expected)


def test_a_large_message_goes_by_the_ring():
    assert exchange([(REDUCE, 1e9)], 8, SLOW) == exchange([(REDUCE, 1e9)], 8, SLOW, ring=True)


def test_the_first_number_of_ranks_beyond_the_part():
    link = Link("slow", 1.0, float("inf"))
    # doubling takes ⌈log₂ P⌉ messages: 3 from 5 ranks on
    assert passes_at([(REDUCE, 4)], 2.5 / PART, link, ring=False) == 5
    assert passes_at([(REDUCE, 4)], 11 / PART, link, ring=False) is None
    assert passes_at([(REDUCE, 4)], 11 / PART, link, ring=True) == 7


def test_without_batch_norm_there_is_no_room(experiment, monkeypatch):
    rounds = [[what, arm, [1e-3, 1.1e-3]] for what in ("step", "norms") for arm in claim.ARMS]
    messages = [[name, size, 1e-3] for name in (GATHER, REDUCE) for size in claim.MESSAGES]

    def nothing_sent(trials):
        timing = {"rounds": rounds, "messages": messages if trials[0].settings["ranks"] > 1 else []}
        return [{"result": {"messages": [], "gradients": []}, "timing": timing}]

    monkeypatch.setattr(experiment, "records", nothing_sent)
    outcome = claim.measure(experiment)
    assert outcome.verdict == "no room here"
    assert outcome.sentence == "ResNet has no BatchNorm that would synchronize"
    assert outcome.effects == []
