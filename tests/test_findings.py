"""What is kept of a study for docs/findings.md."""

import importlib.util
import json
from pathlib import Path

import pytest
from tests.example_results import example_results, trials

SPEC = importlib.util.spec_from_file_location("findings", Path(__file__).parents[1] / "docs" / "findings.py")
findings = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(findings)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes results into a folder; what is kept goes to another one."""
    monkeypatch.setattr(findings, "KEPT", tmp_path)

    def write(name, recommended, command):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        results = example_results()
        claim = next(claim for claim in results["claims"] if claim["name"] == "faster_convergence")
        results |= {"claims": [claim | {"name": name}], "recommendations": recommended, "command": command}
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return write


def recommended(network, headline):
    return {"kind": "images", "network": network, "headline": headline, "scope": "After 4 steps.", "picture": {}}


def test_a_study_of_some_claims_adds_to_what_was_kept(study, tmp_path, monkeypatch):
    asked = "gammabeta study --data mnist:/home/me/mnist.npz --out /tmp/x --jobs 2"
    one = [recommended("ResNet", "first"), {"headline": "No recommendation yet for mnist"}]
    one[0]["picture"] = {"kind": "bar"}
    findings.keep("mnist", str(study("one", one, asked)))
    again = recommended("MLP", "of another")
    again["picture"] = {"kind": "bar"}
    findings.keep("mnist", str(study("two", [again], "gammabeta study two")))
    kept = json.loads((tmp_path / "mnist.json").read_text())
    assert kept["command"] == "gammabeta study --data mnist:mnist.npz"
    assert [claim["name"] for claim in kept["claims"]] == ["one", "two"]
    assert [said["headline"] for said in kept["recommended"]] == ["first", "of another"]
    assert findings.listed(kept["recommended"]).splitlines()[0] == "- first *After 4 steps.*"
    taken = list(trials().values())[:24]
    assert kept["claims"][0]["seconds"] == pytest.approx(sum(trial["seconds"] for trial in taken), abs=0.06)


def claim(name, **more):
    return {name: {"name": name, **more}}


def test_the_page_says_what_was_confirmed_by_which_claims():
    explored, confirmed = claim("axes"), claim("sync_cost", status="confirmatory", claims_hash="abcd")
    assert findings.status_of([explored, claim("axes", status="exploratory", claims_hash="ef01")]).startswith(
        "**Exploratory.** None of these results"
    )
    assert findings.status_of([confirmed]).startswith("**Confirmatory**, by the claims with the hash abcd. A study is")
    assert findings.status_of([confirmed | explored]).startswith(
        "**Confirmatory**, by the claims with the hash abcd, except for axes, which is exploratory. "
    )


def test_a_kept_claim_has_the_status_of_its_study(study, tmp_path):
    folder = study("one", [], "gammabeta study one")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"status": "confirmatory", "claims_hash": "abcd"}))
    findings.keep("mnist", str(folder))
    kept = json.loads((tmp_path / "mnist.json").read_text())["claims"]
    assert [(one["status"], one["claims_hash"]) for one in kept] == [("confirmatory", "abcd")]


def effects(*given):
    """Return a claim with effects of (name, value, low, high, null, confidence)."""
    keys = ("name", "value", "low", "high", "null", "confidence")
    return {"axes": {"effects": [dict(zip(keys, one, strict=True)) for one in given]}}


def test_effects_of_two_sets_differ_where_their_half_widths_together_do_not_reach():
    near, far = ("near", 0.0, -3.0, 3.0, 0.0, 0.95), ("far", 0.0, -3.0, 3.0, 0.0, 0.95)
    ratio = ("ratio", 1.0, 0.5, 2.0, 1.0, 0.95)
    ones = effects(near, far, ratio, ("identity", 0.0, 0.0, 0.0, 0.0, 0.95), ("chosen", 0.0, -1.0, 1.0, 0.0, 0.99))
    others = effects(
        ("near", 4.9, 0.9, 8.9, 0.0, 0.95),  # √(3² + 4²) is 5
        ("far", 5.1, 1.1, 9.1, 0.0, 0.95),
        ("ratio", 2.6, 1.3, 5.2, 1.0, 0.95),  # log 2.6 is 0.96, below √2·log 2
        ("identity", 1.0, 1.0, 1.0, 0.0, 0.95),
        ("chosen", 9.0, 8.0, 10.0, 0.0, 0.99),
        ("elsewhere", 0.0, -1.0, 1.0, 0.0, 0.95),
    )
    assert findings.differing(ones, others) == (["axes, far"], 3)
    unknown = effects(("near", 0.0, None, None, 0.0, 0.95))
    assert findings.differing(unknown, others) == ([], 0)
