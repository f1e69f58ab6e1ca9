"""What collectives cost over a link: a model of latency and bandwidth, with links of assumed speed."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from gammabeta.introspection.norms import is_batch_norm

GATHER, REDUCE = "all-gather", "all-reduce"
# The share of a step from which on an exchange is called dear.
PART = 0.05
MOST_RANKS = 1024


@dataclass(frozen=True)
class Link:
    """A link between devices: its latency α in seconds and bandwidth β in bytes per second, both assumed."""

    name: str
    alpha: float
    beta: float


LINKS = {
    "nvlink": Link("NVLink 4", 3e-6, 900e9),
    "infiniband": Link("InfiniBand NDR", 5e-6, 50e9),
    "100gbe": Link("100 GbE", 20e-6, 12.5e9),
    "25gbe": Link("25 GbE", 30e-6, 3.1e9),
    "10gbe": Link("10 GbE", 50e-6, 1.25e9),
}
Messages = Sequence[tuple[str, float]]  # collective, bytes per process


def exchange(messages: Iterable[tuple[str, float]], ranks: int, link: Link, *, ring: bool = False) -> float:
    """Return the seconds that the messages take over a link, one after another.

    Args:
        messages: (collective, bytes per process).
        ring: use only the ring, instead of the cheaper of ring and recursive doubling.

    Source: Thakur, Rabenseifner & Gropp 2005, section 4.
    """
    hops, total = math.ceil(math.log2(ranks)), 0.0
    for name, m in messages:
        if name == GATHER:
            around = (ranks - 1) * (link.alpha + m / link.beta)
            doubling = hops * link.alpha + (ranks - 1) * m / link.beta
        else:
            around = 2 * (ranks - 1) * (link.alpha + m / ranks / link.beta)
            doubling = hops * (link.alpha + m / link.beta)
        total += around if ring else min(around, doubling)
    return total


def passes_at(messages: Messages, step: float, link: Link, *, ring: bool = False) -> int | None:
    """Return the first number of ranks, from 2 to 1024, at which the exchange exceeds 5 % of the step, or None."""
    return next((p for p in range(2, MOST_RANKS + 1) if exchange(messages, p, link, ring=ring) > PART * step), None)


def of_synced(model: nn.Module, forward: Callable[[], object]) -> list[tuple[str, float]]:
    """Return the collectives of one training step of a model whose BatchNorms are synchronized.

    Each call of a BatchNorm of C channels makes one all-gather of 2C + 2 float32 forward, and one all-reduce of 2C
    backward (:class:`gammabeta.statistics.Synced`). A norm inside a recurrence is called at every time step.

    Args:
        model: whatever its statistics come from.
        forward: calls it once, as a training step does.
    """
    value = torch.finfo(torch.float32).bits // 8
    found: list[tuple[str, float]] = []

    def called(module: nn.Module, _: object) -> None:
        channels = cast(nn.BatchNorm2d, module).num_features
        found.extend([(GATHER, value * (2 * channels + 2)), (REDUCE, value * 2 * channels)])

    hooks = [module.register_forward_pre_hook(called) for module in model.modules() if is_batch_norm(module)]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def communication(messages: Messages, step: float, devices: int, link: Link) -> str:
    """Say what synchronizing statistics costs over a link, and from how many devices on it costs over 5 % of a step.

    Args:
        step: seconds per step without it, on this machine.
    """
    share = 100 * exchange(messages, devices, link) / step
    at = passes_at(messages, step, link)
    beyond = f"over {100 * PART:.0f} % from {at} devices on" if at else f"under {100 * PART:.0f} % up to {MOST_RANKS}"
    return (
        f"synchronizing adds {share:.2g} % of a step of {1e3 * step:.3g} ms on {devices} devices over {link.name}, "
        f"{beyond} (modelled)"
    )
