"""The table of kinds of data: each kind is a row and a folder."""

from pathlib import Path

import pytest

from gammabeta.lab import kinds, sources
from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.kinds import KINDS

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
