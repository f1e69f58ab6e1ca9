"""When the Triton kernels are used for CUDA tensors, and the messages where they are not. Needs no GPU."""

import contextlib
import subprocess
import sys
import warnings

import pytest
import torch

from gammabeta import environment, ops
from gammabeta.kernels.cuda import register as cuda

A_GPU = {"hip": None, "cuda": "13.0", "triton": True, "capabilities": [(9, 0)]}


@pytest.fixture
def machine(monkeypatch):
    """Simulate a machine: its torch, whether Triton is installed, its GPUs."""

    def put(**changed):
        seen = A_GPU | changed
        monkeypatch.delenv("GAMMABETA_KERNELS", raising=False)
        monkeypatch.setattr(torch.version, "hip", seen["hip"])
        monkeypatch.setattr(torch.version, "cuda", seen["cuda"])
        monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object() if seen["triton"] else None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen["capabilities"]))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: seen["capabilities"][i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
        cuda.serves.cache_clear()

    yield put
    cuda.serves.cache_clear()


REASONS = [
    ({"hip": "7.0"}, "this torch is built for ROCm, which was never tested"),
    ({"cuda": None}, "this torch is built without CUDA"),
    ({"triton": False}, "Triton is not installed: pip install triton"),
    ({"capabilities": []}, "no device answers"),
    (
        {"capabilities": [(9, 0), (7, 5)]},
        "they need GPUs of compute capability 8.0 or more, and GPU 1 has 7.5",
    ),
]


@pytest.mark.parametrize(("changed", "reason"), REASONS)
def test_why_they_do_not_serve(machine, monkeypatch, changed, reason):
    machine(**changed)
    assert cuda.missing() == reason
    said = dict(environment.environment()["kernels"])["CUDA"]
    assert said == f"none, torch's own ops and the reference in plain torch serve: {reason}"
    with pytest.warns(RuntimeWarning) as caught:
        assert not cuda.serves()
    assert str(caught[0].message) == (
        f"gammabeta: the Triton kernels for CUDA are not used: {reason}. Results are still right, by torch's own "
        "ops and the reference in plain torch. GAMMABETA_KERNELS=0 runs without them."
    )
    cuda.serves.cache_clear()
    monkeypatch.setenv("GAMMABETA_KERNELS", "1")
    with pytest.raises(RuntimeError) as error:
        cuda.serves()
    assert str(error.value) == (
        f"gammabeta: GAMMABETA_KERNELS=1 requires the Triton kernels for CUDA, but {reason}. "
        "Unset it to run without them."
    )


def test_switched_off_there_is_no_warning(machine, monkeypatch):
    machine()
    monkeypatch.setenv("GAMMABETA_KERNELS", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cuda.serves()
    assert cuda.missing() == "switched off by GAMMABETA_KERNELS=0"


def test_where_they_serve(machine, monkeypatch):
    machine()
    monkeypatch.setattr(cuda, "triton_version", lambda: "3.9")
    assert cuda.serves()
    assert dict(environment.environment()["kernels"])["CUDA"] == "Triton 3.9, float64, float32, bfloat16 and float16"


def test_registering_imports_no_kernel_and_covers_every_op():
    script = (
        "import sys, torch, gammabeta; from gammabeta import ops\n"
        "from gammabeta.kernels.cuda.register import register; register()\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print('gammabeta.kernels.cuda.ops' in sys.modules)\n"
        "print(all(has(f'gammabeta::{name}', 'CUDA') for name in ops.DEFAULTS))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\nTrue\n", done.stderr


def test_an_op_without_a_triton_kernel_would_be_noticed():
    pytest.importorskip("triton")
    assert set(cuda.implementations()) == set(ops.DEFAULTS)


@pytest.fixture
def failing(monkeypatch):
    """Make an op's launch raise an error, on a machine that supports the kernels."""
    monkeypatch.setattr(cuda, "serves", lambda: True)
    monkeypatch.setattr(cuda, "_refused", set())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.delenv("GAMMABETA_KERNELS", raising=False)
    launches = []

    def put(error):
        def launched(name, args):
            launches.append(name)
            raise error

        monkeypatch.setattr(cuda, "launch", launched)
        return launches

    return put


def test_a_kernel_that_triton_refuses_gives_way_to_the_reference(failing, monkeypatch):
    errors = pytest.importorskip("triton.errors")
    launches = failing(errors.TritonError("out of registers\nand more"))
    op, x = cuda.launching("channel_moments"), torch.randn(5, 3)
    with pytest.warns(RuntimeWarning) as caught:
        first = op(x, None)
    assert str(caught[0].message) == (
        "gammabeta: the Triton kernel of channel_moments does not run here: TritonError: out of registers. From now on "
        "torch's own ops and the reference in plain torch replace it: results are still right, but slower."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = op(x, None)
    assert launches == ["channel_moments"]
    torch.testing.assert_close(first[0], x.mean(dim=0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(cuda, "_refused", set())
    monkeypatch.setenv("GAMMABETA_KERNELS", "1")
    with pytest.raises(errors.TritonError):
        op(x, None)


def test_other_errors_of_a_launch_are_no_reason_to_fall_back(failing):
    pytest.importorskip("triton")
    failing(torch.OutOfMemoryError("none left"))
    with pytest.raises(torch.OutOfMemoryError):
        cuda.launching("channel_moments")(torch.randn(5, 3), None)
