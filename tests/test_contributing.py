"""CONTRIBUTING's recipes, followed: made-up additions to a copy of the tree pass the repository's own checks.

A recipe's table lists the places to touch. Each test here touches exactly those places, so a table that misses one, or
names one too many, makes its test fail.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = (
    "src", "tests", "docs", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml",
    "setup.py", "LICENSE",
)  # fmt: skip
# One process imports torch once: it writes the generated pages, as `make docs` does, and runs tests.
PAGES = """
import sys
sys.path.insert(0, "docs")
import generate
generate.main([])
"""
TESTS = """
import sys
from pathlib import Path
import pytest
import gammabeta
assert Path(gammabeta.__file__).is_relative_to(Path.cwd()), gammabeta.__file__
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[1:]]))
"""
# What holds for any new module: its place in the order of imports, no circle, no public name hidden.
REPOSITORY = "one_way or circle or place_in_the_order or hides or init_is_empty or public_names"


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository, without what git leaves out but with the kernels that were built."""
    copy = tmp_path / "gammabeta"
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


def places(title):
    """Return the places that CONTRIBUTING's recipe of that title names, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"CONTRIBUTING.md: no recipe {title}"
    return re.findall(r"^\| `([^`]+)` \|", section[1], re.MULTILINE)


def follow(tree, title, name, steps, **names):
    """Take the steps of a recipe: one for each place, each from the file's text to its new one.

    Args:
        steps: by place, in the recipe's order; a step takes "" where there is no file yet.
        names: what other words in capitals stand for in places.
    """
    assert list(steps) == places(title), f"CONTRIBUTING.md names other places for {title}"
    for place, step in steps.items():
        for word, meaning in {"NAME": name, **names}.items():
            place = place.replace(word, meaning)
        path = tree / place
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = step(before)
        assert not path.exists() or after != before, f"{place}: nothing was written"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(after, encoding="utf-8")


def run(tree, *words, **variables):
    """Run Python in the copy, on the copy's package, expect it to succeed, and return what it printed."""
    variables |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


def check(tree, *arguments, **variables):
    """Write the generated pages, and run tests of the copy."""
    run(tree, "-c", PAGES + TESTS, *arguments, **variables)


def write(text):
    """Return the step that makes a new file of that text."""

    def step(before):
        assert before == "", "expected a new file"
        return text

    return step


def insert(*pairs):
    """Return the step that writes the second text of each pair before its first, which is there exactly once."""

    def step(before):
        for mark, text in pairs:
            assert before.count(mark) == 1, f"expected {mark!r} once, found it {before.count(mark)} times"
            before = before.replace(mark, text + mark)
        return before

    return step


PYTHON_ROW = """        Activation("soft_sign", _softsign, _softsign_derivative, (nn.Softsign,)),
"""
PYTHON_FUNCTIONS = """def _softsign(z: Tensor, slope: float) -> Tensor:
    return F.softsign(z)


def _softsign_derivative(z: Tensor, slope: float) -> Tensor:
    return (1 + z.abs()).square().reciprocal()


"""
CPP_FORWARD = """    case kSoftsign:
      for (int64_t i = 0; i < n; ++i) z[i] = z[i] / (A(1) + (z[i] < 0 ? -z[i] : z[i]));
      break;
"""
CPP_BACKWARD = """    case kSoftsign:
      for (int64_t i = 0; i < n; ++i) {
        A s = one / (one + (z[i] < 0 ? -z[i] : z[i]));
        z[i] = g[i] * (s * s);
      }
      break;
"""
TRITON_FORWARD = """    elif ACTIVATION == SOFTSIGN:
        return z / (1.0 + tl.abs(z))
"""
TRITON_BACKWARD = """    elif ACTIVATION == SOFTSIGN:
        s = 1.0 / (1.0 + tl.abs(z))
        return s * s
"""


