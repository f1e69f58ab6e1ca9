"""Faults planted in the kernels are found: three of them here, all of them in `mutations.py`."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from tests.proof.mutations import CPU, KERNELS, ROOT, TRITON, Mutation, build, copied, first_failure, planted

from gammabeta import kernels
from gammabeta.proof.backends import backends, interpreted

CASES = [
    "running/batch_norm/float32/float32-momentum=0.1", "masks/layer_norm/float32/random-residual",
    "finishes/layer_norm/float32/silu-residual",
]  # fmt: skip


@pytest.mark.parametrize("mutation", [*CPU, *TRITON], ids=lambda mutation: mutation.name)
def test_every_fault_can_be_planted_and_taken_back(mutation: Mutation, tmp_path: Path) -> None:
    file = tmp_path / KERNELS / mutation.file
    file.parent.mkdir(parents=True)
    shutil.copy(ROOT / KERNELS / mutation.file, file)
    before = file.read_text(encoding="utf-8")
    with planted(tmp_path, mutation):
        assert file.read_text(encoding="utf-8") != before
    assert file.read_text(encoding="utf-8") == before


def test_their_names_differ() -> None:
    names = [(mutation.name, mutation.interpreted) for mutation in (*CPU, *TRITON)]
    assert len(set(names)) == len(names) >= 30


def named(name: str) -> Mutation:
    return next(mutation for mutation in (*CPU, *TRITON) if mutation.name == name)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("name", "case"),
    [("rows of the mask shifted by one", CASES[1]), ("derivative without the residual", CASES[2])],
)
def test_a_fault_in_a_triton_kernel_is_found(name: str, case: str, tmp_path: Path) -> None:
    copy = copied(tmp_path)
    with planted(copy, named(name)):
        found = first_failure(copy, interpreted(), CASES[1:])
        assert found is not None
        assert found[0] == case
        assert not found[1].startswith(("raised", "the process"))
    assert first_failure(copy, interpreted(), CASES[1:]) is None


@pytest.mark.slow
@pytest.mark.skipif(not kernels.built(), reason="the native kernels are not built")
def test_a_fault_in_a_native_kernel_is_found(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    setup = copy / "setup.py"
    setup.write_text(setup.read_text(encoding="utf-8").replace('"-O1"', '"-O0"'), encoding="utf-8")
    native = backends()[0]
    assert first_failure(copy, native, CASES) is None
    with planted(copy, named("momentum the other way round")):
        build(copy)
        found = first_failure(copy, native, CASES)
    assert found is not None
    assert found[0] == CASES[0]
    assert not found[1].startswith(("raised", "the process"))
