"""The list of differences is true: each still differs, and says what and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.peers import differences


@pytest.mark.parametrize("name", differences.ALL)
def test_it_still_differs(name: str, route: str) -> None:
    difference = differences.ALL[name]
    ours, theirs = difference.both()
    assert ours != theirs, f"as torch's by now: take it off the list ({difference.what})"
    assert difference.what.endswith(".")
    assert len(difference.reason) > 40


def test_what_makes_an_exception_is_used() -> None:
    """An entry that applies to cases of the tests is asked by one."""
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    never = differences.Difference.__dataclass_fields__["applies"].default
    for name, difference in differences.ALL.items():
        assert (f"differences.{name}.applies(" in tests) == (difference.applies is not never), name
