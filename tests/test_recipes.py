"""Every recipe of docs/recipes runs as it stands: its blocks in one go, in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
LIMIT = 240  # seconds


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_the_recipe_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / f"{page.stem}.py"
    # A line at the end that only a run to the end prints.
    script.write_text("\n".join([*blocks, "print('came to the end')"]), encoding="utf-8")
    distributed = "torchrun --nproc-per-node=2" in page.read_text(encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if distributed else []
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    status, printed = run([*launcher, str(script)], variables, tmp_path)
    ends = 2 if distributed else 1
    # torch aborts now and then while gloo's threads end, behind the last line of a process: then once more.
    if (
        status
        and printed.count("came to the end") == ends
        and "terminate called without an active exception" in printed
    ):
        status, printed = run([*launcher, str(script)], variables, tmp_path)
    assert status == 0, printed
    assert printed.count("came to the end") == ends, printed


def run(words, variables, folder):
    """Exit status and output of a Python of its own, ended after `LIMIT` with all that it started."""
    process = subprocess.Popen(
        [sys.executable, *words],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes, too
        printed, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, printed


def test_there_are_recipes():
    assert [page.stem for page in RECIPES] == [
        "check-and-watch", "deploy", "distributed", "federated", "fine-tune",
        "half-the-activations", "other-libraries", "small-batches",
    ]  # fmt: skip
