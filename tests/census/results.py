"""Dated result files of what takes too long for each run of the tests: with command, versions and machine."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from gammabeta.environment import environment, version_of


def write(folder: str, name: str, about: str, command: str, lines: Sequence[str]) -> str:
    """Write `<name>-<date>.md` into a folder, and return its path.

    Args:
        folder: where to.
        name: of the result.
        about: what it is, whose first line is the title.
        command: what makes it again.
        lines: the result.
    """
    today = datetime.date.today().isoformat()
    title, _, rest = about.strip().partition("\n")
    where = environment()
    libraries = ("timm", "transformers", "torchvision", "segmentation_models_pytorch", "torch_geometric")
    versions = [*where["versions"][:3], *((library, version_of(library)) for library in libraries)]
    head = [
        f"# {title.rstrip('.')}",
        "",
        f"{today} · `{command}`",
        "",
        f"- Versions: {', '.join(f'{library} {version}' for library, version in versions if version)}",
        f"- Machine: {', '.join(f'{key} {value}' for key, value in where['processor'])}",
        f"- Kernels: {'; '.join(f'{key}: {value}' for key, value in where['kernels'])}",
        "",
        rest.strip(),
        "",
    ]
    path = Path(folder) / f"{name}-{today}.md"
    path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return str(path)
