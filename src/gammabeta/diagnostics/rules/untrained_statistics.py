"""Trained weights beside running statistics that were never collected.

What it does: Finds BatchNorms whose running mean and variance are exactly 0 and 1 although they have been trained. One
trace of training is a `num_batches_tracked` above 0. The other is the block around the layer: its γ and its β both
differ between channels, and other BatchNorms of the same block have statistics that moved. Also finds layers with
statistics but a `num_batches_tracked` of 0 where `momentum=None` averages by that count.

Why it matters: In evaluation such a layer passes its input on unchanged except for γ and β, where training standardized
it: activations of any size. Causes are a converter that dropped the buffers, `load_state_dict(strict=False)`, weights
averaged without their buffers, or `reset_running_stats()`.

Example: A trained model whose second BatchNorm lost its buffers.

Use instead: `gammabeta.recalibrate(model, batches)`, or load the buffers.

Evidence: tests/diagnostics/rules/test_untrained_statistics.py: a network for two classes is right on over 97 % of the
samples, and on under 60 % once the buffers are reset; recalibrating restores it.

Limits: γ and β that differ between channels are no trace by themselves, since some constructors draw them: γ alone, as
DCGAN's, is none at all, and both (RepVGG's) are one in a block whose other statistics moved. So where a whole model or
a whole part of it has statistics of 0 and 1 and no counts, as after a loss of all buffers, it cannot be told from a new
one. In evaluation mode and in a checkpoint that is one note; in training mode it is nothing, since training collects
them. Given inputs, train-eval-gap measures the harm. γ and β that were folded into some layers of a block on purpose,
with statistics set to 0 and 1, look like a loss: ignore the rule there. A FrozenBatchNorm is left out, since converted
weights commonly have such statistics; in a checkpoint it is a layer without num_batches_tracked, and a warning. A new
layer in a trained model, with γ of 1 and β of 0, is not found; nor is a layer without γ and β, or one with a momentum
of 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import recalibration
from gammabeta.diagnostics.record import Norm, Record, counted
from gammabeta.diagnostics.rule import Example, Match

severity = "error"
sees = "SF"


def check(record: Record) -> Iterator[Match]:
    tracking = [norm for norm in record.norms if norm.has_statistics and not norm.frozen]
    moved = _Moved([norm for norm in tracking if not norm.has_initial_statistics], tracking)
    unknown = []
    for norm in tracking:
        if norm.has_initial_statistics:
            told = _told(norm, moved)
            if told is not None:
                # A checkpoint does not say whether this is a FrozenBatchNorm, but those count no batches.
                sure = record.model is not None or norm.batches is not None
                yield Match(
                    norm.name,
                    f"running mean and variance are exactly 0 and 1, yet {told}",
                    {"batches": norm.batches, "others that moved": len(moved.norms)},
                    recalibration(record, norm),
                    severity=None if sure else "warning",
                )
            elif not norm.training and (_varies(norm.weight) or _varies(norm.bias)):
                unknown.append(norm)
        elif norm.batches == 0 and record.model is not None and norm.tracks and norm.momentum is None:
            yield Match(
                norm.name,
                "num_batches_tracked is 0 although the statistics have moved, and momentum=None averages by that "
                "count: the next batch in training replaces them",
                {"batches": 0},
                recalibration(record, norm),
                severity="warning",
            )
    if unknown:
        yield _note(record, unknown)


class _Moved:
    """The norms whose statistics have moved, by the blocks that contain them.

    Args:
        norms: those norms.
        tracking: all norms with statistics.
    """

    def __init__(self, norms: list[Norm], tracking: list[Norm]) -> None:
        self.norms = norms
        self._moved = {block for norm in norms for block in _blocks(norm.name)}
        self._several: dict[str, int] = {}
        for norm in tracking:
            for block in _blocks(norm.name):
                self._several[block] = self._several.get(block, 0) + 1

    def in_the_block_of(self, norm: Norm) -> str | None:
        """Return the smallest module around the norm that has other norms, if the statistics of any have moved."""
        block = next((block for block in _blocks(norm.name) if self._several[block] > 1), None)
        return block if block in self._moved else None


def _blocks(name: str) -> Iterator[str]:
    """Yield the names of the modules around a module, the smallest first; "" is the model."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _told(norm: Norm, moved: _Moved) -> str | None:
    """Return what shows that the norm has been trained, in words; None if nothing does."""
    if norm.batches and norm.momentum != 0:
        return f"num_batches_tracked says that it has seen {counted(norm.batches, 'batch', 'batches')}"
    block = moved.in_the_block_of(norm)
    # Many constructors draw γ and leave β at 0; training moves both.
    affine = [values for values in (norm.weight, norm.bias) if values is not None]
    if block is None or not affine or not all(_varies(values) for values in affine):
        return None
    return f"{_ranges(norm)}, and the statistics of other norms in {block or 'the model'} have moved"


def _ranges(norm: Norm) -> str:
    parts = [
        f"{symbol} ranges from {values.min():.3g} to {values.max():.3g}"
        for symbol, values in (("γ", norm.weight), ("β", norm.bias))
        if values is not None and _varies(values)
    ]
    return " and ".join(parts)


def _varies(values: Tensor | None) -> bool:
    """Whether channels have different values, by training or by a constructor that draws them."""
    return values is not None and not values.is_meta and values.numel() > 1 and not bool((values == values[0]).all())


def _note(record: Record, norms: list[Norm]) -> Match:
    """Report norms that have either lost their statistics or never been trained."""
    others = f" (and of {len(norms) - 1} more)" if len(norms) > 1 else ""
    message = (
        f"running mean and variance{others} are exactly 0 and 1, while γ or β differ between channels: the weights are "
        f"either new, from a constructor that draws them, or trained and without their statistics"
    )
    call = "gammabeta.recalibrate(model, batches)"
    what = f"if the weights are trained: {call}" if record.model is not None else f"if trained: load it, then {call}"
    return Match(norms[0].name, message, {"layers": [norm.name for norm in norms]}, Fix(what), severity="note")


def flagged() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(32, 4)).square().sum().backward()
    optimizer.step()
    lost = {key: value for key, value in model.state_dict().items() if not key.startswith("4.running")}
    fresh = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    fresh.load_state_dict(lost, strict=False)
    return Example(fresh.eval(), where=("4",), loader=[torch.randn(32, 4) for _ in range(3)])


def clean() -> Example:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(32, 4)).square().sum().backward()
    optimizer.step()
    fresh = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    fresh.load_state_dict(model.state_dict())
    return Example(fresh.eval())
