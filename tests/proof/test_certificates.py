"""Certificates: what is one, what is none, and native kernels that have failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gammabeta import kernels
from gammabeta.kernels import certificate
from gammabeta.kernels.certificate import Certificate, Identity
from gammabeta.pages.atomic import write_atomically

ABOUT = Identity("triton", "GPU 0", {"torch": "2.13", "driver": "550"}, "abc")
PASSED = Certificate(ABOUT, True, "2026-01-02T03:04:05+00:00", {"cases": {"triton:0": 9}})
FAILURE = {"case": "values/layer_norm/float32/constant-0.1", "backend": "native:avx2", "seed": 0, "message": "off"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def keep(made: Certificate) -> Path:
    return write_atomically(certificate.path_of(made.identity), certificate.document(made))


def test_what_is_written_is_read() -> None:
    assert certificate.read(ABOUT) is None
    made = replace(PASSED, passed=False, failures=(FAILURE,))
    path = keep(made)
    assert path.parent == Path(os.environ["XDG_CACHE_HOME"], "gammabeta", "certificates")
    assert certificate.read(ABOUT) == made
    assert list(certificate.written("triton")) == [made]
    assert list(certificate.written("native")) == []


@pytest.mark.parametrize(
    "other",
    [
        replace(ABOUT, device="GPU 1"), replace(ABOUT, digest="abd"), replace(ABOUT, kernels="native"),
        replace(ABOUT, versions={"torch": "2.14", "driver": "550"}), replace(ABOUT, versions={"torch": "2.13"}),
    ],
)  # fmt: skip
def test_one_about_something_else_is_none(other: Identity) -> None:
    path = keep(PASSED)
    assert certificate.read(other) is None
    path.rename(certificate.path_of(other))  # copied to where the other's would be
    assert certificate.read(other) is None
    assert list(certificate.written(other.kernels)) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "torn", "edited", "older format", "without versions"])
def test_one_that_is_not_whole_is_none(damage: str) -> None:
    path = keep(replace(PASSED, passed=False))
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    changed = {
        "torn": text[: len(text) // 2],
        "edited": text.replace('"passed": false', '"passed": true'),
        "older format": json.dumps(document | {"format": 0}),
        "without versions": json.dumps(document | {"identity": {"kernels": "triton"}}),
    }.get(damage, damage)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    assert certificate.read(ABOUT) is None


def test_a_digest_is_of_contents_and_of_the_modules_at_the_root(tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    file.write_text("1")
    first = certificate.digest_of([file])
    assert first == certificate.digest_of([file])
    file.write_text("2")
    assert certificate.digest_of([file]) != first
    assert certificate.digest_of([]) != certificate.digest_of([file])


IMPORT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import gammabeta.kernels
import torch
print(gammabeta.kernels.missing)
print([str(w.message) for w in caught if "gammabeta" in str(w.message)])
print(gammabeta.ops.has_kernel("cpu"))
print(torch.equal(gammabeta.functional.layer_norm(torch.arange(6.0), (6,)) > 0, torch.arange(6) > 2))
"""


def imported(**variables: str) -> list[str]:
    own = {name: value for name, value in os.environ.items() if name != "GAMMABETA_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env={**own, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not kernels.built(), reason="the native kernels are not built")
def test_native_kernels_that_failed_are_out_of_service_and_say_so() -> None:
    made = Certificate(kernels.identity(), False, "2026-01-02T03:04:05+00:00", {}, (FAILURE,))
    keep(made)
    missing, warned, has, right = imported()
    reason = "out of service: they failed `gammabeta verify` here on 2026-01-02, first in " + FAILURE["case"]
    assert missing == reason
    assert reason in warned
    assert "Please report it with what `gammabeta verify --report` prints" in warned
    assert (has, right) == ("False", "True")
    assert imported(GAMMABETA_KERNELS="1")[0] == "None"


@pytest.mark.skipif(not kernels.built(), reason="the native kernels are not built")
def test_native_kernels_that_passed_or_failed_elsewhere_serve() -> None:
    own = kernels.identity()
    keep(Certificate(own, True, "2026-01-02T03:04:05+00:00", {}))
    keep(Certificate(replace(own, device="another"), False, "2026-01-02T03:04:05+00:00", {}, (FAILURE,)))
    assert kernels.failure() is None
