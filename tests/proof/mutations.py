"""Faults planted one by one in a copy of the kernels, and the first case of `gammabeta verify` that fails for each.

    python tests/proof/mutations.py [NAME ...]      # builds the C++ kernels once for each of their faults: an hour

A fault is one edit of one file: a wrong count, a stale statistic, a lost mask, a race. The C++ kernels are built again in
the copy, without optimization beyond -O1; the Triton kernels are interpreted. benchmarks/results/ has the table of a run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gammabeta.proof.backends import Backend, backends, environment_of, interpreted

ROOT = Path(__file__).parents[2]
KERNELS = Path("src/gammabeta/kernels")


@dataclass(frozen=True)
class Mutation:
    """One edit: in `file` of the kernels, `old`, which stands there once (or everywhere), becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    everywhere: bool = False

    @property
    def interpreted(self) -> bool:
        return self.file.startswith("cuda/")


CPU = (
    Mutation("variance divided by n - 1", "cpu/channel_norm.cpp",
             "var = returned(m.m2 / (m.count > 1 ? m.count : 1));", "var = returned(m.m2 / (m.count > 1 ? m.count - 1 : 1));"),
    Mutation("returned variance divided by n - 1", "cpu/channel_norm.cpp",
             "spread[i] = variance ? statistics[i].m2 / (count[i] > 1 ? count[i] : 1)",
             "spread[i] = variance ? statistics[i].m2 / (count[i] > 1 ? count[i] - 1 : 1)"),
    Mutation("count of the whole batch where masked", "cpu/channel_norm.cpp",
             "const double n = std::max(count_[size_t(channel)], 1.0);", "const double n = double(geo_.n * geo_.s);"),
    Mutation("gradient without its mean", "cpu/channel_norm.cpp", "-scale * (sums.sum / n)};", "0};"),
    Mutation("gradient without its variance", "cpu/channel_norm.cpp",
             "return {scale, -scale * rstd(channel) * (sums.sum_x / n),", "return {scale, 0,"),
    Mutation("eps outside the root", "cpu/channel_norm.cpp",
             "p_.weight[size_t(channel)] / std::sqrt(var + p_.eps)", "p_.weight[size_t(channel)] / (std::sqrt(var) + p_.eps)"),
    Mutation("two statistics in one slot: a race of parts", "cpu/norm.h",
             "p.begin(i), p.end(i), partial[size_t(i)]);", "p.begin(i), p.end(i), partial[size_t(i / parts * parts)]);"),
    Mutation("last part of a statistic left out", "cpu/norm.h",
             "return std::min(begin(part) + steps_per_part, steps); }", "return std::min(begin(part) + steps_per_part, steps - 1); }"),
    Mutation("merge without the distance of means", "cpu/elements.h",
             "m2 += other_m2 + delta * delta * (count * share);", "m2 += other_m2;"),
    Mutation("merge by equal shares", "cpu/elements.h", "share = other_count / n;", "share = 0.5;"),
    Mutation("shift of zero: one pass over a large mean", "cpu/planes.h", "shift = A(m.mean);\n    } else if", "shift = 0;\n    } else if"),
    Mutation("one pass over a large mean, and no second look", "cpu/planes.h",
             "    if (center)\n      m.merge_deviations(double(n), double(shift),",
             "    stored.deviations(x, n, A(0), &sum, &squares);\n    if (center)\n      m.merge_deviations(double(n), 0,"),
    Mutation("no second look at a shift that was far off", "cpu/planes.h",
             "if (center && 32 * double(sum) * double(sum) > double(n) * double(squares)) {",
             "if (false) {"),
    Mutation("stale statistic of another group", "cpu/planes.h", "if (loaded_x_ && loaded_x_ == x) return loaded_;", "if (loaded_x_) return loaded_;"),
    Mutation("mask lost in the output", "cpu/planes.h",
             "loops.select(b.z, plane.load_mask(mask, p, b.mask), A(0), out, n);", "std::memcpy(out, b.z, size_t(n) * sizeof(A));"),
    Mutation("masked x read in a gradient", "cpu/planes.h", "      *v = b.masked_x;\n", ""),
    Mutation("constant statistics, and x read all the same", "cpu/planes.h", "      if (constant) v = g_z;\n", ""),
    Mutation("mask of the first row for every row", "cpu/columns.h", "if (!mask_ || mask_[r]) rows.push_back(r);", "if (!mask_ || mask_[begin]) rows.push_back(r);"),
    Mutation("tail of folded rows left out", "cpu/columns.h", "for (int64_t j = i; j < tail_; j += c_) m.merge(1, double(tail[j]), 0);", ""),
    Mutation("gradient of the tail left out", "cpu/columns.h", "tail = chunk == chunks_ - 1 ? tail_ : 0;", "tail = 0;"),
    Mutation("first chunk alone is merged", "cpu/columns.h", "if (counts[chunk] == 0) continue;", "continue;"),
    Mutation("masked gradient not zeroed", "cpu/columns.h", "if (mask_) zero_masked(g_residual, g_x, chunk);", ""),
    Mutation("second piece of a long row takes the first one's weight", "cpu/lines.h",
             "A* out = writer.destination(y + at + i, b.out);\n        loops_.apply_line(v, r, out, w, mean, rstd, &lines_.weight[size_t(c)]",
             "A* out = writer.destination(y + at + i, b.out);\n        loops_.apply_line(v, r, out, w, mean, rstd, &lines_.weight[size_t(group * d)]"),
    Mutation("RMSNorm's gradient is centered", "cpu/lines.h", "lines_.center ? A(-rstd * (sum / double(d))) : A(0)};", "A(-rstd * (sum / double(d)))};"),
    Mutation("gradient of the sum forgotten", "cpu/lines.h", "g_total ? g_total + at : nullptr, g_x + at, d,", "nullptr, g_x + at, d,"),
    Mutation("parameters' gradients never cleared between blocks", "cpu/sample_norm.cpp",
             "if (i % kLinesOfBlock != 0 && i < last) continue;", "if (i < last) continue;"),
    Mutation("gradient of the last chunk of lines lost", "cpu/sample_norm.cpp",
             "for (int64_t chunk = 0; chunk < chunks; ++chunk)\n      for (double& value", "for (int64_t chunk = 0; chunk < std::max<int64_t>(chunks - 1, 1); ++chunk)\n      for (double& value"),
    Mutation("mask of another sample", "cpu/sample_norm.cpp", "work.mask = p_.mask_of(i / geo_.groups);", "work.mask = p_.mask_of(0);"),
    Mutation("group's gradient without the weight", "cpu/sample_norm.cpp",
             "sums.sum += p_.weight[size_t(channel)] * sum;", "sums.sum += sum;"),
    Mutation("momentum the other way round", "cpu/running_statistics.cpp", "T((1 - s) * old + s * batch(c))", "T(s * old + (1 - s) * batch(c))"),
    Mutation("biased running variance", "cpu/running_statistics.cpp", "return n > 1 ? vars[c] * n / (n - 1) : std::nan(\"\");", "return n > 1 ? vars[c] : std::nan(\"\");"),
    Mutation("channels that are not finite move", "cpu/running_statistics.cpp", "if (!finite[size_t(c)]) continue;", ""),
    Mutation("last lanes of a row counted twice", "cpu/loops-inl.h",
             "all[kLanes<A> + i] = i < kLanes<A> - n ? A(0) : all[kLanes<A> + i];", "all[kLanes<A> + i] = i < kLanes<A> - n - 1 ? A(0) : all[kLanes<A> + i];"),
    Mutation("exponential one term short", "cpu/loops-inl.h", "  p = p * r + A(1.0 / 720);\n", ""),
)  # fmt: skip

