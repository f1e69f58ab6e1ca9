"""What is kept of a study for docs/findings.md."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from tests.example_results import example_results, trials

DOCS = Path(__file__).parents[1] / "docs"
OURS = ("findings", "findings_summary", "findings_first_edition")


def loaded(name):
    """Import a module of docs/, which is no package, without leaving it behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        try:
            return importlib.import_module(name)
        finally:
            for own in OURS:
                sys.modules.pop(own, None)


findings, findings_summary = loaded("findings"), loaded("findings_summary")
first_edition = loaded("findings_first_edition")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes results into a folder; what is kept goes to another one."""
    monkeypatch.setattr(findings, "KEPT", tmp_path)

    def write(name, recommended, command, **more):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        results = example_results()
        claim = next(claim for claim in results["claims"] if claim["name"] == "faster_convergence")
        results |= {"claims": [claim | {"name": name}], "recommendations": recommended, "command": command, **more}
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
        "**Exploratory**. None of these results"
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


def result(name, verdict, regimes=(), *, seeds=3, status="confirmatory"):
    """Return a claim as it is kept, with the verdict of each of its regimes by name."""
    known = next(claim for claim in findings.CLAIMS if claim.name == name)
    return {
        "name": name,
        "title": known.title,
        "verdict": verdict,
        "sentence": "1.5 times [1.2, 1.9]",
        "tally": "",
        "effect": {"value": 1.5, "low": 1.2, "high": 1.9, "unit": "times"},
        "effects": [{"name": "one", "value": 1.5, "low": 1.2, "high": 1.9, "null": 1, "seeds": seeds}],
        "regimes": dict(regimes),
        "settings": "20 epochs",
        "room": "a control of 2, above 1",
        "status": status,
        "claims_hash": "abcd",
    }


def kept(*claims, **more):
    """Return a study as it is kept."""
    task = {"name": "digits", "kind": "images", "description": "grey images", "samples": {"train": 1000, "test": 400}}
    about = {"date": "2026-12-01", "machine": "a machine, 2 cores", "torch": "2.13.0", "command": "gammabeta study"}
    return {**about, "title": "A study", "tasks": [task], "recommended": [], "claims": list(claims), **more}


@pytest.mark.parametrize(
    ("group", "found"),
    [
        ("holds", [("supported", "supported")]),
        ("holds", [("supported", "supported"), ("no room here", "contradicted")]),
        ("some", [("mixed", "supported contradicted")]),
        ("some", [("supported", "supported"), ("equivalent", "equivalent")]),
        ("fails", [("contradicted", "contradicted"), ("equivalent", "equivalent")]),
        ("open, for", [("inconclusive", "inconclusive supported")]),
        ("open, for", [("supported", "supported"), ("inconclusive", "inconclusive")]),
        ("open, against", [("inconclusive", "inconclusive contradicted")]),
        ("open", [("inconclusive", "inconclusive")]),
        ("no room", [("no room here", "supported")]),
        ("reported", [("reported", "")]),
    ],
)
def test_a_claim_is_grouped_by_its_verdicts_in_all_studies(group, found):
    ones = [
        result("small_batch", verdict, [(str(i), regime) for i, regime in enumerate(regimes.split())])
        for verdict, regimes in found
    ]
    assert findings_summary.group_of(ones) == group


def test_an_identity_that_holds_is_told_apart():
    assert findings_summary.group_of([result("axes", "supported")], exact=True) == "exact"


def test_the_summary_names_the_regimes_that_decided_and_what_all_have_in_common_once():
    regimes = [("MLP, batches of 2, shuffled", "supported"), ("MLP, batches of 2, runs", "supported")]
    one = kept(
        result("sequences", "contradicted", [("GRU", "contradicted")]),
        result("online_stream", "inconclusive", [*regimes, ("MLP, batches of 8, runs", "inconclusive")]),
        result("axes", "supported", seeds=1),
        result("small_batch", "supported", [(f"MLP, batches of {n}", "supported") for n in (2, 4, 8)], status=""),
    )
    lines = "\n".join(findings_summary.summary([one]))
    assert "- [Online learning in small batches hurts BatchNorm](#online_stream) (digits, MLP, n = 3): holds: " in lines
    assert "holds: batches of 2, shuffled and runs" in lines
    assert "**Does not hold** in any regime that has room (1):\n\n- [Variable length" in lines
    assert "as an identity (1): [Each norm's axes decide which changes it ignores](#axes)." in lines
    assert "(digits, MLP, n = 3, exploratory): 3 of 3 regimes" in lines


def test_the_summary_gives_each_study_of_a_claim_its_own_verdict():
    other = kept(result("small_batch", "contradicted", [("ResNet", "contradicted")], seeds=16))
    other["tasks"][0]["name"] = "mnist"
    (line,) = [
        line
        for line in findings_summary.summary([kept(result("small_batch", "supported", [("MLP", "supported")])), other])
        if "small_batch" in line
    ]
    assert line.startswith("**Holds only in some regimes**")
    assert line.endswith("(digits, n = 3): holds: MLP; (mnist, n = 16): contradicted: ResNet")


def test_a_study_that_was_kept_without_its_tasks_and_regimes_is_named_by_its_title():
    bare = {key: value for key, value in result("small_batch", "supported").items() if key not in ("regimes", "room")}
    del bare["effects"][0]["seeds"]
    lines = findings_summary.summary([kept(bare, tasks=[])])
    assert lines[0].endswith("- [BatchNorm needs a large enough batch](#small_batch) (A study)")


def test_a_study_that_is_kept_has_a_section_and_one_that_is_not_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "KEPT", tmp_path)
    card = {"network": "ResNet", "kind": "images", "headline": "For ResNet on digits: keep BatchNorm.", "seeds": 16}
    card |= {"settled": True, "how": "gb.BatchNorm2d(channels)", "costs": "18 % less time per step.", "scope": "Small."}
    card |= {"avoid": ["no normalization: 3 points above"], "status": "confirmatory", "claims_hash": "abcd"}
    one = result("few_shot", "contradicted", [("MLP", "contradicted")], seeds=16)
    (tmp_path / "mnist-whole.json").write_text(json.dumps(kept(one, recommended=[card])))
    page = findings.findings()
    assert re.findall("^## (.*)", page, re.M) == [
        "What of the taught holds here",
        "How to read this page",
        "MNIST, whole",
        "Claim by claim",
    ]
    assert "- *digits*: grey images (1,000 train, 400 test)" in page
    assert (
        "- **For ResNet on digits**\n  - What: keep BatchNorm.\n  - How sure: settled, 16 replicates.\n"
        "  - What to write: `gb.BatchNorm2d(channels)`\n  - What it costs: 18 % less time per step.\n"
        "  - Avoid: no normalization: 3 points above\n  - *Small.*" in page
    )
    assert "| [few_shot](#few_shot) | Learning from a few images hurts BatchNorm | contradicted | " in page
    assert "**Contradicted** (MNIST, whole; 20 epochs). 1.5 times [1.2, 1.9]." in page
    assert page.count(findings.UNEXPLAINED) == 1  # nobody has commented on few_shot's contradiction yet
    assert "CIFAR" not in page


def test_what_is_kept_is_enough_for_a_card_and_has_no_folder_of_this_machine(study, tmp_path):
    one = recommended("ResNet", "For ResNet: use GroupNorm.") | {"settled": False, "seeds": 4, "how": "gb.convert(…)"}
    one |= {
        "picture": {"kind": "bar"},
        "settle": "gammabeta study --out /tmp/x-again --seed 8 --data mnist:/data/m.npz",
    }
    task = {"name": "digits", "kind": "images", "description": "d", "samples": {"train": 9}, "shape": [1, 8, 8]}
    findings.keep("cifar10", str(study("few_shot", [one], "gammabeta study", tasks=[task], status="confirmatory")))
    made = json.loads((tmp_path / "cifar10.json").read_text())
    assert made["tasks"] == [{key: task[key] for key in ("name", "kind", "description", "samples")}]
    (entry,), (claim,) = made["recommended"], made["claims"]
    assert entry["settle"] == "gammabeta study --seed 8 --data mnist:m.npz"
    assert (entry["settled"], entry["seeds"], entry["how"]) == (False, 4, "gb.convert(…)")
    assert (entry["status"], claim["status"]) == ("confirmatory", "confirmatory")
    assert all({"seeds", "unit", "verdict"} <= set(effect) for effect in claim["effects"])
    assert (claim["settings"], claim["room"][:8]) == ("depth 8, width 64, relu, He", "Required")


def test_settings_are_spelled_without_python_s_brackets():
    assert findings.spelled("150 steps, depths [3, 6], {'width': 16, 'layers': 2}") == (
        "150 steps, depths 3, 6, width 16, layers 2"
    )


# --- the page as it is ---


def results_of_the_second_edition():
    return [claim for _, kept in findings.present() for claim in kept["claims"]]


def test_the_summary_fits_one_screen():
    page = (DOCS / "findings.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(#[\w-]+\)", "]", page.partition("## How to read")[0].partition("## What of")[2])
    lines = [line for line in text.splitlines() if line]
    assert sum(-(-len(line) // 130) for line in lines) <= 60


def test_each_departure_has_a_comment():
    ones = {}
    for claim in results_of_the_second_edition():
        ones.setdefault(claim["name"], []).append(claim)
    departing = {name for name, found in ones.items() if findings_summary.departs(found)}
    assert len(departing) >= 9  # of the study in quick settings
    missing = departing - set(findings.comments_of("second"))
    assert not missing, (
        f"docs/findings_comments.md: write why {', '.join(sorted(missing))} departs, or that it is unexplained"
    )


NUMBER = r"[−-]?\d+(?:\.\d+)?"
QUOTED = re.compile(rf"({NUMBER})(?:\s[a-z]+)?\s\[({NUMBER}), ({NUMBER})\]")


def test_the_intervals_in_a_comment_are_those_that_were_measured():
    comments = findings.comments_of("second")
    known = [
        (claim["name"], [effect["value"], effect["low"], effect["high"]])
        for claim in results_of_the_second_edition()
        for effect in claim["effects"]
        if None not in (effect["value"], effect["low"], effect["high"])
    ]
    quoted = [(name, match) for name, text in comments.items() for match in QUOTED.findall(text)]
    assert len(quoted) > 40
    assert sum(text.count("[") for text in comments.values()) == len(quoted)
    for name, numbers in quoted:
        said = [number.replace("−", "-") for number in numbers]
        digits = [len(number.partition(".")[2]) for number in said]
        own = [[f"{n:.{places}f}" for n, places in zip(one, digits, strict=True)] for of, one in known if of == name]
        assert said in own, f"{name}: {numbers} is no effect of a kept study"


def test_the_first_edition_has_a_page_of_its_own_with_its_own_comments():
    page, new = first_edition.first_edition(), findings.findings()
    assert "init_robustness" in page
    assert "init_robustness" not in new
    assert "**Judged by an earlier rule.**" in page
    assert "**Judged by" not in new
    first, second = findings.comments_of("first"), findings.comments_of("second")
    assert "study" not in second
    for name in (set(first) & set(second)) | {"study"}:
        assert first[name] in page
        assert first[name] not in new
        assert second.get(name, "") in new
