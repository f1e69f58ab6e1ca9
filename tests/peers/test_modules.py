"""What PyTorch asks of every module (its test_modules.py), asked of ours with the same entries."""

from __future__ import annotations

import copy
import io
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from tests.peers import differences
from tests.peers.close import assert_alike, layout
from tests.peers.modules import DTYPES, MODULES, ModuleSample, module_errors, module_info, module_samples
from torch import Tensor, nn


def gradients(module: nn.Module, y: Tensor, inputs: tuple[Tensor, ...], direction: Tensor | None = None) -> Any:
    """By the inputs that have one and the parameters."""
    differentiated = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    direction = torch.randn_like(y, memory_format=torch.contiguous_format) if direction is None else direction
    return torch.autograd.grad(y, differentiated, direction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODULES)
class TestForward:
    def test_beside_torch_s(self, name: str, dtype: torch.dtype, route: str) -> None:
        """Three steps: outputs, their layout, all gradients, and what has become of the state."""
        for sample in module_samples(name, dtype, requires_grad=True):
            ours, theirs = sample.pair(dtype=dtype)
            for _ in range(3):
                x, z = sample.fresh_inputs(), sample.fresh_inputs()
                y, expected = ours(*x), theirs(*z)
                assert_alike(y, expected, sample)
                assert y.requires_grad == expected.requires_grad, sample
                assert type(y) is Tensor
                assert layout(y) == layout(expected), sample
                direction = torch.randn_like(expected)
                actual = gradients(ours, y, x, direction)
                assert_alike(actual, gradients(theirs, expected, z, direction), sample, scale=10)
                for (key, value), wanted in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
                    if key == "num_batches_tracked" and differences.UNCOUNTED_BATCH.applies(sample):
                        continue
                    assert_alike(value, wanted, f"{sample} {key}")

    def test_the_entry_s_reference(self, name: str, dtype: torch.dtype, route: str) -> None:
        checked = 0
        for sample in module_samples(name, dtype):
            module = sample.ours(dtype=dtype)
            y = module(*sample.inputs)
            if sample.reference is not None:
                # RMSNorm's computes in float32 whatever the input is.
                scale = 1e7 if dtype == torch.float64 else 10
                assert_alike(y, sample.reference(module, *sample.inputs), sample, scale)
                checked += 1
        assert (checked > 0) == (name == "RMSNorm" or name.startswith("Instance"))

    def test_cast_after_construction(self, name: str, dtype: torch.dtype, route: str) -> None:
        """`.to(dtype)` and the methods named after dtypes; in 16 bits the state is float32 on purpose."""
        kept = torch.float32 if differences.FLOAT32_STATE.applies(dtype) else dtype
        methods = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "half"}
        for sample in module_samples(name, dtype):
            for module in (sample.ours().to(dtype), getattr(sample.ours(), methods[dtype])()):
                floating = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
                assert all(t.dtype == kept for t in floating), sample
                assert module(*sample.inputs).dtype == dtype


@pytest.mark.parametrize("name", MODULES)
class TestCopies:
    def test_saved_pickled_and_copied(self, name: str, route: str) -> None:
        for sample in module_samples(name, torch.float32):
            module, _ = sample.pair()
            module(*sample.inputs)
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            copies = (
                torch.load(file, weights_only=False),
                pickle.loads(pickle.dumps(module)),
                copy.deepcopy(module),
                copy.copy(module),
            )
            for other in copies:
                assert type(other) is type(module)
                assert repr(other) == repr(module)
                assert other.__dict__.keys() == module.__dict__.keys()
                assert_alike(list(other.state_dict().values()), list(module.state_dict().values()), sample)
            y = module(*sample.inputs)
            for other in copies[:3]:
                assert torch.equal(other(*sample.inputs), y), sample
                assert_alike(list(other.state_dict().values()), list(module.state_dict().values()), sample)

    def test_repr(self, name: str) -> None:
        for sample in module_samples(name, torch.float32):
            ours, theirs = repr(sample.ours()), repr(sample.theirs())
            if name == "SyncBatchNorm":
                theirs = theirs.replace("SyncBatchNorm", "BatchNorm")[:-1] + ", statistics=Synced(group=None))"
            assert ours == f"{theirs[:-1]}, gammabeta)"


@pytest.mark.parametrize("name", MODULES)
def test_factory_arguments(name: str) -> None:
    """Whatever the constructor makes is on the device and, where floating, of the dtype that it is given."""
    for sample in module_samples(name, torch.float32):
        for dtype in DTYPES:
            for device in ("cpu", "meta"):
                module, theirs = (build(device=device, dtype=dtype) for build in (sample.ours, sample.theirs))
                state = [*module.parameters(), *module.buffers()]
                assert len(state) == len([*theirs.parameters(), *theirs.buffers()])
                for tensor in state:
                    assert tensor.device.type == device, sample
                    assert tensor.dtype == dtype or not tensor.is_floating_point(), sample


@pytest.mark.parametrize("name", MODULES)
def test_sizes_of_any_integral_type(name: str, route: str) -> None:
    for sample in module_samples(name, torch.float32):
        wide = ModuleSample(**{**sample.__dict__, "args": tuple(map(numpy_integer, sample.args))})
        ours, theirs = wide.pair()
        assert_alike(ours(*sample.inputs), theirs(*sample.inputs), sample)


def numpy_integer(value: Any) -> Any:
    if isinstance(value, list):
        return np.int64(value[0]) if len(value) == 1 else [numpy_integer(v) for v in value]
    return np.int64(value) if type(value) is int else value


