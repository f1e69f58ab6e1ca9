"""The study as a whole: its errors, its results, and what is left after Ctrl-C."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gammabeta import comparison
from gammabeta.claims import CLAIMS, gradient_flow
from gammabeta.comparison import Compared, Comparison, norms, saved_bytes
from gammabeta.outcome import Effect, Outcome, Room, measured
from gammabeta.recommendation import choose, recommend
from gammabeta.study import StudyError, asked_for, study
from gammabeta.tasks.norms import norm
from gammabeta.tasks.sources import source
from gammabeta.trial import versioned

ROOT = Path(__file__).parents[1]


def quietly(*claims, **settings):
    text = io.StringIO()
    console = Console(file=text, width=200)
    return study(list(claims) or None, quick=True, jobs=1, console=console, **settings), text.getvalue()


def exactly(text):
    return f"^{re.escape(text)}$"


def test_results_keep_the_contract(tmp_path):
    results, printed = quietly("axes", out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (
        printed
        == "     supported  axes: all 66 cells of norm × change are as derived from the axes: 46 blind, 20 not\n"
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
        "No recommendation yet for digits: it rests on the comparison of the norms, which was not run."
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
    with pytest.raises(StudyError, match=r"^--data cats: expected digits, mnist:FILE, .*text:FILE, or a function of"):
        quietly("axes", out=tmp_path, data="cats")
    with pytest.raises(StudyError, match=exactly("expected at least one job, got 0.")):
        study(["axes"], out=tmp_path, jobs=0)
    for seeds in (1, 901):
        text = f"expected 2 to 900 seeds, got {seeds}: one shows no spread, and more share numbers with those tuned on."
        with pytest.raises(StudyError, match=exactly(text)):
            study(["axes"], out=tmp_path, seeds=seeds)


def test_more_seeds_run_besides_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_flow, "STEPS", 1)
    first, _ = quietly("gradient_flow", out=tmp_path, seeds=2)
    second, _ = quietly("gradient_flow", out=tmp_path, seeds=3)
    assert [results["claims"][0]["effects"][0]["seeds"] for results in (first, second)] == [2, 3]
    assert second["command"] == f"gammabeta study gradient_flow --quick --out {tmp_path} --jobs 1 --seeds 3"
    assert first["trials"].items() <= second["trials"].items()
    assert len(second["trials"]) * 2 == len(first["trials"]) * 3


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
    from gammabeta.store import Store

    store = Store(out)
    assert len(store) == len(kept)
    store.close()


KILLED = """
import sys
from gammabeta.study import asked_for, study
if sys.argv[2] == "first":
    study(["moving_average", "gradient_flow"], quick=True, data="digits", out=sys.argv[1], jobs=1)
