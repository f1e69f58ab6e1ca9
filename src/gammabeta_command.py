"""The console script `gammabeta`, beside the package: whatever lies inside it is imported after torch.

Importing `gammabeta` registers its ops, and so imports torch, which takes a second. `gammabeta --help` and other texts
have no use for that. `main` says that this process is the command before it imports the package, which then loads torch
with the first name that needs it.
"""

from __future__ import annotations

import sys

WRONG = 2
"""The exit code for what cannot be done as it is asked; `gammabeta.cli.exits` has all."""
MADE_WITH = ("rich", "tomli", "typer")
"""What the extra ``cli`` installs."""

running = False
"""Whether this process is the command; `gammabeta/__init__.py` asks."""


def main() -> None:
    """Run the console script ``gammabeta``; say what to install where the extra ``cli`` is not there."""
    global running
    running = True
    try:
        from gammabeta.cli.main import main as command
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        if name not in MADE_WITH:
            raise
        print(
            f"gammabeta: the command needs {name}, which is not installed: "
            'pip install "gammabeta[cli]", in a clone ".[cli]".',
            file=sys.stderr,
        )
        sys.exit(WRONG)
    command()
