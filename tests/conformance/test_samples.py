"""PyTorch's own samples: op_db's for the operations, module_db's for the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conformance.samples import OPS_WITH_SAMPLES, error_samples, samples
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.proof.call import Call, collect, run
from gammabeta.proof.check import assert_close, assert_conforms, computed_by
from gammabeta.proof.operations import DTYPES


def refusal(call: Call) -> str | None:
    """Return the full text of our error for samples that torch takes and we refuse, since they are no norm."""
    eps = call.settings.get("eps", 0)
    if eps < 0:
        return f"{call.op}: expected eps ≥ 0, got {eps}: it keeps the division by √(σ² + eps) defined."
    if call.op == "batch_norm" and call.input.ndim < 2:
        return (
            "batch_norm: expected input of shape (N, C) or (N, C, *positions), got (0,): add the missing axes with "
            "input.unsqueeze(0)."
        )
    return None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS_WITH_SAMPLES)
def test_op_samples(op: str, dtype: torch.dtype, route: str) -> None:
    checked = 0
    for i, call in enumerate(samples(op, dtype)):
        text = refusal(call)
        if text is not None:
            with pytest.raises(ValueError) as error:  # noqa: PT011
                run(call)
            assert str(error.value) == text
            continue
        assert_conforms(call, route, f"sample {i}")
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("op", OPS_WITH_SAMPLES)
def test_what_torch_refuses_is_refused(op: str, route: str) -> None:
    for call in error_samples(op):
        with pytest.raises(ValueError, match=f"^{op}: expected "):
            getattr(gb.functional, op)(**call.tensors, **call.settings)


LAYERS = (
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
    "GroupNorm", "LayerNorm", "RMSNorm",
)  # fmt: skip


def module_samples(name: str, training: bool) -> list[Any]:
    from torch.testing._internal.common_modules import module_db

    (info,) = (i for i in module_db if i.module_cls is getattr(nn, name))
    return info.module_inputs_func(  # type: ignore[no-any-return]
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=training
    )


@pytest.mark.parametrize("state", ["built in", "cast to"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_samples(name: str, dtype: torch.dtype, state: str, route: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for training in (True, False):
        for sample in module_samples(name, training):
            arguments = sample.constructor_input
            theirs = getattr(nn, name)(*arguments.args, **arguments.kwargs).double().train(training)
            ours = getattr(gb, name)(*arguments.args, **arguments.kwargs).train(training)
            if state == "built in":
                ours = getattr(gb, name)(*arguments.args, **arguments.kwargs, dtype=dtype).train(training)
            else:
                ours = ours.to(dtype)
            _randomize(theirs, generator)
            ours.load_state_dict(theirs.state_dict())
            theirs.load_state_dict(ours.state_dict())  # and back, so that both have the same digits
            about = f"{name} {sample.desc} training={training} {state}"
            for _ in range(2):
                shape = sample.forward_input.args[0].shape
                unbatched = hasattr(ours, "_get_no_batch_dim") and len(shape) == ours._get_no_batch_dim()
                shape = (1, *shape) if unbatched else shape
                call = _as_call(ours, _normal(shape, generator).to(dtype), _normal(shape, generator).to(dtype))
                actual, expected = (_results(layer, call, unbatched=unbatched) for layer in (ours, theirs))
                assert_close(call, actual, expected, computed_by(call, route), about)
                assert ours.state_dict().keys() == theirs.state_dict().keys()
                if getattr(theirs, "num_batches_tracked", None) is not None:
                    counted = theirs.num_batches_tracked if call.input.shape[0] else 0  # one that moves no channel
                    assert ours.num_batches_tracked == counted, about
                theirs.load_state_dict(ours.state_dict())


def _normal(shape: Any, generator: torch.Generator) -> Tensor:
    return 0.5 + 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = _normal(tensor.shape, generator)
            tensor.copy_(values.abs() + 0.5 if name == "running_var" else values)


def _as_call(layer: Any, x: Tensor, gradient: Tensor) -> Call:
    """The layer's next forward as a call of the operation under it, for the magnitudes."""
    settings: dict[str, Any] = {"eps": layer.eps}
    tensors = {"input": x, "weight": layer.weight, "bias": getattr(layer, "bias", None)}
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        op = "batch_norm" if batch else "instance_norm"
        settings["training" if batch else "use_input_stats"] = layer.training or layer.running_mean is None
        if layer.running_mean is not None:
            momentum = layer.momentum
            settings["momentum"] = 1 / (int(layer.num_batches_tracked) + 1) if momentum is None else momentum
            tensors |= {"running_mean": layer.running_mean, "running_var": layer.running_var}
    elif isinstance(layer, nn.GroupNorm):
        op, settings["num_groups"] = "group_norm", layer.num_groups
    else:
        op = "rms_norm" if isinstance(layer, nn.RMSNorm) else "layer_norm"
        settings["normalized_shape"] = layer.normalized_shape
    tensors = {name: None if t is None else t.detach().clone() for name, t in tensors.items()}
    return Call(op, tensors, settings, (gradient,))


def _results(layer: Any, call: Call, *, unbatched: bool) -> dict[str, Tensor]:
    """Run one forward and backward of the layer itself; torch's gets the same values in float64."""
    dtype = call.input.dtype if type(layer).__module__.startswith("gammabeta") else torch.float64
    x = call.input.detach().to(dtype).requires_grad_()
    y = layer(x.squeeze(0)).unsqueeze(0) if unbatched else layer(x)
    tensors = {"input": x, "weight": layer.weight, "bias": getattr(layer, "bias", None)}
    tensors |= {name: getattr(layer, name, None) for name in ("running_mean", "running_var")}
    wide = Call(call.op, tensors, call.settings, (call.gradients[0].to(dtype),))
    return {name: result.clone() for name, result in collect(wide, (y,), tensors).items()}
