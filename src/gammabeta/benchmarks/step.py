"""A training step of a network: timed, compared with the same step in float64, and its memory counted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gammabeta.benchmarks.contest import Call, Contestant
from gammabeta.benchmarks.networks import BATCHES, MOMENTUM, RATE, Batch, Network, autocast, in_layout
from gammabeta.surgery.remaking import remaking

# How many times farther from float64 than torch's own arithmetic: roundings in another order, and kinks that they
# cross.
FARTHER = 4
# Relative. A value within a rounding of 0 may fall on the other side of a relu, in torch's arithmetic as in ours. One
# such value in ResNet-50 changed its gradients by 1.4e-5, where rounding alone changes both by 1.3e-6.
LEAST = 1e-4


def steps(network: Network, model: nn.Module, layout: str, dtype: torch.dtype, rate: float = RATE) -> Contestant:
    """Return training steps of the network: forward, loss, backward, SGD, on another batch each time.

    Args:
        network: how the model is called.
        model: the model, compiled or not; its convolutions get the layout.
        layout: of weights and images.
        dtype: float32, or bfloat16 for autocast.
        rate: the learning rate.
    """
    in_layout(model, layout)
    batches = network.batches(layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)

    def contestant(number: int) -> Call:
        batch = batches[number % BATCHES]

        def step() -> None:
            optimizer.zero_grad()
            _loss(network, model, batch, dtype)[1].backward()
            optimizer.step()

        return step

    return contestant


def check_step(
    network: Network,
    theirs: nn.Module,
    ours: Mapping[str, nn.Module],
    batch: Batch,
    dtype: torch.dtype,
    *,
    exactly: nn.Module | None = None,
) -> None:
    """Compare one training forward and backward of networks with torch's in float64. All keep their state.

    Args:
        network: how they are called.
        theirs: the network with torch's norms.
        ours: the same with other norms, by name.
        batch: what they are called with, in its layout.
        dtype: float32, or bfloat16 for autocast.
        exactly: the network a copy of which runs in float64, where it is not `theirs`: that one before it was compiled.

    Raises:
        RuntimeError: output, gradients or running statistics are farther from float64's than `FARTHER` times torch's
            and than `LEAST`, both relative in the Euclidean norm.
    """
    doubled = Batch(tuple(_double(x) for x in batch.inputs), _double(batch.target))
    exact = one_pass(network, copy.deepcopy(exactly or theirs).double(), doubled, torch.float64)
    by_torch = one_pass(network, theirs, batch, dtype)
    for name, model in ours.items():
        found = one_pass(network, model, batch, dtype)
        for what, true in exact.items():
            size = true.norm()
            torch_off, off = ((each[what].double() - true).norm() / size for each in (by_torch, found))
            if not off <= max(FARTHER * torch_off, LEAST):
                raise RuntimeError(
                    f"the {what} of {name} are {off:.1e} from float64's, and torch's {torch_off:.1e}: expected the "
                    "same to rounding, so nothing was timed."
                )


def one_pass(network: Network, model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Run one training forward and backward. The model keeps its state, and has no gradients afterwards.

    Returns:
        "outputs", "gradients" of all parameters and, where there are any, "running statistics", each as one vector.
    """
    buffers = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    y, loss = _loss(network, model, batch, dtype)
    loss.backward()
    found = {
        "outputs": y.detach().flatten(),
        "gradients": _flat(p.grad for p in model.parameters() if p.grad is not None),
        "running statistics": _flat(
            b.clone() for n, b in buffers.items() if n.endswith(("running_mean", "running_var"))
        ),
    }
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
    return {what: values for what, values in found.items() if values.numel()}


def kept_bytes(network: Network, model: nn.Module, batch: Batch, dtype: torch.dtype, remake: bool = False) -> int:
    """Return the bytes that a forward keeps for backward, parameters and buffers aside.

    `remake`: whether the model is one that `gammabeta.recompute` changed, which steps aside while it is counted.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    with remaking(remake=remake, count=True) as mode, autocast(dtype):
        y = network.call(model, batch.inputs)
    kept = mode.kept_bytes({*model.parameters(), *model.buffers()})
    del y
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return kept


def _loss(network: Network, model: nn.Module, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return output and loss; the loss is computed in float32 at least."""
    with autocast(dtype):
        y = network.call(model, batch.inputs)
    return y, network.loss(y.float() if y.dtype == torch.bfloat16 else y, batch.target)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    found = [tensor.detach().flatten() for tensor in tensors]
    return torch.cat(found) if found else torch.empty(0)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
