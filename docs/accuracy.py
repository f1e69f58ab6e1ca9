"""Measure how far each norm is from exact arithmetic, for each implementation.

    python docs/accuracy.py    measure again, and keep the figures in docs/accuracy.json

docs/generate.py draws the table of docs/conventions.md from these figures. tests/test_accuracy.py measures with the
functions of this file, and holds every route that a call takes to the rule.

An error compares a tensor with the same result in 80-bit arithmetic on the same, rounded inputs. It is the largest
deviation divided by the largest value of that tensor, in units of its dtype's spacing at 1: about ulp of the largest
output. A figure is the worst of output, statistics and gradients, over several shapes and seeds, since a single
statistic may be lucky.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gammabeta import aten, functional, ops, reference

Results = dict[str, Tensor]

HERE = Path(__file__).parent
KEPT = HERE / "accuracy.json"

NORMS = ("batch_norm", "batch_norm in evaluation", "instance_norm", "group_norm", "layer_norm", "rms_norm")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RATIOS = (1, 10, 100, 1000, 10000)  # mean / σ of a statistic's values
SEEDS = 2
EPS = 1e-5
GROUPS = 4

TIMES_OURS, ULP = 4.0, 2.0
"""A route serves where its error is at most TIMES_OURS times that of our kernel, or at most ULP ulp."""

# A few values per statistic and more than 1,024, several samples and one; each shape has many statistics.
_PLANES = ((8, 16, 4, 4), (16, 16, 12, 12), (1, 32, 24, 24))
_LAYOUTS_OF_CHANNELS = {
    "contiguous": _PLANES,
    "channels_last": _PLANES,
    "channels_last_3d": ((4, 16, 3, 6, 6),),
    "strided": ((8, 16, 12, 12),),
}
_ROWS = {"contiguous": ((16, 16), (64, 256), (1500, 32), (16, 4000)), "strided": ((64, 256),)}
SHAPES: dict[str, dict[str, tuple[tuple[int, ...], ...]]] = {
    "batch_norm": {"(N, C)": ((8, 32), (1500, 16)), **_LAYOUTS_OF_CHANNELS},
    "batch_norm in evaluation": {"(N, C)": ((8, 32), (1500, 16)), **_LAYOUTS_OF_CHANNELS},
    "instance_norm": _LAYOUTS_OF_CHANNELS,
    "group_norm": {"(N, C)": ((16, 32),), **_LAYOUTS_OF_CHANNELS},
    "layer_norm": _ROWS,
    "rms_norm": _ROWS,
}


class Inputs(NamedTuple):
    norm: str
    x: Tensor
    weight: Tensor
    bias: Tensor
    g_y: Tensor
    running: tuple[Tensor, Tensor] | None

    @property
    def groups(self) -> int:
        return self.x.shape[1] if self.norm == "instance_norm" else GROUPS


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x in that layout; strided: every other element of a larger tensor, the last two axes swapped."""
    if layout == "strided":
        larger = x.new_zeros(*x.shape[:-2], x.shape[-1], 2 * x.shape[-2])
        view = larger[..., ::2].transpose(-1, -2)
        return view.copy_(x)
    formats = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(layout, torch.contiguous_format))


