"""The arms of the study by name: what stands where a network has a normalization layer."""

from collections.abc import Callable

from torch import Tensor, nn

import gammabeta as gb

# name: what it is, for legends and tables
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
    """RMSNorm of the channels at each position of (N, C), (N, C, H, W) and the like: gb.RMSNorm takes them last."""

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
    """GroupNorm's groups: 8, or fewer where that would leave under 4 channels each; always a divisor of
    ``channels``."""
    return next(count for count in range(max(1, min(8, channels // 4)), 0, -1) if channels % count == 0)


def named(name: str) -> str:
    """What an arm is called in legends and tables."""
    kind, _, size = name.partition(":")
    return f"{NORMS[kind]} of {size}" if size else NORMS[kind]


def norm(name: str, channels: int, positions: int = 2) -> nn.Module:
    """A normalization layer, with its affine.

    Args:
        name: one of ``NORMS``, or ``"ghost:8"`` for another size than 4; ``"layer"`` of images is over channels and
            positions (GroupNorm with one group), which fits any image size; ``"ghost"`` takes statistics of 4 images
            at a time.
        channels: C.
        positions: how many axes follow the channels: 0 for (N, C), 2 for (N, C, H, W).

    Raises:
        ValueError: an unknown name, other positions, or InstanceNorm of (N, C), which has one value a statistic.
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
                "norm: InstanceNorm of (N, C) has one value a statistic: its output is its bias, whatever comes in"
            )
        return gb.InstanceNorm2d(channels, affine=True)
    raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {name}")
