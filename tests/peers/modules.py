"""PyTorch's ModuleInfo entries of the norms, with our classes beside theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.layers.batch_norm import BatchNorm

BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
INSTANCE_NORMS = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
# PyTorch has no entry for SyncBatchNorm: it takes the inputs of the three BatchNorms here.
MODULES = (*BATCH_NORMS, "SyncBatchNorm", *INSTANCE_NORMS, "GroupNorm", "LayerNorm", "RMSNorm")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class ModuleSample:
    """One input of an entry.

    Attributes:
        name: the class's name in torch.nn.
        about: the entry's own description.
        args, kwargs: the constructor's.
        inputs: the forward's.
        training: the mode.
        reference: what the entry compares the output with: a function of the module, its parameters and inputs.
    """

    name: str
    about: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    training: bool
    reference: Callable[..., Tensor] | None

    def ours(self, **factory: Any) -> Any:
        return our_class(self.name)(*self.args, **self.kwargs, **factory).train(self.training)

    def theirs(self, **factory: Any) -> Any:
        return getattr(nn, self.name)(*self.args, **self.kwargs, **factory).train(self.training)

    def pair(self, **factory: Any) -> tuple[Any, Any]:
        """Our module and torch's with the same random parameters and statistics, three batches counted."""
        ours, theirs = self.ours(**factory), self.theirs(**factory)
        randomize(theirs)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs

    def fresh_inputs(self) -> tuple[Tensor, ...]:
        """The inputs as new leaves."""
        return tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in self.inputs)

    def __str__(self) -> str:
        mode = "training" if self.training else "evaluation"
        return f"{self.name}({self.args}, {self.kwargs}) of {tuple(self.inputs[0].shape)} in {mode}: {self.about}"


def our_class(name: str) -> Callable[..., Any]:
    """Ours of that name in torch.nn; what `adopt` makes of SyncBatchNorm has no public name."""
    if name == "SyncBatchNorm":
        return functools.partial(BatchNorm, statistics=gb.statistics.Synced())
    return getattr(gb, name)  # type: ignore[no-any-return]


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for name, buffer in module.named_buffers():
        if name == "num_batches_tracked":
            buffer.fill_(3)
        else:
            values = torch.randn(buffer.shape, generator=generator)
            buffer.copy_(values.abs() + 0.5 if name == "running_var" else values)


@functools.cache
def _infos() -> dict[str, Any]:
    # Imported here: it takes seconds, and not every run of tests comes this way.
    from torch.testing._internal.common_modules import module_db

    return {info.module_cls.__name__: info for info in module_db}


def module_info(name: str) -> Any:
    return _infos()["BatchNorm2d" if name == "SyncBatchNorm" else name]


def module_samples(
    name: str, dtype: torch.dtype, *, modes: tuple[bool, ...] = (True, False), requires_grad: bool = False
) -> list[ModuleSample]:
    """The entry's inputs, in training and in evaluation; without those that have no forward."""
    samples = []
    for entry in BATCH_NORMS if name == "SyncBatchNorm" else (name,):
        info = _infos()[entry]
        for training in modes:
            inputs = info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
            )
            for given in inputs:
                constructor, forward = given.constructor_input, given.forward_input
                if forward is not None:
                    assert not forward.kwargs
                    samples.append(
                        ModuleSample(
                            name, given.desc, constructor.args, constructor.kwargs, forward.args, training,
                            given.reference_fn,
                        )
                    )  # fmt: skip
    assert len(samples) >= 6
    return samples


def module_errors(name: str) -> list[Any]:
    info = module_info(name)
    if info.module_error_inputs_func is None:
        return []
    return info.module_error_inputs_func(  # type: ignore[no-any-return]
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
