"""A whole training step of networks: forward, loss, backward, SGD, with torch's layers and with ours.

| contestant | the network |
|---|---|
| gammabeta | a copy of torch's after `gammabeta.adopt`: only the class of its norms differs |
| torch | as its library builds it, norms as torch or the library has them |
| fused | adopted, then `gammabeta.fuse`; empty where that changes nothing |
| recomputed | adopted and fused, then `gammabeta.recompute` |
| without norms | torch's, each norm replaced by its activation, or by nothing: what the norms cost altogether |

The networks are timm's, a small Llama of transformers (hidden size 256, 4 layers) and a small U-Net with GroupNorm
(`unet.py`). Most of timm's with BatchNorm have norm and activation as one layer (`BatchNormAct2d`), which `adopt` turns
into one layer of ours with an activation; its ResNets have two. Rows of dtype bfloat16 run their forward under
autocast, with float32 weights.

Before anything is timed, outputs, gradients and running statistics are compared with those in float64. Each form of
ours may be at most four times as far from them as torch's. The network without norms computes something else. It is
left out where its outputs or gradients are not finite, and its learning rate is 0, so that they stay finite.

torch.compile does not take part: `compiled_step` times compiled networks.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from gammabeta.benchmarks import networks
from gammabeta.benchmarks.contest import OURS, TORCH, Contestant, Field, Row
from gammabeta.benchmarks.networks import NETWORKS, Batch, Network, in_layout
from gammabeta.benchmarks.step import check_step, kept_bytes, one_pass, steps
from gammabeta.introspection.norms import is_norm_act
from gammabeta.surgery.adopt import adopt, is_adoptable
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.fuse import fuse
from gammabeta.surgery.recompute import is_recomputing, recompute

UNIT = "ms"
FUSED, RECOMPUTED, BARE = "fused", "recomputed", "without norms"
OTHERS = VARIANTS = (FUSED, RECOMPUTED, BARE)

DTYPES = (torch.float32, torch.bfloat16)
# Of torch's time: promised for float32 in both layouts. Everything else may take as long as torch's.
LIMITS = {"mobilenetv2_100": 0.80, "efficientnet_b0": 0.88, "resnet50": 0.90}
NO_SLOWER = 1.0
OBSERVED = 2  # samples on which `fuse` observes the model

missing = networks.missing


def rows(quick: bool) -> list[Row]:
    """Return each network in its layouts and both dtypes; quick: only the first, in float32."""
    chosen, dtypes = (NETWORKS[:1], DTYPES[:1]) if quick else (NETWORKS, DTYPES)
    return [_row(network, layout, dtype) for network in chosen for dtype in dtypes for layout in network.layouts]


def _row(network: Network, layout: str, dtype: torch.dtype) -> Row:
    def build(compiled: bool) -> Field:
        return field(network, layout, dtype)

    at_most = LIMITS.get(network.name, NO_SLOWER) if dtype == torch.float32 else NO_SLOWER
    return Row(f"{network.name}, training step", network.shape, dtype, layout, build, at_most_of_torch=at_most)


def field(network: Network, layout: str, dtype: torch.dtype) -> Field:
    """Return the contestants of a row, after they were compared with float64 and their bytes counted."""
    reason = network.missing()
    if reason is not None:
        return Field({}, refused={OURS: reason})
    theirs = network.seeded()
    batch = network.batches(layout)[0]
    models, refused = forms(network, theirs, batch), {}
    for model in (theirs, *models.values()):
        in_layout(model, layout)
    try:
        check_step(network, theirs, {name: m for name, m in models.items() if name != BARE}, batch, dtype)
    except RuntimeError as error:
        return Field({}, refused={OURS: str(error)})
    if BARE in models:
        reason = why_not_bare(network, models[BARE], batch, dtype)
        if reason is not None:
            del models[BARE]
            refused[BARE] = reason
    contestants: dict[str, Contestant] = {}
    saved: dict[str, int] = {}
    for name, model in {TORCH: theirs, **models}.items():
        saved[name] = kept_bytes(network, model, batch, dtype, remake=is_recomputing(model))
        rate = {"rate": 0.0} if name == BARE else {}
        contestants[name] = steps(network, model, layout, dtype, **rate)
    return Field(contestants, saved=saved, refused=refused)


def forms(network: Network, theirs: nn.Module, batch: Batch) -> dict[str, nn.Module]:
    """Return the network in the other contestants' forms; without the fused one where it equals the adopted one."""
    ours = copy.deepcopy(theirs)
    adopt(ours)
    fused = copy.deepcopy(ours)
    inputs = batch.first(OBSERVED).inputs
    change = fuse(fused, inputs, forward=lambda model, given: network.call(model, given))
    recomputed = copy.deepcopy(fused)
    recompute(recomputed)
    bare = copy.deepcopy(theirs)
    remove_norms(bare)
    alone = {FUSED: fused} if change.changed else {}
    return {OURS: ours, **alone, RECOMPUTED: recomputed, BARE: bare}


def remove_norms(model: nn.Module) -> Change:
    """Replace each norm by the activation that it holds, or by nothing."""
    with transaction("remove_norms") as change:
        for name, module in list(model.named_modules()):
            if is_adoptable(module):
                left = module.get_submodule("act") if is_norm_act(module) else nn.Identity()
                change.replace(model, module, left)
                change.note(name, f"{type(left).__name__} in the place of {type(module).__name__}")
    return change


def why_not_bare(network: Network, model: nn.Module, batch: Batch, dtype: torch.dtype) -> str | None:
    """Return why the network cannot be timed without its norms; None where it can."""
    try:
        found = one_pass(network, model, batch, dtype)
    except RuntimeError as error:  # an activation in place where its norm was not
        return str(error).partition("\n")[0]
    broken = [what for what, values in found.items() if not bool(values.isfinite().all())]
    return f"its {' and '.join(broken)} are not finite" if broken else None
