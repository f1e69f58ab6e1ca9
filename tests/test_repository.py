"""The repository itself: public names, imports, versions, generated pages."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import LONG_TAIL

import gammabeta as gb

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gammabeta"
FILES = sorted(SOURCE.rglob("*.py"))

# The wings, and the modules at the root between them: each imports only from those before it. "gammabeta" is the
# package's __init__.
ORDER = (
    "_torch_private",
    "activations",
    "distributed",
    "masks",
    "moments",
    "op_checks",
    "running_statistics",
    "reference",
    "ops",
    "kernels",
    "arguments",
    "subclasses",
    "autograd",
    "aten",
    "functional",
    "statistics",
    "layers",
    "introspection",
    "pages",
    "surgery",
    "proof",
    "diagnostics",
    "testing",
    "monitoring",
    "allocator",
    "gammabeta",
    "target",
    "lab",
    "environment",
    "benchmarks",
    "cli",
    "__main__",
)
STUDY_ONLY = ("joblib", "sklearn", "scipy", "plotly", "jinja2", "typer", "rich", "onnx")


def part(path):
    """What a file counts as in ORDER: its folder, or its own name."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "gammabeta" if first == "__init__" else first


def imported(tree):
    """The parts of gammabeta that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names = alias.name.split(".")
                if names[0] == "gammabeta":
                    yield names[1] if len(names) > 1 else "gammabeta"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = (node.module or "").split(".")
            if names == ["gammabeta"]:
                for alias in node.names:
                    yield alias.name if alias.name in ORDER else "gammabeta"
            elif names[0] == "gammabeta":
                yield names[1]


def test_every_module_has_its_place_in_the_order_of_imports():
    assert {part(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    own = part(path)
    for other in imported(ast.parse(path.read_text(encoding="utf-8"))):
        # __init__ gathers the public names of what stands before it; a folder's files may import each other.
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{own} imports {other}, which comes later"


def test_importing_the_library_loads_torch_and_nothing_of_the_study():
    script = f"import sys, gammabeta; print([name for name in {STUDY_ONLY} if name in sys.modules])"
    with_torch = "import sys, torch; before = set(sys.modules); " + script
    done = subprocess.run([sys.executable, "-c", with_torch], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


def test_the_public_names_are_there_and_are_all():
    assert gb.__all__ == sorted(gb.__all__)
    for name in gb.__all__:
        assert getattr(gb, name) is not None
    # What else the package's own code binds is not in its documentation; submodules are attributes too.
    modules = {path.stem for path in SOURCE.iterdir()}
    # pytest binds names with an @ in a package that an installed plugin belongs to.
    others = {name for name in vars(gb) if not name.startswith(("_", "@"))} - {*gb.__all__} - modules
    assert others == {"TYPE_CHECKING", "Any", "annotations", "importlib", "sys", "tell_libraries"}


def test_the_public_names_are_those_of_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Public names", 1)[1].split("\n## ", 1)[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    documented = set()
    for name in re.findall(r"`([^`]+)`", " ".join(cells)):
        stem = re.match(r"[A-Za-z]+", name)[0]
        documented |= {stem + d for d in re.findall(r"\dd", name.replace("/", "d/"))} if "1d/" in name else {name}
    assert documented == set(gb.__all__)


def test_the_architecture_names_the_wings_in_the_order_of_imports():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## The wings", 1)[1].split("\n## ", 1)[0]
    wings = [name for name in ORDER if (SOURCE / name).is_dir()]
    assert re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE) == wings


def test_the_version_is_said_once():
    assert importlib.metadata.version("gammabeta") == gb.__version__, "install again after a change of version"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{gb.__version__}]" in changelog


def test_no_source_file_is_long():
    for path in SOURCE.rglob("*"):
        if path.suffix in (".py", ".js", ".css", ".jinja"):
            lines = path.read_text(encoding="utf-8").count("\n")
            assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines"


def test_the_root_holds_the_library_and_the_wings():
    assert len(list(SOURCE.glob("*.py"))) <= 18  # `testing` among them, for the name that users import
    assert len({path.parent for path in SOURCE.glob("*/*.py")}) <= 14
    for path in FILES:
        assert path.stem not in ("utils", "util", "helpers", "common", "misc"), path


def test_no_wing_hides_a_public_name():
    # Importing gammabeta.fold would overwrite the function of that name.
    root = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert root & set(gb.__all__) == {"functional", "statistics"}


def test_a_wing_s_init_is_empty():
    # Importing one module of a wing then imports no other, and no package can close a circle.
    filled = {
        path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*/__init__.py") if path.stat().st_size
    }
    assert filled == {"statistics", "kernels", "diagnostics/rules", "lab/claims", "benchmarks/subjects", "proof/topics"}


def test_modules_import_no_circle():
    names = {".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    arrows = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gammabeta."):
                module = node.module.removeprefix("gammabeta.")
                found |= {inner if (inner := f"{module}.{alias.name}") in names else module for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "gammabeta":
                found |= {alias.name for alias in node.names if alias.name in names}
        arrows[name] = found - {name}
    done = set()
    while ready := {name for name, found in arrows.items() if name not in done and found <= done}:
        done |= ready
    assert set(names) == done, {name: sorted(arrows[name] - done) for name in sorted(set(names) - done)}


def test_generated_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"run make docs: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", sorted((SOURCE / "lab" / "claims").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_claim_says_what_it_asks_and_how_it_judges(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for heading in ("Question", "Claim", "Criterion", "Room", "Method", "Settings", "Sources", "Known"):
        body = re.search(rf"^{heading}: *\n?(\S.*)", text, re.MULTILINE)
        assert body, f"{path.stem}: no text under {heading}"


@pytest.mark.parametrize("path", sorted((SOURCE / "lab" / "claims").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_claim_s_docstring_tells_no_history(path):
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    history = re.search(
        r"(at first, |after (a|first|two first) (look|run)|(was|were) (added|changed|cut) |used first)", text
    )
    assert not history, f"{history[0]!r}: what was changed after a look belongs into docs/claims_history.md"


def test_every_claim_is_in_the_documentation_and_has_tests():
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "lab" / "claims").glob("test_*.py"))
    for path in (SOURCE / "lab" / "claims").glob("[!_]*.py"):
        assert f"## {path.stem}\n" in page
        assert re.search(rf"\b{path.stem}\b", tests), f"nothing in tests/lab/claims speaks of {path.stem}"


def test_what_the_report_needs_is_packaged():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packaged = re.search(r'"gammabeta\.pages" = \[(.*?)\]', text, re.DOTALL)[1]
    data = {path.name for path in (SOURCE / "pages").iterdir() if path.suffix in (".css", ".js", ".jinja")}
    assert set(re.findall(r'"([^"]+)"', packaged)) == data


def test_documentation_links_lead_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_s_library_example_runs():
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(example, "README.md", "exec"), {})


def test_the_long_tail_is_there():
    for path in LONG_TAIL:
        assert (ROOT / "tests" / path).exists(), path


def test_a_package_s_attribute_is_its_module():
    # An alias of that name in an __init__ would take its place for `import a.b.c as name` and for patches by string.
    script = """
import importlib, pkgutil, sys, gammabeta
for module in pkgutil.walk_packages(gammabeta.__path__, "gammabeta."):
    if module.name.rpartition(".")[2] not in ("__main__", "_cpu"):
        importlib.import_module(module.name)
for name, module in sorted(sys.modules.items()):
    package, _, last = name.rpartition(".")
    if name.startswith("gammabeta."):
        assert getattr(sys.modules[package], last) is module, name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