def replace(*pairs):
    """Return the step that replaces the first text of each pair, which is there exactly once, by its second."""

    def step(before):
        for old, new in pairs:
            assert before.count(old) == 1, f"expected {old!r} once, found it {before.count(old)} times"
            before = before.replace(old, new)
        return before

    return step


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler: c++")
def test_an_activation(tree):
    steps = {
        "src/gammabeta/activations.py": insert(("TABLE: dict", PYTHON_FUNCTIONS), ("    )\n}\n", PYTHON_ROW)),
        "src/gammabeta/functional.py": replace(('"hardswish", "gelu";', '"hardswish", "gelu", "soft_sign";')),
        "src/gammabeta/kernels/cpu/activation.h": replace(
            ("kHardswish, kGelu }", "kHardswish, kGelu, kSoftsign }"),
            ('"gelu"}', '"gelu", "soft_sign"}'),
            ("== kGelu + 1", "== kSoftsign + 1"),
        ),
        "src/gammabeta/kernels/cpu/loops-inl.h": lambda text: cases(
            text, "    case kSilu:\n", CPP_FORWARD, CPP_BACKWARD
        ),
        "src/gammabeta/kernels/cuda/finish.py": lambda text: cases(
            text, "    elif ACTIVATION == SILU:\n", TRITON_FORWARD, TRITON_BACKWARD
        ).replace("GELU = tl", 'SOFTSIGN = tl.constexpr(CODES["soft_sign"])\nGELU = tl'),
        "src/gammabeta/proof/call.py": replace(('"gelu")', '"gelu", "soft_sign")')),
        "src/gammabeta/proof/oracle.py": replace(
            ('    "gelu": lambda', '    "soft_sign": lambda z, slope: F.softsign(z),\n    "gelu": lambda')
        ),
        "src/gammabeta/proof/magnitudes.py": replace(('"gelu")', '"gelu", "soft_sign")')),
    }
    follow(tree, "An activation", "soft_sign", steps)
    # Without optimization: a tenth of the time, and the same results to rounding.
    setup = tree / "setup.py"
    setup.write_text(setup.read_text(encoding="utf-8").replace('"-O3"', '"-O0"'), encoding="utf-8")
    for library in tree.glob("src/gammabeta/kernels/*.so"):
        library.unlink()
    run(tree, "setup.py", "-q", "build_ext", "--inplace", GAMMABETA_KERNELS="1")
    tests = ("tests/test_activations.py", "tests/test_docstrings.py", "tests/conformance/test_finish.py")
    names = "soft_sign or Softsign or table_s_names or lists_the_activations"
    check(tree, *tests, "-k", names, GAMMABETA_KERNELS="1")
    if importlib.util.find_spec("triton"):
        finish = ("tests/conformance/test_finish.py", "-k", "every_activation and soft_sign")
        run(tree, "-c", TESTS, *finish, TRITON_INTERPRET="1")


def cases(text, mark, first, second):
    """Insert a case before each of the two places of a mark, which stands in a function and in its derivative."""
    before, between, after = text.split(mark)
    return before + first + mark + between + second + mark + after


RULE = '''"""Running statistics that never move.

What it does: Finds BatchNorms whose momentum is 0.

Why it matters: Their running statistics stay at mean 0 and variance 1, and evaluation normalizes by these.

Example: `nn.BatchNorm2d(8, momentum=0.0)`.

Use instead: 0.1, torch's default.

Evidence: tests/diagnostics/rules/test_momentum_of_zero.py: after a batch of mean 5 the running mean is still 0.

Limits: None.
"""

from collections.abc import Iterator

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Record
from gammabeta.diagnostics.rule import Example, Match

severity = "warning"
sees = "S"


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        if getattr(norm.module, "momentum", None) == 0:
            yield Match(norm.name, "momentum is 0", {"momentum": 0.0}, Fix("momentum=0.1"))


def flagged() -> Example:
    return Example(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.0)), where=("1",))


def clean() -> Example:
    return Example(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
'''
RULE_TEST = '''"""GB399: what a momentum of 0 does to the running mean."""

import torch
from torch import nn


def test_the_running_mean_stays():
    norm = nn.BatchNorm1d(2, momentum=0.0)
    norm(torch.randn(8, 2) + 5)
    assert not norm.running_mean.any()
'''


def test_a_rule(tree):
    steps = {
        "src/gammabeta/diagnostics/rules/NAME.py": write(RULE),
        "src/gammabeta/diagnostics/rules/__init__.py": insert(('    "GB401"', '    "GB399": "momentum_of_zero",\n')),
        "tests/diagnostics/rules/test_NAME.py": write(RULE_TEST),
    }
    follow(tree, "A rule", "momentum_of_zero", steps)
    check(
        tree,
        "tests/diagnostics/rules/test_momentum_of_zero.py",
        "tests/diagnostics/rules/test_every_rule.py",
        "tests/test_repository.py",
        "-k", f"GB399 or codes or every_file or in_the_documentation or momentum_of_zero or {REPOSITORY}",
    )  # fmt: skip
    assert "## GB399 momentum-of-zero" in (tree / "docs" / "rules.md").read_text(encoding="utf-8")