TRITON = (
    Mutation("count of one too many", "cuda/arithmetic.py", "    total = n + k\n", "    total = n + k + 1\n"),
    Mutation("lanes merged without the distance of means", "cuda/arithmetic.py",
             "m2 = tl.sum(m2 + weight * distance * distance, AXIS, keep_dims=True)", "m2 = tl.sum(m2, AXIS, keep_dims=True)"),
    Mutation("stale shift", "cuda/arithmetic.py", "shift = tl.where((k > 0) & (n == 0), some, shift)", "shift = some"),
    Mutation("eps forgotten", "cuda/arithmetic.py", "    v = var + EPS\n        r = tl.rsqrt(v)", "    v = var\n        r = tl.rsqrt(v)"),
    Mutation("mask lost in the output", "cuda/finish.py", "        z = tl.where(where, z, 0.0)\n", "        z = z\n"),
    Mutation("residual added after the activation", "cuda/finish.py",
             "        z += load(residual, at, where, DOUBLE)\n    z = activate(z, ACTIVATION, SLOPE)\n",
             "        z = activate(z, ACTIVATION, SLOPE) + load(residual, at, where, DOUBLE)\n    else:\n        z = activate(z, ACTIVATION, SLOPE)\n"),
    Mutation("derivative without the residual", "cuda/finish.py",
             "            z += load(residual, at, where, DOUBLE)\n        g = tl.where", "            z += 0.0\n        g = tl.where"),
    Mutation("kink on the wrong side", "cuda/finish.py", "tl.where((z <= 0) | (z >= 6), 0.0, 1.0)", "tl.where(z <= 0, 0.0, 1.0)"),
    Mutation("last partial sum left out", "cuda/sums.py", "where = (k < rows) & (c < columns)", "where = (k < rows - 1) & (c < columns)"),
    Mutation("second half read from the first", "cuda/sums.py", "partials + tl.cast(rows, tl.int64) * columns + at", "partials + at"),
    Mutation("no correction of a row's mean", "cuda/row_norm.py", "        correction = tl.sum(deviation, 1, keep_dims=True) / n\n", "        correction = shift * 1e-6\n"),
    Mutation("rows of the mask shifted by one", "cuda/row_norm.py", "tl.load(mask + row, mask=row < rows, other=0)", "tl.load(mask + row - 1, mask=(row > 0) & (row < rows), other=0)"),
    Mutation("gradient without the weight", "cuda/row_norm.py", "            g = g * parameters[0]\n", ""),
    Mutation("gradient of the sum forgotten in Triton", "cuda/row_norm.py", "            out = widen(out.to(g_x.dtype.element_ty), DOUBLE) + load(g_total, at, there, DOUBLE)\n", "            out = out\n"),
    Mutation("channels of the last tile left out", "cuda/channel_norm.py", "    for t in range(first, last):\n        begin, v0, at = place(t, c0, shape, K, V)\n        where = counts(", "    for t in range(first, last - 1):\n        begin, v0, at = place(t, c0, shape, K, V)\n        where = counts("),
    Mutation("gradient of masked values summed", "cuda/channel_norm.py", "        return there, there & (tl.load(mask + at + of_all, mask=there, other=0) != 0)", "        return there, there"),
)  # fmt: skip


