"""The examples of the reference run, each in a namespace of its own."""

import pytest
from tests.site.loading import SITE, loaded

pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install 'gammabeta[docs]'")
running = loaded("running")


@pytest.mark.parametrize("path", sorted((SITE / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running.printed(path.read_text(encoding="utf-8"), path.name)
