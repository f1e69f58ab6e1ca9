"""The build: without a compiler the package still installs, unless the kernels are required."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import gammabeta

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


def built(tree, python, *path, **variables):
    """Build a wheel as pip's isolated builds do: none of the environment's packages is on the path, these are."""
    script = (
        "import sys; sys.path = [place for place in sys.path if 'site-packages' not in place]; "
        f"sys.path[:0] = {[str(place) for place in path]!r}; "
        "import setuptools.build_meta as build; print(build.build_wheel('..'))"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GAMMABETA_", "PYTHON"))}
    false = shutil.which("false")
    done = subprocess.run(
        [python, "-I", "-c", script],
        cwd=tree,
        env={**own, "CC": false, "CXX": false, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.fixture
def required(tmp_path):
    """A folder that has what the build requires, and nothing else."""
    (tmp_path / "required").mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (tmp_path / "required" / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    commands = Path(importlib.metadata.distribution("setuptools").locate_file("")).glob("setuptools-*.dist-info")
    for folder in commands:
        (tmp_path / "required" / folder.name).symlink_to(folder)
    return tmp_path / "required"


def test_an_isolated_build_finds_the_torch_of_the_environment(tree, required):
    """The compiler that fails shows that torch was found: what torch imports serves from there too."""
    wheel, said = built(tree, sys.executable, required)
    assert "installed WITHOUT its native CPU kernels: building them failed (" in said
    assert wheel == f"gammabeta-{gammabeta.__version__}-py3-none-any.whl"


def test_without_torch_an_isolated_build_says_so_and_its_wheel_fits_any_machine(tree, required):
    bare = sys._base_executable
    if bare == sys.executable:
        pytest.skip("this Python is of no virtual environment, so that there is none without torch")
    wheel, said = built(tree, bare, required)
    assert "installed WITHOUT its native CPU kernels: torch is not there at build time (" in said
    assert wheel == f"gammabeta-{gammabeta.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(tree.parent / wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: true\nTag: py3-none-any\n" in archive.read(about).decode()
        assert not [name for name in archive.namelist() if name.endswith((".so", ".cpp")) or ".data/" in name]
        assert "gammabeta/kernels/__init__.py" in archive.namelist()
        assert "gammabeta_command.py" in archive.namelist()


def test_a_wheel_with_kernels_is_for_this_kind_of_machine(tree):
    """The extension is put in place of what a compiler makes, which takes minutes."""
    script = (
        "import pathlib, sys, setuptools.build_meta as build, torch.utils.cpp_extension as torch\n"
        "def compiled(self):\n"
        "    print('compiled', file=sys.stderr)\n"
        "    for one in self.extensions:\n"
        "        place = pathlib.Path(self.get_ext_fullpath(one.name))\n"
        "        place.parent.mkdir(parents=True, exist_ok=True)\n"
        "        place.write_bytes(b'made up')\n"
        "torch.BuildExtension.build_extensions = compiled\n"
        "print(build.build_wheel('..'))"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("GAMMABETA_")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tree, env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("compiled") == 1, "setuptools asks for it twice, and each time takes minutes"
    wheel = done.stdout.splitlines()[-1]
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel == f"gammabeta-{gammabeta.__version__}-cp310-abi3-{platform}.whl"
    with zipfile.ZipFile(tree.parent / wheel) as archive:
        assert [archive.read(name) for name in archive.namelist() if name.endswith(".so")] == [b"made up"]


def test_asked_for_kernels_that_cannot_be_built_it_fails(tree):
    done = install(tree, GAMMABETA_KERNELS="1")
    assert done.returncode != 0
    assert "gammabeta: GAMMABETA_KERNELS=1 requires the native kernels, but building them failed (" in done.stdout
    assert not (tree.parent / "site" / "gammabeta").exists()


def test_the_core_needs_torch_alone():
    needed = importlib.metadata.requires("gammabeta")
    assert [one for one in needed if "extra ==" not in one] == ["torch>=2.12"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone, whose files git lists")
def test_whatever_git_has_is_in_the_sdist(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    script = "import setuptools.build_meta as build; print(build.build_sdist('..'))"
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "tree", capture_output=True, text=True, timeout=240, check=True
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(filter(None, listed)) - held == set()


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
