"""The folder of a study: which study it holds, how runs add to it, and how it is continued from anywhere."""

import io
import json
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from tests.lab.test_recommendation import compared
from typer.testing import CliRunner

from gammabeta.cli import main as cli
from gammabeta.lab import study as engine
from gammabeta.lab.recommendation import Run, recommend
from gammabeta.lab.results import Results, read
from gammabeta.lab.study import Interrupted, StudyError, asked_for, study

DATA = """
import numpy as np
def load(shift=0):
    generator = np.random.default_rng({seed})
    x, y = generator.normal(size=(120, 8, 8)) + shift, np.arange(120) % 4
    return {{"x_train": x, "y_train": y, "x_test": x[:40], "y_test": y[:40]}}
"""
NET = """
from torch import nn
def build(input_shape, classes, width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
                         nn.Linear(width * 36, classes))
"""


@pytest.fixture(autouse=True)
def imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    yield
    forget(tmp_path)


def forget(folder):
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def run(*claims, out="out", **options):
    """Run a study of claims that need no training, unless they are named."""
    text = io.StringIO()
    options = {"data": "digits", "quick": True, "jobs": 1, **options}
    found = study(list(claims), out=out, console=Console(file=text, width=300), **options)
    return found, text.getvalue()


def names(results):
    return [claim["name"] for claim in results["claims"]]


def command(*words):
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, ["study", *words])


def data(folder, seed=0):
    folder.mkdir(exist_ok=True)
    (folder / "data.py").write_text(DATA.format(seed=seed))


# --- several runs in one folder ---


def test_runs_of_one_study_add_to_its_results(tmp_path):
    first, _ = run("axes")
    second, printed = run("moving_average", "sequences")
    assert names(second) == [claim.name for claim in engine.CLAIMS if claim.name in names(second)]
    assert set(names(second)) == {"axes", "moving_average", "sequences"}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == second
    assert second["claims"][names(second).index("axes")] == first["claims"][0]
    assert first["trials"].items() <= second["trials"].items()
    assert second["command"] == (
        "gammabeta study axes --data digits --quick --out out --jobs 1 && "
        "gammabeta study moving_average sequences --data digits --quick --out out --jobs 1"
    )
    assert "axes" not in printed
    assert second["seconds"] >= first["seconds"]


def test_the_order_is_that_of_all_claims_whatever_ran_first(tmp_path):
    run("sequences")
    results, _ = run("axes")
    assert names(results) == ["axes", "sequences"]


def test_a_claim_that_runs_again_replaces_what_was_said_of_it(tmp_path, monkeypatch):
    from gammabeta.lab.claims import gradient_flow

    monkeypatch.setattr(gradient_flow, "STEPS", 1)
    run("axes")
    run("gradient_flow", seeds=2)
    results, _ = run("gradient_flow", seeds=3)
    assert names(results) == ["axes", "gradient_flow"]
    assert results["claims"][1]["effects"][0]["seeds"] == 3
    assert {key for claim in results["claims"] for key in claim["trials"]} == results["trials"].keys()
    again, _ = run("axes")
    assert again["claims"] == [{**results["claims"][0], "seconds": again["claims"][0]["seconds"]}, results["claims"][1]]


def test_an_interrupt_loses_nothing_that_earlier_runs_decided(tmp_path, monkeypatch):
    first, _ = run("axes")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gammabeta.lab.experiment.Experiment.records", interrupted)
    for claim in ("axes", "moving_average"):
        with pytest.raises(Interrupted):
            run(claim)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    verdicts = {claim["name"]: claim["verdict"] for claim in results["claims"]}
    assert verdicts == {"axes": "supported", "moving_average": "interrupted"}
    assert first["trials"].items() <= results["trials"].items()


def test_a_failure_is_forgotten_when_the_claim_is_decided(tmp_path, monkeypatch):
    from gammabeta.lab.trials.workers import TrialError

    def fails(*_):
        raise TrialError("no")

    with monkeypatch.context() as patched:
        patched.setattr("gammabeta.lab.experiment.Experiment.records", fails)
        results, _ = run("axes")
        assert results["failed"] == ["axes: no"]
        results, _ = run("axes")
        assert results["failed"] == ["axes: no"]
    results, _ = run("sequences")
    assert results["failed"] == ["axes: no"]
    results, _ = run("axes")
    assert results["failed"] == []


@pytest.mark.parametrize(
    "other", [{"data": "text"}, {"quick": False}, {"seed": 1}, {"data": None}, {"model": "net.py:build"}]
)
def test_the_results_of_another_study_are_kept_beside(tmp_path, other):
    (tmp_path / "net.py").write_text(NET)
    first, _ = run("axes")
    second, printed = run("axes", **other)
    assert names(second) == ["axes"]
    (place,) = (tmp_path / "out" / "earlier").iterdir()
    assert json.loads((place / "results.json").read_text()) == first
    assert printed.startswith(f"out held another study, whose results are in {place.relative_to(tmp_path)} now.\n")
    assert CliRunner().invoke(cli.app, ["report", str(place)]).exit_code == 0
    run("axes")
    assert len(list((tmp_path / "out" / "earlier").iterdir())) == 2


