"""One call of a public operation, with all that it takes, and its results: what the oracle and gammabeta share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gammabeta import functional
from gammabeta.proof.operations import ADD_OPS, CHANNEL_OPS
from gammabeta.proof.routes import device

ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu")
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}

DIFFERENTIABLE = ("input", "weight", "bias", "residual")
RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Call:
    """An operation, its tensors by argument name, its settings, and the gradient of the loss by each of its outputs."""

    op: str
    tensors: dict[str, Tensor | None]
    settings: dict[str, Any] = field(default_factory=dict)
    gradients: tuple[Tensor, ...] = ()

    @property
    def input(self) -> Tensor:
        """x."""
        return self.given("input")

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor of that name, None where there is none."""
        return self.tensors.get(name)

    def given(self, name: str) -> Tensor:
        """Return the tensor of that name, which has to be there."""
        tensor = self.tensors[name]
        assert tensor is not None
        return tensor

    def setting(self, name: str) -> Any:
        """A setting as the operation's signature in torch.nn.functional has it."""
        defaults = {
            "training": False, "use_input_stats": True, "momentum": 0.1, "eps": None if "rms" in self.op else 1e-5,
            "activation": None, "activation_slope": 0.01, "normalized_shape": None, "num_groups": None,
        }  # fmt: skip
        return self.settings.get(name, defaults[name])

    @property
    def running(self) -> bool:
        """Whether it normalizes by running statistics instead of by its input's own."""
        if self.op == "batch_norm":
            return not self.setting("training")
        return self.op == "instance_norm" and not self.setting("use_input_stats")

    def with_tensors(self, **tensors: Tensor | None) -> Call:
        return replace(self, tensors={**self.tensors, **tensors})

    def with_settings(self, **settings: Any) -> Call:
        return replace(self, settings={**self.settings, **settings})


def result_names(call: Call) -> tuple[str, ...]:
    """Of all results: the outputs, a gradient for each tensor that has one, the running statistics that were given."""
    outputs = ("output", "total") if call.op in ADD_OPS else ("output",)
    gradients = tuple(f"grad {name}" for name in DIFFERENTIABLE if call.tensor(name) is not None)
    return outputs + gradients + tuple(name for name in RUNNING if call.tensor(name) is not None)


def run(call: Call, differentiated: tuple[str, ...] = DIFFERENTIABLE) -> dict[str, Tensor]:
    """gammabeta's results. What is given is left as it was: running statistics are cloned first."""
    tensors: dict[str, Tensor | None] = {}
    for name, tensor in call.tensors.items():
        tensor = None if tensor is None else tensor.to(device())
        if tensor is None or name == "mask":
            tensors[name] = tensor
        elif name in RUNNING:
            tensors[name] = tensor.clone()
        else:
            tensors[name] = tensor.detach().requires_grad_(name in differentiated)
    outputs = getattr(functional, call.op)(**tensors, **call.settings)
    there = replace(call, gradients=tuple(g.to(device()) for g in call.gradients))
    results = collect(there, outputs if isinstance(outputs, tuple) else (outputs,), tensors)
    return {name: result.cpu() for name, result in results.items()}


def collect(
    call: Call, outputs: tuple[Tensor, ...], tensors: Mapping[str, Tensor | None], *, unused: bool = False
) -> dict[str, Tensor]:
    """The results by name, from outputs that hang on `tensors`; with `unused` not on all of them."""
    leaves = {name: t for name in DIFFERENTIABLE if (t := tensors.get(name)) is not None and t.requires_grad}
    of = [(y, g) for y, g in zip(outputs, call.gradients, strict=True) if y.requires_grad]
    gradients: tuple[Tensor, ...] = ()
    if leaves:
        gradients = torch.autograd.grad(
            [y for y, _ in of], tuple(leaves.values()), [g for _, g in of], materialize_grads=unused
        )
    results = dict(zip(("output", "total"), outputs, strict=False))
    results |= {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    results |= {name: tensor for name in RUNNING if (tensor := tensors.get(name)) is not None}
    return {name: result.detach() for name, result in results.items()}


def result_dtypes(call: Call) -> dict[str, torch.dtype]:
    """The dtype that every result has to have: outputs as x and residual promote, the others as what they belong to."""
    x, residual = call.input, call.tensor("residual")
    promoted = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    dtypes = {"output": promoted, "total": promoted}
    for name in result_names(call):
        if name not in dtypes:
            tensor = call.tensor(name.removeprefix("grad "))
            assert tensor is not None
            dtypes[name] = tensor.dtype
    return dtypes


def masked_elements(call: Call) -> Tensor | None:
    """The mask expanded to x's shape."""
    mask, x = call.tensor("mask"), call.input
    if mask is None:
        return None
    if call.op in CHANNEL_OPS:
        positions = torch.broadcast_to(mask, (x.shape[0], *x.shape[2:]))
        return positions.unsqueeze(1).expand(x.shape)
    k = len(call.setting("normalized_shape"))
    samples = torch.broadcast_to(mask, x.shape[: x.ndim - k])
    return samples.reshape(*samples.shape, *(1,) * k).expand(x.shape)
