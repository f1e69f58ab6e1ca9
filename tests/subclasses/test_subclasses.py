"""Tensors of users' own classes: at every size the output is of the class that torch's norms return."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._pytree import tree_map

import gammabeta as gb
from gammabeta import kernels
from gammabeta.subclasses import parts as subclasses

C = 6
LAYERS = {
    "LayerNorm": lambda ns: ns.LayerNorm(C),
    "RMSNorm": lambda ns: ns.RMSNorm(C),
    "GroupNorm": lambda ns: ns.GroupNorm(3, C),
    "InstanceNorm": lambda ns: ns.InstanceNorm1d(C, affine=True),
    "BatchNorm": lambda ns: ns.BatchNorm1d(C),
    "BatchNorm in evaluation": lambda ns: ns.BatchNorm1d(C).eval(),
}


class Named(torch.Tensor):
    """A class that is only a name: every op sees a plain tensor."""


class Wrapped(torch.Tensor):
    """A class that handles torch's ops and refuses others, as one with a table of ops does."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), dtype=inner.dtype, device=inner.device, requires_grad=inner.requires_grad
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func.namespace not in ("aten", "prim"):
            raise NotImplementedError(f"{func} is not known")
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, cls) else t, (args, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, torch.Tensor) else t, func(*args, **kwargs))


def named(tensor):
    return tensor.as_subclass(Named)


CLASSES = {"named": named, "wrapped": Wrapped, "the result of a collective": AsyncCollectiveTensor}


@pytest.fixture(params=["small", "large"], autouse=True)
def threshold(request, monkeypatch):
    """Use torch's op where nothing of ours is asked for, and always ours."""
    value = {"small": math.inf, "large": 0}[request.param]
    monkeypatch.setattr(kernels, "WORTH_IT", dict.fromkeys(kernels.WORTH_IT, value))


def pair(layer):
    torch.manual_seed(3)
    theirs = LAYERS[layer](nn)
    ours = copy.deepcopy(theirs)
    gb.adopt(ours)
    return theirs, ours


def data(layer):
    x = torch.randn(4, C, 5, generator=torch.Generator().manual_seed(1))
    return x.mT.contiguous() if layer in ("LayerNorm", "RMSNorm") else x


def plain(tensor):
    return tensor.inner if isinstance(tensor, Wrapped) else torch.Tensor(tensor)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_comes_out_is_of_torchs_class(layer, kind):
    results = []
    for module in pair(layer):
        x = CLASSES[kind](data(layer)).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        results.append((y, x.grad, *(p.grad for p in module.parameters()), *module.buffers()))
    for a, b in zip(*results, strict=True):
        assert type(a) is type(b)
        torch.testing.assert_close(plain(a), plain(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("layer", LAYERS)
def test_residual_activation_and_mask(layer, kind):
    _, ours = pair(layer)
    ours.activation = "silu"
    x = data(layer)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(2)) < 0.7
    for given in (None, mask):
        y = ours(CLASSES[kind](x), CLASSES[kind](x + 1), mask=given)
        torch.testing.assert_close(plain(y), ours(x, x + 1, mask=given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_under_fake_tensors_the_shapes_are_known(layer):
    shape = data(layer).shape
    with FakeTensorMode():
        theirs, ours, x = LAYERS[layer](nn), LAYERS[layer](gb), torch.empty(shape)
        y = ours(x)
        assert (y.shape, y.dtype) == (theirs(x).shape, x.dtype)


def test_which_classes_know_only_torchs_ops():
    x = torch.randn(2, 3)
    assert subclasses.knows_only_torch(Wrapped(x))
    fake = FakeTensorMode().from_tensor(x)
    others = [x, nn.Parameter(x), named(x), nn.Buffer(x), AsyncCollectiveTensor(x), fake]
    assert not any(subclasses.knows_only_torch(t) or subclasses.in_parts(t, t) for t in others)
    assert not subclasses.in_parts(Wrapped(x))
