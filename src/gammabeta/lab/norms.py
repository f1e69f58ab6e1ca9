"""The arms of the study by name: the normalization layer that each puts into a network."""

from collections.abc import Callable

from torch import Tensor, nn

import gammabeta as gb

# each arm's name in settings, and its name in legends and tables
NORMS = {
    "none": "no normalization",
    "batch": "BatchNorm",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "instance": "InstanceNorm",
    "rms": "RMSNorm",
    "ghost": "ghost BatchNorm",
    "renorm": "batch renormalization",
    "batch_plain": "BatchNorm without γ and β",
}

GHOST_SIZE = 4


class ChannelRMSNorm(nn.Module):
    """RMSNorm over the channels at each position of (N, C), (N, C, H, W) and so on; gb.RMSNorm expects them last."""

    def __init__(
        self, channels: int, *, affine: bool = True, activation: str | None = None, activation_slope: float = 0.01
    ) -> None:
        super().__init__()
        self.norm = gb.RMSNorm(
            channels, elementwise_affine=affine, activation=activation, activation_slope=activation_slope
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1), None if residual is None else residual.movedim(1, -1))
        return y.movedim(-1, 1)


def groups(channels: int) -> int:
    """Return GroupNorm's number of groups: 8, or fewer where groups would have fewer than 4 channels.

    It always divides ``channels``.
    """
    return next(count for count in range(max(1, min(8, channels // 4)), 0, -1) if channels % count == 0)


def named(name: str) -> str:
    """Return an arm's name for legends and tables."""
    kind, _, size = name.partition(":")
    return f"{NORMS[kind]} of {size}" if size else NORMS[kind]


def norm(name: str, channels: int, positions: int = 2) -> nn.Module:
    """Make an arm's normalization layer, with γ and β.

    Args:
        name: one of ``NORMS``. ``"ghost"`` computes statistics of 4 images at a time, ``"ghost:8"`` of 8. ``"layer"``
            normalizes images over channels and positions (GroupNorm with one group), which fits any image size.
        channels: C.
        positions: how many axes follow the channels: 0 for (N, C), 2 for (N, C, H, W).

    Raises:
        ValueError: an unknown name, other positions, or InstanceNorm of (N, C), which has one value per statistic.
    """
    if positions not in (0, 2):
        raise ValueError(f"norm: expected 0 or 2 positional axes, got {positions}")
    flat = positions == 0
    batch: Callable[..., nn.Module] = gb.BatchNorm1d if flat else gb.BatchNorm2d
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return batch(channels)
    if name == "batch_plain":
        return batch(channels, affine=False)
    if name.startswith("ghost"):
        return batch(channels, statistics=gb.statistics.Ghost(int(name.partition(":")[2] or GHOST_SIZE)))
    if name == "renorm":
        return batch(channels, statistics=gb.statistics.Renorm())
    if name == "layer":
        return gb.LayerNorm(channels) if flat else gb.GroupNorm(1, channels)
    if name == "group":
        return gb.GroupNorm(groups(channels), channels)
    if name == "rms":
        return gb.RMSNorm(channels) if flat else ChannelRMSNorm(channels)
    if name == "instance":
        if flat:
            raise ValueError(
                "norm: InstanceNorm of (N, C) has one value per statistic: its output is its bias, whatever the input"
            )
        return gb.InstanceNorm2d(channels, affine=True)
    raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {name}")
