"""The cast of a layer's tensors that gammabeta's layer was spared, and the class that it gets back was not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gammabeta.surgery.change import Change


def cast_late(change: Change, module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the float32 tensors of a module, which stay the same objects."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and tensor.dtype == torch.float32:
            _cast(change, tensor, dtype)


def _cast(change: Change, tensor: Tensor, dtype: torch.dtype) -> None:
    before, gradient = tensor.data, tensor.grad
    after = before.to(dtype)

    def back() -> None:
        # The digits that the cast lost, unless the tensor has been changed since.
        late = tensor.grad
        tensor.grad = None
        tensor.data = before if torch.equal(tensor.data, after) else tensor.data.to(before.dtype)
        tensor.grad = None if late is None else late.to(before.dtype)

    change.on_undo(back)
    tensor.grad = None
    tensor.data = after
    tensor.grad = None if gradient is None else gradient.to(dtype)
