"""The console script `gammabeta`, beside the package: whatever lies inside it is imported after torch.

Importing `gammabeta` registers its ops, and so imports torch, which takes a second. `gammabeta --help` and other texts
have no use for that. `main` says that this process is the command before it imports the package, which then loads torch
with the first name that needs it.
"""

from __future__ import annotations

running = False
"""Whether this process is the command; `gammabeta/__init__.py` asks."""


def main() -> None:
    """Run the console script ``gammabeta``."""
    global running
    running = True

    from gammabeta.cli.main import main as command

    command()
