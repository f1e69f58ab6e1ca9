"""The progress of a study: a bar on a terminal, and what the heartbeat says where output goes to a file."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gammabeta.lab.heartbeat import Heartbeat


@contextlib.contextmanager
def progress(console: Console, claims: int, heartbeat: Heartbeat) -> Iterator[Any]:
    """Show a progress bar on a terminal; where output goes to a file, tell the heartbeat what to say."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[trials]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        running = bar.add_task("starting", total=claims, trials="")

        def shown(name: str, number: int) -> Any:
            bar.update(running, description=name, completed=number, trials="")
            heartbeat.doing = f"{name} ({number + 1} of {claims})"
            round_number, before, in_all = 0, (0, 0), 0

            def update(done: int, total: int) -> None:
                """Say how far a round is. What one round finds decides which trials the next one has."""
                nonlocal round_number, before, in_all
                heartbeat.check()
                if total != before[1] or done < before[0]:
                    round_number, in_all = round_number + 1, in_all + before[0]
                before = done, total
                part = done / total if total else 0.0
                trials = f"round {round_number}: {done} of {total} trials, {in_all + done} in all"
                bar.update(running, completed=number + 0.9 * part, trials=trials)
                heartbeat.doing = f"{name} ({number + 1} of {claims}), {trials}"

            return update

        yield shown
