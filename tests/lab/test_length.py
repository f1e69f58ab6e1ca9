"""How long to train: doubled while differences between arms move."""

import pytest

from gammabeta.lab.length import find


def trained(differences):
    """Return values by steps; the second arm lies above the first by a given difference."""
    asked = []

    def values(steps):
        asked.append(steps)
        return {"batch": [3.0, 5.0], "group": [3.0 + differences[steps], 5.0 + differences[steps]]}

    return values, asked


def test_differences_that_stand_still_end_the_search_at_once():
    values, asked = trained({100: 2.0, 200: 2.9})
    found = find(values, "batch", 100, 400, 1.0)
    assert (found.steps, found.stable, asked) == (100, True, [100, 200])
    assert found.course[200] == {"batch": 0.0, "group": pytest.approx(2.9)}
    assert found.said(lambda steps: steps / 5) == (
        "20 epochs; the differences between norms are those of 40 to within the margin"
    )


def test_differences_that_move_double_the_length_up_to_the_limit():
    values, asked = trained({100: 6.0, 200: 4.5, 400: 4.0})
    found = find(values, "batch", 100, 400, 1.0)
    assert (found.steps, found.stable, asked) == (200, True, [100, 200, 400])
    values, asked = trained({100: 6.0, 200: 4.5, 400: 3.0, 800: 1.0})
    found = find(values, "batch", 100, 400, 1.0)
    assert (found.steps, found.stable, asked) == (400, False, [100, 200, 400, 800])
    assert "the limit; the differences between norms still move" in found.said(lambda steps: steps / 5)


def test_without_room_to_double_nothing_is_trained_and_it_says_so():
    values, asked = trained({})
    found = find(values, "batch", 100, 100, 1.0)
    assert (found.steps, found.stable, asked) == (100, None, [])
    assert found.said(lambda steps: steps / 5) == (
        "20 epochs; whether longer training changes the differences was not looked at"
    )
