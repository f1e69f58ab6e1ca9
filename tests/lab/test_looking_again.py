"""Studies that look at the comparison again until it is settled, on made-up comparisons."""

import io
import re

import pytest
from rich.console import Console
from tests.lab.made_up import BATCH, LEVEL, NEAR, compared

from gammabeta.lab import study as module
from gammabeta.lab.claim_sets import FIRST_LOOK
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.looks import LOOKS, confidence
from gammabeta.lab.study import StudyError, study


@pytest.fixture
def looked(monkeypatch):
    """Give the looks that a study takes; norms are decided from the second one on, or never."""
    seen = []

    def made(settled_from):
        def compare(kind, experiment, batch_size, devices):
            seen.append((experiment.seed_count, experiment.confidence))
            settled = settled_from is not None and len(seen) >= settled_from
            return [compared({"batch": BATCH, "group": LEVEL if settled else NEAR}, kind=kind)]

        monkeypatch.setattr(module, "compare", compare)
        return seen

    return made


def run(folder, **more):
    printed = io.StringIO()
    console = Console(file=printed, width=300)
    results = study(compare_only=True, data="digits", jobs=1, out=folder, console=console, **more)
    return results, printed.getvalue()


def test_it_looks_at_the_fixed_numbers_of_replicates_and_stops_where_it_is_settled(tmp_path, looked):
    seen = looked(2)
    results, printed = run(tmp_path, until_settled=True)
    assert seen == [(look, confidence(look)) for look in LOOKS[:2]]
    assert results["recommendations"][0]["settled"] is True
    assert "images: not settled after 4 of at most 64 replicates" in printed
    assert results["command"].endswith("--until-settled --compare")


def test_it_ends_at_the_most_that_was_fixed_beforehand(tmp_path, looked):
    seen = looked(None)
    results, printed = run(tmp_path, until_settled=True)
    assert [look for look, _ in seen] == list(LOOKS)
    (said,) = results["recommendations"]
    assert (said["settled"], said["settle"]) == (False, None)
    assert printed.count("not settled after") == len(LOOKS)


def test_one_look_has_the_whole_error_rate(tmp_path, looked):
    seen = looked(1)
    run(tmp_path)
    assert seen == [(None, 0.95)]


def test_a_link_that_is_not_known_and_two_ways_to_count_replicates_are_refused(tmp_path):
    with pytest.raises(StudyError, match=re.escape("--link wifi: expected nvlink, infiniband, 100gbe, 25gbe, 10gbe")):
        run(tmp_path, link="wifi")
    with pytest.raises(StudyError, match=re.escape("--until-settled --seeds 4: expected one of the two, got both")):
        run(tmp_path, until_settled=True, seeds=4)


def test_a_first_look_is_quick_and_has_the_headline_claims(tmp_path, looked, monkeypatch):
    assert set(FIRST_LOOK) <= {claim.name for claim in CLAIMS}
    asked = []
    monkeypatch.setattr(module._Running, "decide", lambda self, number, claim: asked.append(claim.name))
    looked(1)
    results = study(first_look=True, data="digits", jobs=1, out=tmp_path, console=Console(file=io.StringIO()))
    assert sorted(asked) == sorted(FIRST_LOOK)
    assert results["quick"] is True
    assert results["command"] == f"gammabeta study --data digits --first-look --out {tmp_path} --jobs 1"


def test_results_say_whether_they_confirm(tmp_path, looked):
    looked(1)
    explored, _ = run(tmp_path / "one")
    confirmed, _ = run(tmp_path / "two", confirmatory=True, seed=7)
    assert (explored["status"], confirmed["status"]) == ("exploratory", "confirmatory")
    assert explored["claims_hash"] == confirmed["claims_hash"]
    with pytest.raises(StudyError, match="expected a folder in which nothing was looked at"):
        run(tmp_path / "one", confirmatory=True, seed=7)
    with pytest.raises(StudyError, match="expected --confirmatory, because the folder holds a confirmatory study"):
        run(tmp_path / "two", seed=7)
