"""The certificates that a verification writes: one for the native kernels, one for the Triton kernels on each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gammabeta import kernels
from gammabeta.kernels import certificate
from gammabeta.kernels.certificate import Certificate, Identity
from gammabeta.kernels.cuda import register
from gammabeta.pages.atomic import write_atomically
from gammabeta.proof.backends import Backend, instruction_sets
from gammabeta.proof.outcome import MOST_FAILURES, BackendOutcome

Found = list[BackendOutcome]


def certify(
    backends: Sequence[Backend], outcomes: Sequence[BackendOutcome], settings: dict[str, Any]
) -> dict[str, Path]:
    """Write the certificates, and return their files; nothing where a backend's process did not begin.

    The native kernels pass with all their instruction sets. With only some of them verified they can fail, not pass.
    """
    written: dict[str, Path] = {}
    pairs = list(zip(backends, outcomes, strict=True))
    native = [outcome for backend, outcome in pairs if backend.certified == "native"]
    whole = len(native) == len(instruction_sets())
    if native and _began(native) and (whole or not all(o.passed for o in native)):
        written["native"] = _write(kernels.identity(), native, settings)
    for backend, outcome in pairs:
        if backend.certified == "triton" and _began([outcome]):
            index = int(backend.name.partition(":")[2])
            written[backend.name] = _write(register.identity(index), [outcome], settings)
    return written


def _began(outcomes: Found) -> bool:
    return all(outcome.cases for outcome in outcomes)


def _write(identity: Identity, outcomes: Found, settings: dict[str, Any]) -> Path:
    passed = all(outcome.passed for outcome in outcomes)
    ran = {"cases": {outcome.name: outcome.cases for outcome in outcomes}, **settings}
    failures = [failure for outcome in outcomes for failure in outcome.failures][:MOST_FAILURES]
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made = Certificate(identity, passed, when, ran, tuple(failures))
    return write_atomically(certificate.path_of(identity), certificate.document(made))
