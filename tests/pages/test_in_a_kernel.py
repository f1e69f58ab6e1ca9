"""What a notebook shows, in a real kernel."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs a cell in a kernel of this Python, and returns what it shows."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")

    def ran(text):
        first = f"import sys; sys.path[:0] = {[str(ROOT / 'src'), *sys.path]!r}\n"
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(first + text)]
        resources = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
        return notebook.cells[0].outputs

    return ran


def test_results_show_as_tables(run):
    (shown,) = run("import gammabeta as gb\nfrom torch import nn\ngb.adopt(nn.Sequential(nn.BatchNorm1d(2)))")
    assert shown.output_type == "execute_result"
    assert "<table" in shown.data["text/html"]
    assert shown.data["text/plain"].splitlines() == [
        "adopt: 1 changed, 0 left alone",
        "  0  BatchNorm1d now runs on gammabeta",
    ]


def test_a_study_tells_its_progress_line_by_line(run):
    outputs = run(
        "import gammabeta.lab.study as s\n"
        "s.INTERVAL = 0.5\n"
        "content = s.study(['axes'], quick=True, jobs=1)\n"
        "print(content['claims'][0]['verdict'])"
    )
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", output.data["text/plain"]) for output in outputs if "data" in output]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "supported" in outputs[-1].text
    told = [line.split()[0] for line in lines]
    assert told.count("data") == 3
    assert told[-1] == "supported"
    assert set(told) <= {"data", "running", "supported"}
    assert "axes" in lines[-1]
    # One line for each interval without another, and no bar that is drawn again and again.
    assert len(told) == len(lines) < 60
    assert not any("━" in line for line in lines)