CLAIM = '''"""Adding a constant to the input changes nothing.

Question: Does BatchNorm in training depend on the mean of its input?

Claim: It does not.

Criterion: An identity: outputs on x and on x + 1 are equal within 10⁻⁹ in float64. Supported if they are, else
contradicted.

Room: Always: an identity needs none.

Method: BatchNorm1d in training mode, on 16 random samples of 4 channels.

Settings: The same for quick and full.

Sources: Ioffe & Szegedy 2015, algorithm 1 (arXiv 1502.03167)

Known: It follows from the definition.
"""

from typing import Any

import torch

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Effect, Outcome, Room
from gammabeta.lab.trials.trial import Trial, versioned

EXACT = True
KIND = "any"


@versioned(1)
def shifted(*, seed: int) -> dict[str, Any]:
    """Measure how far a constant moves the output."""
    x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    norm = gb.BatchNorm1d(4).double()
    with torch.no_grad():
        return {"distance": float((norm(x + 1) - norm(x)).abs().max())}


def measure(experiment: Experiment) -> Outcome:
    """Count the seeds on which the identity fails."""
    results = experiment.run([Trial(f"{__name__}:shifted", {"seed": seed}) for seed in experiment.seeds(3, 6)])
    wrong = sum(result["distance"] > 1e-9 for result in results)
    effect = Effect.exactly("inputs on which the identity fails", wrong, len(results), "inputs")
    sentence = f"the identity fails on {wrong} of {len(results)} inputs"
    return Outcome(effect.verdict, sentence, [effect], Room(True, "an identity needs none"))
'''
CLAIM_TEST = '''"""The claim constant_shift holds for BatchNorm."""

from gammabeta.lab.claims import constant_shift


def test_constant_shift_holds(experiment):
    assert constant_shift.measure(experiment).verdict == "supported"
'''


def test_a_claim(tree):
    steps = {
        "src/gammabeta/lab/claims/NAME.py": write(CLAIM),
        "src/gammabeta/lab/claims/__init__.py": lambda text: re.sub(
            r"^( +)(covariate_shift),\n", r"\1constant_shift,\n\1\2,\n", text, flags=re.MULTILINE
        ),
        "docs/statements.json": insert(('"warmup":', '"constant_shift": "No sentence is about constants.",\n  ')),
        "tests/lab/claims/test_NAME.py": write(CLAIM_TEST),
    }
    follow(tree, "A claim", "constant_shift", steps)
    check(
        tree,
        "tests/lab/claims/test_constant_shift.py",
        "tests/test_repository.py",
        "tests/test_statements.py",
        "-k", f"constant_shift or every_claim or {REPOSITORY}",
    )  # fmt: skip
    assert "## constant_shift\n" in (tree / "docs" / "claims.md").read_text(encoding="utf-8")


OPERATION = '''"""One ε for the norms of a model."""

from __future__ import annotations

from torch import nn

from gammabeta.introspection.where import Where, select
from gammabeta.surgery.change import Change, transaction


def level_epsilon(model: nn.Module, eps: float, *, where: Where = None) -> Change:
    """Give every norm of the model the same ε.

    y = γ·(x − mean)/√(var + ε) + β, so a larger ε shrinks outputs whose variance (divided by n) is small.

    Args:
        model: any module.
        eps: added to the variance, in the squared unit of x.
        where: which norms: a glob on their names, a list, or a predicate `(name, module) -> bool`.

    Returns:
        The `Change`.

    Raises:
        ValueError: eps is negative, or `where` chooses nothing.

    Source: Ioffe & Szegedy 2015 (1502.03167), Algorithm 1.
    """
    if eps < 0:
        raise ValueError(f"level_epsilon: expected an ε of 0 or more, got {eps}: it is added to a variance.")
    with transaction("level_epsilon") as change:
        for name, module in select(model, where, _has_epsilon, operation="level_epsilon", kind="norms"):
            if module.eps == eps:
                change.leave(name, f"its ε is {eps:g} already")
            else:
                before = module.eps
                change.set_attribute(module, "eps", eps, name)
                change.note(name, f"ε {eps:g} in place of {before:g}")
    return change


def _has_epsilon(module: nn.Module) -> bool:
    return isinstance(getattr(module, "eps", None), float)
'''
OPERATION_TEST = '''"""level_epsilon: one ε everywhere, and back."""

import pytest
import torch
from torch import nn

import gammabeta as gb


def test_every_norm_gets_it_and_undo_reverts_it():
    model = nn.Sequential(nn.LayerNorm(4, eps=1e-3), nn.BatchNorm1d(4))
    change = gb.level_epsilon(model, 1e-5)
    assert change.changed == ["0"]
    assert list(change.left) == ["1"]
    assert model[0].eps == 1e-5
    change.undo()
    assert model[0].eps == 1e-3


def test_a_negative_one_is_refused():
    with pytest.raises(ValueError, match="expected an ε of 0 or more, got -1"):
        gb.level_epsilon(nn.LayerNorm(4), -1)
'''


