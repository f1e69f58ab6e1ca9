"""A tensor left on another device than the others: an error worded like torch's, whoever would compute.

A model that is built on the meta device, of which a checkpoint did not bring everything, leaves such tensors behind.
What comes out of memory that nobody wrote may be anything.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gammabeta as gb
from gammabeta import kernels

REFUSED = re.compile(
    "Expected all tensors to be on the same device|Tensor on device meta is not on the expected device"
)

IMAGES, ROWS = (4, 8, 6, 6), (16, 768)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "RMSNorm": (lambda: gb.RMSNorm(768), ROWS),
    "RMSNorm of two axes": (lambda: gb.RMSNorm((6, 6)), IMAGES),
    "LayerNorm": (lambda: gb.LayerNorm(768), ROWS),
    "LayerNorm without bias": (lambda: gb.LayerNorm(768, bias=False), ROWS),
    "GroupNorm": (lambda: gb.GroupNorm(4, 8), IMAGES),
    "BatchNorm1d": (lambda: gb.BatchNorm1d(768), ROWS),
    "BatchNorm2d": (lambda: gb.BatchNorm2d(8), IMAGES),
    "BatchNorm2d without parameters": (lambda: gb.BatchNorm2d(8, affine=False), IMAGES),
    "BatchNorm2d without statistics": (lambda: gb.BatchNorm2d(8, track_running_stats=False), IMAGES),
    "InstanceNorm2d": (lambda: gb.InstanceNorm2d(8, affine=True), IMAGES),
    "InstanceNorm2d with statistics": (lambda: gb.InstanceNorm2d(8, track_running_stats=True), IMAGES),
}

FINISHES = ("plain", "residual", "activation", "mask")


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On which side of the size from which our kernels compute what torch's ops can do too."""
    monkeypatch.setattr(kernels, "WORTH_IT", dict.fromkeys(kernels.WORTH_IT, 0 if request.param == "large" else 2**62))
    return request.param


def on_meta(layer: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return layer()


def arguments(m: nn.Module, x: Tensor, finish: str) -> tuple[dict[str, Any], nn.Module]:
    """What the layer is called with, and the layer with its activation."""
    if finish == "activation":
        m.activation = "silu"
    over_last = isinstance(m, (gb.LayerNorm, gb.RMSNorm))
    mask = torch.ones(
        x.shape[: -len(m.normalized_shape)] if over_last else (x.shape[0], *x.shape[2:]), dtype=torch.bool
    )
    return {"residual": {"residual": torch.ones_like(x)}, "mask": {"mask": mask}}.get(finish, {}), m


def assert_refuses(m: nn.Module, x: Tensor, **given: Any) -> None:
    before = {name: t.clone() for name, t in (*m.named_parameters(), *m.named_buffers()) if not t.is_meta}
    with pytest.raises(RuntimeError, match=REFUSED):
        m(x, **given)
    for name, t in (*m.named_parameters(), *m.named_buffers()):
        if name in before and name != "num_batches_tracked":  # torch's layer has counted before it fails
            assert torch.equal(t, before[name]), f"{name} was written"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_meta(name: str, finish: str, training: bool, size: str) -> None:
    layer, shape = LAYERS[name]
    m = on_meta(layer).train(training)
    if not any(True for _ in (*m.parameters(), *m.buffers())):
        pytest.fail(f"{name} has no tensor that could be on another device")
    x = torch.ones(shape)
    given, m = arguments(m, x, finish)
    assert_refuses(m, x, **given)


def left_behind() -> list[Any]:
    found = []
    for name, (layer, _) in LAYERS.items():
        for key in layer().state_dict():
            if key != "num_batches_tracked":  # which torch's layer counts in wherever it is
                found.append(pytest.param(name, key, id=f"{name}-{key}"))
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize(("name", "key"), left_behind())
def test_a_checkpoint_that_lacks_one_tensor(name: str, key: str, finish: str, training: bool, size: str) -> None:
    layer, shape = LAYERS[name]
    state = layer().state_dict()
    missing = state.pop(key)
    m = on_meta(layer)
    m.load_state_dict(state, strict=False, assign=True)
    m.train(training)
    assert getattr(m, key).is_meta
    assert missing.device.type == "cpu"
    x = torch.randn(shape)
    given, m = arguments(m, x, finish)
    assert_refuses(m, x, **given)


@pytest.mark.parametrize("finish", ["residual", "mask"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_goes_with_the_input_is_on_meta(name: str, finish: str, size: str) -> None:
    layer, shape = LAYERS[name]
    m, x = layer(), torch.randn(shape)
    given, m = arguments(m, x, finish)
    assert_refuses(m, x, **{argument: t.to("meta") for argument, t in given.items()})


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_is_on_meta_and_the_layer_is_not(name: str, size: str) -> None:
    layer, shape = LAYERS[name]
    assert_refuses(layer(), torch.ones(shape, device="meta"))


@pytest.mark.parametrize("add", [gb.functional.add_layer_norm, gb.functional.add_rms_norm])
def test_sums(add: Callable[..., Any], size: str) -> None:
    x, weight = torch.randn(ROWS), torch.ones(768)
    for wrong in range(3):
        tensors = [t.to("meta") if i == wrong else t for i, t in enumerate((x, x.clone(), weight))]
        with pytest.raises(RuntimeError, match=REFUSED):
            add(tensors[0], tensors[1], (768,), tensors[2])


@pytest.mark.parametrize("name", LAYERS)
def test_all_on_meta_gives_shapes(name: str, size: str) -> None:
    layer, shape = LAYERS[name]
    m = on_meta(layer)
    y = m(torch.ones(shape, device="meta"))
    assert y.is_meta
    assert y.shape == shape


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["RMSNorm", "GroupNorm", "BatchNorm2d"])
def test_compiled(name: str, backend: str, size: str) -> None:
    layer, shape = LAYERS[name]
    torch._dynamo.reset()
    m = copy.deepcopy(on_meta(layer))
    with pytest.raises(Exception, match=f"{REFUSED.pattern}|Unhandled FakeTensor Device Propagation"):
        torch.compile(m, backend=backend)(torch.ones(shape), residual=torch.ones(shape))
