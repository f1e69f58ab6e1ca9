"""Limits on size: lines of a function, and parameters of what is internal."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "gammabeta"
LINES, PARAMETERS = 70, 6

# Whose parameters are fixed from outside. A public function or constructor has torch's or the user's view of it; a
# command has its options; an op's schema is the contract of all its implementations; an autograd Function takes what
# it saves one by one; Triton compiles a kernel's parameters as they stand.
PUBLIC = {"functional.py", "layers", "surgery/convert.py:convert", "diagnostics/check.py:check", "lab/study.py:study",
          "benchmarks/bench.py:bench"}  # fmt: skip
COMMANDS = {"cli/main.py"}
OPS = {"ops.py", "reference.py", "kernels/cuda", "running_statistics.py:_update", "running_statistics.py:_move",
       "running_statistics.py:_gather"}  # fmt: skip
FUNCTIONS = {"autograd.py:forward"}
# A trial's settings are its function's parameters by name, and a network's are its constructor's.
SETTINGS = {"lab/claims/weight_decay.py:decayed", "lab/images/networks.py:__init__",
            "lab/images/residual.py:__init__", "lab/images/injected_shift.py:race",
            "lab/sequences/networks.py:__init__"}  # fmt: skip
# The properties of a random call are its parameters by name.
RANDOM = {"proof/random_call.py:random_call"}
EXEMPT = PUBLIC | COMMANDS | OPS | FUNCTIONS | SETTINGS | RANDOM


def functions():
    """Every function of the package with its file, as seen from the package's root."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(SOURCE).as_posix(), node


def body_lines(node):
    """The lines of a function without those of its docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def parameters(node):
    """How many parameters a function takes, self and cls apart."""
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + (a.vararg is not None) + (a.kwarg is not None)


def test_no_function_is_long():
    long = {f"{file}:{node.name}": lines for file, node in functions() if (lines := body_lines(node)) > LINES}
    assert long == {}


def test_internal_functions_take_few_parameters():
    many = {}
    for file, node in functions():
        folders = {file, *(parent.as_posix() for parent in Path(file).parents)}
        if parameters(node) > PARAMETERS and not EXEMPT & {*folders, f"{file}:{node.name}"}:
            many[f"{file}:{node.name}"] = parameters(node)
    assert many == {}


def test_what_is_exempt_is_there():
    names = {f"{file}:{node.name}" for file, node in functions()}
    for entry in EXEMPT:
        file, _, name = entry.partition(":")
        assert (SOURCE / file).exists(), entry
        assert not name or entry in names, entry
