"""Whether a layer computes, under another class, what it computed under its own: asked of copies of this very layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gammabeta.introspection.private_copy import copy_of, undisturbed
from gammabeta.layers.form import Form
from gammabeta.layers.formed import FORMED

# Rounding of sums in float32, and of 16-bit results that may be rounded at other steps.
_ALLOWED = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2**-7, torch.bfloat16: 2**-4}


def computes_form_now(module: nn.Module, form: Form) -> bool:
    """Return whether a module computes the form that another module of its class was seen to compute.

    A forward may read what belongs to neither: globals, and attributes of classes. True where no input could be run.
    """
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)

    with undisturbed(device), torch.no_grad():
        theirs = copy_of(module)
        for tensor in (*theirs._parameters.values(), *theirs._buffers.values()):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = random(tuple(tensor.shape))
        ours = copy_of(theirs)
        ours.__class__ = FORMED[form.kind]
        vars(ours).update(form=form, activation=None, activation_slope=0.01)
        for shape in _shapes(form):
            x = random(shape)
            try:
                wanted = type(theirs).forward(theirs, x.clone())
            except Exception:  # of this class: it takes other inputs
                continue
            got = ours.forward(x)
            if not isinstance(wanted, Tensor) or wanted.dtype != got.dtype or wanted.shape != got.shape:
                return False
            allowed = _ALLOWED.get(got.dtype, 1e-4) * max(float(wanted.abs().max()), 1e-30)
            return bool(((got.double() - wanted.double()).abs() <= allowed).all())
    return True


def _shapes(form: Form) -> list[tuple[int, ...]]:
    if form.axis == -1:
        return [(2, 3, form.size), (3, form.size), (2, 3, 2, form.size)]
    return [(2, form.size, *(3, 2, 2)[: rank - 2]) for rank in reversed(form.ranks)]
