"""Norms of NestedTensors, samples of different lengths: each sample gets what it gets without the others."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta import kernels

D = 6
LENGTHS = (5, 1, 3)
LAYERS = {
    "LayerNorm": lambda ns: ns.LayerNorm(D),
    "LayerNorm without bias": lambda ns: ns.LayerNorm(D, bias=False),
    "LayerNorm without parameters": lambda ns: ns.LayerNorm(D, elementwise_affine=False),
    "RMSNorm": lambda ns: ns.RMSNorm(D),
    "RMSNorm without parameters": lambda ns: ns.RMSNorm(D, elementwise_affine=False),
}
LAYOUTS = {"jagged": torch.jagged, "strided": torch.strided}
warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors is in prototype stage")


@pytest.fixture(params=["small", "large"], autouse=True)
def threshold(request, monkeypatch):
    """Use torch's op where nothing of ours is asked for, and always ours."""
    value = {"small": math.inf, "large": 0}[request.param]
    monkeypatch.setattr(kernels, "WORTH_IT", dict.fromkeys(kernels.WORTH_IT, value))
    return request.param


def samples(*tail, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, *tail, dtype=torch.float64, generator=generator) * 2 + 1).to(dtype) for n in LENGTHS]


def nest(parts, layout):
    return torch.nested.nested_tensor(parts, layout=LAYOUTS[layout])


def pair(name):
    """Make torch's layer, and ours with the same state."""
    torch.manual_seed(3)
    theirs = LAYERS[name](nn).double()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    ours = copy.deepcopy(theirs)
    gb.adopt(ours)
    return theirs, ours


def loss(parts):
    return sum(
        (p.double() * torch.cos(torch.arange(p.numel()).reshape(p.shape) + i)).sum() for i, p in enumerate(parts)
    )


def assert_same(actual, expected, tolerance=1e-13):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def one_by_one(layer, parts, *args, **kwargs):
    """Return the layer's output for each sample, and the gradients of the samples and of the parameters."""
    parts = [p.detach().clone().requires_grad_() for p in parts]
    of_each = [{name: parts_of[i] for name, parts_of in kwargs.items()} for i in range(len(parts))]
    ys = [layer(p, *(a[i] for a in args), **given) for i, (p, given) in enumerate(zip(parts, of_each, strict=True))]
    layer.zero_grad()
    loss(ys).backward()
    return [y.detach() for y in ys], [p.grad for p in parts], [p.grad for p in layer.parameters()]


