"""The table of kinds of data: each kind is a row and a folder."""

from pathlib import Path

import numpy as np
import pytest

from gammabeta.lab import kinds, sources
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.study import _facts

FOLDER = Path(kinds.__file__).parent


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_folder_with_the_same_files(kind):
    files = {path.stem for path in (FOLDER / kind).glob("*.py")}
    assert {"task", "networks", "training", "comparison"} <= files


def test_every_claim_is_about_a_kind_or_about_any():
    assert {claim.kind for claim in CLAIMS} <= {"any", *KINDS}
    assert {name for row in KINDS.values() for name in row.claims} <= {claim.name for claim in CLAIMS}


def test_no_two_kinds_share_a_form_and_each_has_its_embedded_data():
    assert sum(len(row.forms) for row in KINDS.values()) == len(sources.FORMS)
    for kind, row in KINDS.items():
        assert sources.kind(sources.source(row.embedded)) == kind


def test_facts_say_of_how_many_samples_each_part_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((80, 8, 8)), "x_test": rng.random((40, 8, 8))}
    arrays |= {"y_train": np.arange(80) % 2, "y_test": np.arange(40) % 2}
    np.savez(tmp_path / "own.npz", **arrays)
    (tmp_path / "own.txt").write_text("to be or not to be " * 1000)
    found = {}
    for data, train in (
        (f"mnist:{tmp_path / 'own.npz'}", 40),
        (f"text:{tmp_path / 'own.txt'}", None),
        ("strokes", None),
    ):
        facts = _facts(sources.source(data, train), None)
        found[data.partition(":")[0]] = facts["samples"], facts["available"]
    names = ("train", "validation", "test")
    assert found == {
        "mnist": (dict(zip(names, (40, 10, 20), strict=True)), dict(zip(names, (80, 80, 40), strict=True))),
        "text": (dict(zip(names, (17100, 950, 950), strict=True)), dict(zip(names, (18050, 18050, 950), strict=True))),
        "strokes": (dict(zip(names, (1500, 400, 600), strict=True)),) * 2,
    }
