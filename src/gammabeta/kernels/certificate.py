"""Certificates: what a verification of kernels on this machine has shown, kept in the user's cache folder.

`gammabeta verify` writes one for the native kernels and one for the Triton kernels on each model of GPU. It holds for
one `Identity`: the same kernels, on the same device, under the same versions. Anything else is another file, and a file
that cannot be read, or was changed or copied to another name, is no certificate.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Identity:
    """What a certificate is about.

    Attributes:
        kernels: "native" or "triton".
        device: the processor's or GPU's name.
        versions: of torch, and of what else stands between kernels and device, by name.
        digest: of the kernels, and of the modules that call them.
    """

    kernels: str
    device: str
    versions: dict[str, str]
    digest: str

    @property
    def key(self) -> str:
        """A hash of all of it."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Certificate:
    """The outcome of a verification.

    Attributes:
        identity: what it is about.
        passed: whether every case passed.
        when: the time in UTC, as ISO 8601 writes it.
        ran: what ran: backends, and how many cases of each.
        failures: the failed cases, each with its name, backend, seed and message; at most some twenty.
    """

    identity: Identity
    passed: bool
    when: str
    ran: dict[str, Any]
    failures: tuple[dict[str, Any], ...] = ()


def folder() -> Path:
    """Return the folder of the certificates, in XDG_CACHE_HOME or the user's cache folder; it need not exist.

    Raises:
        RuntimeError: the user has no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    caches = Path(named) if named else Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return caches / "gammabeta" / "certificates"


def path_of(identity: Identity) -> Path:
    """Return the file of the certificate about it."""
    return folder() / f"{identity.kernels}-{identity.key}.json"


def read(identity: Identity) -> Certificate | None:
    """Return the certificate about it, None where there is none that is whole."""
    try:
        found = _parsed(path_of(identity))
    except RuntimeError:
        return None
    return found if found is not None and found.identity == identity else None


def written(kernels: str) -> Iterator[Certificate]:
    """Yield all whole certificates about these kernels, whatever the device and the versions."""
    try:
        paths = sorted(folder().glob(f"{kernels}-*.json"))
    except (OSError, RuntimeError):
        return
    for path in paths:
        found = _parsed(path)
        if found is not None and path.name == f"{kernels}-{found.identity.key}.json":
            yield found


def document(certificate: Certificate) -> str:
    """Return the content of its file."""
    content = asdict(certificate) | {"format": FORMAT}
    return json.dumps(content | {"checksum": _checksum(content)}, indent=1, ensure_ascii=False)


def digest_of(files: Iterable[Path]) -> str:
    """Return a hash of the files and of the package's modules at its root, which call the kernels."""
    total = hashlib.sha256()
    for path in sorted({*files, *PACKAGE.glob("*.py")}):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:24]


def _parsed(path: Path) -> Certificate | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        if checksum != _checksum(content) or content.pop("format") != FORMAT:
            return None
        content["identity"] = Identity(**content["identity"])
        content["failures"] = tuple(content["failures"])
        return Certificate(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _checksum(content: dict[str, Any]) -> str:
    content = json.loads(_canonical(content))  # tuples as lists, as a file has them
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