def test_an_operation_of_surgery(tree):
    steps = {
        "src/gammabeta/surgery/NAME.py": write(OPERATION),
        "src/gammabeta/__init__.py": insert(
            (
                "    from gammabeta.surgery.parameter_groups",
                "    from gammabeta.surgery.level_epsilon import level_epsilon\n",
            ),
            ('    "merge_statistics",\n', '    "level_epsilon",\n'),
            ('    "merge_statistics": ', '    "level_epsilon": "surgery.level_epsilon",\n'),
        ),
        "docs/architecture.md": insert(("| `fuse` |", "| `level_epsilon` | give every norm the same ε |\n")),
        "docs/site/api_groups.py": insert(('"parameter_groups", "Change"', '"level_epsilon", ')),
        "docs/site/examples/NAME.py": write("import gammabeta as gb\n\nprint(gb.level_epsilon.__name__)\n"),
        "tests/surgery/test_NAME.py": write(OPERATION_TEST),
    }
    follow(tree, "An operation of surgery", "level_epsilon", steps)
    check(
        tree,
        "tests/surgery/test_level_epsilon.py",
        "tests/site/test_sources.py",
        "tests/test_docstrings.py",
        "tests/test_repository.py",
        "-k", f"level_epsilon or every_public_name or without_an_example or {REPOSITORY}",
    )  # fmt: skip
    assert "level_epsilon.py" in (tree / "docs" / "files.md").read_text(encoding="utf-8")


TASK = '''"""Points in the plane as a task: which ring a point lies on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PointTask:
    """Points (n, 2) float32 with labels (n,) int64, by split."""

    name: str
    description: str
    classes: int
    splits: dict[str, tuple[Tensor, Tensor]]
'''
READER = '''"""Two rings of points, drawn from a fixed seed."""

import torch

from gammabeta.lab.points.task import PointTask


def load() -> PointTask:
    """Draw the rings."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y_n = torch.arange(n) % 2
        angle_n = torch.rand(n, generator=generator) * 6.3
        x_n2 = torch.stack([angle_n.cos(), angle_n.sin()], 1) * (1.0 + y_n[:, None])
        return x_n2 + 0.05 * torch.randn(n, 2, generator=generator), y_n

    splits = {"train": split(400), "validation": split(200), "test": split(200)}
    return PointTask("rings", "rings: two rings of points", 2, splits)
'''
NETWORKS = '''"""The network that trials on points train."""

from torch import nn

from gammabeta.lab.norms import norm


def mlp(arm: str) -> nn.Module:
    """Build an MLP of one hidden layer with the arm's norm."""
    return nn.Sequential(nn.Linear(2, 16), norm(arm, 16, positions=0), nn.ReLU(), nn.Linear(16, 2))
'''
TRAINING = '''"""Training runs on points: SGD on batches drawn from the seed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from gammabeta.lab.points.networks import mlp
from gammabeta.lab.sources import load_points
from gammabeta.lab.trials.trial import versioned


@versioned(1)
def train(
    *, task: Mapping[str, Any], norm: str, rate: float, steps: int, batch: int, seed: int, report: str
) -> dict[str, Any]:
    """Train the MLP, and report its error in per cent on a split."""
    data = load_points(task)
    torch.manual_seed(seed)
    model = mlp(norm)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    x_n2, y_n = data.splits["train"]
    for _ in range(steps):
        drawn = torch.randint(len(x_n2), (batch,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x_n2[drawn]), y_n[drawn]).backward()
        optimizer.step()
    x_n2, y_n = data.splits[report]
    with torch.no_grad():
        wrong = model.eval()(x_n2).argmax(1) != y_n
    return {"error": 100 * float(wrong.float().mean())}
'''
COMPARISON = '''"""Norms side by side on points: the MLP with BatchNorm, LayerNorm and none."""

from functools import partial

import torch
from torch.nn import functional

from gammabeta.lab.comparison import ERROR, Compared, Comparison, kept_bytes, seconds_per_step, side_by_side
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.norms import named
from gammabeta.lab.points.networks import mlp
from gammabeta.lab.sources import load_points
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.tuning import tune

ARMS = ("batch", "layer", "none")
BATCH, STEPS = 32, 60


def compare(experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Train the MLP with every norm, each at its own best learning rate, and measure what it costs."""
    source = dict(experiment.sources["points"])
    data = load_points(source)
    batch = (batch_size or BATCH) * devices

    def trial(arm: str, exponent: int, seed: int, report: str) -> Trial:
        settings = {"task": source, "norm": arm, "rate": 2.0**exponent, "steps": STEPS, "batch": batch}
        return Trial("gammabeta.lab.points.training:train", {**settings, "seed": seed, "report": report})

    best = tune(
        experiment,
        [{"norm": arm} for arm in ARMS],
        lambda result: float(result["error"]),
        lambda arm, exponent: trial(arm["norm"], exponent, experiment.tuning_seed, "validation"),
    )
    exponents = dict(zip(ARMS, best, strict=True))
    results = experiment.grid(ARMS, experiment.seeds(3, 6), lambda arm, seed: trial(arm, exponents[arm], seed, "test"))
    x_n2, y_n = data.splits["train"][0][:batch], data.splits["train"][1][:batch]
    models = {arm: mlp(arm) for arm in ARMS}

    def loss(model: torch.nn.Module, batch: object = None) -> torch.Tensor:
        return functional.cross_entropy(model(x_n2), y_n)

    seconds = seconds_per_step(models, loss, range(8))
    kept = {arm: kept_bytes(models[arm], partial(loss, models[arm])) for arm in ARMS}
    arms = [
        Compared(
            arm,
            named(arm),
            2.0 ** exponents[arm],
            tuple(result["error"] for result in results[arm]),
            (seconds[arm],),
            kept[arm].as_it_is,
            recomputed=kept[arm].with_recompute,
        )
        for arm in ARMS
    ]
    compared = side_by_side(arms, ERROR)
    learned = min(arm.value for arm in compared) < 25
    return [Comparison("points", data.name, "MLP", batch_size or BATCH, devices, STEPS, ERROR, learned, compared)]
'''
ROW = """    "points": KindOfData(
        "rings",
        {"rings": Form(rings.load)},
        lambda data: PointTask(data.name, data.name, 2, {name: data.content["points"] for name in ("train", "test")}),
        lambda task: {
            "shape": [2],
            "classes": task.classes,
            "samples": {name: len(y_n) for name, (_, y_n) in task.splits.items()},
        },
    ),
"""
USER = """    if keys == {"points", "labels"}:
        return "points", ("points", "labels")
"""
LOAD = '''def load_points(task: Mapping[str, Any]) -> PointTask:
    """Load the points that :func:`source` named."""
    points = load_kind(task, "points")
    assert isinstance(points, PointTask)
    return points


'''
KIND_TEST = '''"""Points in the plane: a study of them recommends a norm."""

import io

from rich.console import Console

from gammabeta.lab.study import study


def test_a_study_compares_the_norms_on_rings(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    results = study(data="rings", compare_only=True, quick=True, jobs=1, out=tmp_path, console=console)
    assert [task["kind"] for task in results["tasks"]] == ["points"]
    (recommendation,) = results["recommendations"]
    assert recommendation["kind"] == "points"
    assert recommendation["network"] == "MLP"
'''


