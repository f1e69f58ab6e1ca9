"""Outputs that are the same for every sample, because a norm loses what distinguishes them.

What it does: Runs the model in evaluation on inputs of two or more samples that differ. If all of its floating-point
outputs are the same for every sample up to rounding, it looks for the first norm whose output does not vary, and behind
which nothing varies. Otherwise it looks for the last layer whose input varies, and reports a norm there whose output
the activation behind it, a module or a function, makes constant.

Why it matters: The model answers the same whatever it is asked, and no gradient reaches what comes before. The usual
causes are γ = 0 in all channels of a norm that no residual connection bypasses, a running variance that is far too
large, or β so negative that the ReLU behind passes nothing. In training mode the same model may look healthy
(tensorflow#23630).

Example: A BatchNorm with γ = 0, as at the end of a residual branch, in a network without a residual connection.

Use instead: γ = 0 only on branches that are added to something. For running statistics that do not fit the data,
`gammabeta.recalibrate(model, batches)`.

Evidence: tests/diagnostics/rules/test_constant_output.py: in the flagged example, inputs that differ by several
standard deviations give the same output bit for bit, and the weights before the norm get a gradient of exactly 0.

Limits: Nothing is said if the variation is lost at another layer, for example a last linear layer whose weights start
at 0, as many models have it. Outputs whose first axis is not that of the samples are not looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.as_training import run_as_training
from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import at_each, recalibration
from gammabeta.diagnostics.gap import gap_of
from gammabeta.diagnostics.initial_share import explained_by_initial
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.outputs import are_constant
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.diagnostics.rules import degenerate_group

severity = "error"
sees = "D"

# A variance below this share of ε leaves outputs below a thousandth of γ.
_BELOW_EPS = 1e-6


def check(record: Record) -> Iterator[Match]:
    constant = record.probe.constant if record.probe is not None else None
    if constant is None or constant.where is None:
        return
    norm = record.norm(constant.where)
    if norm.name in {match.where for match in degenerate_group.check(record)}:
        return  # its groups have one value: that rule says so
    message = "the model's outputs are the same for every sample, although the inputs differ: "
    zero = norm.weight is not None and not bool(norm.weight.any())
    if not zero and _is_young(record):
        return  # in evaluation a young model normalizes by 0 and 1, and its activations may vanish
    if constant.activation:
        message += f"the activation behind it, {constant.activation}, gives {_what(constant.spread)} of what it varies"
        fix = Fix("look at β, and at the weights that feed the norm: they leave nothing above the activation's zero")
    elif constant.before:
        message += f"its output varies, but what lies between it and {constant.before} passes nothing of that"
        fix = Fix("look at β, and at the weights that feed the norm: what lies behind it is saturated for every sample")
    elif zero:
        message += "its γ is 0 in all channels, and nothing in this model bypasses it"
        fix = at_each(
            "start with γ = 1, nn.init.ones_(model.get_submodule({name}).weight), or add its output to a branch",
            "start with γ = 1, nn.init.ones_(norm.weight), or add the norms' outputs to branches",
            norm.name,
        )
    else:
        message += f"its output differs between samples by {constant.spread:.2g} at most, though its input varies"
        if norm.has_statistics and norm.kind == "batch":
            assert norm.running_var is not None
            message += f"; its running variance is up to {float(norm.running_var.max()):.3g}"
        fix = _fix(record, norm)
        if (vanished := _vanished(record, norm)) is not None:
            message += f"; in training its input's variance is {vanished:.2g} at most, far below ε = {norm.eps:g}"
            fix = Fix("look at the weights that feed the norm: where the variance is far below ε, no norm restores it")
    yield Match(norm.name, message, {"spread": constant.spread}, fix)


def _vanished(record: Record, norm: Norm) -> float | None:
    """Return the largest variance of a BatchNorm's input in training, if that too is far below ε; None otherwise."""
    calls = _as_training(record, [norm])[1].get(norm.name, ()) if norm.kind == "batch" else ()
    if len(calls) != 1 or not norm.eps:
        return None
    largest = float(calls[0].moments.var().max())
    return largest if largest < _BELOW_EPS * norm.eps else None


def _as_training(record: Record, norms: Sequence[Norm]) -> tuple[Any, Mapping[str, tuple[Given, ...]]]:
    assert record.model is not None
    layers: dict[str, Any] = {norm.name: norm.module for norm in norms}
    return run_as_training(record.model, record.inputs, layers, record.forward)


def _is_young(record: Record) -> bool:
    """Return whether the outputs are constant because running statistics are those of a young training.

    They are 0 and 1, or to a share that explains why they do not match what training gives the norm, and the outputs
    vary where the norms normalize by the batch.
    """
    moving = [norm for norm in record.of_kind("batch") if norm.tracks and norm.has_statistics]
    if not moving:
        return False
    out, given = _as_training(record, moving)
    if out is not None and are_constant(record.inputs, out):
        return False
    if all(norm.has_initial_statistics for norm in moving):
        return True
    wrong = [norm for norm in moving if _is_wrong(norm, given.get(norm.name, ()))]
    return bool(wrong) and all(explained_by_initial(norm, given[norm.name]) for norm in wrong)


def _is_wrong(norm: Norm, calls: Sequence[Given]) -> bool:
    """Return whether what training gives a norm does not match its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gap = gap_of(calls[0], norm.running_mean, norm.running_var, norm.eps or 0.0) if len(calls) == 1 else None
    return gap is not None and gap.matters


def _what(spread: float) -> str:
    return "nothing" if spread == 0 else f"{spread:.2g}"


def _fix(record: Record, norm: Norm) -> Fix:
    if norm.kind == "batch" and norm.has_statistics:
        return recalibration(record, norm)
    return Fix("look at γ, ε and the statistics of this layer")


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    return Example(model, where=("1",), inputs=torch.randn(8, 3, 8, 8))


def clean() -> Example:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.norm(self.conv(x)))

    model = nn.Sequential(Block(), nn.Flatten(), nn.Linear(192, 10))
    return Example(model, inputs=torch.randn(8, 3, 8, 8))
