"""The study as a whole: its errors, its results, and what remains after Ctrl-C."""

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
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gammabeta.lab.claims import CLAIMS, gradient_flow
from gammabeta.lab.outcome import Outcome, Room
from gammabeta.lab.study import REPLACED, Interrupted, StudyError, asked_for, study
from gammabeta.lab.trials.trial import versioned

ROOT = Path(__file__).parents[2]


def quietly(*claims, **settings):
    text = io.StringIO()
    console = Console(file=text, width=200)
    return study(list(claims) or None, quick=True, jobs=1, console=console, **settings), text.getvalue()


def exactly(text):
    return f"^{re.escape(text)}$"


def test_results_keep_the_contract(tmp_path):
    results, printed = quietly("axes", out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    first, second, third, printed = printed.split("\n", 3)
    assert all(line.split()[0] == "data" for line in (first, second, third))  # within a second, before anything runs
    assert (
        printed
        == "     supported  axes: all 66 cells of norm × change are as derived from the axes: 46 changes are ignored, "
        "20 are not\n"
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
    assert results["task"]["available"] == {"train": 1797, "validation": 1797, "test": 1797}
    assert results["recommendations"][0]["headline"] == (
        "No recommendation yet for digits, strokes, text: it rests on the comparison of the norms, which was not run."
    )


def test_a_second_study_takes_everything_from_disk(tmp_path, monkeypatch):
    first, _ = quietly("axes", out=tmp_path)
    monkeypatch.setattr("gammabeta.lab.trials.trial.perform", None)  # nothing may run
    second, _ = quietly("axes", out=tmp_path)
    assert second["trials"] == first["trials"]
    assert second["claims"][0]["sentence"] == first["claims"][0]["sentence"]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("small-bach", "there is no claim small-bach: did you mean small_batch?"),
        (
            "shifting_data",
            "there is no claim shifting_data any more: online_stream and few_shot took its place "
            "(docs/claims_history.md).",
        ),
        (
            "init-robustness",
            "there is no claim init-robustness any more: init_families took its place (docs/claims_history.md).",
        ),
        ("zzz", f"there is no claim zzz: there are {', '.join(claim.name for claim in CLAIMS)}."),
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
from gammabeta.lab.study import Interrupted, study
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
        # The test runner may ignore Ctrl-C, as a shell's background jobs do, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 200
        while not (out / "trials.jsonl").exists() or (out / "trials.jsonl").read_bytes().count(b"\n") < 2:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)  # to the whole group, as a terminal does
        printed, errors = running.communicate(timeout=30)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    kept = (out / "trials.jsonl").read_bytes().splitlines()
    assert running.returncode == 130, errors
    assert errors == ""
    # On a slow machine there are lines that say how far it is.
    lines = [line for line in printed.splitlines() if not line.startswith("       running  ")]
    said = " ".join(lines[next(place for place, line in enumerate(lines) if line.startswith("Interrupted")) :])
    assert said.strip() == (
        f"Interrupted; {len(kept)} finished trials are kept. "
        f"Continue with: gammabeta study gradient_flow --quick --out {out} --jobs 2"
    )
    results = json.loads((out / "results.json").read_text())
    assert [(claim["name"], claim["verdict"]) for claim in results["claims"]] == [("gradient_flow", "interrupted")]
    deadline = time.monotonic() + 10
    while (left := living(running.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    # The study continues: trials on disk do not run again.
    from gammabeta.lab.trials.store import Store

    store = Store(out)
    assert len(store) == len(kept)
    store.close()


KILLED = """
import sys
from gammabeta.lab.study import asked_for, study
if sys.argv[2] == "first":
    study(["moving_average", "gradient_flow"], quick=True, data="digits", out=sys.argv[1], jobs=1)
else:
    study(**asked_for(sys.argv[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no process groups on Windows")
def test_ten_kills_change_nothing(tmp_path):
    """Kill the whole group at random moments and resume each time: the results are those of an undisturbed run."""
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
        # after some more finished trials and a short while: during writing, training or starting
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
    expected = (
        f"there is no study in {tmp_path} to continue: expected {tmp_path / 'study.json'} of this version of "
        "gammabeta, got none: run the study's own command, with --out."
    )
    with pytest.raises(StudyError, match=exactly(expected)):
        asked_for(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    quietly("axes", out=out, data="digits")
    return out


def test_what_a_study_writes_can_be_continued(finished):
    assert asked_for(finished) == {
        "claims": ["axes"], "data": "digits", "model": None, "quick": True, "jobs": 1, "seed": 0, "seeds": None,
        "batch_size": None, "devices": 1, "engine": "loky", "address": None, "compare_only": False, "out": finished,
        "first_look": False, "at_scale": False, "train": None, "link": "infiniband", "until_settled": False,
        "confirmatory": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: {},
        lambda content: content | {"schema": 1},
        lambda content: content | {"asked": content["asked"] | {"color": 1}},
        lambda content: content | {"asked": content["asked"] | {"seed": "0"}},
        lambda content: content | {"asked": content["asked"] | {"jobs": True}},
        lambda content: content | {"asked": content["asked"] | {"quick": 1}},
        lambda content: content | {"claims": [1]},
        lambda content: content | {"compare": None},
        lambda content: content | {"wanted": {"claims": "axes", "compare": False}},
        lambda content: content | {"identity": {"sources": {"images": None}}},
        lambda content: {name: value for name, value in content.items() if name != "searched"},
    ],
)
def test_a_study_of_another_version_is_not_continued(tmp_path, finished, change):
    content = json.loads((finished / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(change(content)))
    text = (
        f"there is no study in {tmp_path} to continue: expected {tmp_path / 'study.json'} of this version of "
        "gammabeta, got another: run the study's own command, with --out."
    )
    with pytest.raises(StudyError, match=exactly(text)):
        asked_for(tmp_path)


def test_ctrl_c_in_a_comparison_is_said_in_place_of_its_recommendation(tmp_path, monkeypatch):
    from gammabeta.pages.report import read_results, write_report

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gammabeta.lab.experiment.Experiment.records", stop)
        with pytest.raises(Interrupted):
            quietly(compare_only=True, seeds=2, data="digits", out=tmp_path)
    (entry,) = json.loads((tmp_path / "results.json").read_text())["recommendations"]
    assert entry["headline"] == "No recommendation yet on images: the comparison of the norms was interrupted."
    assert entry["uncertain"].startswith("Its finished trials are kept. Continue with: gammabeta study ")
    write_report(read_results(tmp_path), tmp_path / "report.html")
    assert "the comparison of the norms was interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_ctrl_c_between_two_claims_keeps_what_was_decided(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gammabeta.lab.study._Running.decide", stop)
    with pytest.raises(Interrupted, match=r"^Interrupted; 0 finished trials are kept\. Continue with: "):
        quietly("axes", out=tmp_path, data="digits")
    assert json.loads((tmp_path / "results.json").read_text())["claims"] == []


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_folder_whose_name_is_no_text_has_a_study_and_a_report(tmp_path):
    from gammabeta.pages.report import read_results, write_report

    out = tmp_path / "out\udcff"
    quietly("axes", out=out, data="digits")
    write_report(read_results(out), out / "report.html")
    assert asked_for(out)["claims"] == ["axes"]


def test_a_claim_whose_trials_fail_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(**_):
        raise ValueError("no such probe")

    monkeypatch.setattr("gammabeta.lab.claims.moving_average.forgetting", versioned(1)(broken))
    results, printed = quietly("moving_average", "axes", out=tmp_path, data="digits")
    assert [(claim["name"], claim["verdict"]) for claim in results["claims"]] == [
        ("axes", "supported"),
        ("moving_average", "failed"),
    ]
    assert results["claims"][1]["sentence"].startswith("the trial gammabeta.lab.claims.moving_average:forgetting (")
    assert results["claims"][1]["sentence"].endswith("did not run: ValueError: no such probe")
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


def test_claims_that_took_the_place_of_others_exist_and_the_others_do_not():
    known = {claim.name for claim in CLAIMS}
    assert not known & set(REPLACED)
    assert {name for now in REPLACED.values() for name in now.split(" and ")} <= known


def test_a_claim_without_room_is_printed_and_kept_without_counts_of_its_regimes(tmp_path, monkeypatch):
    without = Outcome(
        "no room here", "usable rates: 3", [], Room(False, "it did not learn"), regimes={"a": "supported", "b": "mixed"}
    )
    claims = [replace(claim, measure=lambda experiment: without) for claim in CLAIMS]
    monkeypatch.setattr("gammabeta.lab.study.CLAIMS", claims)
    results, printed = quietly("rate_headroom", out=tmp_path, data="text")
    (claim,) = results["claims"]
    assert (claim["tally"], claim["regimes"]) == ("", {"a": "no room here", "b": "no room here"})
    assert "no room here  rate_headroom: usable rates: 3" in " ".join(printed.split("\n"))


def living(session):
    """List the processes of this session that are not zombies, which wait for their new parent."""
    table = subprocess.run(["ps", "-eo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in table.splitlines()]
    return [row for row in rows if row[1] == str(session) and not row[2].startswith("Z")]


# --- generated documentation ---


def test_every_claim_says_all_it_must():
    for claim in CLAIMS:
        assert all(claim.sections.values()), claim.name
        assert claim.sources
