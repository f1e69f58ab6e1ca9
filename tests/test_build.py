"""The build: without a compiler the package still installs, unless the kernels are required."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    """Copy the installed files, without the results of an earlier build."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "tree" / "src", ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    return tmp_path / "tree"


def install(tree, **variables):
    """Install the tree into a folder beside it, with a compiler that fails. pip's verbose output has the build's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GAMMABETA_")}
    false = shutil.which("false")
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index"]
    return subprocess.run(
        [*pip, "--target", str(tree.parent / "site"), str(tree)],
        env={**own, "CC": false, "CXX": false, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({}, "building them failed ("), ({"GAMMABETA_KERNELS": "0"}, "GAMMABETA_KERNELS=0 is set.")],
    ids=["no compiler", "switched off"],
)
def test_without_a_compiler_it_installs_and_says_so(tree, variables, reason):
    done = install(tree, **variables)
    assert done.returncode == 0, done.stdout
    assert f"gammabeta: installed WITHOUT its native CPU kernels: {reason}" in done.stdout
    site = tree.parent / "site"
    own = {name: value for name, value in os.environ.items() if not name.startswith("GAMMABETA_")}
    used = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "from gammabeta import kernels; print(kernels.__file__, kernels.missing)",
        ],
        env={**own, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert used.stdout.startswith(f"{site / 'gammabeta' / 'kernels' / '__init__.py'} not built: ")
    command = subprocess.run(
        [sys.executable, str(site / "bin" / "gammabeta"), "--version"],
        env={**own, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert command.stdout.startswith("gammabeta ")
    assert not list(site.rglob("*.so"))
    assert not list(site.rglob("*.cpp")), "sources belong to the sdist"


def test_asked_for_kernels_that_cannot_be_built_it_fails(tree):
    done = install(tree, GAMMABETA_KERNELS="1")
    assert done.returncode != 0
    assert "gammabeta: GAMMABETA_KERNELS=1 requires the native kernels, but building them failed (" in done.stdout
    assert not (tree.parent / "site" / "gammabeta").exists()


def test_the_sources_of_the_kernels_are_in_the_sdist(tree):
    script = "import setuptools.build_meta as build; print(build.build_sdist('..'))"
    subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, timeout=120, check=True)
    (sdist,) = tree.parent.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tree.parent / "unpacked")
    (unpacked,) = (tree.parent / "unpacked").iterdir()

    def sources(root):
        folder = root / "src" / "gammabeta" / "kernels"
        return {
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".cpp", ".h", ".py", ".md")
        }

    assert sources(unpacked) == sources(tree)
    assert {"cpu/loops.cpp", "cpu/loops-inl.h", "cpu/README.md", "cuda/README.md"} <= sources(tree)
    assert (unpacked / "setup.py").exists()
