"""The check on models that run in unusual ways: on meta, without a forward, under observers, with quantized parts."""

import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization

import gammabeta as gb
from gammabeta.diagnostics.rules import RULES


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def images():
    return torch.randn(4, 3, 8, 8)


def test_a_model_on_meta_has_no_values_to_run_on():
    with torch.device("meta"):
        model = network()
    assert gb.check(model).norms == 1
    for given in ({"inputs": images()}, {"loader": [images()]}):
        with pytest.raises(ValueError, match=r"got one with 0\.weight on the meta device: initialize it, as by"):
            gb.check(model, **given)


@pytest.mark.parametrize("model", [nn.ModuleDict({"a": nn.BatchNorm2d(3)}), nn.ModuleList([nn.BatchNorm2d(3)])])
def test_without_a_forward_inputs_need_one(model):
    with pytest.raises(ValueError, match="which has none: say how they go through it by forward="):
        gb.check(model, images())
    forward = lambda model, x: next(iter(model.children()))(x)  # noqa: E731
    assert gb.check(model, images(), forward=forward).norms == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_inputs_of_another_dtype_than_the_parameters_are_said_to_be(dtype):
    with pytest.raises(RuntimeError, match=rf"\(4, 3, 8, 8\) of torch.float32, while the parameters are {dtype}, on"):
        gb.check(network().to(dtype), images())


def test_an_array_is_said_to_be_no_tensor():
    with pytest.raises(RuntimeError, match="got a ndarray, which is no tensor, on which its forward raised TypeError"):
        gb.check(network(), images().numpy())


def test_a_model_without_norms_is_said_to_have_none():
    diagnosis = gb.check(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert diagnosis.summary() == f"nothing found, as there are no norms: {len(diagnosis.rules)} of {len(RULES)} rules"


def test_observers_that_resize_their_buffers_are_restored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = network()
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        model = quantization.prepare_qat(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        gb.check(model, images())
    assert any(buffer.numel() == 0 for buffer in before.values())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_quantized_model_is_checked_on_inputs():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(quantization.QuantStub(), network(), quantization.DeQuantStub()).eval()
        model.qconfig = quantization.get_default_qconfig("fbgemm")
        quantization.prepare(model, inplace=True)
        model(images())
        model = quantization.convert(model)
        assert gb.check(model, images()).norms == 1
