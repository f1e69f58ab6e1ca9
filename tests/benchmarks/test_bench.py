"""The benchmarks: turns, percentiles, rings, tables and files. Nothing here asserts a time."""

import datetime
import functools
import io
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import gammabeta as gb
from gammabeta.benchmarks import bench as engine
from gammabeta.benchmarks import contest, ring
from gammabeta.benchmarks.contest import COMPILED, COPY, OURS, TORCH, Field, Result, Row, Subject
from gammabeta.benchmarks.page import FIGURES, page
from gammabeta.benchmarks.subjects import SUBJECTS
from gammabeta.cli import main as cli

TODAY = datetime.date.today().isoformat()


def row(name="norm, forward", *, build=None, at_most=None, at_most_of_torch=None, floor=1.0, lasts=0.0):
    def field(compiled):
        names = (OURS, TORCH, *([COMPILED] if compiled else []), COPY)
        return Field({name: lambda number: lambda: None for name in names}, saved={OURS: 1 << 20, TORCH: 2 << 20})

    return Row(name, (4, 8), torch.float32, "contiguous", build or field, floor, at_most, at_most_of_torch, lasts)


def result(ours, torchs, compiled=None, copy=1.0, **limits):
    seconds = {OURS: ours, TORCH: torchs, COPY: (copy, copy, copy)}
    return Result(row(**limits), 1, seconds if compiled is None else {**seconds, COMPILED: compiled})


