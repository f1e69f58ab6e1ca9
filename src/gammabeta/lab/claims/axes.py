"""Each norm's axes decide which changes it ignores.

Question: Which changes of the input leave a norm's output unchanged?

Claim: BatchNorm normalizes one channel over samples and positions, LayerNorm one sample over channels and positions,
GroupNorm one group of channels of a sample, InstanceNorm one channel of one sample, and RMSNorm the channels of one
position, without centering. From that alone it follows which scalings, shifts, exchanges and permutations each norm
ignores.

Criterion: An identity in float64. The derived table labels every element with the statistic it belongs to. A scaling or
shift of some elements leaves the output unchanged if and only if each statistic's elements are all among them or all
not among them; a shift also requires that the norm centers. Exchanging companions leaves a sample unchanged if and only
if it shares no statistic with them. A permutation passes through if and only if it maps statistics to statistics.
Scaling by a also scales ε by a² for the scaled elements. Measured is the largest change of the output over its largest
value. It must be below 10⁻¹⁰ where the norm is derived to ignore the change, and above 10⁻³ where it is not. (Rounding
of 64 values in float64 is below 10⁻¹³.) Supported if every cell of the table agrees, otherwise contradicted.

Room: Always: an identity needs none.

Method: Every norm without affine parameters runs on one random input (N, C, H, W) in training mode. BatchNorm also runs
in evaluation mode: its statistics are then constants and every element has its own label, so it ignores only
companions. Each norm is applied to the changed input. The result is compared with the output on the original input,
permuted in the same way where the change is a permutation.

Settings: 4 samples, 8 channels, 3 × 3 positions, 2 groups, spread 2, mean 1; scaling by 3, shifting by 2; float64; the
same for quick and full.

Sources: Wu & He 2018, figure 2 (arXiv 1803.08494); Ba et al. 2016, table 1 (1607.06450); Zhang & Sennrich 2019, table 1
(1910.07467)

Known: It follows from the definitions. If ε is not scaled, LayerNorm changes by 7·10⁻⁶ under scaling.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.norms import ChannelRMSNorm
from gammabeta.lab.outcome import Axis, Effect, Heat, Outcome, Picture, Room, Table
from gammabeta.lab.trials.trial import Trial, versioned

EXACT = True
KIND = "any"

N, C, SIDE, GROUPS = 4, 8, 3, 2
SCALE, SHIFT, EPS = 3.0, 2.0, 1e-5
SAME, DIFFERENT = 1e-10, 1e-3

NORMS = ("batch", "batch in evaluation", "layer", "group", "instance", "rms")
CHANGES = (
    "scale everything",
    "scale a sample",
    "scale a channel",
    "shift everything",
    "shift a sample",
    "shift a channel",
    "exchange companions",
    "permute samples",
    "permute positions",
    "permute channels within groups",
    "permute channels between groups",
)


def labels(norm: str) -> Tensor:
    """Label each element with the statistic that normalizes it, from the norm's axes: (N, C, H, W) integers."""
    n, c, s = torch.meshgrid(torch.arange(N), torch.arange(C), torch.arange(SIDE**2), indexing="ij")
    by = {
        "batch": c,
        "batch in evaluation": n * C * SIDE**2 + c * SIDE**2 + s,
        "layer": n,
        "group": n * GROUPS + c // (C // GROUPS),
        "instance": n * C + c,
        "rms": n * SIDE**2 + s,
    }
    return by[norm].reshape(N, C, SIDE, SIDE)


def touched(change: str) -> Tensor:
    """Mark the elements that a scaling, shift or exchange changes: (N, C, H, W) booleans."""
    where = torch.zeros(N, C, SIDE, SIDE, dtype=torch.bool)
    what = change.partition(" ")[2]
    if what == "everything":
        where[:] = True
    elif what == "a sample":
        where[1] = True
    elif what == "a channel":
        where[:, 2] = True
    else:
        where[1:] = True
    return where


def permuted(change: str, x: Tensor) -> Tensor:
    """Permute samples, positions or channels of (N, C, H, W)."""
    if change == "permute samples":
        return x[torch.tensor([2, 0, 3, 1])]
    if change == "permute positions":
        return x.flatten(2)[:, :, torch.arange(SIDE**2).roll(4)].reshape(x.shape)
    order = torch.arange(C)
    one, other = (0, 1) if change == "permute channels within groups" else (1, C - 2)
    order[[one, other]] = order[[other, one]]
    return x[:, order]