def inputs(norm: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, ratio: float, seed: int) -> Inputs:
    """Draw normal values of standard deviation 1 around a mean of about ±`ratio` for each statistic."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def means(*size: int) -> Tensor:
        signs = torch.randint(0, 2, size, generator=generator) * 2 - 1
        return ratio * signs * (0.9 + 0.2 * torch.rand(size, generator=generator, dtype=torch.float64))

    by_row = norm in ("layer_norm", "rms_norm")
    positions = (1,) * (len(shape) - 2)
    if by_row:
        mean = means(*shape[:-1], 1)
    elif norm.startswith("batch_norm"):
        mean = means(1, shape[1], *positions)
    else:
        groups = shape[1] if norm == "instance_norm" else GROUPS
        mean = means(shape[0], groups).repeat_interleave(shape[1] // groups, 1).reshape(*shape[:2], *positions)
    x = laid_out((normal(*shape) + mean).to(dtype), layout)
    channels = shape[-1] if by_row else shape[1]
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (0.5 + normal(channels).abs()).to(statistics), normal(channels).to(statistics)
    running = None
    if norm == "batch_norm in evaluation":
        values = x.double().movedim(1, -1).flatten(0, -2)
        running = values.mean(0).to(statistics), values.var(0).to(statistics)
    return Inputs(norm, x, weight, bias, laid_out(normal(*shape).to(dtype), layout), running)


# The implementations.


def ours(given: Inputs) -> Results:
    """Compute by our ops, with whatever is registered for them."""
    return _by_ops(given, torch.ops.gammabeta)


def by_reference(given: Inputs) -> Results:
    """Compute by the two passes of the reference."""
    return _by_ops(given, reference)


def _by_ops(given: Inputs, implementation: Any) -> Results:
    x, weight, bias, g_y = given.x, given.weight, given.bias, given.g_y
    end = EPS, "none", 0.0
    if given.running is not None:
        y = implementation.channel_apply_forward(x, *given.running, weight, bias, None, None, *end)
        gradients = implementation.channel_norm_backward(g_y, x, weight, bias, None, None, *given.running, None, *end)
        return _named(given, y, gradients)
    if given.norm == "batch_norm":
        y, mean, var, count = implementation.channel_norm_forward(x, weight, bias, None, None, *end)
        gradients = implementation.channel_norm_backward(g_y, x, weight, bias, None, None, mean, var, count, *end)
        return _named(given, y, gradients) | {"mean": mean, "var": var * count.to(var.dtype) / (count - 1)}
    axes = (1, 1, given.groups)
    if given.norm in ("layer_norm", "rms_norm"):
        axes = (x.ndim - 1, 1, 1)
    shift = None if given.norm == "rms_norm" else bias
    center = given.norm != "rms_norm"
    y, *statistics = implementation.sample_norm_forward(x, *axes, weight, shift, None, None, *end, center)
    gradients = implementation.sample_norm_backward(g_y, x, *axes, weight, shift, None, None, *statistics, *end, center)
    return _named(given, y, gradients)


def _named(given: Inputs, y: Tensor, gradients: tuple[Tensor | None, ...]) -> Results:
    names = ("g_x", "g_weight") if given.norm == "rms_norm" else ("g_x", "g_weight", "g_bias")
    results = {"y": y} | dict(zip(names, gradients, strict=False))
    return {name: tensor for name, tensor in results.items() if tensor is not None}


def by_torch(given: Inputs) -> Results:
    """Compute by torch's own op, in float32 where x has 16 bits; InstanceNorm by torch's group norm."""
    run = given.running or (torch.zeros_like(given.weight), torch.zeros_like(given.weight))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide, weight, bias = aten.in_one_dtype(x, weight, bias)
        if given.norm.startswith("batch_norm"):
            y = aten.batch_norm(wide, *run, weight, bias, given.norm == "batch_norm", 1.0, EPS)
        elif given.norm == "layer_norm":
            y = torch.layer_norm(wide, x.shape[-1:], weight, bias, EPS)
        elif given.norm == "rms_norm":
            y = torch.rms_norm(wide, x.shape[-1:], weight, EPS)
        else:
            y = torch.group_norm(wide, given.groups, weight, bias, EPS)
        return y.to(x.dtype)

    return _differentiated(given, norm, run)


def chosen(given: Inputs) -> Results:
    """Compute by whatever `gammabeta.functional` chooses."""
    return _differentiated(given, *_called(given))


def _called(given: Inputs) -> tuple[Callable[..., Tensor], tuple[Tensor, Tensor]]:
    """Return the call that a user makes, and the running statistics that it moves."""
    run = given.running or (torch.zeros_like(given.weight), torch.zeros_like(given.weight))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if given.norm.startswith("batch_norm"):
            return functional.batch_norm(x, *run, weight, bias, given.norm == "batch_norm", 1.0, EPS)
        if given.norm == "layer_norm":
            return functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)
        if given.norm == "rms_norm":
            return functional.rms_norm(x, x.shape[-1:], weight, EPS)
        if given.norm == "instance_norm":
            return functional.instance_norm(x, None, None, weight, bias, True, 0.1, EPS)
        return functional.group_norm(x, given.groups, weight, bias, EPS)

    return norm, run


def _differentiated(given: Inputs, norm: Callable[..., Tensor], run: tuple[Tensor, Tensor]) -> Results:
    leaves = [t.detach().requires_grad_() for t in (given.x, given.weight, given.bias)]
    y = norm(*leaves)
    gradients = torch.autograd.grad(y, leaves[:2] if given.norm == "rms_norm" else leaves, given.g_y)
    results = _named(given, y.detach(), gradients)
    return results | dict(zip(("mean", "var"), run, strict=True)) if given.norm == "batch_norm" else results


ROUTES: dict[str, Callable[[Inputs], Results]] = {
    "ours": ours, "torch": by_torch, "reference": by_reference, "chosen": chosen,
}  # fmt: skip


# The exact results.


def exact(given: Inputs) -> dict[str, tuple[Any, float]]:
    """Compute the results by their definitions in numpy's widest arithmetic, each with its largest absolute value."""
    x, weight, bias, g_y = (_wide(t) for t in (given.x, given.weight, given.bias, given.g_y))
    shape = x.shape
    channel = (1, -1, *(1,) * (x.ndim - 2))
    if given.norm.startswith("batch_norm"):
        axes: tuple[int, ...] = (0, *range(2, x.ndim))
        over_parameters = axes
        weight, bias = weight.reshape(channel), bias.reshape(channel)
    elif given.norm in ("layer_norm", "rms_norm"):
        axes, over_parameters = (-1,), tuple(range(x.ndim - 1))
        weight, bias = weight, bias * (given.norm != "rms_norm")
    else:
        x, g_y = (t.reshape(shape[0], given.groups, shape[1] // given.groups, -1) for t in (x, g_y))
        axes, over_parameters = (2, 3), (0, 3)
        weight, bias = (t.reshape(1, given.groups, -1, 1) for t in (weight, bias))
    if given.running is not None:
        mean, var = (_wide(t).reshape(channel) for t in given.running)
    else:
        mean = x.mean(axes, keepdims=True) * (given.norm != "rms_norm")
        var = ((x - mean) ** 2).mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(var + np.longdouble(EPS))
    xhat, g_xhat = (x - mean) * rstd, g_y * weight
    g_x = g_xhat
    if given.running is None:
        g_x = g_x - xhat * (xhat * g_xhat).mean(axes, keepdims=True)
        if given.norm != "rms_norm":
            g_x = g_x - g_xhat.mean(axes, keepdims=True)
    n = x.size // mean.size
    values = {
        "y": (xhat * weight + bias).reshape(shape),
        "g_x": (g_x * rstd).reshape(shape),
        "g_weight": (xhat * g_y).sum(over_parameters).reshape(-1),
        "g_bias": g_y.sum(over_parameters).reshape(-1),
        "mean": mean.reshape(-1),
        "var": var.reshape(-1) * n / max(n - 1, 1),
    }
    return {name: (value, max(np.abs(value).max(), np.finfo(np.float64).tiny)) for name, value in values.items()}


def _wide(tensor: Tensor) -> Any:
    return tensor.detach().double().contiguous().numpy().astype(np.longdouble)


def is_exact(dtype: torch.dtype) -> bool:
    """Return whether this machine has an arithmetic that is exact compared with that dtype."""
    return bool(np.finfo(np.longdouble).eps < torch.finfo(dtype).eps / 1000)


def errors(results: Results, right: dict[str, tuple[Any, float]]) -> dict[str, float]:
    """Return the error of each tensor in ulp of its largest value, by its name."""
    found = {}
    for name, tensor in results.items():
        value, largest = right[name]
        difference = _wide(tensor).reshape(value.shape) - value
        error = float(max(difference.max(), -difference.min()) / largest) / torch.finfo(tensor.dtype).eps
        found[name] = error if error == error else float("inf")
    return found


def cases(norm: str, layout: str, dtype: torch.dtype, ratio: float) -> Iterator[Inputs]:
    """Yield inputs of every shape and seed."""
    for shape in SHAPES[norm][layout]:
        for seed in range(SEEDS):
            yield inputs(norm, shape, layout, dtype, ratio, seed)


def measure(
    norm: str, layout: str, dtype: torch.dtype, ratio: float, routes: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Return the worst error over shapes and seeds, by route and tensor."""
    worst: dict[str, dict[str, float]] = {route: {} for route in routes}
    for given in cases(norm, layout, dtype, ratio):
        right = exact(given)
        for route in routes:
            for name, error in errors(ROUTES[route](given), right).items():
                worst[route][name] = max(error, worst[route].get(name, 0.0))
    return worst


def breaks_the_rule(errors_of_route: dict[str, float], errors_of_own: dict[str, float]) -> list[str]:
    """Return the names of the tensors whose error breaks the rule."""
    return [name for name, error in errors_of_route.items() if error > max(TIMES_OURS * errors_of_own[name], ULP)]


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def who(given: Inputs) -> str:
    """Return who computes a user's call, "ours", "reference" or "torch", from the operations that it makes."""
    norm, _ = _called(given)
    with _Calls() as calls:
        norm(given.x, given.weight, given.bias)
    if any(name.startswith("gammabeta::") for name in calls.names):
        return "ours" if ops.has_kernel("cpu") else "reference"
    return "torch"


def taken(norm: str, layout: str, dtype: torch.dtype) -> list[str]:
    """Return `who` for each shape, in their order, without repetition."""
    found = (who(inputs(norm, shape, layout, dtype, 1, 0)) for shape in SHAPES[norm][layout])
    return list(dict.fromkeys(found))


# The kept figures, and the table.


def measured() -> list[dict[str, Any]]:
    """Measure each norm, layout and dtype: the worst errors by route, who computes, where torch fails."""
    kernels = ops.has_kernel("cpu")
    routes = ("ours", "torch", "reference", "chosen") if kernels else ("chosen", "reference")
    rows = []
    for norm, layouts in SHAPES.items():
        for layout in layouts:
            for dtype in DTYPES:
                found = [measure(norm, layout, dtype, ratio, routes) for ratio in RATIOS]
                row: dict[str, Any] = {"norm": norm, "layout": layout, "dtype": str(dtype).removeprefix("torch.")}
                row["errors"] = {route: [_coarse(max(at[route].values())) for at in found] for route in routes}
                row["taken"] = taken(norm, layout, dtype)
                if kernels:
                    row["wrong"] = [bool(breaks_the_rule(at["torch"], at["ours"])) for at in found]
                rows.append(row)
    return rows


def _coarse(error: float) -> float:
    return float(f"{error:.0e}") if error >= 1 else 1.0


def keep() -> None:
    """Measure with kernels in this process and without them in another, and write the figures."""
    if not ops.has_kernel("cpu"):
        sys.exit("docs/accuracy.py: expected gammabeta's kernels to be built, found none: run make test first.")
    torch.set_num_threads(1)
    rows = measured()
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); import accuracy; print(json.dumps(accuracy.measured()))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE)],
        env=os.environ | {"GAMMABETA_KERNELS": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for row, without in zip(rows, json.loads(done.stdout), strict=True):
        row["errors"]["without kernels"] = without["errors"]["chosen"]
        row["taken without kernels"] = without["taken"]
    kept = {
        "date": date.today().isoformat(),
        "torch": torch.__version__.partition("+")[0],
        "machine": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "rows": rows,
    }
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def table() -> str:
    """Return the generated section of docs/conventions.md."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    rows = kept["rows"]
    wide = [row for row in rows if row["dtype"] == "float32"]
    others = [row for row in rows if row["dtype"] != "float32"]
    return "\n".join(
        [
            "Errors in ulp of the largest value, ours / torch's / the reference's, by the ratio of mean to spread of a "
            "statistic's values: the worst of output, statistics and gradients, to one digit. **Bold** breaks the "
            f"rule. {kept['date']}, torch {kept['torch']}, {kept['machine']}.",
            "",
            *_lines(wide),
            "",
            "<details><summary>float64 and 16 bits</summary>",
            "",
            *_lines(others),
            "",
            "</details>",
        ]
    )


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"| norm, layout, dtype | {' | '.join(f'{ratio:,}' for ratio in RATIOS)} | taken | without kernels |"
    yield "|---|" + "---:|" * len(RATIOS) + "---|---|"
    for row in rows:
        figures = []
        for i, wrong in enumerate(row["wrong"]):
            own, of_torch, of_reference = (_figure(row["errors"][route][i]) for route in ("ours", "torch", "reference"))
            figures.append(f"{own} / {f'**{of_torch}**' if wrong else of_torch} / {of_reference}")
        takes = (", then ".join(row[key]) for key in ("taken", "taken without kernels"))
        yield f"| {row['norm']}, {row['layout']}, {row['dtype']} | {' | '.join(figures)} | {' | '.join(takes)} |"


def _figure(error: float) -> str:
    return f"{error:.0f}" if error < 1000 else f"{error:.0e}".replace("e+0", "e").replace("e+", "e")


if __name__ == "__main__":
    keep()
