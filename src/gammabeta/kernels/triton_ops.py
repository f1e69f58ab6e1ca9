"""The ops that have Triton kernels, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gammabeta.kernels import triton_channel_ops as channel

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "channel_norm_forward": channel.channel_norm_forward,
    "channel_apply_forward": channel.channel_apply_forward,
    "channel_norm_backward": channel.channel_norm_backward,
    "channel_moments": channel.channel_moments,
    "channel_backward_reduce": channel.channel_backward_reduce,
    "channel_backward_apply": channel.channel_backward_apply,
}
