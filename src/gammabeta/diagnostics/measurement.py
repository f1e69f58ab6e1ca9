"""What each norm of a model is given on some inputs: the moments of every call, and how many values they are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.norms import kind_of
from gammabeta.introspection.sampled import sample
from gammabeta.introspection.unchanged import arguments_of, unchanged
from gammabeta.moments import Moments


@dataclass(frozen=True, eq=False)
class Given:
    """What one call of a BatchNorm or InstanceNorm was given.

    Attributes:
        samples: N.
        moments: of every channel over samples and positions, (C,), float64.
        effective: how many independent values would know the mean as well (`sampled`): N where positions say nothing
            new, n where they are independent. None for a single sample.

    Source: Wilks 2011, "Statistical Methods in the Atmospheric Sciences", section 5.2.4, on serial dependence, with the
    variance of the mean measured between samples instead of modelled.
    """

    samples: int
    moments: Moments
    effective: float | None

    @classmethod
    def of(cls, x: Tensor) -> Given:
        """That of x, (N, C, *positions)."""
        moments = Moments.of(x.detach().to(torch.float64), [0, *range(2, x.ndim)])
        values = x.numel() // max(1, x.shape[1])
        sampled = sample(x.detach().to(torch.float64)) if x.shape[0] > 1 else None
        # NaN where no channel varies, infinite where the samples' means do not: there every value counts.
        worth = float(sampled.effective().nan_to_num(values, values)) if sampled is not None else None
        return cls(x.shape[0], moments, None if worth is None else min(max(worth, 1.0), float(values)))


def measure(model: nn.Module, inputs: Any, *, dropout: bool = False) -> dict[str, tuple[Given, ...]]:
    """What every BatchNorm and InstanceNorm was given, call by call, in evaluation; the model stays as it was.

    Args:
        model: any eager module.
        inputs: as `observe` takes them.
        dropout: whether dropout is on, as in training, everything else being in evaluation.
    """
    args, kwargs = arguments_of(inputs)
    found: dict[str, list[Given]] = {}
    with unchanged(model), torch.no_grad(), torch.compiler.set_stance("force_eager"), _listening(model, found):
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.train(dropout)
        model(*args, **kwargs)
    return {name: tuple(calls) for name, calls in found.items()}


@contextmanager
def _listening(model: nn.Module, found: dict[str, list[Given]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if kind_of(module) in ("batch", "instance"):

                def listen(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    x = args[0] if args else next(iter(kwargs.values()))
                    if isinstance(x, Tensor) and x.ndim >= 2 and x.numel() > 0:
                        found.setdefault(name, []).append(Given.of(x))

                handle = module.register_forward_pre_hook(listen, with_kwargs=True)
                stack.callback(handle.remove)
        yield
