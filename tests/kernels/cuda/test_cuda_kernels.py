"""When the Triton kernels are used for CUDA tensors, and the messages where they are not. Needs no GPU."""

import contextlib
import dataclasses
import subprocess
import sys
import warnings

import pytest
import torch

import gammabeta as gb
from gammabeta import aten, environment, ops
from gammabeta.kernels import certificate
from gammabeta.kernels.cuda import register as cuda
from gammabeta.pages.atomic import write_atomically
from gammabeta.proof.operations import OPS
from gammabeta.proof.random_call import random_call
from gammabeta.proof.routes import registered_for_cpu

A_GPU = {"hip": None, "cuda": "13.0", "triton": True, "capabilities": [(9, 0)]}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Simulate a machine: its torch, whether Triton is installed, its GPUs. No certificate is there."""

    def put(**changed):
        seen = A_GPU | changed
        monkeypatch.delenv("GAMMABETA_KERNELS", raising=False)
        monkeypatch.setattr(torch.version, "hip", seen["hip"])
        monkeypatch.setattr(torch.version, "cuda", seen["cuda"])
        monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object() if seen["triton"] else None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen["capabilities"]))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: seen["capabilities"][i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
        monkeypatch.setattr(cuda, "triton_version", lambda: "3.9")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
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


def certified(index=0, passed=True, **changed):
    """Write the certificate of a GPU, or of one that differs from it."""
    identity = dataclasses.replace(cuda.identity(index), **changed)
    made = certificate.Certificate(identity, passed, "2026-01-02T03:04:05+00:00", {})
    write_atomically(certificate.path_of(identity), certificate.document(made))


UNVERIFIED = (
    "they are not verified on GPU 0 with these versions",
    "`gammabeta verify` checks them in about a minute, and then they are used. ",
)
FAILED = (
    "they failed `gammabeta verify` on GPU 0 on 2026-01-02",
    "Please report it with what `gammabeta verify --report` prints. ",
)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, UNVERIFIED), ({"passed": False}, FAILED), ({"device": "GPU 1"}, UNVERIFIED),
        ({"digest": "0"}, UNVERIFIED), ({"versions": {"torch": "1.0"}}, UNVERIFIED),
    ],
    ids=str,
)  # fmt: skip
def test_without_a_certificate_they_do_not_serve_and_one_hint_says_so(machine, monkeypatch, found, why):
    machine()
    if found is not None:
        changed = {name: value for name, value in found.items() if name != "passed"}
        certified(passed=found.get("passed", True), **changed)
    reason, cure = why
    assert cuda.missing() == reason
    with pytest.warns(RuntimeWarning) as caught:
        assert not any(cuda.serves() for _ in range(2))
    assert [str(w.message) for w in caught] == [
        f"gammabeta: the Triton kernels for CUDA are not used: {reason}. Results are still right, by torch's own "
        f"ops and the reference in plain torch. {cure}GAMMABETA_KERNELS=0 runs without them."
    ]
    said = dict(environment.environment()["kernels"])["CUDA"]
    assert said == f"none, torch's own ops and the reference in plain torch serve: {reason}. {cure.strip()}"
    cuda.serves.cache_clear()
    monkeypatch.setenv("GAMMABETA_KERNELS", "1")
    assert cuda.serves()


def test_every_gpu_needs_its_certificate(machine):
    machine(capabilities=[(9, 0), (8, 0)])
    certified(0)
    assert cuda.missing() == "they are not verified on GPU 1 with these versions"
    certified(1)
    assert cuda.missing() is None


@pytest.mark.parametrize("proven", [False, True])
def test_no_kernel_is_launched_without_a_certificate_and_the_numbers_are_torch_s(machine, monkeypatch, proven):
    """CPU tensors stand for those of a GPU: what is registered for CUDA is registered for them."""
    machine()
    if proven:
        certified()
    launched = []

    def launch(name, args):
        launched.append(name)
        return ops.DEFAULTS[name](*args)

    monkeypatch.setattr(cuda, "launch", launch)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(ops, "has_kernel", lambda device: cuda.serves())
    monkeypatch.setattr(aten, "as_it_is", lambda x: True)
    monkeypatch.setattr("gammabeta.kernels.leaves_to_torch", lambda norm, x: False)
    kernels = {name: cuda.launching(name) for name in ops.DEFAULTS}
    with registered_for_cpu(kernels), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in OPS:
            call = random_call(op, (6, 4, 5), running=False, **({"training": True} if op == "batch_norm" else {}))
            tensors = {n: t if t is None else t.clone().requires_grad_() for n, t in call.tensors.items()}
            y = getattr(gb.functional, op)(**tensors, **call.settings)
            y = y if isinstance(y, torch.Tensor) else y[0]
            y.sum().backward()
            if not proven and hasattr(torch.nn.functional, op):
                given = {n: t for n, t in call.tensors.items() if t is not None or "batch" in op}
                if op == "instance_norm":  # torch's function takes another of torch's ops, with other bits
                    wanted = torch.group_norm(given["input"], 4, given["weight"], given["bias"])
                else:
                    wanted = getattr(torch.nn.functional, op)(**given, **call.settings)
                assert torch.equal(y, wanted), op
            if not op.startswith("add"):
                size = (6, 5) if op in ("batch_norm", "instance_norm", "group_norm") else (6, 4)
                mask = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.7
                masked = getattr(gb.functional, op)(**call.tensors, **call.settings, mask=mask)
                assert masked.isfinite().all()
    assert bool(launched) == proven, launched


def test_where_they_serve(machine):
    machine()
    certified()
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
