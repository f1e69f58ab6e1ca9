"""``python -m gammabeta`` is the command ``gammabeta``."""

from gammabeta.cli.main import main

main()
