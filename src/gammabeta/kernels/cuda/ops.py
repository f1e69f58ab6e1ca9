"""The ops that have Triton kernels, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

from gammabeta import ops
from gammabeta.kernels.cuda import channel_norm, group_norm, row_norm, sums
from gammabeta.kernels.cuda import channel_ops as channel
from gammabeta.kernels.cuda import sample_ops as sample

_LAUNCHERS: dict[str, Callable[..., Any]] = {
    "channel_norm_forward": channel.channel_norm_forward,
    "channel_apply_forward": channel.channel_apply_forward,
    "channel_norm_backward": channel.channel_norm_backward,
    "channel_moments": channel.channel_moments,
    "channel_backward_reduce": channel.channel_backward_reduce,
    "channel_backward_apply": channel.channel_backward_apply,
    "sample_norm_forward": sample.sample_norm_forward,
    "sample_norm_backward": sample.sample_norm_backward,
    "add_sample_norm_forward": sample.add_sample_norm_forward,
    "add_sample_norm_backward": sample.add_sample_norm_backward,
}

IMPLEMENTATIONS = {name: ops.CHECKS[name].checked(launcher) for name, launcher in _LAUNCHERS.items()}
"""The function that launches an op's kernels, by name, with the arguments checked: eager, traced or interpreted."""

KERNELS: list[Any] = [
    kernel
    for module in (channel_norm, group_norm, row_norm, sums)
    for name, kernel in vars(module).items()
    if name.endswith("_kernel") and isinstance(kernel, triton.runtime.KernelInterface)
]
"""All kernels that these functions launch."""
