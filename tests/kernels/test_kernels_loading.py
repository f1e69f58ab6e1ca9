"""Loading of the native kernels: present, not built, broken, switched off, required.

Each runs in a separate process, where an import hook takes the extension's place.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

import gammabeta
from gammabeta import kernels, ops

# An extension that is missing or cannot be loaded, as Python's import reports it.
HOOK = """
import importlib.abc, sys
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "gammabeta.kernels._cpu":
            raise {error}
sys.meta_path.insert(0, Hook())
"""
NOT_BUILT = HOOK.format(error='ModuleNotFoundError("No module named " + repr(name), name=name)')
BROKEN = HOOK.format(error='ImportError("_cpu.abi3.so: undefined symbol: aoti_torch_x")')

USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import gammabeta, gammabeta.kernels
    import gammabeta.environment
    import importlib
    importlib.import_module("gammabeta.kernels")
import torch
print([f"{w.category.__name__}: {w.message}" for w in caught if "gammabeta" in str(w.message)])
print(gammabeta.ops.has_kernel("cpu"))
print(dict(gammabeta.environment.environment()["kernels"])["CPU"])
x = torch.randn(8, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
mask = torch.arange(8 * 25).reshape(8, 5, 5) % 3 > 0
y = gammabeta.BatchNorm2d(3, dtype=torch.float64, activation="relu")(x, mask=mask)
real = x.movedim(1, -1)[mask]
z = (real - real.mean(0)) / (real.var(0, correction=0) + 1e-5).sqrt()
torch.testing.assert_close(y.movedim(1, -1)[mask], z.clamp(min=0))
print("right")
"""

UNDEFINED = "_cpu.abi3.so: undefined symbol: aoti_torch_x"
CURE = (
    "Where torch and g++ or clang++ are installed, pip install --force-reinstall --no-deps --no-cache-dir gammabeta "
    "(in a clone . in place of gammabeta) builds them"
)
REASONS = {
    NOT_BUILT: "not built: there was no torch or no working C++ compiler when gammabeta was installed",
    BROKEN: f"built, but do not load with torch {torch.__version__}: {UNDEFINED}",
}
OFF = "switched off by GAMMABETA_KERNELS=0"


def run(script, **variables):
    """Run a process with these variables, without the kernels' variables of this process."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GAMMABETA_")}
    return subprocess.run(
        [sys.executable, "-c", script], env={**own, **variables}, capture_output=True, text=True, timeout=120
    )


def without(reason):
    return f"none, torch's own ops and the reference in plain torch serve: {reason}"


@pytest.mark.parametrize("hook", [NOT_BUILT, BROKEN], ids=["not built", "broken"])
def test_without_them_one_warning_and_the_right_numbers(hook):
    done = run(hook + USE)
    assert done.returncode == 0, done.stderr
    warnings, has_kernel, row, right = done.stdout.splitlines()
    assert warnings == repr(
        [
            f"RuntimeWarning: gammabeta: the native CPU kernels are {REASONS[hook]}. Results are still right, but "
            f"slower, by torch's own ops and the reference in plain torch. {CURE}; or set GAMMABETA_KERNELS=0 to run "
            "without them."
        ]
    )
    assert (has_kernel, row, right) == ("False", without(REASONS[hook]), "right")


@pytest.mark.parametrize("hook", ["", NOT_BUILT], ids=["as installed", "not built"])
def test_switched_off_there_is_no_warning(hook):
    done = run(hook + USE, GAMMABETA_KERNELS="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "False", without(OFF), "right"]


@pytest.mark.parametrize("hook", [NOT_BUILT, BROKEN], ids=["not built", "broken"])
def test_asked_for_and_missing_they_are_an_error(hook):
    done = run(hook + USE, GAMMABETA_KERNELS="1")
    assert done.returncode == 1
    expected = f"gammabeta: GAMMABETA_KERNELS=1 requires the native CPU kernels, which are {REASONS[hook]}. {CURE}."
    assert done.stderr.splitlines()[-1] == f"ImportError: {expected}"


def test_a_worker_process_leaves_the_warning_to_its_parent():
    script = f"""{NOT_BUILT}
import multiprocessing, warnings
def child(queue):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import gammabeta.kernels
    queue.put((gammabeta.kernels.missing is not None, len(caught)))
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
print(queue.get(timeout=60))
process.join()
"""
    done = run(script)
    assert done.stdout == "(True, 0)\n", done.stderr


@pytest.mark.skipif(kernels.missing is not None, reason=f"no native kernels here: {kernels.missing}")
def test_where_they_are_they_serve_the_ops():
    done = run(USE)
    assert done.returncode == 0, done.stderr
    warnings, has_kernel, row, right = done.stdout.splitlines()
    assert (warnings, has_kernel, right) == ("[]", "True", "right")
    assert re.fullmatch(r"native, for [^()]+", row)


@pytest.mark.skipif(kernels.missing is not None, reason=f"no native kernels here: {kernels.missing}")
def test_a_lower_instruction_set_is_said():
    done = run(USE, GAMMABETA_ISA="baseline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].endswith(" (GAMMABETA_ISA=baseline)")


def test_what_is_missing_is_what_the_dispatcher_lacks():
    assert ops.has_kernel("cpu") == (gammabeta.kernels.missing is None)
