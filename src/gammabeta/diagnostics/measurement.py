"""Measurement of the norms' inputs: the moments of every call, and how many values they are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.hooks import hook_before
from gammabeta.introspection.norms import kind_of
from gammabeta.introspection.sampled import sample
from gammabeta.introspection.unchanged import set_mode, unchanged
from gammabeta.moments import Moments


@dataclass(frozen=True, eq=False)
class Given:
    """Measurement of the input of one call of a BatchNorm or InstanceNorm.

    Attributes:
        samples: N.
        moments: moments of every channel over samples and positions, (C,), float64.
        without: the moments with dropout off, where it was measured with dropout on.
        effective: number of independent values that would give the mean as precisely (`sampled`). It is N if positions
            add nothing new, and n if they are independent; None for a single sample.

    Source: Wilks 2011, "Statistical Methods in the Atmospheric Sciences", section 5.2.4, on serial dependence, with the
    variance of the mean measured between samples instead of modelled.
    """

    samples: int
    moments: Moments
    effective: float | None
    without: Moments | None = None

    @classmethod
    def of(cls, x: Tensor) -> Given:
        """Measure x, (N, C, *positions)."""
        x = x.dequantize() if x.is_quantized else x
        moments = Moments.of(x.detach().to(torch.float64), [0, *range(2, x.ndim)])
        values = x.numel() // max(1, x.shape[1])
        sampled = sample(x.detach().to(torch.float64)) if x.shape[0] > 1 else None
        # NaN if no channel varies, infinite if the samples' means do not: then every value counts.
        worth = float(sampled.effective().nan_to_num(values, values)) if sampled is not None else None
        return cls(x.shape[0], moments, None if worth is None else min(max(worth, 1.0), float(values)))


def measure(
    model: nn.Module, inputs: Any, forward: Forward | None = None, *, dropout: bool = False, operation: str = "check"
) -> dict[str, tuple[Given, ...]]:
    """Measure the input of every BatchNorm and InstanceNorm, call by call, in evaluation; the model stays as it was.

    Args:
        model: any eager module.
        inputs, forward: as for `observe`.
        dropout: whether to measure with dropout on, as in training, and beside it with dropout off (`Given.without`),
            while everything else is in evaluation. BatchNorms that have collected no statistics yet then normalize by
            the batch's: by those of 0 and 1, dropout's noise would grow from layer to layer.
        operation: name of the operation that asks, for messages.

    Returns:
        By the norm's qualified name, one measurement per call; with `dropout`, nothing if nothing drops.
    """
    drops = (module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd))
    if dropout and not any(module.p > 0 for module in drops):
        return {}
    run = forward_batch(operation, forward)
    plain = _measured(model, inputs, run, dropout=False, collected=not dropout)
    if not dropout:
        return plain
    noisy = _measured(model, inputs, run, dropout=True, collected=False)
    return {
        name: tuple(replace(on, without=off.moments) for on, off in zip(calls, plain[name], strict=True))
        for name, calls in noisy.items()
        if len(calls) == len(plain.get(name, ()))
    }


def _measured(
    model: nn.Module, inputs: Any, run: Forward, *, dropout: bool, collected: bool
) -> dict[str, tuple[Given, ...]]:
    """Measure in one forward; `collected` says that statistics of 0 and 1 are taken for collected ones."""
    given = copied(inputs)
    found: dict[str, list[Given]] = {}
    eager = eagerly()
    with unchanged(model), torch.no_grad(), eager, _listening(model, found, collected):
        set_mode(model, False)
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.train(dropout)
        run(model, given)
    return {name: tuple(calls) for name, calls in found.items()}


@contextmanager
def _listening(model: nn.Module, found: dict[str, list[Given]], collected: bool) -> Iterator[None]:
    """Measure the inputs of norms as long as the context lasts."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            kind = kind_of(module)
            if kind in ("batch", "instance"):
                by_batch = not collected and kind == "batch" and _is_initial(module) and getattr(module, "eps", 1) > 0

                def listen(module: nn.Module, args: Any, kwargs: Any, name: str = name, by: bool = by_batch) -> None:
                    x = args[0] if args else next(iter(kwargs.values()))
                    if isinstance(x, Tensor) and x.ndim >= 2 and x.numel() > 0:
                        found.setdefault(name, []).append(Given.of(x))
                        module.training = by and x.numel() > x.shape[1]

                handle = hook_before(module, listen, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _is_initial(module: Any) -> bool:
    """Return whether running statistics are exactly 0 and 1."""
    mean, var = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return False
    return not bool(mean.any()) and bool((var == 1).all())
