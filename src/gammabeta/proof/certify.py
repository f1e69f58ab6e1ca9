"""The certificates that a verification writes: one for the native kernels, one for the Triton kernels on each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Certificates:
    """By "native" or "triton:0": the files that were written, and why others could not be."""

    written: dict[str, Path] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, identity: Identity, outcomes: Found, settings: dict[str, Any]) -> None:
        """Write a certificate. A folder that cannot be written must not lose what a minute's work has found."""
        try:
            path = certificate.path_of(identity)
            self.written[name] = write_atomically(path, _text(identity, outcomes, settings))
        except OSError as error:
            self.refused[name] = f"{path}: {error.strerror or error}"
        except RuntimeError as error:  # nobody has a home folder where containers run under any user's number
            self.refused[name] = str(error).rstrip(".")


def certify(backends: Sequence[Backend], outcomes: Sequence[BackendOutcome], settings: dict[str, Any]) -> Certificates:
    """Write the certificates, none where a backend's process did not begin or memory was short.

    The native kernels pass with all their instruction sets. With only some of them verified they can fail, not pass.
    """
    made = Certificates()
    pairs = list(zip(backends, outcomes, strict=True))
    native = [outcome for backend, outcome in pairs if backend.certified == "native"]
    whole = len(native) == len(instruction_sets()) and all(outcome.passed for outcome in native)
    failed = any(outcome.decides and not outcome.passed for outcome in native)
    if native and _began(native) and (whole or failed):
        made.add("native", kernels.identity(), native, settings)
    for backend, outcome in pairs:
        if backend.certified == "triton" and _began([outcome]) and outcome.decides:
            index = int(backend.name.partition(":")[2])
            made.add(backend.name, register.identity(index), [outcome], settings)
    return made


def _began(outcomes: Found) -> bool:
    return all(outcome.cases for outcome in outcomes)


def _text(identity: Identity, outcomes: Found, settings: dict[str, Any]) -> str:
    passed = all(outcome.passed for outcome in outcomes)
    ran = {"cases": {outcome.name: outcome.cases for outcome in outcomes}, **settings}
    failures = [failure for outcome in outcomes for failure in outcome.failures][:MOST_FAILURES]
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return certificate.document(Certificate(identity, passed, when, ran, tuple(failures)))
