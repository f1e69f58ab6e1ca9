"""Shared by all tests: the long tail, the routes that a call can take, and a torchvision that can be imported."""

import importlib.util
import os
from pathlib import Path

import pytest

# Threads that wait go to sleep. By default they spin, and where two test processes share two cores, small tensors then
# take ten times as long. OpenMP reads this when torch is loaded; other processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.chromium import chromium
from tests.routes import ROUTES, taken

from gammabeta.benchmarks.networks import load_timm

# Two thirds of the time of all tests. They compile, start processes, train, build, or go through all of PyTorch's own
# samples; what they hold is held more briefly by the files beside them, or concerns few changes.
LONG_TAIL = (
    "benchmarks",
    "census",
    "cli/test_cli.py",
    "cli/test_exits.py",
    "cli/test_sarif.py",
    "conformance/test_samples.py",
    "conformance/test_schemas.py",
    "diagnostics/test_false_alarms.py",
    "distributed",
    "integrations/test_compiled.py",
    "integrations/test_graphs.py",
    "kernels/cpu/test_distrust.py",
    "kernels/cpu/test_instruction_sets.py",
    "kernels/cpu/test_layouts.py",
    "kernels/cpu/test_loops.py",
    "kernels/cpu/test_memory.py",
    "kernels/cpu/test_sizes.py",
    "kernels/cpu/test_threads.py",
    "kernels/cpu/test_values.py",
    "kernels/cuda/test_compiled.py",
    "kernels/cuda/test_traced.py",
    "kernels/test_kernels_loading.py",
    "lab/claims/test_adaptation.py",
    "lab/claims/test_control.py",
    "lab/claims/test_group_norm_needs_no_sync.py",
    "lab/claims/test_smoother_landscape.py",
    "lab/claims/test_sync_cost.py",
    "lab/claims/test_sync_equals_large_batch.py",
    "lab/test_comparison.py",
    "lab/test_study.py",
    "lab/test_study_file.py",
    "lab/test_trial.py",
    "layers/test_on_import.py",
    "peers/test_module_gradients.py",
    "peers/test_modules.py",
    "peers/test_op_gradients.py",
    "peers/test_op_tracing.py",
    "peers/test_op_transforms.py",
    "peers/test_ops.py",
    "site/test_examples.py",
    "site/test_site.py",
    "surgery/test_fold_branches.py",
    "surgery/test_transformers_norms.py",
    "surgery/test_zoo.py",
    "test_build.py",
    "test_compile.py",
    "test_contributing.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the long tail as slow, before `-m` selects."""
    folder = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(folder)
        if {path.as_posix(), path.parts[0]} & {*LONG_TAIL}:
            item.add_marker("slow")


def pytest_configure():
    """Make torchvision importable where it is built for CUDA and torch is not: transformers imports it where it is."""
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
        load_timm()


@pytest.fixture(params=ROUTES)
def route(request):
    """Run a test three ways: as users call, with our kernels wherever they can run, and with the reference instead."""
    with taken(request.param):
        yield request.param


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests of a file."""
    with chromium() as running:
        yield running
