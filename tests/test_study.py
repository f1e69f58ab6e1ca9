"""The study as a whole: its errors, its results, and what is left after Ctrl-C."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gammabeta.claims import CLAIMS
from gammabeta.outcome import Effect, Outcome, Room
from gammabeta.recommendation import choose, recommend
from gammabeta.study import StudyError, study

ROOT = Path(__file__).parents[1]


def quietly(*claims, **settings):
    text = io.StringIO()
    console = Console(file=text, width=200)
    return study(list(claims), quick=True, jobs=1, console=console, **settings), text.getvalue()


def exactly(text):
    return f"^{re.escape(text)}$"


def test_results_keep_the_contract(tmp_path):
    results, printed = quietly("axes", out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (
        printed == "   supported  axes: all 66 cells of norm × change are as derived from the axes: 46 blind, 20 not\n"
    )
    claim = results["claims"][0]
    assert (claim["name"], claim["verdict"], claim["exact"]) == ("axes", "supported", True)
    assert set(claim["trials"]) == results["trials"].keys()
    assert len(claim["trials"]) == 66
    assert all(claim[part] for part in ("title", "question", "criterion", "method", "sentence", "sources", "known"))
    assert claim["effects"][0].keys() >= {"name", "value", "low", "high", "unit", "margin", "null", "verdict", "seeds"}
    one = results["trials"][claim["trials"][0]]
    assert one.keys() >= {"run", "settings", "result", "seconds"}
    assert results["task"]["samples"] == {"train": 997, "validation": 400, "test": 400}
    assert results["recommendation"]["headline"] == (
        "No recommendation yet for digits: it rests on the claim small_batch, which was not measured."
    )


def test_a_second_study_takes_everything_from_disk(tmp_path, monkeypatch):
    first, _ = quietly("axes", out=tmp_path)
    monkeypatch.setattr("gammabeta.trial.perform", None)  # nothing may run
    second, _ = quietly("axes", out=tmp_path)
    assert second["trials"] == first["trials"]
    assert second["claims"][0]["sentence"] == first["claims"][0]["sentence"]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("small-bach", "there is no claim small-bach. Did you mean small_batch?"),
        ("zzz", f"there is no claim zzz. Claims: {', '.join(claim.name for claim in CLAIMS)}."),
    ],
)
def test_an_unknown_claim_is_refused_with_the_nearest_name(tmp_path, asked, text):
    with pytest.raises(StudyError, match=exactly(text)):
        quietly(asked, out=tmp_path)


def test_other_errors_are_one_sentence(tmp_path):
    with pytest.raises(StudyError, match=exactly("--data cats: expected digits or mnist:FILE.")):
        quietly("axes", out=tmp_path, data="cats")
    with pytest.raises(StudyError, match=exactly("expected at least one job, got 0.")):
        study(["axes"], out=tmp_path, jobs=0)


PROGRAM = """
import sys
from gammabeta.study import Interrupted, study
try:
    study(["gradient_flow"], quick=True, out=sys.argv[1], jobs=2)
except Interrupted as stopped:
    print(stopped)
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process group on Windows")
def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    running = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "trials.jsonl").exists() or (out / "trials.jsonl").read_bytes().count(b"\n") < 2:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)  # what a terminal does: to the whole group
        printed, errors = running.communicate(timeout=30)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    kept = (out / "trials.jsonl").read_bytes().splitlines()
    assert running.returncode == 130, errors
    assert errors == ""
    assert printed.replace("\n", " ").strip() == (
        f"Interrupted; {len(kept)} finished trials are kept. "
        f"Continue with: gammabeta study gradient_flow --quick --out {out} --jobs 2"
    )
    results = json.loads((out / "results.json").read_text())
    assert [(claim["name"], claim["verdict"]) for claim in results["claims"]] == [("gradient_flow", "interrupted")]
    deadline = time.monotonic() + 10
    while (left := living(running.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    # It continues: what is on disk is the start of the whole, and is not run again.
    from gammabeta.trial import Store

    store = Store(out)
    assert len(store) == len(kept)
    store.close()


def living(session):
    """Processes of this session that are not zombies (those await their new parent)."""
    table = subprocess.run(["ps", "-eo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in table.splitlines()]
    return [row for row in rows if row[1] == str(session) and not row[2].startswith("Z")]


# --- the recommendation ---


def test_the_usual_norm_is_chosen_unless_another_is_better_by_the_margin():
    cells = {("batch", 32): [3.0, 3.2, 3.1], ("group", 32): [2.8, 3.0, 2.9], ("layer", 32): [9.0, 9.1, 9.2]}
    assert choose(cells, (32,)).norm == "batch"
    cells["group", 32] = [1.0, 1.1, 0.9]
    chosen = choose(cells, (32,))
    assert (chosen.norm, list(chosen.undecided)) == ("group", [])
    cells["group", 32] = [0.0, 3.0, 0.0]
    chosen = choose(cells, (32,))
    assert (chosen.norm, list(chosen.undecided)) == ("group", ["group"])


class Here:
    quick = True

    class task:  # noqa: N801
        name = "digits"


def test_the_recommendation_says_what_for_which_batch_and_what_is_open():
    cells = {
        ("batch", 2): [40.0, 41.0, 42.0],
        ("batch", 4): [10.0, 11.0, 12.0],
        ("batch", 32): [2.0, 2.1, 2.2],
        ("group", 2): [5.0, 5.1, 5.2],
        ("group", 4): [5.0, 5.1, 5.2],
        ("group", 32): [4.0, 4.1, 4.2],
    }
    effect = Effect("x", 1.5, -3.0, 6.0, "points", (-1, 1), 0.0, "supported", 2)
    outcome = Outcome("supported", "it rises", [effect], Room(True, ""), evidence={"MLP, 2 epochs": ("MLP", cells)})
    said = recommend({"small_batch": outcome}, Here())
    assert said["headline"] == "On digits, MLP: BatchNorm with batches of 32, GroupNorm with 4 images or fewer."
    assert said["avoid"] == ["BatchNorm with batches of 2 or 4 in MLP: 26.0 % test error"]
    assert said["uncertain"] is None
    assert said["evidence"][-1] == {
        "text": "Supported: 1.5 [-3, 6] points (x).",
        "claim": "small_batch",
    }


def test_the_recommendation_names_regimes_that_go_the_other_way_and_unequal_budgets():
    cells = {(norm, size): [3.0, 3.1, 3.2] for norm in ("batch", "group") for size in (2, 4, 32)}
    effects = [
        Effect("excess", 5.1, 4.83, 5.37, "points", (-2, 2), 0.0, "supported", 3),
        Effect("ResNet, 300 steps, excess", -9.1, -9.4, -8.8, "points", (-2, 2), 0.0, "contradicted", 3),
    ]
    outcome = Outcome("supported", "", effects, Room(True, ""), evidence={"ResNet, 300 steps": ("ResNet", cells)})
    said = recommend({"small_batch": outcome}, Here())
    assert said["evidence"][-1]["text"] == (
        "Supported: 5.1 [4.83, 5.37] points (excess). The other way: ResNet, 300 steps, excess."
    )
    assert said["uncertain"] == (
        "ResNet was compared at equal steps alone, where a batch of 2 sees a sixteenth of the data of one of 32; "
        "a run without --quick adds equal epochs."
    )


# --- generated documentation ---


def test_every_claim_says_all_it_must():
    for claim in CLAIMS:
        assert all(claim.sections.values()), claim.name
        assert claim.sources
