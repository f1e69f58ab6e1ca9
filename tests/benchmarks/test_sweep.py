"""The sweep: that both contestants compute the same, when a row is above its limit, and how a run continues."""

import datetime
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gammabeta.activations import ACTIVATIONS
from gammabeta.benchmarks import bench as engine
from gammabeta.benchmarks import sweeping
from gammabeta.benchmarks.contest import OURS, TORCH, Field, Subject
from gammabeta.benchmarks.pool import Pool
from gammabeta.benchmarks.subjects import sweep
from gammabeta.benchmarks.sweep_page import sweep_page, sweep_summary
from gammabeta.benchmarks.swept import GROUPS, INACCURATE, JUDGED, SMALL, Combination, Swept, Times

ACCURACY = Path(__file__).parents[2] / "docs" / "accuracy.json"
TODAY = datetime.date.today().isoformat()
NAMES = {"batch_norm": "BatchNorm", "group_norm": "GroupNorm", "instance_norm": "InstanceNorm",
         "layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}  # fmt: skip
TINY = tuple(
    sweep.Shape(norm, "none", shape, layouts)
    for norm, shape, layouts in (
        ("BatchNorm", (5, 3, 4, 4), sweep.IN_BOTH), ("BatchNorm", (5, 3), sweep.AS_IT_IS),
        ("GroupNorm", (3, 64, 2, 2), sweep.IN_BOTH), ("InstanceNorm", (3, 4, 3, 3), sweep.IN_BOTH),
        ("LayerNorm", (4, 7), sweep.AS_IT_IS), ("RMSNorm", (4, 7), sweep.AS_IT_IS),
    )
)  # fmt: skip


def combination(name="norm, forward", *, group=JUDGED, limit=1.05, build=None, **more):
    def nothing(compiled):
        return Field({contestant: lambda number: lambda: None for contestant in (OURS, TORCH)})

    return Combination(name, (4, 8), torch.float32, "contiguous", build or nothing, at_most_of_torch=limit, norm="Norm",
                       network="Net", group=group, **more)  # fmt: skip


def times(low, middle=None):
    middle = low + 0.1 if middle is None else middle
    return Times(low, middle, middle + 0.1, 2e-6, 1e-6, 15)


def swept(*lows, **row):
    return Swept(combination(**row), 1, tuple(map(times, lows)))


# What is measured.


def test_the_rows_are_every_combination_on_shapes_that_the_norm_has():
    rows = sweep.rows(False)
    assert len(sweep.SHAPES) == 14
    per_shape = len(ACTIVATIONS) * 2 * 2 * len(sweep.DTYPES)
    assert len(rows) == per_shape * sum(len(shape.layouts) for shape in sweep.SHAPES) == 2240
    assert len({row.name for row in rows}) == len(rows)
    assert {row.norm for row in rows} == set(NAMES.values())
    assert {(row.group, row.limit) for row in rows} == {(JUDGED, 1.05), (SMALL, 1.3), (INACCURATE, 1.05)}
    for row in rows:
        assert (row.group == SMALL) is (row.tensor_bytes // row.dtype.itemsize < 65_536)


def test_torch_is_accurate_enough_where_the_conventions_say_so():
    measured = json.loads(ACCURACY.read_text(encoding="utf-8"))["rows"]
    right = {
        (NAMES[row["norm"]], row["layout"], getattr(torch, row["dtype"]))
        for row in measured
        if row["norm"] in NAMES and row["layout"] in sweep.IN_BOTH and not any(row["wrong"])
    }
    assert right == sweep.ACCURATE


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("of", TINY, ids=lambda of: f"{of.norm}{len(of.shape)}")
def test_ours_and_torch_compute_the_same(of, activation, residual):
    for layout in of.layouts:
        for backward in (False, True):
            field = sweep.field(of, layout, torch.float64, activation, (residual, backward))
            by_us, by_torch = (field.contestants[name](1)() for name in (OURS, TORCH))
            assert isinstance(by_us, tuple) is isinstance(by_torch, tuple) is backward
            pairs = zip(by_us, by_torch, strict=True) if backward else [(by_us, by_torch)]
            count = 0
            for mine, other in pairs:
                # Two orders of summation in float64.
                torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
                count += 1
            assert count == (1 + residual + (1 if of.norm == "RMSNorm" else 2) if backward else 1)


@pytest.mark.parametrize("of", TINY, ids=lambda of: f"{of.norm}{len(of.shape)}")
def test_every_dtype_runs(of):
    for dtype in sweep.DTYPES:
        field = sweep.field(of, "contiguous", dtype, "silu", (True, False))
        assert {field.contestants[name](0)().dtype for name in (OURS, TORCH)} == {dtype}


def test_the_buffers_differ_and_torch_spoils_none():
    of = TINY[0]
    field = sweep.field(of, "contiguous", torch.float32, "relu", (True, False))
    assert field.slots == sweep.MOST_SLOTS
    for name in (OURS, TORCH):
        first, second, again = (field.contestants[name](slot)() for slot in (0, 1, 0))
        assert not torch.equal(first, second)
        assert torch.equal(first, again)


def test_a_pool_cuts_tensors_that_do_not_overlap():
    pool = Pool()
    tensors = [pool.tensor((2, 3, 5, 5), torch.float32, layout) for layout in ("contiguous", "channels_last") * 2]
    stretches = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(stretches))
    assert all(start % 64 == stretches[0][0] % 64 for start, _ in stretches)
    assert tensors[0].is_contiguous()
    assert tensors[1].is_contiguous(memory_format=torch.channels_last)
    before = tensors[0].clone()
    large = pool.tensor((1 << 20,), torch.float32, "contiguous")
    assert large.std() == pytest.approx(1, abs=0.01)
    assert torch.equal(tensors[0], before)
    pool.restart()
    assert pool.tensor((64,), torch.float32, "contiguous").data_ptr() < large.data_ptr()
    assert pool.tensor((4,), torch.bfloat16, "contiguous").dtype == torch.bfloat16


# When a row is above its limit.


def test_quartiles_are_those_of_the_ratios_of_a_round():
    # Both twice as slow in the last rounds: every ratio is 1.5.
    of = Times.of([3.0, 3.0, 6.0, 6.0, 6.0], [2.0, 2.0, 4.0, 4.0, 4.0])
    assert (of.low, of.middle, of.high, of.ours, of.torch, of.rounds) == (1.5, 1.5, 1.5, 6.0, 4.0, 5)
    of = Times.of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (of.low, of.middle, of.high) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(("lows", "above", "open_"), [
    ((), False, True),
    ((1.06,), False, True),
    ((1.05,), False, False),
    ((1.06, 1.2), False, True),
    ((1.06, 1.04), False, False),
    ((1.06, 1.2, 1.051), True, False),
    ((1.06, 1.2, 1.05), False, False),
])  # fmt: skip
def test_a_row_is_above_in_three_repetitions_of_three(lows, above, open_):
    each = swept(*lows)
    assert (each.above, each.open) == (above, open_)


def test_small_calls_have_a_limit_of_their_own():
    assert not swept(1.2, 1.2, 1.2, limit=1.3).above
    assert swept(1.31, 1.4, 1.5, limit=1.3).above


def test_contestants_take_turns_on_all_buffers():
    called = []

    def build(name, number):
        return lambda: called.append((name, number))

    contestants = {name: lambda number, name=name: build(name, number) for name in (OURS, TORCH)}
    of = sweeping.compete(Field(contestants, slots=3), 4)
    assert of.rounds == 4
    assert {number for name, number in called if name == OURS} == {0, 1, 2}
    turns = [name for name, before in zip(called, [None, *called], strict=False) if not before or name[0] != before[0]]
    # Warm-up of both, then ours and torch's, torch's and ours, and so on: neighbours of a kind are one turn here.
    assert [name for name, _ in turns] == [OURS, TORCH, OURS, TORCH, OURS, TORCH, OURS][: len(turns)]
    counts = [sum(name == contestant for name, _ in called) for contestant in (OURS, TORCH)]
    assert counts[0] == counts[1] > 4 * 3, "short calls are repeated, as often for both"


def test_a_row_that_takes_long_has_fewer_rounds(monkeypatch):
    monkeypatch.setattr(sweeping, "_timing", lambda calls, repeats, first, held: 0.2)
    field = combination().build(False)
    assert sweeping.compete(field, 15).rounds == sweeping.FEWEST
    assert sweeping.compete(field, 3).rounds == 3
    monkeypatch.setattr(sweeping, "_timing", lambda calls, repeats, first, held: 0.02)
    assert sweeping.compete(field, 15).rounds == 12  # of 0.04 s each in half a second
    monkeypatch.setattr(sweeping, "_timing", lambda calls, repeats, first, held: 0.002)
    assert sweeping.compete(field, 15).rounds == 15


def test_a_call_that_torch_refuses_is_a_row_that_did_not_run():
    def fails(compiled):
        raise RuntimeError("not implemented for 'Half'\nand where")

    each = sweeping.repeated(Swept(combination(build=fails), 1), 3)
    assert (each.refused, each.times, each.open) == ("not implemented for 'Half'", (), False)


# A run.


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the engine with these rows, whose lower quartiles are given by name, one for each repetition."""
    measured = []

    def call(rows, lows, stop_after=None, **options):
        def compete(field, rounds):
            name = field.contestants[OURS]
            if stop_after is not None and len(measured) >= stop_after:
                raise KeyboardInterrupt
            measured.append(name)
            return times(lows[name][sum(n == name for n in measured) - 1])

        measured.clear()
        monkeypatch.setattr(sweeping, "compete", compete)
        named = [replace(row, build=lambda compiled, row=row: Field({OURS: row.operation})) for row in rows]
        subject = Subject("fake_sweep", "Fake sweep.", "What it does.", "ms", lambda quick: named, lambda: None,
                          measure=sweeping.measure)  # fmt: skip
        monkeypatch.setattr(engine, "SUBJECTS", (subject,))
        console = Console(width=200, force_terminal=False, record=True, file=io.StringIO())
        options = {"threads": [1], "rounds": 3, "out": tmp_path, "console": console, **options}
        try:
            (path,) = engine.bench(None, **options)
        finally:
            call.text, call.measured = console.export_text(), list(measured)
        return path.read_text(encoding="utf-8")

    return call


def test_only_rows_that_can_still_be_above_are_repeated(run, tmp_path):
    rows = [combination(name) for name in ("a", "b", "c")]
    text = run(rows, {"a": [0.9], "b": [1.2, 1.3, 1.4], "c": [1.2, 0.9]})
    assert run.measured == ["a", "b", "c", "b", "c", "b"]
    assert [path.name for path in tmp_path.iterdir()] == [f"fake_sweep-{TODAY}.md"]
    above = text.split("## Above 1.05\n\n")[1].split("\n\n")[0].splitlines()
    assert above[2:] == [
        "| b | (4, 8) Net | float32, contiguous | 1 | 1.30 (1.20 – 1.40) | 1.40 (1.30 – 1.50) | 1.50 (1.40 – 1.60) "
        "| 2.0 | 1.0 |"
    ]
    assert "1 of 3 rows above their limit (judged)" in run.text
    assert "written to" in run.text


def test_an_interrupted_run_continues_where_it_stopped(run, tmp_path):
    rows = [combination(name) for name in ("a", "b", "c")]
    lows = {"a": [1.2, 1.2, 1.2], "b": [0.9], "c": [0.9]}
    before = torch.get_num_threads()
    with pytest.raises(engine.Interrupted) as stopped:
        run(rows, lows, stop_after=2)
    partial, journal = tmp_path / f"fake_sweep-{TODAY}.partial.md", tmp_path / "fake_sweep.partial.jsonl"
    assert str(stopped.value) == (
        f"Interrupted: 2 of 3 rows of fake_sweep are in {partial}. The same command continues there."
    )
    assert torch.get_num_threads() == before
    assert "**Partial: 2 of 3 rows, not all of them in every repetition.**" in partial.read_text(encoding="utf-8")
    # The last line is cut off, as by a crash: that row is measured again.
    journal.write_text(journal.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    run(rows, {**lows, "a": [1.2, 1.2]})
    assert run.measured == ["b", "c", "a", "a"]
    assert "fake_sweep continues with what is in" in run.text
    assert [path.name for path in tmp_path.iterdir()] == [f"fake_sweep-{TODAY}.md"]


@pytest.mark.parametrize("what", ["rounds", "rows", "kernels"])
def test_a_run_does_not_continue_another(run, what, monkeypatch):
    rows, lows = [combination("a"), combination("b")], {"a": [0.9], "b": [0.9], "c": [0.9]}
    with pytest.raises(engine.Interrupted):
        run(rows, lows, stop_after=1)
    if what == "kernels":
        other = replace(sweeping.kernels.identity(), digest="another")
        monkeypatch.setattr(sweeping.kernels, "identity", lambda: other)
    rows = [*rows, combination("c")] if what == "rows" else rows
    run(rows, lows, **({"rounds": 4} if what == "rounds" else {}))
    assert run.measured == [row.operation for row in rows]


def test_ctrl_c_in_the_first_row(run, tmp_path):
    with pytest.raises(
        engine.Interrupted, match=r"^Interrupted in the first row of fake_sweep: nothing was measured\.$"
    ):
        run([combination("a")], {"a": [1.0]}, stop_after=0)
    assert not list(tmp_path.glob("*.md"))


def test_every_number_of_threads_is_measured(run):
    text = run([combination("a")], {"a": [1.2, 1.2, 0.9, 0.9]}, threads=[1, 2])
    assert run.measured == ["a"] * 4
    assert "### Norm, 1 thread\n" in text
    assert "### Norm, 2 threads\n" in text


def test_a_terminal_shows_the_row_that_is_measured(run):
    screen = io.StringIO()
    console = Console(width=150, force_terminal=True, file=screen)
    run([combination("a"), combination("b")], {"a": [1.2, 0.9], "b": [0.9]}, console=console)
    assert "1 thread, repetition 2" in screen.getvalue()


# The page.


def test_the_page_opens_with_counts_then_what_is_above_then_every_row():
    plan = engine.Plan((), (1,), 15, False, False, Path("."), "gammabeta bench sweep")
    found = [
        swept(0.5, name="norm, forward"),
        swept(1.1, 1.2, 1.3, name="norm + relu, forward", activation="relu"),
        swept(1.4, name="norm + residual, backward", residual=True, backward=True),
        swept(1.5, 1.5, 1.5, name="small, forward", group=SMALL, limit=1.3, activation="hardswish"),
        swept(2.0, 2.1, 2.2, name="far, forward", group=INACCURATE, activation="gelu"),
        swept(1.1, 1.1, 1.1, name="near, forward", group=INACCURATE, activation="silu"),
        Swept(combination("bad, forward"), 1, refused="torch's op does not take it"),
    ]
    text = sweep_page(Subject.of(sweep), plan, found, "warm", None)
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads[1:] == [
        "## Counts", "## Above 1.05", "## Small calls above 1.3", f"## Above 1.05 where {INACCURATE}", "## All rows",
        "### Norm, 1 thread", "## Did not run",
    ]  # fmt: skip
    counts = text.split("## Counts\n\n")[1].split("\n\n")[0].splitlines()
    assert counts[2:] == [
        "| judged | 3 | 1 | 1 | 1 | 1.30 | 1.50 |",
        "| small calls | 1 | 1 | 0 | 0 | 1.60 | 1.60 |",
        "| torch's op is not accurate enough | 2 | 2 | 0 | 0 | 1.70 | 2.20 |",
        "| Norm, all | 6 | 4 | 1 | 1 | 1.40 | 2.20 |",
        "| all | 6 | 4 | 1 | 1 | 1.40 | 2.20 |",
    ]
    of_inaccurate = text.split(f"{INACCURATE}\n\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in of_inaccurate[2:]] == ["| far, forward", "| near, forward"], (
        "largest first"
    )
    table = text.split("### Norm, 1 thread\n\n")[1].split("\n\n")[0].splitlines()
    assert table[0] == "| shape | dtype, layout | | none | relu | silu | hardswish | gelu |"
    assert table[2:] == [
        "| (4, 8) Net | float32, contiguous | forward | 0.60 | **1.30** | ***1.20*** | **1.60** | ***2.20*** |",
        "| (4, 8) Net | float32, contiguous | backward, r | 1.50 |  |  |  |  |",
    ]
    assert text.endswith("- bad, forward (4, 8) float32 contiguous, 1 thread: torch's op does not take it\n")


def test_the_summary_counts_by_group():
    found = [swept(1.1, 1.2, 1.3), swept(0.9), swept(1.2), swept(1.5, 1.5, 1.5, group=SMALL, limit=1.3)]
    assert sweep_summary(found) == (
        "1 of 3 rows above their limit (judged); 1 of 1 rows above their limit (small calls); 0 of 0 rows above their "
        "limit (torch's op is not accurate enough); 1 undecided"
    )
    assert len(GROUPS) == 3


@pytest.mark.parametrize("backward", [False, True])
def test_a_real_row(backward):
    row = next(r for r in sweep.rows(True) if r.norm == "LayerNorm" and r.backward is backward and r.residual)
    each = sweeping.repeated(Swept(row, 1), 3)
    assert each.refused == ""
    (one,) = each.times
    assert one.rounds == 3
    assert 0 < one.low <= one.middle <= one.high
    assert min(one.ours, one.torch) > 0
