"""What gammabeta's layers cost beside torch.nn's: ratios measured side by side, in turns, in one process.

    python benchmarks/layers.py [--rounds N] [--no-save]

Writes a dated table with versions and machine to benchmarks/results/. A ratio of 1 is torch's time; under 1 is faster.
Spread is the 20th and 80th percentile over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import gammabeta as gb
from gammabeta import ops

RESULTS = pathlib.Path(__file__).parent / "results"


class Composed(nn.Module):
    """torch's norm, then the sum, then the activation: what a residual block does today."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.norm(x) + residual)


def subjects() -> dict[str, tuple[nn.Module, nn.Module, tuple[int, ...], int]]:
    """Name → ours, torch's, shape of x, how many such tensors forward takes."""
    torch.manual_seed(0)
    image, tokens = (32, 64, 28, 28), (16, 128, 256)
    return {
        "BatchNorm1d (8, 16)": (gb.BatchNorm1d(16), nn.BatchNorm1d(16), (8, 16), 1),
        "LayerNorm (8, 16)": (gb.LayerNorm(16), nn.LayerNorm(16), (8, 16), 1),
        "RMSNorm (8, 16)": (gb.RMSNorm(16), nn.RMSNorm(16), (8, 16), 1),
        "GroupNorm (8, 16)": (gb.GroupNorm(4, 16), nn.GroupNorm(4, 16), (8, 16), 1),
        "InstanceNorm1d (8, 16, 4)": (gb.InstanceNorm1d(16), nn.InstanceNorm1d(16), (8, 16, 4), 1),
        "BatchNorm2d (32, 64, 28, 28)": (gb.BatchNorm2d(64), nn.BatchNorm2d(64), image, 1),
        "GroupNorm (32, 64, 28, 28)": (gb.GroupNorm(8, 64), nn.GroupNorm(8, 64), image, 1),
        "LayerNorm (16, 128, 256)": (gb.LayerNorm(256), nn.LayerNorm(256), tokens, 1),
        "RMSNorm (16, 128, 256)": (gb.RMSNorm(256), nn.RMSNorm(256), tokens, 1),
        "BatchNorm2d + residual + relu (32, 64, 28, 28)": (
            gb.BatchNorm2d(64, activation="relu"), Composed(nn.BatchNorm2d(64)), image, 2,
        ),
    }  # fmt: skip


def evaluate(layer: nn.Module, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        layer.eval()(*inputs)


def train(layer: nn.Module, inputs: list[Tensor]) -> None:
    y = layer.train()(*inputs)
    y.backward(torch.ones_like(y))


PHASES: dict[str, Callable[[nn.Module, list[Tensor]], None]] = {"evaluation": evaluate, "training step": train}


def seconds(call: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(
    ours: nn.Module, theirs: nn.Module, phase: str, shape: tuple[int, ...], inputs: int, rounds: int
) -> list[float]:
    """torch's µs (median), then the ratio's 20th percentile, median and 80th percentile over the rounds."""
    tensors = [torch.randn(shape, requires_grad=True) for _ in range(inputs)]
    calls = [lambda layer=layer: PHASES[phase](layer, tensors) for layer in (ours, theirs)]
    # Warmed up, then as many calls a round as take some 10 ms.
    repeats = max(1, int(0.01 / max(seconds(call, 3) for call in calls)))
    pairs = []
    for turn in range(rounds):
        first, second = (calls[0], calls[1]) if turn % 2 == 0 else (calls[1], calls[0])
        a, b = seconds(first, repeats), seconds(second, repeats)
        pairs.append((a, b) if turn % 2 == 0 else (b, a))
    ratios = sorted(mine / other for mine, other in pairs)
    low, *_, high = statistics.quantiles(ratios, n=5)
    return [1e6 * statistics.median(other for _, other in pairs), low, statistics.median(ratios), high]


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu
        )
    return f"{cpu}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="pairs of timings for each row (default 31)")
    parser.add_argument("--no-save", action="store_true", help="only print")
    options = parser.parse_args()
    console = Console()
    rows = []
    cases = [(name, phase) for name in subjects() for phase in PHASES]
    for name, phase in track(cases, description="measuring", console=console):
        ours, theirs, shape, inputs = subjects()[name]
        rows.append((name, phase, *measure(ours, theirs, phase, shape, inputs, options.rounds)))
    table = Table("layer", "phase", "torch, µs", "ratio p20", "median", "p80", title="gammabeta over torch.nn, time")
    for name, phase, theirs_us, *ratios in rows:
        table.add_row(name, phase, f"{theirs_us:.1f}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    if options.no_save:
        return
    today = datetime.date.today().isoformat()
    lines = [
        f"# Layers beside torch.nn's, {today}",
        "",
        f"`python {' '.join(sys.argv)}` · gammabeta {gb.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()} · {machine()}",
        "",
        "Kernels: " + "; ".join(f"{device}: {what}" for device, what in ops.kernels().items()) + ".",
        "",
        "Time of gammabeta's layer over that of torch.nn's, float32, measured in turns; below 1 is faster.",
        "",
        "| layer | phase | torch, µs | ratio p20 | median | p80 |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {phase} | {us:.1f} | {low:.2f} | {median:.2f} | {high:.2f} |"
            for name, phase, us, low, median, high in rows
        ),
    ]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"layers-{today}.md"
    file.write_text("\n".join(lines) + "\n")
    console.print(f"written to {file}")


if __name__ == "__main__":
    main()
