"""PyTorch's OpInfo entries of the norms, as calls that our functions and torch's can take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tests.conformance.samples import OPS_WITH_SAMPLES, op_info
from tests.peers import differences
from torch import Tensor

from gammabeta import functional

OPS = OPS_WITH_SAMPLES
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RUNNING = ("running_mean", "running_var")


@dataclass
class OpSample:
    """One sample of an entry.

    Attributes:
        op: the function's name in torch.nn.functional.
        tensors: its tensors by argument name, the input first; those that are None are left out.
        settings: its other arguments.
    """

    op: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    @property
    def input(self) -> Tensor:
        return self.tensors["input"]

    @property
    def differentiable(self) -> list[str]:
        return [name for name in self.tensors if name not in RUNNING]

    @property
    def moves(self) -> bool:
        """Whether the call moves running statistics that it is given."""
        by_input = {"batch_norm": "training", "instance_norm": "use_input_stats"}.get(self.op)
        default = self.op == "instance_norm"
        return "running_mean" in self.tensors and by_input is not None and self.settings.get(by_input, default)

    def ours(self, **tensors: Tensor) -> Tensor:
        return self._call(getattr(functional, self.op), tensors)

    def theirs(self, **tensors: Tensor) -> Tensor:
        return self._call(getattr(F, self.op), tensors)

    def _call(self, function: Callable[..., Tensor], tensors: dict[str, Tensor]) -> Tensor:
        required = dict.fromkeys(RUNNING) if self.op == "batch_norm" else {}
        return function(**{**required, **self.tensors, **tensors}, **self.settings)

    def leaves(self, change: Callable[[Tensor], Tensor] = torch.clone) -> dict[str, Tensor]:
        """Changed copies of the tensors, leaves that ask for gradients where the entry's do."""
        return {
            name: change(t.detach()).requires_grad_(t.requires_grad and name not in RUNNING)
            for name, t in self.tensors.items()
        }

    def __str__(self) -> str:
        given = {name: tuple(t.shape) for name, t in self.tensors.items()}
        return f"{self.op}({given}, {self.settings})"


def refused(op: str, x: Tensor, settings: dict[str, Any]) -> bool:
    """Whether torch takes it and we do not, on purpose."""
    return (
        differences.NEGATIVE_EPS.applies(settings)
        or differences.WITHOUT_CHANNELS.applies(op, x)
        or differences.REAL_NUMBERS.applies(x.dtype)
    )


def op_samples(op: str, dtype: torch.dtype, *, requires_grad: bool = False, empty: bool = True) -> list[OpSample]:
    """The entry's samples, those for its reference among them, that both libraries take."""
    samples = []
    for given in op_info(op).reference_inputs("cpu", dtype, requires_grad=requires_grad):
        sample = _as_sample(op, given)
        if not refused(op, sample.input, sample.settings) and (empty or sample.input.numel() > 0):
            samples.append(sample)
    assert len(samples) >= 4
    return samples


def refused_samples(op: str, dtype: torch.dtype) -> list[OpSample]:
    samples = [_as_sample(op, given) for given in op_info(op).reference_inputs("cpu", dtype)]
    return [sample for sample in samples if refused(op, sample.input, sample.settings)]


def _as_sample(op: str, given: Any) -> OpSample:
    arguments = inspect.signature(getattr(F, op)).bind(given.input, *given.args, **given.kwargs).arguments
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    settings = {name: value for name, value in arguments.items() if value is not None and name not in tensors}
    return OpSample(op, tensors, settings)


def gradients(y: Tensor, tensors: dict[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
    differentiated = {name: t for name, t in tensors.items() if t.requires_grad}
    found = torch.autograd.grad(y, list(differentiated.values()), direction)
    return dict(zip(differentiated, found, strict=True))


def expanded(t: Tensor) -> Tensor:
    return t[..., :1].expand(t.shape) if t.ndim > 1 else t.clone()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.clone(),
    "expanded": expanded,
    "offset": lambda t: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view(t.shape),
    "negated": lambda t: torch._neg_view(-t),
}