def test_a_study_of_another_version_is_set_aside_too(tmp_path):
    run("axes")
    (tmp_path / "out" / "study.json").write_text('{"claims": ["axes"], "data": "digits", "quick": true}')
    results, printed = run("sequences")
    assert names(results) == ["sequences"]
    assert "held another study" in printed
    (tmp_path / "out" / "study.json").write_text("[]")
    with pytest.raises(
        StudyError, match=r"expected out/study\.json of this version of gammabeta, got another: run the"
    ):
        asked_for("out")


def test_fresh_begins_anew(tmp_path):
    run("axes")
    results, printed = run("sequences", fresh=True)
    assert names(results) == ["sequences"]
    assert not (tmp_path / "out" / "earlier").exists()
    assert "held" not in printed


# --- the same data, from anywhere ---


@pytest.mark.parametrize("target", ["data.py:load", "data.py:load(shift=1)", "data:load"])
def test_a_study_is_continued_on_its_own_data_from_another_folder(tmp_path, monkeypatch, target):
    for seed, name in enumerate(("here", "there")):
        data(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path / "here")
    first, _ = run("axes", out=tmp_path / "out", data=target)
    before = (tmp_path / "out" / "trials.jsonl").read_bytes()
    forget(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if str(tmp_path) not in place])
    monkeypatch.chdir(tmp_path / "there")
    result = command("--resume", "../out")
    assert result.exit_code == 0, result.output
    second = json.loads((tmp_path / "out" / "results.json").read_text())
    assert names(second) == ["axes"]
    assert second["trials"].keys() == first["trials"].keys()
    assert (tmp_path / "out" / "trials.jsonl").read_bytes() == before
    held = json.loads((tmp_path / "out" / "study.json").read_text())
    (source,) = held["identity"]["sources"].values()
    assert str(tmp_path / "here") in source["data"] or target == "data:load"
    assert not (tmp_path / "out" / "earlier").exists()


def test_other_data_under_the_same_name_are_refused(tmp_path):
    data(tmp_path / "here")
    options = {"data": "here/data.py:load"}
    first, _ = run("axes", **options)
    data(tmp_path / "here", seed=1)
    forget(tmp_path)
    expected = (
        "--data {}: expected the data of the study in out, got other data under the same name: put those back, name "
        "another folder with --out, or discard that study with --fresh."
    )
    with pytest.raises(StudyError) as refused:
        run("sequences", **options)
    assert str(refused.value) == expected.format("here/data.py:load")
    result = command("--resume", "out")
    assert (result.exit_code, result.stderr) == (
        2, f"gammabeta: {expected.format(tmp_path / 'here/data.py:load')}\n"
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first
    assert names(run("sequences", fresh=True, **options)[0]) == ["sequences"]


def test_a_file_of_a_relative_path_is_the_same_file_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for name, letters in (("here", "abcd "), ("there", "efgh ")):
        (tmp_path / name / "a.txt").write_text(letters * 4000)
    monkeypatch.chdir(tmp_path / "here")
    run("axes", data="text:a.txt", out=tmp_path / "out")
    monkeypatch.chdir(tmp_path / "there")
    assert asked_for("../out")["data"] == f"text:{tmp_path / 'here' / 'a.txt'}"
    assert command("--resume", "../out", "--data", "../here/../here/a.txt").exit_code == 2
    assert command("--resume", "../out", "--data", "text:../here/a.txt").exit_code == 0


# --- what continues, and what does not ---


def test_a_run_continues_with_what_earlier_runs_left_open(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gammabeta.lab.experiment.Experiment.records", interrupted)
        with pytest.raises(Interrupted):
            run("gradient_flow", "moving_average")
    run("axes", seeds=5)
    found = asked_for("out")
    assert (set(found["claims"]), found["compare_only"], found["seeds"]) == (
        {"axes", "moving_average", "gradient_flow"}, False, 5
    )  # fmt: skip
    assert asked_for("out").keys() == {*study.__kwdefaults__, "claims"} - {"fresh", "console"}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(None, False)], (None, False)),
        ([(None, True)], (None, True)),
        ([(None, True), (["axes"], False)], (["axes"], True)),
        ([(["axes"], False), (None, True)], (["axes"], True)),
        ([(["axes"], True)], (["axes"], True)),
        ([(["axes"], False), (None, False)], (None, False)),
        ([(None, False), (["axes"], False)], ([claim.name for claim in engine.CLAIMS], True)),
    ],
)
def test_what_runs_wanted_is_added_up(tmp_path, monkeypatch, runs, expected):
    for method in ("compare", "decide"):
        monkeypatch.setattr(engine._Running, method, lambda self, *rest: self.results.write())
    for claims, only in runs:
        study(
            claims, compare_only=only, data="digits", quick=True, jobs=1, out="out", console=Console(file=io.StringIO())
        )
    found = asked_for("out")
    assert (found["claims"], found["compare_only"]) == expected


