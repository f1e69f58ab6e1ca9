"""What ``gammabeta env`` reports about the machine."""

import platform

import pytest
import torch

import gammabeta
from gammabeta import environment as env
from gammabeta import kernels


def rows(section):
    return dict(env.environment()[section])


def test_versions_are_those_in_use():
    versions = rows("versions")
    assert versions["gammabeta"] == gammabeta.__version__
    assert versions["torch"] == torch.__version__
    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == __import__("numpy").__version__
    assert list(versions)[3:] == list(env.STUDY_DEPENDENCIES)


def test_a_missing_dependency_says_how_to_get_it(monkeypatch):
    real = env.version_of
    monkeypatch.setattr(env, "version_of", lambda name: None if name == "plotly" else real(name))
    assert rows("versions")["plotly"] == 'not installed (the study needs it: pip install "gammabeta[study]")'


def test_version_of_what_is_not_installed():
    assert env.version_of("no-such-distribution-anywhere") is None


def test_kernels_that_are_missing_say_why(monkeypatch):
    monkeypatch.setattr(kernels, "missing", "not built: there was no time")
    said = "none, torch's own ops and the reference in plain torch serve: not built: there was no time"
    assert rows("kernels")["CPU"] == said


@pytest.mark.parametrize(
    ("asked", "said"), [(None, "native, for AVX9"), ("avx9", "native, for AVX9 (GAMMABETA_ISA=avx9)")]
)
def test_kernels_that_are_there_say_for_what(monkeypatch, asked, said):
    monkeypatch.setattr(kernels, "missing", None)
    monkeypatch.setattr(torch.ops.gammabeta, "cpu_instruction_set", lambda: "AVX9", raising=False)
    monkeypatch.delenv("GAMMABETA_ISA", raising=False)
    if asked:
        monkeypatch.setenv("GAMMABETA_ISA", asked)
    assert rows("kernels")["CPU"] == said


def test_the_compiler_is_found_or_its_lack_said(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(env.shutil, "which", lambda name: "/bin/clang++" if name == "clang++" else None)
    assert rows("kernels")["torch.compile"] == "/bin/clang++"
    monkeypatch.setattr(env.shutil, "which", lambda name: None)
    assert rows("kernels")["torch.compile"] == "no C++ compiler found: its CPU code needs g++ or clang++"
    monkeypatch.setenv("CXX", "my-c++")
    monkeypatch.setattr(env.shutil, "which", lambda name: f"/opt/{name}")
    assert env.compiler() == "/opt/my-c++"


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (None, "none: this torch is built without it"),
        ("13.0", "none: torch is built for CUDA 13.0, and no device answers"),
    ],
)
def test_why_there_is_no_cuda(monkeypatch, built, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    assert rows("devices")["CUDA"] == said


def test_threads_and_vector_instructions_are_torch_s():
    processor = rows("processor")
    assert processor["torch threads"].startswith(f"{torch.get_num_threads()} within")
    assert processor["vector instructions"] == torch.backends.cpu.get_cpu_capability()
