"""The hash of the claims, and which studies are confirmatory."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from gammabeta.lab import claims_hash as module
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.claims_hash import ALWAYS, LAB, Asked, Held, StatusError, claims_hash, hashed, held_by, status_of


@pytest.fixture(scope="module")
def present():
    """The hash of the claims as they are."""
    return claims_hash()


@pytest.fixture
def lab(tmp_path):
    """A copy of the lab's sources."""
    return shutil.copytree(LAB, tmp_path / "lab", ignore=shutil.ignore_patterns("__pycache__"))


def change(path, before, after):
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def test_the_hash_covers_every_claim_and_what_judges_it():
    covered = set(hashed())
    assert {f"claims/{claim.name}.py" for claim in CLAIMS} <= covered
    assert {*ALWAYS, "claims/__init__.py", "tuning.py"} <= covered
    # by an import of a claim, by one of a module that claims import, and by its name in a string
    assert {"images/training.py", "images/residual.py", "images/together.py"} <= covered
    assert not {"study.py", "results.py", "heartbeat.py", "trials/store.py", "sources.py", "claims_hash.py"} & covered


def test_the_hash_is_the_same_in_another_process_and_of_a_copy(lab, present):
    assert re.fullmatch("[0-9a-f]{16}", present)
    assert claims_hash(lab) == present
    # The module alone: it needs nothing but the standard library.
    script = f"import runpy; print(runpy.run_path({module.__file__!r})['claims_hash']())"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == present


def test_line_endings_do_not_count(lab, present):
    for path in lab.rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert claims_hash(lab) == present


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("claims/affine_restores.py", "MARGIN = (1 / 1.1, 1.1)", "MARGIN = (1 / 1.2, 1.2)"),
        ("claims/affine_restores.py", "is above 1.1", "is above 1.2"),
        ("verdict.py", "supported", "Supported"),
        ("images/networks.py", "def build", "def built"),
        ("arrays.py", "rng.permutation", "sorted"),
        ("choice.py", "margin", "Margin"),
        ("recommendation.py", "keep", "Keep"),
        ("text/comparison.py", "LOSS.margin", "2 * LOSS.margin"),
    ],
)
def test_a_change_of_what_is_asked_or_how_it_is_judged_changes_the_hash(lab, present, name, before, after):
    change(lab / name, before, after)
    assert claims_hash(lab) != present


def test_a_claim_more_changes_the_hash(lab, present):
    shutil.copy(lab / "claims" / "axes.py", lab / "claims" / "axes_again.py")
    assert claims_hash(lab) != present


def test_how_trials_are_run_does_not_count(lab, present):
    change(lab / "heartbeat.py", "INTERVAL", "PAUSE")
    change(lab / "trials" / "store.py", "class Store", "class Kept")
    assert claims_hash(lab) == present


ASKED = Asked(confirmatory=True, claims_hash="aaaa", seed=3)
HELD = Held("confirmatory", "aaaa", None, same=True)


def test_a_first_run_of_fresh_replicates_is_confirmatory_and_may_continue():
    assert status_of(ASKED, None) == "confirmatory"
    assert status_of(ASKED, HELD) == "confirmatory"
    assert status_of(replace(ASKED, seeds=16), replace(HELD, seeds=16)) == "confirmatory"


def test_what_a_folder_holds_is_read_from_its_study():
    content = {"identity": {"seed": 3}, "asked": {"seeds": 16}, "status": "confirmatory", "claims_hash": "aaaa"}
    assert held_by(content, {"seed": 3}, anything=True) == Held("confirmatory", "aaaa", 16, same=True)
    assert held_by(content, {"seed": 4}, anything=True) == Held("confirmatory", "aaaa", 16, same=False)
    assert held_by({"identity": {}, "asked": {}}, {}, anything=True) == Held("exploratory", "", None, same=True)
    # a folder of another version's study, whose study.json cannot be read
    assert held_by(None, {}, anything=True) == Held("exploratory", "", None, same=False)
    assert held_by(None, {}, anything=False) is None


def test_what_nobody_declared_is_exploratory():
    asked = replace(ASKED, confirmatory=False)
    assert status_of(asked, None) == "exploratory"
    assert status_of(replace(asked, seed=0), None) == "exploratory"
    for held in (Held("exploratory", "aaaa", None, same=True), Held("exploratory", "", 4, same=False)):
        assert status_of(asked, held) == "exploratory"


@pytest.mark.parametrize(
    ("asked", "held", "says"),
    [
        (replace(ASKED, seed=0), None, "expected a --seed other than 0, got 0"),
        (replace(ASKED, seed=0), HELD, "expected a --seed other than 0, got 0"),
        (ASKED, replace(HELD, status="exploratory"), "which holds an exploratory study"),
        (ASKED, replace(HELD, same=False), "which holds another study"),
        (ASKED, replace(HELD, claims_hash="bbbb"), "(hash bbbb), got claims that were changed since (hash aaaa)"),
        (ASKED, replace(HELD, claims_hash=""), "got claims that were changed since"),
        (replace(ASKED, seeds=64), HELD, "(--seeds not given), got 64"),
        (ASKED, replace(HELD, seeds=64), "(--seeds 64), got none"),
        (replace(ASKED, confirmatory=False), HELD, "FOLDER: expected --confirmatory, because the folder holds"),
    ],
)
def test_what_cannot_be_confirmatory_is_refused(asked, held, says):
    with pytest.raises(StatusError, match=re.escape(says)) as error:
        status_of(asked, held, "FOLDER")
    assert "--out" in str(error.value) or "--seed" in str(error.value) or "Give" in str(error.value)


def test_every_refusal_says_what_to_do_whole():
    with pytest.raises(StatusError) as error:
        status_of(ASKED, replace(HELD, claims_hash="bbbb"), "out")
    assert str(error.value) == (
        "--confirmatory: expected the claims of the study in out (hash bbbb), got claims that were changed since (hash "
        "aaaa). What was looked at confirms no other claims: begin again with --out and a fresh --seed, or continue "
        "with the gammabeta that began."
    )


def test_modules_are_found_by_imports_and_by_name(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("networks", "together", "training", "unused"):
        (tmp_path / "images" / f"{name}.py").touch()
    (tmp_path / "race.py").touch()
    source = (
        "from gammabeta.lab.race import first\nfrom gammabeta.lab.images import networks\n"
        "from gammabeta.lab import race\nfrom gammabeta.layers import batch_norm\nimport torch\n"
        "TRAIN = 'gammabeta.lab.images.training:train'\n"
        "@versioned(1, together='gammabeta.lab.images.together')\ndef f(): ...\n"
    )
    found = {"race.py", "images/networks.py", "images/training.py", "images/together.py"}
    assert set(module._named(tmp_path, source)) == found