def copied(to: Path) -> Path:
    """Copy what a build needs, compiled as fast as the kernels' tests allow."""
    for name in ("src", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, to / name)
    setup = to / "setup.py"
    setup.write_text(setup.read_text(encoding="utf-8").replace('"-O3"', '"-O1"'), encoding="utf-8")
    return to


def build(copy: Path) -> None:
    """Build the native kernels of the copy: the files whose sources have changed."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=copy, capture_output=True, text=True,
        env={**os.environ, "GAMMABETA_KERNELS": "1", "MAX_JOBS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"building the kernels failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")


@contextmanager
def planted(copy: Path, mutation: Mutation) -> Iterator[None]:
    """Make the edit, and take it back."""
    path = copy / KERNELS / mutation.file
    text = path.read_text(encoding="utf-8")
    count = text.count(mutation.old)
    if count != 1 and not (mutation.everywhere and count):
        raise ValueError(f"{mutation.name}: expected {mutation.old!r} once in {mutation.file}, found it {count} times")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def first_failure(copy: Path, backend: Backend, cases: Sequence[str] = ()) -> tuple[str, str] | None:
    """Verify the copy's backend up to the first case that fails; return its name and message, None where none does."""
    request = {"backend": asdict(backend), "cases": list(cases), "thorough": False, "seed": 0}
    process = subprocess.Popen(
        [sys.executable, "-m", "gammabeta.proof.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, env={**environment_of(backend), "PYTHONPATH": str(copy / "src")},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    at = "its beginning"
    try:
        with process.stdin as stdin:
            stdin.write(json.dumps(request) + "\n")
        for line in process.stdout:
            event = json.loads(line)
            at = event.get("case", at)
            if "failure" in event:
                return event["done"], event["failure"]
            if "end" in event:
                return None
        return at, f"the process ended with {process.wait()}"
    finally:
        process.kill()
        process.wait()


def main(names: Sequence[str]) -> None:
    """Plant the faults, all or those named ("cpu", "cuda": those of a folder), and print a row for each."""
    wanted = [m for m in (*CPU, *TRITON) if not names or {m.name, m.file.partition("/")[0]} & {*names}]
    native = next(b for b in backends() if b.certified == "native")
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        if any(not m.interpreted for m in wanted):
            build(copy)
        print("| fault | file | found by | seconds |\n|---|---|---|---|", flush=True)
        for mutation in wanted:
            with planted(copy, mutation):
                if not mutation.interpreted:
                    build(copy)
                backend, begin = interpreted() if mutation.interpreted else native, time.perf_counter()
                found = first_failure(copy, backend)
                seconds = time.perf_counter() - begin
            case = "**nothing**" if found is None else f"`{found[0]}`"
            if found is not None and first_failure(ROOT, backend, [found[0]]) is not None:
                case += ", **which fails without the fault too**"
            print(f"| {mutation.name} | `{mutation.file}` | {case} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