@pytest.mark.parametrize("name", MODULES)
def test_not_contiguous(name: str, route: str) -> None:
    """Inputs and gradients of outputs with strides in every combination give what contiguous ones do."""

    def strided(t: Tensor) -> Tensor:
        return t.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_(t.requires_grad)

    for sample in module_samples(name, torch.float32, requires_grad=True):
        module, _ = sample.pair()
        before = copy.deepcopy(module.state_dict())
        (x,) = sample.inputs
        direction = torch.randn(x.shape)
        y = module(x)
        expected = [y, *gradients(module, y, (x,), direction), *map(torch.clone, module.buffers())]
        for given in (x, strided(x)):
            for g in (direction, strided(direction)):
                module.load_state_dict(before)
                y = module(given)
                actual = [y, *gradients(module, y, (given,), g), *module.buffers()]
                assert_alike(actual, expected, sample, scale=10)
        if x.numel():
            one = torch.ones(()).expand(x.shape)
            actual, expected = (gradients(module, module(x), (x,), g) for g in (one, one.contiguous()))
            assert_alike(actual, expected, sample, scale=10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODULES)
def test_memory_format(name: str, dtype: torch.dtype, route: str) -> None:
    """Inputs and modules in every memory format: values do not change, and outputs are laid out as torch's are."""
    checked = 0
    for sample in module_samples(name, dtype, requires_grad=True):
        (x,) = sample.inputs
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
        if last is None or x.numel() == 0:
            continue
        ours, theirs = sample.pair(dtype=dtype)
        direction = torch.randn_like(x)
        y = ours(x)
        expected = [y, *gradients(ours, y, (x,), direction)]
        for of_input in (torch.contiguous_format, last):
            for of_module in (torch.preserve_format, torch.contiguous_format, last):
                moved = x.detach().to(memory_format=of_input).requires_grad_()
                ours.to(memory_format=of_module)
                y = ours(moved)
                for g in (direction, direction.to(memory_format=last)):
                    actual = [y, *gradients(ours, y, (moved,), g)]
                    assert_alike(actual, expected, sample, scale=10)
                    y = ours(moved)
                wanted = theirs(moved)
                assert layout(y) == layout(wanted), f"{sample} {of_input}"
                checked += 1
    assert checked > 0 or name.endswith("1d")


@pytest.mark.parametrize("name", MODULES)
def test_whether_the_mode_matters(name: str, route: str) -> None:
    """A layer whose entry says that training and evaluation do not differ does not ask for its mode."""
    if module_info(name).train_and_eval_differ:
        return
    for sample in module_samples(name, torch.float32):
        module = sample.ours()
        del module.training
        module(*sample.inputs)


@pytest.mark.parametrize("name", MODULES)
def test_under_a_default_device(name: str) -> None:
    for sample in module_samples(name, torch.float32):
        on_cpu = sample.theirs()
        with torch.device("meta"):
            module = sample.ours()
        for t, wanted in zip(
            (*module.parameters(), *module.buffers()), (*on_cpu.parameters(), *on_cpu.buffers()), strict=True
        ):
            assert t.is_meta
            assert (t.shape, t.stride(), t.dtype, t.requires_grad, type(t)) == (
                wanted.shape, wanted.stride(), wanted.dtype, wanted.requires_grad, type(wanted),
            ), sample  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_errors(name: str, route: str) -> None:
    """An error at the same place, of the same type or one that differences.py lists."""
    from torch.testing._internal.common_modules import ModuleErrorEnum

    for error in module_errors(name):
        constructor, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input
        sample = ModuleSample(name, "", constructor.args, constructor.kwargs, forward.args, True, None)
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                sample.ours()
            continue
        module = sample.ours()
        with pytest.raises(error.error_type) as raised:
            module(*forward.args)
        assert re.fullmatch(r"batch_norm: expected eps > 0 in training, got .*", str(raised.value))
        with pytest.raises(error.error_type, match=error.error_regex):
            sample.theirs()(*forward.args)


@pytest.mark.parametrize("name", MODULES)
def test_inference_mode_and_no_grad(name: str, route: str) -> None:
    for sample in module_samples(name, torch.float32, requires_grad=True):
        for context in (torch.no_grad, torch.inference_mode):
            ours, theirs = sample.pair()
            with context():
                y, expected = ours(*sample.inputs), theirs(*sample.inputs)
                assert y.requires_grad == expected.requires_grad
                assert y.is_inference() == expected.is_inference()
                assert_alike(y, expected, sample)


@pytest.mark.parametrize("name", MODULES)
def test_compiled(name: str, route: str) -> None:
    """Two steps of the compiled module in one graph give what eager ones do; momentum=None is in it."""
    samples = module_samples(name, torch.float32, requires_grad=True)
    different = {str((sample.training, sample.args, sample.kwargs)): sample for sample in samples}
    # The first of training and of evaluation, and one more.
    for sample in [*different.values()][:: max(1, len(different) // 3)]:
        torch._dynamo.reset()
        eager, _ = sample.pair()
        traced = copy.deepcopy(eager)
        compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            direction = torch.randn(sample.inputs[0].shape)
            steps = []
            for module, call in ((eager, eager), (traced, compiled)):
                inputs = sample.fresh_inputs()
                y = call(*inputs)
                steps.append([y, *gradients(module, y, inputs, direction), *module.state_dict().values()])
            assert_alike(steps[1], steps[0], sample, scale=10)
    torch._dynamo.reset()
