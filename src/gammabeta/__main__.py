"""``python -m gammabeta`` is the command ``gammabeta``."""

from gammabeta_command import main

main()
