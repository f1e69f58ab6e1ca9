"""Parameters and running statistics that stay float32 in a model that is cast down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_LOW = (torch.float16, torch.bfloat16)


class Float32State(nn.Module):
    """A module whose floating point parameters and buffers become float32 where a cast would make them 16-bit.

    `.half()`, `.bfloat16()` and `.to(torch.bfloat16)` give float32, `.double()` gives float64. Moves between devices
    are not affected. In bfloat16 a running average stalls as soon as its increment is under half a unit in the last
    place, and in float16 a variance above 65504 is infinite. What was built or loaded in 16 bits on purpose stays so.

    With `keep_float32=False` a cast does what torch's does, for code that needs one dtype in a model (FSDP,
    `vector_to_parameters`).
    """

    keep_float32: bool = True

    def _stayed_float32(self, dtype: torch.dtype) -> None:
        """Hook for what else a layer does when a cast to `dtype` leaves it in float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        def keep_float32(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            if out.dtype in _LOW and out.dtype != tensor.dtype:
                # From the tensor itself: `out` has already lost the digits.
                self._stayed_float32(out.dtype)
                return tensor.to(device=out.device, dtype=torch.float32)
            return out

        return super()._apply(keep_float32 if self.keep_float32 else fn, *args, **kwargs)
