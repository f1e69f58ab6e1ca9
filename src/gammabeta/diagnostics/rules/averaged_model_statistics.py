"""Averaged weights with running statistics that belong to other weights.

What it does: In a model that holds both a network and its average, finds parts with different weights and, bit for bit,
the same running statistics. Also finds an `AveragedModel` that has averaged while its statistics are still 0 and 1.

Why it matters: Statistics belong to weights. `swa_utils.AveragedModel` averages parameters and by default copies the
source's buffers; hand-written averages often leave buffers out. The averaged network then standardizes by the moments
of activations that it does not have, and evaluates worse than the network it was averaged from (Lightning#14866).

Example: A student and its average, checked together.

Use instead: `gammabeta.recalibrate(averaged, batches)` after averaging, or `use_buffers=True` for an exponential
average.

Evidence: tests/diagnostics/rules/test_averaged_model_statistics.py: an average of four networks classifies 69 % of the
samples correctly with the statistics of the last network, and 100 % with its own.

Limits: In an average alone, without its source, only statistics that are still 0 and 1 are found. Class, name and
gradients decide which of two parts is the average.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "S"

_AVERAGES = ("ema", "swa", "average", "teacher", "target", "momentum", "shadow", "slow")


def check(record: Record) -> Iterator[Match]:
    if record.model is None:
        return
    modules = dict(record.model.named_modules(remove_duplicate=False))
    found: dict[str, tuple[str, str]] = {}
    for norm, other in _twins(record):
        parts = _parts(norm.name, other.name)
        inside = norm.name.removeprefix(parts[0]).removeprefix(".")
        if _differ(modules[parts[0]], modules[parts[1]], inside):
            averaged = _averaged(parts, modules)
            at, source = (norm, other) if averaged == parts[0] else (other, norm)
            message = f"running statistics equal those of {source.name} bit for bit, although the weights differ"
            found.setdefault(at.name, (averaged, message))
    for part, module in modules.items():
        times = getattr(module, "n_averaged", None)
        if isinstance(times, torch.Tensor) and times.numel() == 1 and int(times) > 1:
            for norm in record.norms:
                if norm.name.startswith(f"{part}." if part else "") and norm.tracks and norm.has_initial_statistics:
                    found.setdefault(
                        norm.name, (part, f"running statistics are still 0 and 1 after {int(times)} averages")
                    )
    for norm in record.norms:
        if norm.name in found:
            averaged, message = found[norm.name]
            fix = recalibration(record, norm, part=averaged)
            yield Match(norm.name, message, {"batches": norm.batches}, fix)


def _twins(record: Record) -> Iterator[tuple[Norm, Norm]]:
    """Yield pairs of norms whose statistics moved and are equal, which no two are by chance."""
    seen: dict[tuple[int, float], list[Norm]] = {}
    for norm in record.norms:
        if norm.has_statistics and not norm.has_initial_statistics:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            total = norm.running_mean.double().sum().item() + norm.running_var.double().sum().item()
            if total != total:  # NaN
                continue
            alike = seen.setdefault((norm.running_mean.numel(), total), [])
            for other in alike:
                assert other.running_mean is not None
                assert other.running_var is not None
                same = torch.equal(other.running_mean, norm.running_mean)
                # A single channel of small integers may be equal by chance.
                if same and torch.equal(other.running_var, norm.running_var) and norm.running_mean.numel() > 1:
                    yield other, norm
            alike.append(norm)


def _parts(first: str, second: str) -> tuple[str, str]:
    """Return the names of the modules that two norms belong to: their names without the common ending."""
    one, two = first.split("."), second.split(".")
    while len(one) > 1 and len(two) > 1 and one[-1] == two[-1]:
        one.pop()
        two.pop()
    if one[-1] == two[-1]:  # one of them is the model itself
        one.pop() if len(one) == 1 else None
        two.pop() if len(two) == 1 else None
    return ".".join(one), ".".join(two)


def _differ(first: nn.Module, second: nn.Module, norm: str) -> bool:
    """Whether parameters of the same name and shape, registered before the norm, have different values.

    What is behind the norm has no part in its statistics: two heads on one input rightly have the same.
    """
    others = {name.removeprefix("module."): p for name, p in second.named_parameters()}
    for key, parameter in first.named_parameters():
        if key.startswith(f"{norm}."):
            return False
        other = others.get(key.removeprefix("module."))
        if other is not None and other.shape == parameter.shape and not torch.equal(other, parameter):
            return True
    return False


def _averaged(parts: tuple[str, str], modules: dict[str, nn.Module]) -> str:
    """Return the name of the part that is the average."""

    def likely(part: str) -> tuple[bool, bool, bool]:
        module = modules[part]
        above = [modules[part.rsplit(".", i)[0]] for i in range(part.count(".") + 1)]
        return (
            any(hasattr(m, "n_averaged") or "ema" in type(m).__name__.lower() for m in [module, *above]),
            any(word in part.lower() for word in _AVERAGES),
            not any(p.requires_grad for p in module.parameters()),
        )

    return max(reversed(parts), key=likely)


def flagged() -> Example:
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    teacher = AveragedModel(student)
    for _ in range(3):
        student(torch.randn(32, 4)).square().sum().backward()
        optimizer.step()
        teacher.update_parameters(student)
    loader = [torch.randn(32, 4) for _ in range(3)]
    return Example(nn.ModuleDict({"student": student, "teacher": teacher}), where=("teacher.module.1",), loader=loader)


def clean() -> Example:
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    teacher = AveragedModel(student)
    for _ in range(3):
        student(torch.randn(32, 4)).square().sum().backward()
        optimizer.step()
        teacher.update_parameters(student)
    torch.optim.swa_utils.update_bn([torch.randn(32, 4) for _ in range(3)], teacher)
    return Example(nn.ModuleDict({"student": student, "teacher": teacher}))
