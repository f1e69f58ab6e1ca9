"""Output that goes to a file or a pipe has a line every few seconds."""

import dataclasses
import io
import threading
import time

import pytest
from rich.console import Console

from gammabeta.lab import study as engine
from gammabeta.lab.claims import axes
from gammabeta.lab.heartbeat import INTERVAL, Heartbeat
from gammabeta.lab.progress import progress

SOON = 0.01  # seconds, in place of INTERVAL


def written(lines, count):
    """Wait until there are as many lines; return whether there are."""
    deadline = time.monotonic() + 30
    while len(lines) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    return len(lines) >= count


def until_it_raises(check):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        check()


def test_the_interval_leaves_a_margin_to_twenty_seconds():
    assert INTERVAL <= 19


def test_lines_come_until_the_end_and_say_what_is_done():
    lines = []
    beat = Heartbeat(lines.append, SOON)
    with beat.beating():
        assert written(lines, 2)
        beat.doing = "axes (1 of 2), 3 of 4 trials"
        assert written(lines, len(lines) + 2)
    assert lines[0] == "reading the data, 0 s so far"
    assert lines[-1].startswith("axes (1 of 2), 3 of 4 trials, ")
    count = len(lines)
    time.sleep(10 * SOON)
    assert len(lines) == count
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_no_line_is_added_to_those_of_the_study():
    lines = []
    beat = Heartbeat(lines.append, 0.5)
    with beat.beating():
        for _ in range(40):
            beat.written()
            time.sleep(SOON)
    assert lines == []


def test_a_reader_that_is_gone_ends_the_study():
    def closed(line):
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904 - as rich does

    beat = Heartbeat(closed, SOON)
    with beat.beating(), pytest.raises(BrokenPipeError):
        until_it_raises(beat.check)
    beat.check()  # once is enough


def test_a_study_whose_output_is_piped_is_never_silent(tmp_path, monkeypatch):
    printed = io.StringIO()
    running = "axes (1 of 1), round 1: 3 of 8 trials, 3 in all, "

    def measure(experiment):
        experiment.progress(3, 8)
        deadline = time.monotonic() + 30
        while running not in printed.getvalue() and time.monotonic() < deadline:
            time.sleep(0.001)
        return axes.measure(experiment)

    claims = [dataclasses.replace(claim, measure=measure) for claim in engine.CLAIMS if claim.name == "axes"]
    monkeypatch.setattr(engine, "CLAIMS", claims)
    monkeypatch.setattr(engine, "INTERVAL", SOON)
    console = Console(file=printed, width=200)
    engine.study(["axes"], quick=True, jobs=1, data="digits", out=tmp_path, console=console)
    lines = printed.getvalue().splitlines()
    assert any(line.startswith("          data  scikit-learn's digits: 8 × 8 grey images") for line in lines)
    assert any(line.startswith(f"       running  {running}") for line in lines)


def test_rounds_are_counted_as_their_trials_begin_anew():
    said = Heartbeat(print, 1.0)
    with progress(Console(file=io.StringIO()), 2, said) as shown:
        update = shown("axes", 1)
        for done, total in ((0, 4), (1, 4), (4, 4), (4, 4), (0, 4), (2, 4)):
            update(done, total)
        assert said.doing == "axes (2 of 2), round 2: 2 of 4 trials, 6 in all"
        for done, total in ((4, 4), (3, 9)):  # of the next round, 3 are on disk
            update(done, total)
        assert said.doing == "axes (2 of 2), round 3: 3 of 9 trials, 11 in all"


def test_a_terminal_has_its_bar_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "INTERVAL", 0.0)
    printed = io.StringIO()
    console = Console(file=printed, width=200, force_terminal=True)
    engine.study(["axes"], quick=True, jobs=1, data="digits", out=tmp_path, console=console)
    assert "so far" not in printed.getvalue()