def derived(norm: str, change: str) -> bool:
    """Tell whether the norm ignores the change, from the labels."""
    label = labels(norm)
    if change.startswith("permute"):
        # Ignored if two elements share a statistic after the permutation exactly when they did before it.
        if norm == "batch in evaluation":
            return "channels" not in change  # its constants belong to channels, whatever the elements
        before, after = label.flatten(), permuted(change, label).flatten()
        return len(set(zip(before.tolist(), after.tolist(), strict=True))) == len(before.unique())
    where = touched(change)
    if change == "exchange companions":
        return not set(label[where].tolist()) & set(label[~where].tolist())
    if norm == "batch in evaluation" or (change.startswith("shift") and norm == "rms"):
        return False
    return not set(label[where].tolist()) & set(label[~where].tolist())


def layer(norm: str, eps: float) -> nn.Module:
    """Build the norm without affine parameters, in float64; in evaluation with running statistics that are not 0, 1."""
    if norm == "rms":
        made = ChannelRMSNorm(C)
        made.norm.eps = eps
        return made.double()
    made_by: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: gb.BatchNorm2d(C, eps, affine=False),
        "batch in evaluation": lambda: gb.BatchNorm2d(C, eps, affine=False),
        "layer": lambda: gb.LayerNorm((C, SIDE, SIDE), eps, elementwise_affine=False),
        "group": lambda: gb.GroupNorm(GROUPS, C, eps, affine=False),
        "instance": lambda: gb.InstanceNorm2d(C, eps),
    }
    module = made_by[norm]().double()
    if norm == "batch in evaluation":
        module.get_buffer("running_mean").copy_(torch.linspace(0.5, 1.5, C))
        module.get_buffer("running_var").copy_(torch.linspace(2.0, 6.0, C))
        return module.eval()
    return module


@versioned(1)
def change_of(*, norm: str, change: str) -> dict[str, Any]:
    """Return the largest change of the output, over its largest value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, C, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2 + 1
    with torch.no_grad():
        y = layer(norm, EPS)(x)
        if change.startswith("permute"):
            difference = layer(norm, EPS)(permuted(change, x)) - permuted(change, y)
        else:
            where = touched(change)
            if change == "exchange companions":
                others = torch.randn(x.shape, generator=generator, dtype=torch.float64) * 2 + 1
                z = torch.where(where, others, x)
                difference = (layer(norm, EPS)(z) - y)[~where]
            elif change.startswith("shift"):
                difference = layer(norm, EPS)(torch.where(where, x + SHIFT, x)) - y
            else:
                z = torch.where(where, SCALE * x, x)
                scaled, left = layer(norm, EPS * SCALE**2)(z), layer(norm, EPS)(z)
                difference = torch.where(where, scaled, left) - y
    return {"change": float(difference.abs().max() / y.abs().max())}


def measure(experiment: Experiment) -> Outcome:
    """Compare every cell of norm × change with the derived table."""
    cells = [(norm, change) for norm in NORMS for change in CHANGES]
    trials = [Trial(f"{__name__}:change_of", {"norm": norm, "change": change}) for norm, change in cells]
    seen = {cell: result["change"] for cell, result in zip(cells, experiment.run(trials), strict=True)}
    agree = {
        (norm, change): found is not None and (found < SAME if derived(norm, change) else found > DIFFERENT)
        for (norm, change), found in seen.items()
    }
    wrong = [f"{norm}: {change}" for (norm, change), good in agree.items() if not good]
    effect = Effect.exactly("cells that differ from the derived table", len(wrong), len(cells), "cells")
    blind = sum(derived(*cell) for cell in cells)
    sentence = (
        f"all {len(cells)} cells of norm × change are as derived from the axes: {blind} changes are ignored, "
        f"{len(cells) - blind} are not"
        if not wrong
        else f"{len(wrong)} of {len(cells)} cells are not as derived: {'; '.join(wrong[:4])}"
    )

    def text(norm: str, change: str) -> str:
        word = _word(norm, change)
        return word if agree[norm, change] else f"differs: derived {word}"

    heat = Heat(
        list(CHANGES),
        list(NORMS),
        [[seen[norm, change] for change in CHANGES] for norm in NORMS],
        [[text(norm, change) for change in CHANGES] for norm in NORMS],
    )
    return Outcome(
        verdict=effect.verdict,
        sentence=sentence,
        effects=[effect],
        room=Room(True, "an identity needs none"),
        pictures=[
            Picture(
                "Which changes each norm ignores",
                "Largest change of the output, over its largest value, when the input is changed as the column says "
                "(permutations: beyond the same permutation of the output); about 10⁻¹⁶ is rounding.",
                "heatmap",
                Axis("change of the input"),
                Axis("norm"),
                heat=heat,
            )
        ],
        tables=[
            Table(
                "Change of the output, measured and derived",
                ["norm", "change", "measured", "derived", "agrees"],
                [
                    [
                        norm,
                        change,
                        seen[norm, change],
                        _word(norm, change),
                        agree[norm, change],
                    ]
                    for norm, change in cells
                ],
            )
        ],
        trials=experiment.trials,
    )


def _word(norm: str, change: str) -> str:
    return "ignored" if derived(norm, change) else "not ignored"