def together(layer, x, *args, **kwargs):
    x = x.detach().requires_grad_()
    y = layer(x, *args, **kwargs)
    assert y.is_nested
    assert y.layout == x.layout
    layer.zero_grad()
    loss(y.unbind()).backward()
    return [p.detach() for p in y.unbind()], list(x.grad.unbind()), [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("tail", [(D,), (2, D)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_training_is_that_of_the_samples_one_by_one(layer, layout, tail):
    theirs, ours = pair(layer)
    parts = samples(*tail)
    for actual, expected in zip(together(ours, nest(parts, layout)), one_by_one(theirs, parts), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_evaluation_is_that_of_the_samples_one_by_one(layer, layout):
    theirs, ours = (m.eval() for m in pair(layer))
    parts = samples(D)
    with torch.no_grad():
        y = ours(nest(parts, layout))
        assert_same(y.unbind(), [theirs(p) for p in parts])
    assert not y.requires_grad


@pytest.mark.parametrize("layer", LAYERS)
def test_where_torch_takes_it_ours_is_torchs(layer):
    """The output too is a tensor of the same nested shape, to which x can be added."""
    theirs, ours = pair(layer)
    x = nest(samples(D), "jagged")
    y, z = theirs(x), ours(x)
    assert z.shape == y.shape == x.shape
    assert_same((x + z).unbind(), (x + y).unbind())


@pytest.mark.parametrize("layer", LAYERS)
def test_strided_that_is_not_contiguous(layer):
    """torch's layer refuses it."""
    theirs, ours = pair(layer)
    parts = samples(D)
    leaf = nest([p.T.contiguous() for p in parts], "strided").requires_grad_()
    x = leaf.transpose(1, 2)
    assert not x.is_contiguous()
    y = ours(x)
    loss(y.unbind()).backward()
    ys, gradients, of_parameters = one_by_one(theirs, parts)
    assert_same(y.unbind(), ys)
    assert_same([g.T for g in leaf.grad.unbind()], gradients)
    assert_same([p.grad for p in ours.parameters()], of_parameters)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_stands_between_jagged_samples_reaches_nothing(layer):
    """A narrowed tensor has rows that belong to no sample; torch's backward fails for it."""
    theirs, ours = pair(layer)
    base = torch.full((3, 8, D), math.nan, dtype=torch.float64)
    parts = samples(D)
    starts = torch.tensor([0, 2, 5])
    for row, start, p in zip(base, starts, parts, strict=True):
        row[start : start + len(p)] = p
    base.requires_grad_()
    x = torch.nested.narrow(base, 1, starts, torch.tensor(LENGTHS), layout=torch.jagged)
    y = ours(x)
    assert y.shape == x.shape
    loss(y.unbind()).backward()
    ys, gradients, of_parameters = one_by_one(theirs, parts)
    assert_same(y.unbind(), ys)
    assert_same([p.grad for p in ours.parameters()], of_parameters)
    for row, start, g in zip(base.grad, starts, gradients, strict=True):
        torch.testing.assert_close(row[start : start + len(g)], g, rtol=1e-13, atol=1e-13)
        assert row[:start].eq(0).all()
        assert row[start + len(g) :].eq(0).all()


def test_jagged_over_another_axis():
    """(B, 2, length, D): the values' rows are not those of axis 1."""
    theirs, ours = pair("LayerNorm")
    parts = samples(2, D)
    x = nest(parts, "jagged").detach().requires_grad_()
    y = ours(x.transpose(1, 2))
    ys, gradients, of_parameters = one_by_one(theirs, parts)
    assert_same([p.transpose(0, 1) for p in y.unbind()], ys)
    loss([p.transpose(0, 1) for p in y.unbind()]).backward()
    assert_same(x.grad.unbind(), gradients)
    assert_same([p.grad for p in ours.parameters()], of_parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [gb.LayerNorm, gb.RMSNorm])
def test_residual_activation_and_mask(make, layout, dtype):
    layer = make(D, activation="silu")
    parts, residuals = samples(D, dtype=dtype), samples(D, dtype=dtype, seed=2)
    masks = [torch.arange(n) % 3 != 1 for n in LENGTHS]
    x = nest(parts, layout)
    if layout == "jagged":
        residual, mask = (torch.nested.nested_tensor_from_jagged(torch.cat(t), x.offsets()) for t in (residuals, masks))
    else:
        residual, mask = nest(residuals, layout), nest(masks, layout)
    actual = together(layer, x, residual, mask=mask)
    expected = one_by_one(layer, parts, residuals, mask=masks)
    for a, b in zip(actual, expected, strict=True):
        assert_same(a, b, 1e-6)
    assert all(y.dtype == dtype for y in actual[0])
    assert all(g.dtype == torch.float32 for g in actual[2])
    assert any((y == 0).all(-1).any() for y in actual[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_add_norm(layout):
    parts, residuals = samples(D), samples(D, seed=2)
    x = nest(parts, layout)
    residual = nest(residuals, layout)
    if layout == "jagged":
        residual = torch.nested.nested_tensor_from_jagged(torch.cat(residuals), x.offsets())
    for norm, add in ((gb.functional.layer_norm, gb.functional.add_layer_norm),
                      (gb.functional.rms_norm, gb.functional.add_rms_norm)):  # fmt: skip
        y, total = add(x, residual, (D,))
        sums = [a + b for a, b in zip(parts, residuals, strict=True)]
        assert_same(total.unbind(), sums)
        assert_same(y.unbind(), [norm(s, (D,)) for s in sums])


@pytest.mark.parametrize("layer", ["LayerNorm", "RMSNorm"])
def test_16_bits_beside_float32_parameters(layer):
    """An adopted model has this after .bfloat16()."""
    model = nn.Sequential(LAYERS[layer](nn))
    gb.adopt(model)
    model.bfloat16()
    parts = samples(D, dtype=torch.bfloat16)
    for layout in LAYOUTS:
        actual, expected = together(model, nest(parts, layout)), one_by_one(model, parts)
        assert all(y.dtype == torch.bfloat16 for y in actual[0])
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b, 1e-6)


def test_compiled_jagged_is_eager(threshold):
    theirs, ours = pair("RMSNorm")
    for layer in (theirs, ours):
        compiled = torch.compile(lambda x, layer=layer: x + layer(x), backend="aot_eager", fullgraph=True)
        x = nest(samples(D), "jagged")
        y = compiled(x)
        assert y.shape == x.shape
        assert_same(y.unbind(), (x + theirs(x)).unbind())


def test_no_samples_at_all():
    x = torch.nested.nested_tensor([], layout=torch.strided)
    assert gb.LayerNorm(D)(x).size(0) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "layer", [gb.GroupNorm(2, D), gb.BatchNorm1d(D), gb.BatchNorm1d(D).eval(), gb.InstanceNorm1d(D)], ids=str
)
def test_norms_of_channels_say_what_to_do(layer, layout):
    """torch's layers fail with internal errors."""
    with pytest.raises(ValueError, match=r"whose samples have one size, got a NestedTensor.*to_padded_tensor.*mask="):
        layer(nest(samples(D), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_goes_with_it_has_to_be_nested_alike(layout):
    layer, x = gb.LayerNorm(D).double(), nest(samples(D), layout)
    with pytest.raises(ValueError, match="expected residual nested as input is"):
        layer(x, torch.randn(3, 5, D))
    with pytest.raises(ValueError, match="expected mask nested as input is"):
        layer(x, mask=torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected residual"):
        layer(x, nest(samples(D)[::-1], layout))
    with pytest.raises(ValueError, match="expected input whose shape ends with normalized_shape"):
        gb.LayerNorm(D + 1)(x)


def test_axes_that_differ_cannot_be_normalized():
    with pytest.raises(ValueError, match="normalized axes of the same size in every sample"):
        gb.functional.layer_norm(nest(samples(D), "strided"), (5, D))
    with pytest.raises(ValueError, match="normalized axes of the same size in every sample"):
        gb.functional.layer_norm(nest(samples(D), "jagged"), (5, D))
