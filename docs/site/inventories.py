"""The inventories of other projects' documentation: names that our docstrings use, in inventories/*.txt."""

import zlib
from pathlib import Path

HERE = Path(__file__).parent / "inventories"
BUILT = Path(__file__).parents[2] / "build" / "site" / "inventories"
ADDRESSES = {
    "python": "https://docs.python.org/3/",
    "rich": "https://rich.readthedocs.io/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def mapping() -> dict[str, tuple[str, str]]:
    """Write the inventories in Sphinx's format, and return what intersphinx_mapping is."""
    BUILT.mkdir(parents=True, exist_ok=True)
    for project in ADDRESSES:
        lines = [line for line in (HERE / f"{project}.txt").read_text(encoding="utf-8").splitlines() if line]
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# compressed with zlib\n"
        body = "".join(f"{name} py:{kind} 1 {page} -\n" for name, kind, page in map(str.split, lines))
        (BUILT / f"{project}.inv").write_bytes(head.encode() + zlib.compress(body.encode()))
    return {project: (address, str(BUILT / f"{project}.inv")) for project, address in ADDRESSES.items()}
