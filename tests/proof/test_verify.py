"""`gammabeta verify`: what it runs, prints and writes, and what it says of a backend that fails."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gammabeta as gb
from gammabeta import kernels
from gammabeta.cli import main as cli
from gammabeta.cli.verification import summary
from gammabeta.distributed import processes
from gammabeta.kernels import certificate
from gammabeta.kernels.certificate import Identity
from gammabeta.proof import backends, certify, verify, worker
from gammabeta.proof.catalogue import entries, named
from gammabeta.proof.outcome import BackendOutcome, Verification

CASE = "values/layer_norm/float32/mean=1000000.0-std=1.0"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def run(*words: str):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, ["verify", *words])


def event(case: str, **changed):
    topic, op, dtype, _ = case.split("/", 3)
    return {"done": case, "topic": topic, "op": op, "dtype": dtype, "seconds": 0.5, **changed}


def outcome(name: str, judged: bool, *events) -> BackendOutcome:
    made = BackendOutcome(name, judged, "AVX2")
    for one in events:
        made.add(one, 3)
    return made


GOOD = event(CASE, compared=[("output", 1.5, 3.0, 0), ("grad input", 1.0, 1.25, 4)])
BAD = event("masks/rms_norm/bfloat16/random-residual", failure="rms_norm output: 3 of 9 elements off")


def test_one_case_runs_on_one_backend() -> None:
    done = run("--backend", "reference", "--case", CASE, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (backend,) = found["backends"]
    assert (found["passed"], backend["backend"], backend["cases"]) == (True, "reference", 1)
    # No terminal, no bar: whoever reads a file sees how far it is.
    assert done.stderr.splitlines() == [f"reference: {percent} %" for percent in (25, 50, 75, 100)]
    (cell,) = backend["cells"]
    assert (cell["op"], cell["dtype"]) == ("layer_norm", "float32")
    assert 0 < cell["error_ulp"] < cell["allowed_ulp"]
    assert len(cell["reason"]) > 35
    assert found["certificates"] == {}, "a single case proves nothing"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--backend", "abacus"), "expected a backend of this machine ("),
        (("--case", CASE + "0"), f"expected the name of a case, got '{CASE}0'. Near it are {CASE}"),
        (("--format", "xml"), "--format: expected text or json, got 'xml'"),
    ],
)
def test_what_is_not_there_is_refused(words: tuple[str, ...], text: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert text in done.stderr


def found(*outcomes: BackendOutcome) -> Verification:
    return Verification(list(outcomes), {"native": Path("/c/native-1.json")}, {}, {"torch": "2.13"}, 61.0, 3)


def test_a_failure_is_shown_with_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    verification = found(outcome("reference", True, GOOD), outcome("native:avx2", True, GOOD, BAD))
    monkeypatch.setattr(gb, "verify", lambda **options: verification)
    again = f"gammabeta verify --backend native:avx2 --case {BAD['done']} --seed 3"
    for words in ((), ("--report",)):
        done = run(*words)
        assert done.exit_code == 1
        assert again in done.stdout
        assert BAD["failure"] in done.stdout
        assert "/c/native-1.json" in done.stdout
    assert "3 cases on 2 backends in 61 s: failed on native:avx2" in run().stdout
    assert json.loads(run("--format", "json").stdout)["failures"] == [
        {"case": BAD["done"], "backend": "native:avx2", "seed": 3, "message": BAD["failure"]}
    ]


def test_the_table_has_the_worst_error_beside_what_is_allowed_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    verification = found(outcome("reference", True, GOOD), outcome("torch:0", False, BAD))
    monkeypatch.setattr(gb, "verify", lambda **options: verification)
    done = run()
    assert done.exit_code == 0, "torch's own ops on a GPU are not ours to judge"
    row = next(line for line in done.stdout.splitlines() if line.startswith("layer_norm"))
    assert " ".join(row.split()) == "layer_norm float32 1 1.5 of 3.0 ulp output [1] 0.5 s ✓"
    assert "[1] difference, variance, root, product" in done.stdout
    assert "differs: 1 of 1" in done.stdout
    assert "all within tolerance" in done.stdout


def ending(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Verification:
    """Verify in a process that ends in its first case."""
    script = folder / "python"
    begun = '{"begin": "reference", "on": "", "cases": 2}'
    script.write_text(f"#!/bin/sh\nread line\necho '{begun}'\necho '{{\"case\": \"{CASE}\"}}'\necho no >&2\n{how}\n")
    script.chmod(0o755)
    monkeypatch.setattr(verify.sys, "executable", str(script))
    return gb.verify(backends=["reference"])


@pytest.mark.parametrize(
    ("how", "verdict"), [("kill -9 $$", "incomplete"), ("kill -11 $$", "failed"), ("exit 1", "failed")]
)
def test_a_process_that_ends_fails_its_case(
    how: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ending(how, tmp_path, monkeypatch)
    assert not ended.passed
    assert ended.backends[0].verdict == verdict
    assert ended.failures[0]["case"] == CASE
    assert ended.failures[0]["message"].endswith(f"in {CASE}:\nno")
    assert f"{verdict} on reference" in summary(ended)


SHORT = (
    MemoryError("no"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
)


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_where_memory_is_short_nothing_is_said_of_the_kernels(error: Exception) -> None:
    def short(call, route):
        raise error

    entry = named([CASE])[0]
    short_of_it = replace(entry, case=replace(entry.case, holds=short))
    out = io.StringIO()
    here = backends.Backend("native:any", "ops", certified="native")
    worker.prove(replace(here, route="reference"), [entry, short_of_it, entry], 0, out)
    found = BackendOutcome(here.name)
    for line in out.getvalue().splitlines():
        if "done" in (one := json.loads(line)):
            found.add(one, 0)
    assert (found.cases, found.failed, found.passed, found.decides, found.verdict) == (2, 0, False, False, "incomplete")
    assert certify.certify([here], [found], {}).written == {}
    text = summary(Verification([found], {}, {}, {}, 1.0, 0))
    assert replace(found, ended="by signal 11 in another case").decides, "a crash is one, also after that"
    assert "2 cases on 1 backend in 1 s: incomplete on native:any" in text
    assert f"native:any was not seen through, which says nothing of it: in {CASE}: {error}" in text


def test_processes_that_cannot_join_are_no_fault_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_, **__):
        raise processes.JoinError(
            "of_rank: rank 0 of 2 failed:\nRuntimeError: Unable to find interface for: [127.0.0.1]"
        )

    monkeypatch.setattr(processes, "run", fails)
    (entry,) = named(["ranks/batch_norm/float32/two_processes"])
    out = io.StringIO()
    worker.prove(backends.Backend("native:any", "reference"), [*named([CASE]), entry], 0, out)
    found = BackendOutcome("native:any")
    for line in out.getvalue().splitlines():
        if "done" in (one := json.loads(line)):
            found.add(one, 0)
    assert (found.cases, found.passed) == (1, True)
    verification = Verification([found], {}, {}, {}, 1.0, 0)
    for text in (summary(verification), verification.report(), verification._repr_html_()):
        assert f"not run on native:any: {entry.name}: two processes cannot join here: RuntimeError: Unable" in text


def test_certificates_say_what_ran(tmp_path: Path) -> None:
    here = [b for b in backends.backends() if b.certified == "native"]
    if not here:
        pytest.skip("the native kernels are not built")
    good = [outcome(b.name, True, GOOD) for b in here]
    assert certify.certify(here, [BackendOutcome(b.name) for b in here], {}).written == {}, "nothing has run"
    assert set(certify.certify(here, good, {"seed": 0}).written) == {"native"}
    assert kernels.failure() is None
    if len(here) > 1:
        assert certify.certify(here[:1], good[:1], {}).written == {}, "one instruction set does not stand for all"
    bad = [outcome(here[0].name, True, BAD)]
    assert set(certify.certify(here[:1], bad, {}).written) == {"native"}
    failed = kernels.failure()
    assert failed is not None
    assert failed.failures[0]["case"] == BAD["done"]


def test_a_cache_that_cannot_be_written_loses_nothing_but_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "caches"))
    here = backends.Backend("native:any", "ops", certified="native")
    monkeypatch.setattr(certify, "instruction_sets", lambda: ["any"])
    monkeypatch.setattr(certify.kernels, "identity", lambda: Identity("native", "AMD EPYC", {"torch": "2.13"}, "abc"))
    found = [outcome(here.name, True, GOOD)]
    made = certify.certify([here], found, {})
    assert made.written == {}
    (reason,) = made.refused.values()
    assert str(tmp_path / "file" / "caches") in reason
    verification = Verification(found, made.written, made.refused, {}, 61.0, 3)
    for text in (summary(verification), verification.report(), verification._repr_html_()):
        assert "no certificate of native could be written" in text
        assert "XDG_CACHE_HOME" in text
    assert "1 case on 1 backend in 61 s: all within tolerance" in summary(verification)


def test_without_a_home_the_cache_folder_that_is_named_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(certificate.Path, "home", no_home)
    identity = Identity("native", "AMD EPYC", {"torch": "2.13"}, "abc")
    named, unnamed = certify.Certificates(), certify.Certificates()
    named.add("native", identity, [outcome("native", True, GOOD)], {})
    found = certificate.read(identity)
    assert found is not None
    assert found.passed
    monkeypatch.delenv("XDG_CACHE_HOME")
    unnamed.add("native", identity, [outcome("native", True, GOOD)], {})
    assert unnamed.refused == {"native": "Could not determine home directory"}
    assert certificate.read(identity) is None


def test_every_backend_runs_what_says_something_about_it() -> None:
    cases = list(entries())
    for backend in (*backends.backends(), backends.interpreted()):
        ran = {e.topic for e in cases if backend.runs(e.op, e.case, e.topic)}
        assert {"values", "sizes"} <= ran
        assert ("bits" in ran) == (backend.route in ("ops", "interpreted"))
        assert ("ranks" in ran) == (backend.name == backends.backends()[0].name)
    with pytest.raises(ValueError, match="Names are topic/operation/dtype/settings"):
        named(["xyzzy"])