def test_a_kind_of_data(tree):
    steps = {
        "src/gammabeta/lab/NAME/__init__.py": write(""),
        "src/gammabeta/lab/NAME/task.py": write(TASK),
        "src/gammabeta/lab/NAME/READER.py": write(READER),
        "src/gammabeta/lab/NAME/networks.py": write(NETWORKS),
        "src/gammabeta/lab/NAME/training.py": write(TRAINING),
        "src/gammabeta/lab/NAME/comparison.py": write(COMPARISON),
        "src/gammabeta/lab/kinds.py": insert(
            (
                "from gammabeta.lab.sequences import",
                "from gammabeta.lab.points import rings\nfrom gammabeta.lab.points.task import PointTask\n",
            ),
            ('    "sequences": KindOfData(', ROW),
        ),
        "src/gammabeta/lab/sources.py": insert(
            ("from gammabeta.lab.sequences.task", "from gammabeta.lab.points.task import PointTask\n"),
            (" | SequenceTask | TextTask", " | PointTask"),
            ("def load_sequences(", LOAD),
        ),
        "src/gammabeta/lab/user_data.py": insert(("    if keys == set(NAMES):\n", USER)),
        "src/gammabeta/cli/options.py": insert(("[bold]strokes[/]", "[bold]rings[/], ")),
        "tests/lab/test_NAME.py": write(KIND_TEST),
    }
    follow(tree, "A kind of data", "points", steps, READER="rings")
    check(
        tree, "tests/lab/test_points.py", "tests/lab/test_kinds.py", "tests/test_repository.py",
        "-k", f"rings or points or every_claim_is_about or no_two_kinds or {REPOSITORY}",
    )  # fmt: skip
    assert "rings" in run(tree, "-m", "gammabeta", "study", "--help")
