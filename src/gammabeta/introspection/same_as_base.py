"""Whether a subclass of one of torch's norms, with a forward of its own, computes what torch's class does."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gammabeta.introspection.private_copy import copy_of, plain_attributes, undisturbed, why_not_run

_SCALES = (1e-3, 1.0, 1e3)
_answers: WeakKeyDictionary[type[nn.Module], dict[Any, bool]] = WeakKeyDictionary()


def computes_as(module: nn.Module, base: type[nn.Module]) -> bool:
    """Return whether a copy of the module computes what `base.forward` makes of another copy.

    Outputs, gradients and running statistics are compared, in training and evaluation, at several scales and dtypes,
    for inputs of two to five axes. Where one raises, the other must raise too. Never raises.
    """
    if why_not_run(module) is not None:
        return False
    try:
        attributes = plain_attributes(module)
        if attributes is None:
            return False
        held = [*module._parameters.items(), *module._buffers.items()]
        shapes = tuple((n, None if t is None else (tuple(t.shape), t.device)) for n, t in held)
        key = (type(module).forward, type(module).__call__, base, shapes, tuple(attributes.items()))
        known = _answers.setdefault(type(module), {})
        if key not in known:
            known[key] = _compared(module, base)
        return known[key]
    except Exception:  # of another library's class: we cannot tell
        return False


def _compared(module: nn.Module, base: type[nn.Module]) -> bool:
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    device = tensors[0].device if tensors else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)

    def random(shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(device, dtype)

    with undisturbed(device):
        theirs = copy_of(module)
        for tensor in (*theirs._parameters.values(), *theirs._buffers.values()):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = random(tensor.shape).abs() + 0.5
        torchs = copy_of(theirs)
        if plain_attributes(theirs) != plain_attributes(torchs):
            return False
        for training, dtype in itertools.product((False, True), (torch.float32, torch.bfloat16)):
            compared = 0
            for shape, scale in itertools.product(_shapes(module), _SCALES if dtype == torch.float32 else (1.0,)):
                x, g = scale * random(shape, dtype), random(shape, dtype)
                got, wanted = (
                    _run(cls, each.train(training), x, g) for cls, each in ((type(module), theirs), (base, torchs))
                )
                if (got is None) != (wanted is None):
                    return False
                if got is not None and wanted is not None:
                    compared += 1
                    if not all(_close(a, b) for a, b in zip(got, wanted, strict=True)):
                        return False
            if not compared and dtype == torch.float32:
                return False
        return plain_attributes(theirs) == plain_attributes(torchs)


def _run(cls: Any, module: nn.Module, x: Tensor, g: Tensor) -> list[Tensor] | None:
    """Return the output of a class's forward, the gradients and the buffers afterwards; None where it raises.

    The forward is called without the hooks, of which some belong to all modules.
    """
    leaf = x.clone().requires_grad_()
    try:
        y = cls.forward(module, leaf)
    except Exception:
        return None
    parameters = [p for p in module._parameters.values() if p is not None]
    gradients = torch.autograd.grad(y, [leaf, *parameters], g, allow_unused=True)
    if any(gradient is None for gradient in gradients) or not torch.equal(leaf, x):
        return [y, torch.full((), torch.nan)]
    return [y, *gradients, *(b.clone() for b in module._buffers.values() if b is not None)]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    allowed = (1e-5 if a.dtype == torch.float32 else 2e-2) * b.abs().max().clamp(min=1e-30)
    return bool(((a - b).abs() <= allowed).all())


def _shapes(module: Any) -> tuple[tuple[int, ...], ...]:
    """Inputs of two to five axes that a norm of torch's may take."""
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        last = (shape,) if isinstance(shape, int) else tuple(shape)
        return ((3, *last), (2, 3, *last), (2, 3, 2, *last))
    channels = getattr(module, "num_features", getattr(module, "num_channels", 0))
    return ((4, channels), (3, channels, 5), (3, channels, 3, 2), (2, channels, 2, 3, 2))
