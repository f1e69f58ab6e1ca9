"""``python -m gammabeta`` is the command ``gammabeta``."""

from gammabeta.cli import main

main()