else:
    study(**asked_for(sys.argv[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no process groups on Windows")
def test_ten_kills_change_nothing(tmp_path):
    """SIGKILL to the whole group at random moments, resumed each time: the results are those of an undisturbed run."""
    (tmp_path / "program.py").write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def start(out, how):
        command = [sys.executable, str(tmp_path / "program.py"), str(out), how]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)

    def lines(out):
        path = out / "trials.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert start(whole, "first").wait(120) == 0
    moments = random.Random(5)
    total, kills = lines(whole), 0
    for kill in range(10):
        running = start(torn, "first" if kill == 0 or not (torn / "study.json").exists() else "resume")
        # after so many more finished trials and a little while: in the midst of writing, training or starting
        goal = lines(torn) + moments.randint(1, max(1, total // 12))
        while running.poll() is None and lines(torn) < goal:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.05)
        if running.poll() is None:
            kills += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert kills >= 8
    assert start(torn, "resume").wait(120) == 0

    def without_times(value):
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "timing", "date", "command")}
        return [without_times(item) for item in value] if isinstance(value, list) else value

    found, expected = (json.loads((out / "results.json").read_text()) for out in (torn, whole))
    assert without_times(found) == without_times(expected)


def test_a_folder_without_a_study_cannot_be_resumed(tmp_path):
    expected = f"there is no study in {tmp_path} to go on with: {tmp_path / 'study.json'} cannot be read."
    with pytest.raises(StudyError, match=exactly(expected)):
        asked_for(tmp_path)


def test_a_claim_whose_trials_fail_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(**_):
        raise ValueError("no such probe")

    monkeypatch.setattr("gammabeta.claims.moving_average.forgetting", versioned(1)(broken))
    results, printed = quietly("moving_average", "axes", out=tmp_path, data="digits")
    assert [(claim["name"], claim["verdict"]) for claim in results["claims"]] == [
        ("axes", "supported"),
        ("moving_average", "failed"),
    ]
    assert "failed 3 times: ValueError: no such probe" in results["claims"][1]["sentence"]
    assert len(results["failed"]) == 1
    assert "failed  moving_average" in printed


def test_claims_about_other_data_do_not_apply(tmp_path):
    results, _ = quietly("axes", "sequences", "moving_average", out=tmp_path, data="text")
    assert [(claim["name"], claim["verdict"]) for claim in results["claims"]] == [
        ("axes", "supported"),
        ("moving_average", "does not apply"),
        ("sequences", "does not apply"),
    ]
    assert results["claims"][2]["sentence"] == "it is about sequences, and text holds text"


def living(session):
    """Processes of this session that are not zombies (those await their new parent)."""
    table = subprocess.run(["ps", "-eo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in table.splitlines()]
    return [row for row in rows if row[1] == str(session) and not row[2].startswith("Z")]


# --- the recommendation ---


def arm(norm, name, errors, usual=None, **more):
    gain = None
    if usual:
        gain = measured(
            name,
            [a - b for a, b in zip(usual, errors, strict=True)],
            unit="percentage points",
            margin=(-1.0, 1.0),
            direction="above",
        )
    return Compared(norm, name, 0.5, tuple(errors), more.get("seconds", 0.01), more.get("saved", 1000), gain)


BATCH = (3.0, 3.2, 3.1, 3.1)
NEAR = (2.0, 2.6, 3.4, 2.8)  # 0.4 below on average, give or take 0.5


def compared(*arms, devices=1, **more):
    return Comparison("ResNet", 4, devices, 400, (arm("batch", "BatchNorm", BATCH, **more), *arms), 90.0)


def test_the_usual_norm_is_chosen_unless_another_is_better_by_the_margin():
    level = arm("group", "GroupNorm", (2.8, 3.0, 2.9, 2.9), BATCH)
    assert choose(compared(level)).norm == "batch"
    better = arm("group", "GroupNorm", (1.0, 1.1, 0.9, 1.0), BATCH)
    # what is surely better comes before what is better by luck
    lucky = arm("renorm", "renorm", (0.0, 4.0, -1.0, 0.0), BATCH)
    assert lucky.gain.verdict == "inconclusive"
    assert choose(compared(better, lucky)).norm == "group"


def test_the_recommendation_says_what_by_how_much_at_what_cost_and_what_to_avoid():
    group = arm("group", "GroupNorm", (1.0, 1.1, 0.9, 1.0), BATCH, seconds=0.012, saved=900)
    none = arm("none", "no normalization", (9.0, 9.1, 9.2, 9.1), BATCH)
    effect = Effect("x", 1.5, -3.0, 6.0, "points", (-1, 1), 0.0, "supported", 2)
    outcome = Outcome("supported", "it rises", [effect], Room(True, ""))
    said = recommend("digits", compared(group, none), {"small_batch": outcome})
    assert said["headline"] == (
        "For ResNet on digits with batches of 4 on one device: GroupNorm, 1.0 % test error, 2.1 points [2.0, 2.2] "
        "below BatchNorm; 1.20 times its time a step, 0.90 times its memory for the backward."
    )
    assert said["how"] == "gb.GroupNorm"
    assert said["avoid"] == [
        "BatchNorm: 3.1 % test error",
        "no normalization: 9.1 % test error, 6.0 points [5.9, 6.1] above BatchNorm; 1.00 times its time a step, 1.00 "
        "times its memory for the backward",
    ]
    assert said["uncertain"] is None
    assert said["evidence"][-1] == {"text": "Supported: 1.5 [-3, 6] points (x).", "claim": "small_batch"}


def test_the_recommendation_says_what_is_not_told_apart():
    level = arm("group", "GroupNorm", (1.1, 3.1, 2.1, 2.1), BATCH)  # 1 below on average: the margin itself
    said = recommend("digits", compared(level), {})
    assert said["headline"].startswith("For ResNet on digits with batches of 4 on one device: BatchNorm, 3.1 % test")
    assert said["uncertain"] == (
        "Not told apart from BatchNorm by the margin of 1 point: GroupNorm (no number of seeds). No number of seeds "
        "that is practical settles it: the norms are about as good as each other here."
    )
    near = arm("layer", "layer", NEAR, BATCH)
    needed = near.gain.seeds_needed
    assert recommend("digits", compared(near), {})["uncertain"] == (
        f"Not told apart from BatchNorm by the margin of 1 point: layer ({needed} seeds would tell). What settles it: "
        f"gammabeta study --compare --seeds {needed}, with the other options as they were."
    )
    assert "What settles what can be: gammabeta study" in recommend("digits", compared(near, level), {})["uncertain"]


def test_without_training_or_comparison_there_is_no_recommendation():
    untrained = Comparison("ResNet", 4, 1, 400, (arm("batch", "BatchNorm", (80.0, 81.0)),), 90.0)
    assert recommend("digits", untrained, {})["headline"].startswith("No recommendation for digits and ResNet")
    assert recommend("digits", None, {})["uncertain"] == "Run gammabeta study --compare, or all claims."
    effect = Effect("LayerNorm", 1.5, -3.0, 6.0, "points", (-2, 2), 0.0, "inconclusive", 2)
    outcomes = {
        "sequences": Outcome("inconclusive", "level", [effect], Room(True, "")),
        "small_batch": Outcome("does not apply", "it is about images", [], Room(False, "")),
    }
    said = recommend("vowels", None, outcomes, images=False)
    assert said["headline"].startswith("No recommendation for vowels: norms are compared side by side on images alone.")
    assert said["evidence"] == [{"text": "Inconclusive: 1.5 [-3, 6] points (LayerNorm).", "claim": "sequences"}]
    assert said["uncertain"] is None  # what --compare refuses is not advised


def test_batchnorm_of_each_device_is_ghost_batchnorm_of_the_whole():
    """What the comparison takes for several devices is what they would compute."""
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    whole = norm("ghost:4", 3, 0).train()(x)
    each = torch.cat([norm("batch", 3, 0).train()(part) for part in x.split(4)])
    torch.testing.assert_close(whole, each)
    assert list(norms(4, 3, flat=True))[:2] == ["ghost:4", "batch"]
    assert next(iter(norms(4, 1, flat=False))) == "batch"


def test_memory_for_the_backward_grows_with_the_batch_and_is_less_without_a_norm(experiment_settings):
    of = [saved_bytes(**experiment_settings, norm="batch", batch_size=size)["bytes"] for size in (8, 16)]
    assert 1.8 < of[1] / of[0] < 2.1
    assert saved_bytes(**experiment_settings, norm="none", batch_size=16)["bytes"] < of[1]


@pytest.fixture
def experiment_settings():
    return {"task": source("digits"), "network": {"kind": "resnet", "init": "matched"}}


SHRINKS = """
from torch import nn

def build(input_shape, classes):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes)
    )
"""


def test_a_comparison_recommends_is_written_and_leaves_out_what_a_model_cannot_have(tmp_path, monkeypatch):
    """Images of 8 × 8 become 1 × 1, where InstanceNorm has one value a statistic."""
    (tmp_path / "shrinks.py").write_text(SHRINKS)
    monkeypatch.setattr(comparison, "LEAST_STEPS", 10)
    monkeypatch.setattr(comparison, "MOST_STEPS", 20)
    out, model = tmp_path / "out", f"{tmp_path / 'shrinks.py'}:build"
    results, printed = quietly(
        out=out, compare_only=True, data="digits", model=model, batch_size=16, devices=2, seeds=2
    )
    assert results["claims"] == []
    assert results["comparison"]["devices"] == 2
    names = {row[0] for row in results["comparison"]["table"]["rows"]}
    assert {"BatchNorm of each device's own batch", "BatchNorm synced over the devices", "GroupNorm"} <= names
    assert "InstanceNorm" not in names
    assert printed.split()[0] == "recommended"
    assert results["command"] == (
        f"gammabeta study --data digits --model {model} --quick --out {out} --jobs 1 --seeds 2 --batch-size 16 "
        "--devices 2 --compare"
    )


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(StudyError, match=exactly(
        "--batch-size 512 on 4 devices: expected half of the 997 training images or less, got 2048."
    )):  # fmt: skip
        quietly(out=tmp_path, compare_only=True, batch_size=512, devices=4)


# --- generated documentation ---


def test_every_claim_says_all_it_must():
    for claim in CLAIMS:
        assert all(claim.sections.values()), claim.name
        assert claim.sources