def subject(*rows, unit="copies", missing=lambda: None):
    return Subject("fake_norms", "Fake norms.", "What they do.", unit, lambda quick: list(rows), missing)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the engine with these subjects. What it printed is in `text`."""
    monkeypatch.setattr(gb, "warm_allocator", lambda: "kept warm for the test")

    def call(*subjects, **options):
        monkeypatch.setattr(engine, "SUBJECTS", subjects)
        console = Console(width=200, force_terminal=False, record=True, file=io.StringIO())
        options = {"threads": [1], "rounds": 3, "compiled": False, "out": tmp_path, "console": console, **options}
        try:
            return engine.bench(None, **options)
        finally:
            call.text = console.export_text()

    return call


def test_every_round_begins_with_another_contestant():
    names = ["a", "b", "c"]
    assert [contest.rotated(names, turn) for turn in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"],
    ]  # fmt: skip


def test_contestants_are_timed_in_turns_each_on_the_next_buffer():
    timed = []

    def build(compiled):
        def contestant(name, number):
            return lambda: timed.append((name, number))

        return Field({name: functools.partial(contestant, name) for name in (OURS, TORCH, COPY)}, slots=2)

    contest.contest(row(build=build), 1, 3, False)
    assert timed[:9] == [(name, number) for name in (OURS, TORCH, COPY) for number in range(3)], "warmed up"
    # Two rounds of warm-up: twice the ring of two, with results held. Then three timed rounds, the order rotating.
    turns = [(OURS, TORCH, COPY), (TORCH, COPY, OURS), *((OURS, TORCH, COPY), (TORCH, COPY, OURS), (COPY, OURS, TORCH))]
    assert timed[9:] == list(zip([name for turn in turns for name in turn], range(15), strict=True))


def test_results_are_held_as_long_as_the_ring_goes_round():
    class Output:
        alive = most = 0

        def __init__(self):
            Output.alive += 1
            Output.most = max(Output.most, Output.alive)

        def __del__(self):
            Output.alive -= 1

    def build(compiled):
        return Field({name: lambda number: Output for name in (OURS, TORCH, COPY)}, slots=4)

    contest.contest(row(build=build), 1, 5, False)
    # Four that are held, and the newest.
    assert (Output.most, Output.alive) == (4 + 1, 0)


def test_a_short_call_is_repeated_until_the_timing_lasts():
    calls = []

    def build(compiled):
        return Field({name: lambda number: lambda: calls.append(1) for name in (OURS, TORCH, COPY)})

    outcome = contest.contest(row(build=build, lasts=2e-4), 1, 2, False)
    assert len(calls) > 3 * 3 + 3 * 2, "no more calls than warm-ups and timings"
    assert all(middle < 2e-4 for _, middle, _ in outcome.seconds.values()), "seconds are of one call, not of a timing"


def test_percentiles():
    assert contest.percentiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))
    assert contest.percentiles([3.0, 1.0]) == pytest.approx((1.4, 2.0, 2.6))


def test_copies_ratios_and_limits():
    this = result((2.0, 3.0, 4.0), (5.0, 6.0, 7.0), copy=2.0, at_most=1.5)
    assert this.copies() == (1.0, 1.5, 2.0)
    assert this.copies(TORCH) == (2.5, 3.0, 3.5)
    assert this.ratio() == 0.5
    assert this.within_limit() is True
    assert result((2.0, 3.1, 4.0), (5.0, 6.0, 7.0), copy=2.0, at_most=1.5).within_limit() is False
    assert result((2.0, 3.0, 4.0), (5.0, 6.0, 7.0)).within_limit() is None
    assert result((2.0, 3.0, 4.0), (1.0, 2.0, 7.0), at_most_of_torch=1.5).within_limit() is True
    assert result((2.0, 3.2, 4.0), (1.0, 2.0, 7.0), at_most_of_torch=1.5).within_limit() is False


def test_where_we_are_not_ahead():
    assert result((2.0, 3.0, 4.0), (3.0, 3.1, 4.0), compiled=(8.0, 9.0, 9.0)).at_least_as_fast() == {}
    assert result((2.0, 3.0, 4.0), (1.0, 3.0, 4.0), compiled=(1.0, 1.5, 1.9)).at_least_as_fast() == {
        TORCH: "1.00 of its time, ranges overlap",
        COMPILED: "2.00 of its time, ranges apart",
    }


def test_bytes_that_a_row_has_to_move():
    assert row().tensor_bytes == 4 * 8 * 4


@pytest.mark.parametrize(("backward", "gradients"), [(False, False), (False, True), (True, True)])
def test_a_ring_s_contestants_compute_the_norm_on_tensors_in_turn(backward, gradients):
    weight = torch.full((6,), 2.0, requires_grad=True)
    seen = []

    def norm(x, weight):
        seen.append(x)
        assert torch.is_grad_enabled() is gradients
        return x * weight[:, None, None]

    inputs = ring.Inputs((2, 6, 3, 3), layout="channels_last", parameters=[weight], gradients=gradients)
    field = ring.norm_field(norm, norm, inputs, backward=backward, compiled=False)
    assert list(field.contestants) == [OURS, TORCH, COPY]
    assert field.slots == ring.slots_for(2 * 6 * 9 * 4) == ring.MOST_SLOTS
    outs = [field.contestants[OURS](number)() for number in range(field.slots + 1)]
    tensors = {x.data_ptr() for x in seen}
    assert len(tensors) == field.slots
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    if backward:
        g_x, g_weight = outs[0]
        assert g_x.shape == (2, 6, 3, 3)
        torch.testing.assert_close(g_x / 2 * seen[0], g_x * seen[0] / 2)
        torch.testing.assert_close((g_x / 2 * seen[0].detach()).sum((0, 2, 3)), g_weight)
        # After a full turn: the same buffer and the kept graph.
        torch.testing.assert_close(outs[-1][0], g_x)
    else:
        torch.testing.assert_close(outs[0], seen[-field.slots - 1] * 2)
        assert outs[0].requires_grad is gradients
    assert field.saved == ({} if not gradients else {OURS: field.saved[TORCH], TORCH: 2 * 6 * 9 * 4 + 6 * 4})
    copied = field.contestants[COPY](1)()
    assert any(torch.equal(copied, x) for x in seen)


def test_the_ring_fills_the_cache_twice(monkeypatch):
    monkeypatch.setattr(ring, "last_level_cache", lambda: 32 << 20)
    assert ring.slots_for(128 << 20) == 2
    assert ring.slots_for(16 << 20) == 4
    assert ring.slots_for(10 << 20) == 7
    assert ring.slots_for(1) == ring.MOST_SLOTS


def test_saved_bytes_count_each_storage_once():
    x = torch.randn(10, requires_grad=True)
    assert ring.saved_bytes(lambda: x * x) == 40
    assert ring.saved_bytes(lambda: torch.exp(x) * x) == 80


def test_a_compiler_that_fails_leaves_the_others_in():
    def fails(number):
        raise RuntimeError("no g++ here\nand much more")

    contestants = {OURS: fails}
    assert ring.join(contestants, COMPILED, fails) == {COMPILED: "RuntimeError: no g++ here"}
    assert list(contestants) == [OURS]
    assert ring.join(contestants, COMPILED, lambda number: lambda: None) == {}
    assert list(contestants) == [OURS, COMPILED]


@pytest.mark.parametrize("phase", ["forward in training", "evaluation", "step"])
def test_layers_are_called_in_their_phase(phase):
    ours, theirs = gb.BatchNorm1d(3), nn.BatchNorm1d(3)
    field = ring.layer_field(ours, theirs, (4, 3), 1, phase, False)
    a, b = (field.contestants[name](0)() for name in (OURS, TORCH))
    assert ours.training is theirs.training is (phase != "evaluation")
    assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == (phase != "evaluation")
    for mine, other in zip(a, b, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)  # float32, by another kernel


def test_a_file_for_each_subject(run, tmp_path):
    limited = row("norm, backward", at_most=1e-9)
    (path,) = run(subject(row(), limited), threads=[1, 2], compiled=True)
    assert path == tmp_path / f"fake_norms-{TODAY}.md"
    assert list(tmp_path.iterdir()) == [path]
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# Fake norms.\n\n{TODAY} · `gammabeta bench --threads 1,2 --rounds 3 --out {tmp_path}`")
    assert f"torch {torch.__version__}" in text
    assert "- Allocator: kept warm for the test" in text
    assert "What they do." in text
    assert "## 1 thread: in copies of x" in text
    assert "## 2 threads: in copies of x" in text
    heads = next(line for line in text.splitlines() if line.startswith("| operation"))
    cells = next(line for line in text.splitlines() if line.startswith("| norm, forward"))
    assert len(heads.split("|")) == len(cells.split("|"))
    assert "| (4, 8) | float32, contiguous | 0.0 | 1.0 / 2.0 |" in cells
    over = text.split("## Over the limit\n\n")[1].split("\n\n")[0].splitlines()
    assert [line.partition(":")[0] for line in over] == [
        f"- norm, backward (4, 8) float32 contiguous, {threads}" for threads in ("1 thread", "2 threads")
    ]
    assert "## Where another is as fast or faster" in text
    assert "Partial" not in text
    assert "norm, backward" in run.text
    assert f"written to {path}" in run.text


def test_rows_where_we_are_not_ahead_are_listed_with_both_figures():
    rows = [result((2.0, 3.0, 4.0), (1.0, 1.5, 1.9)), result((2.0, 3.0, 4.0), (5.0, 6.0, 7.0))]
    plan = engine.Plan((subject(),), (1,), 3, False, False, Path("."), "gammabeta bench")
    text = page(subject(), plan, rows, "warm", 2)
    assert text.split("## Where another is as fast or faster\n\n")[1] == (
        "- norm, forward (4, 8) float32 contiguous, 1 thread: 3.00 (2.00 – 4.00); torch 1.50 (1.00 – 1.90): "
        "2.00 of its time, ranges apart\n"
    )
    assert "## Over the limit\n\nNone.\n" in text
    assert page(subject(), plan, rows[1:], "warm", 1).endswith("## Where another is as fast or faster\n\nNowhere.\n")


def test_a_contestant_that_did_not_run_is_named_with_its_reason(run):
    def build(compiled):
        return Field({name: lambda number: lambda: None for name in (OURS, TORCH, COPY)}, refused={COMPILED: "no g++"})

    (path,) = run(subject(row(build=build)), compiled=True)
    text = path.read_text(encoding="utf-8")
    assert "| did not run |" in text
    assert text.endswith(
        "## Did not run\n\n- norm, forward (4, 8) float32 contiguous, 1 thread, torch.compile: no g++\n"
    )


def test_after_ctrl_c_what_was_measured_is_in_a_file_marked_partial(run, tmp_path):
    def stop(compiled):
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    partial = tmp_path / f"fake_norms-{TODAY}.partial.md"
    with pytest.raises(engine.Interrupted) as stopped:
        run(subject(row(), row("norm, backward", build=stop)))
    assert str(stopped.value) == f"Interrupted: 1 rows of fake_norms are in {partial}."
    text = partial.read_text(encoding="utf-8")
    assert "**Partial: 1 of 2 rows.**" in text
    assert "| norm, forward |" in text
    assert list(tmp_path.iterdir()) == [partial]
    assert torch.get_num_threads() == before
    # The finished file takes the partial one's place.
    (path,) = run(subject(row()))
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_in_the_first_row(run, tmp_path):
    def stop(compiled):
        raise KeyboardInterrupt

    with pytest.raises(
        engine.Interrupted, match=r"^Interrupted in the first row of fake_norms: nothing was measured\.$"
    ):
        run(subject(row(build=stop)))
    assert list(tmp_path.iterdir()) == []


def test_a_subject_that_lacks_something_is_skipped_with_the_reason(run, tmp_path):
    assert run(subject(row(), missing=lambda: "it needs timm: pip install timm")) == []
    assert "fake_norms is skipped: it needs timm: pip install timm" in run.text
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_cannot_be_timed_is_named_and_the_others_are_timed(run):
    def build(compiled):
        return Field({TORCH: lambda number: lambda: None}, refused={OURS: "it needs timm"})

    def timed(compiled):
        return Field({name: lambda number: lambda: None for name in (OURS, TORCH)})

    (path,) = run(subject(row("step of a", build=build), row("step of b", build=timed), unit="ms"), threads=[1, 2])
    text = path.read_text(encoding="utf-8")
    assert "step of a" not in text.split("## Did not run")[0]
    assert text.split("## Did not run\n\n")[1].splitlines() == [
        f"- step of a (4, 8) float32 contiguous, {threads}, gammabeta: it needs timm"
        for threads in ("1 thread", "2 threads")
    ]
    assert text.count("| step of b |") == 2
    assert "0 of 2 rows over their limit" in run.text
    assert "2 rows did not run" in run.text


def test_what_is_kept_for_backward_is_a_table_beside_torch(run):
    def build(compiled):
        contestants = {name: lambda number: lambda: None for name in (OURS, TORCH, "fused")}
        return Field(contestants, saved={OURS: 2_000_000, TORCH: 4_000_000, "fused": 1_000_000})

    known = replace(subject(row("step", build=build), unit="ms"), others=("fused", "bare"), variants=("fused", "bare"))
    (path,) = run(known, threads=[1, 2])
    text = path.read_text(encoding="utf-8")
    table = text.split("## Kept for backward, in MB\n\n")[1].split("\n\n")[1].splitlines()
    assert table[0] == "| operation | shape | dtype, layout | gammabeta | torch | fused | bare |"
    assert table[2:] == ["| step | (4, 8) | float32, contiguous | 2.0 (0.50) | 4.0 | 1.0 (0.25) |  |"]


def test_variants_have_a_column_and_do_not_compete():
    this = result((2.0, 3.0, 4.0), (5.0, 6.0, 7.0))
    this.seconds.update({"fused": (1.0, 1.0, 1.0), "Liger-Kernel": (1.0, 1.5, 1.9)})
    known = replace(subject(unit="ms"), others=("fused", "Liger-Kernel"), variants=("fused",))
    plan = engine.Plan((known,), (1,), 3, False, False, Path("."), "gammabeta bench")
    text = page(known, plan, [this], "warm", 1)
    assert "| fused | Liger-Kernel |" in text
    behind = text.split("## Where another is as fast or faster\n\n")[1]
    assert behind.count("\n") == 1
    assert "Liger-Kernel 1500.0 (1000.0 – 1900.0): 2.00 of its time, ranges apart" in behind


def test_a_subject_of_compiled_networks_is_skipped_without_the_compiler(run, tmp_path):
    assert run(replace(subject(row()), compiles=True), compiled=False) == []
    assert "fake_norms is skipped: it times torch.compile alone: leave --no-compile out" in run.text
    assert list(tmp_path.iterdir()) == []


def test_absolute_units_have_no_column_of_copies(run):
    def build(compiled):
        return Field({name: lambda number: lambda: None for name in (OURS, TORCH)})

    (path,) = run(subject(row(build=build, at_most_of_torch=1e9, floor=None), unit="µs"))
    text = path.read_text(encoding="utf-8")
    assert "in µs" in text
    assert "copy" not in text
    assert "| 1000000000.00 of torch |" in text
    assert text.split("## Over the limit\n\n")[1].startswith("None.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chanel_norms"], "there is no subject chanel_norms: did you mean channel_norms?"),
        (
            ["zzz"],
            "there is no subject zzz: there are channel_norms, folding, sample_norms, small_inputs, sweep, tails, "
            "training_step, compiled_step, synced, watching, study_speed, gpu_channel_norms, gpu_sample_norms, "
            "gpu_training_step.",
        ),
        (["--rounds", "1"], "expected at least 2 rounds, since percentiles need two timings, got 1."),
        (["--threads", "0,1"], "expected numbers of threads of 1 or more, got 0."),
        (["--threads", "two"], "--threads: expected numbers separated by commas, such as 1,2, got 'two'."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(words, said):
    done = CliRunner().invoke(cli.app, ["bench", *words])
    assert done.exit_code == 2
    assert done.output == f"gammabeta: {said}\n"


def test_a_folder_that_cannot_be_written_to(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = CliRunner().invoke(cli.app, ["bench", "--out", str(file)])
    assert done.exit_code == 2
    assert done.output == f"gammabeta: {file}: expected a folder to write to, got File exists.\n"


def test_the_command_hands_on_its_options(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(engine, "bench", lambda names, **options: asked.update(names=names, **options))
    words = ["small_inputs", "--threads", "1,2", "--rounds", "7", "--out", str(tmp_path), "--no-compile", "--quick"]
    assert CliRunner().invoke(cli.app, ["bench", *words]).exit_code == 0
    assert isinstance(asked.pop("console"), Console)
    assert asked == {
        "names": ["small_inputs"],
        "threads": [1, 2],
        "rounds": 7,
        "out": tmp_path,
        "compiled": False,
        "quick": True,
    }


def test_ctrl_c_leaves_the_command_with_130(monkeypatch):
    def stopped(names, **options):
        raise engine.Interrupted("Interrupted: 3 rows of small_inputs are in a file.")

    monkeypatch.setattr(engine, "bench", stopped)
    done = CliRunner().invoke(cli.app, ["bench"])
    assert (done.exit_code, done.output) == (130, "Interrupted: 3 rows of small_inputs are in a file.\n")


def test_help_names_the_subjects_without_importing_them():
    script = (
        "import sys; from gammabeta.cli import main as cli\n"
        "try: cli.app(['bench', '--help'])\n"
        "except SystemExit: pass\n"
        "print('gammabeta.benchmarks.subjects' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr
    for word in ("--threads", "--rounds", "--out", "--no-compile", "--quick", *(known.name for known in SUBJECTS)):
        assert word in done.stdout
    assert "bench" in CliRunner().invoke(cli.app, ["--help"]).output


@pytest.mark.parametrize("known", SUBJECTS, ids=lambda known: known.name)
def test_every_subject_is_written_down(known):
    assert known.title.endswith(".")
    assert known.text
    assert known.unit in FIGURES
    all_rows, few = known.rows(False), known.rows(True)
    names = [row.name for row in all_rows]
    assert len(names) == len(set(names))
    assert {row.name for row in few} < set(names)
    for row_ in all_rows:
        assert row_.at_most is None or row_.at_most_of_torch is None
        assert row_.floor is None or row_.at_most is None or row_.floor <= row_.at_most


def test_the_limits_are_those_that_were_set():
    rows = {row.name: row for known in SUBJECTS for row in known.rows(False)}
    for name, floor, at_most in (
        ("BatchNorm, forward (32, 64, 112, 112) float32 contiguous", 1, 1.3),
        ("BatchNorm + residual + relu, backward (128, 64, 32, 32) float32 channels_last", 4, 4.5),
        ("BatchNorm, backward (4096, 512) float32 contiguous", 2.5, 3),
        ("RMSNorm, backward (8192, 4096) bfloat16 contiguous", 1.5, 3),
        ("GroupNorm, 32 groups, forward (32, 512, 28, 28) float32 channels_last", 1, 1.5),
    ):
        assert (rows[name].floor, rows[name].at_most) == (floor, at_most)
    assert rows["BatchNorm1d, evaluation (8, 16) float32 contiguous"].at_most_of_torch == 1.5
    # On a GPU: 85 % of a copy's bandwidth from 64 MB on, and 1.7 times faster with residual and relu.
    assert rows["LayerNorm, backward (16384, 4096) bfloat16 contiguous"].at_most == 1.76
    assert rows["BatchNorm, forward (256, 256, 56, 56) bfloat16 channels_last"].at_most == 1.76
    assert rows["BatchNorm, forward (256, 2048, 7, 7) bfloat16 channels_last"].at_most is None
    finished = rows["BatchNorm + residual + relu, forward (256, 256, 56, 56) bfloat16 channels_last"]
    assert math.isclose(finished.at_most_of_torch, 1 / 1.7)
