"""Loud findings on healthy architectures that are true, each with the reason. A person reviewed every one."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Globs on "library name", code, reason.
TRUE: tuple[tuple[str, str, str], ...] = (
    (
        "transformers mobilenet_v[12]",
        "GB305",
        "its configuration has TensorFlow's momentum of 0.997, which torch takes for a share of the new batch",
    ),
    (
        "transformers efficientnet",
        "GB305",
        "its configuration has TensorFlow's momentum of 0.99, which torch takes for a share of the new batch",
    ),
)


def reason_of(name: str, code: str) -> str | None:
    """Return why a finding is true of an architecture; None if the list does not have it."""
    return next((reason for glob, of, reason in TRUE if of == code and fnmatchcase(name, glob)), None)
