"""Options of a study that contradict each other are refused in one sentence, before anything is read."""

import pytest
from typer.testing import CliRunner

from gammabeta.cli import main as cli
from gammabeta.lab import study_file
from gammabeta.lab.claim_sets import AT_SCALE, FIRST_LOOK
from gammabeta.lab.study import asked_for, command_line
from gammabeta.lab.study_file import OPTIONS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--first-look --quick",
            "--first-look --quick: expected one of the two, got both: --first-look is quick on its own, and measures "
            "only the headline claims; --quick measures all.",
        ),
        (
            "--at-scale --quick",
            "--at-scale --quick: expected one of the two, got both: --at-scale has the networks and lengths of whole "
            "studies, and --quick small ones.",
        ),
        (
            "--first-look --compare",
            "--first-look --compare: expected one of the two, got both: --first-look measures claims, and --compare "
            "does not; to compare norms quickly, use --compare --quick.",
        ),
        (
            "axes sharpness --first-look",
            "--first-look axes sharpness: expected one of the two, got both: --first-look has its own claims; to "
            "measure these quickly, use --quick.",
        ),
        (
            "axes --batch-size 4",
            "--batch-size 4 axes: expected --compare too, got only claims, which do not read --batch-size: add "
            "--compare, or leave --batch-size out.",
        ),
        (
            "axes --until-settled",
            "--until-settled axes: expected --compare too, got only claims, which do not read --until-settled: add "
            "--compare, or leave --until-settled out.",
        ),
        (
            "axes --devices 8",
            "--devices 8 axes: expected --compare too, got only claims, which do not read --devices: add --compare, "
            "or leave --devices out.",
        ),
        (
            "--compare --link 25gbe",
            "--link 25gbe: expected --devices 2 or more, got 1: one device has nothing to synchronize; add --devices, "
            "or leave --link out.",
        ),
    ],
)
def test_contradictions_are_refused(words, sentence, tmp_path):
    result = CliRunner().invoke(cli.app, ["study", *words.split(), "--out", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"gammabeta: {sentence}\n")
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_is_repeated_by_a_command_that_is_not_refused():
    asked = {**dict.fromkeys(OPTIONS), "compare": False, "first_look": True, "until_settled": True, "batch_size": 4}
    asked |= {"devices": 8, "link": "25gbe", "seed": 3}
    assert command_line(["axes"], asked) == "gammabeta study axes --quick --seed 3"
    asked["compare"] = True
    assert command_line(["axes"], asked) == (
        "gammabeta study axes --quick --batch-size 4 --devices 8 --link 25gbe --until-settled --seed 3 --compare"
    )


def test_a_first_look_that_is_resumed_for_a_claim_stays_one(tmp_path):
    asked = {**dict.fromkeys(OPTIONS), "quick": False, "first_look": True, "devices": 1, "link": "infiniband"}
    asked |= {"until_settled": False, "confirmatory": False, "at_scale": False, "seed": 0, "engine": "loky"}
    run = {"identity": {"sources": {}}, "asked": asked, "claims": None, "compare": False, "status": "exploratory"}
    study_file.write(tmp_path, None, {**run, "claims_hash": ""})
    study_file.write(tmp_path, study_file.read(tmp_path), {**run, "claims": ["sharpness"], "claims_hash": ""})
    assert asked_for(tmp_path)["claims"] == [*FIRST_LOOK, "sharpness"]


def test_a_study_at_scale_that_is_resumed_for_a_claim_keeps_its_own_list(tmp_path):
    asked = {**dict.fromkeys(OPTIONS), "quick": False, "first_look": False, "devices": 1, "link": "infiniband"}
    asked |= {"until_settled": False, "confirmatory": False, "at_scale": True, "seed": 0, "engine": "loky"}
    run = {"identity": {"sources": {}}, "asked": asked, "claims": None, "compare": False, "status": "exploratory"}
    study_file.write(tmp_path, None, {**run, "claims_hash": ""})
    study_file.write(tmp_path, study_file.read(tmp_path), {**run, "claims": ["sharpness"], "claims_hash": ""})
    assert asked_for(tmp_path)["claims"] == [*AT_SCALE, "sharpness"]