def test_claims_of_a_resumed_study_are_measured(tmp_path):
    run("axes")
    result = command("--resume", "out", "sequences", "--claims", "moving_average")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(names(results)) == {"axes", "sequences", "moving_average"}


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--data", "text"), "--data text"),
        (("--model", "net.py:build"), "--model net.py:build"),
        (("--batch-size", "4"), "--batch-size 4"),
        (("--devices", "2"), "--devices 2"),
        (("--seed", "3"), "--seed 3"),
        (("--out", "other"), "--out other"),
    ],
)
def test_options_of_another_study_are_refused_with_resume(tmp_path, words, wrong):
    (tmp_path / "net.py").write_text(NET)
    run("axes")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result = command("--resume", "out", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"gammabeta: --resume out: expected the options of the study there, got {wrong}: leave it out, or run another "
        "study in another folder, with --out and without --resume.\n"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_studys_own_options_may_be_repeated(tmp_path):
    run("axes")
    result = command(
        "--resume", "out", "--data", "digits", "--quick", "--seed", "0", "--out", "../" + tmp_path.name + "/out"
    )
    assert result.exit_code == 0, result.output


def test_quick_is_refused_for_a_full_study(tmp_path):
    run("axes", quick=False)
    result = command("--resume", "out", "--quick")
    assert result.exit_code == 2
    assert "got --quick: leave it out" in result.stderr


def test_resume_with_fresh_is_refused_and_empties_nothing(tmp_path):
    run("axes")
    before = (tmp_path / "out" / "trials.jsonl").read_bytes()
    result = command("--resume", "out", "--fresh")
    assert (result.exit_code, result.stderr) == (
        2,
        "gammabeta: --resume out --fresh: expected one of the two, got both: --resume goes on with the finished "
        "trials, and --fresh discards them.\n",
    )
    assert (tmp_path / "out" / "trials.jsonl").read_bytes() == before


def test_a_model_is_continued_by_its_whole_name_and_a_changed_one_is_another_study(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    run("axes", model="net.py:build(width=3)")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert asked_for("../out")["model"] == f"{tmp_path / 'net.py'}:build(width=3)"
    assert command("--resume", "../out").exit_code == 0
    assert not (tmp_path / "out" / "earlier").exists()
    assert command("--resume", "../out", "--model", "../net.py:build( width = 3 )").exit_code == 0
    assert command("--resume", "../out", "--model", "../net.py:build(width=4)").exit_code == 2
    (tmp_path / "net.py").write_text(NET + "\n# changed")
    forget(tmp_path)
    assert command("--resume", "../out").exit_code == 0
    assert (tmp_path / "out" / "earlier").exists()


# --- recommendations of several runs ---

TASKS = [{"name": "digits", "kind": "images"}]


def results_of(folder, before=None, command="gammabeta study"):
    return Results(folder, command=command, tasks=TASKS, quick=True, before=before)


def test_recommendations_of_earlier_runs_stay_until_they_are_renewed(tmp_path):
    small = compared({"batch": (3.0, 3.1, 3.2), "group": (1.0, 1.1, 0.9)})
    large = replace(small, batch_size=64)
    first = results_of(tmp_path)
    first.compared([small])
    second = results_of(tmp_path, read(tmp_path), "gammabeta study --batch-size 64")
    assert second.compared([large]) == [recommend(large, {}, Run(quick=True))["headline"]]
    second.write()
    whole = read(tmp_path)
    assert [said["batch_size"] for said in whole["recommendations"]] == [64, 4]
    assert whole["recommendations"][1] == first.content["recommendations"][0]
    assert whole["command"] == "gammabeta study --batch-size 64 && gammabeta study"
    third = results_of(tmp_path, read(tmp_path), "gammabeta study --seeds 9")
    third.compared([replace(small, steps=7)])
    whole = read(tmp_path)
    assert [(said["batch_size"], said["steps"]) for said in whole["recommendations"]] == [(4, 7), (64, 400)]
    assert whole["command"] == "gammabeta study --seeds 9 && gammabeta study --batch-size 64"


def test_a_comparison_that_failed_is_forgotten_when_it_succeeds(tmp_path):
    first = results_of(tmp_path)
    first.not_compared("images", "no")
    assert read(tmp_path)["failed"] == ["comparison on images: no"]
    second = results_of(tmp_path, read(tmp_path))
    second.compared([compared({"batch": (3.0, 3.1), "group": (1.0, 1.1)})])
    assert read(tmp_path)["failed"] == []
    assert len(read(tmp_path)["recommendations"]) == 1


def test_a_recommendation_quotes_claims_that_an_earlier_run_decided(tmp_path):
    run("axes")
    content = read("out")
    claim = {**content["claims"][0], "name": "small_batch"}
    claim["effects"] = [{**claim["effects"][0], "high": None}]  # infinite
    again = results_of(tmp_path, {**content, "claims": [claim]})
    again.compared([compared({"batch": (1.0, 1.1), "group": (3.0, 3.1)})])
    evidence = again.content["recommendations"][0]["evidence"]
    assert [said["claim"] for said in evidence][-1] == "small_batch"
