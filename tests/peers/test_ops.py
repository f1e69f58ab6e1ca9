"""What PyTorch asks of every operation (its test_ops.py), asked of ours with the same samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.conformance.samples import op_info
from tests.peers import differences
from tests.peers.close import assert_alike, layout
from tests.peers.ops import DTYPES, LAYOUTS, OPS, RUNNING, OpSample, gradients, op_samples, refused_samples
from torch import Tensor
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import gammabeta as gb
from gammabeta import functional


def double(sample: OpSample) -> OpSample:
    """The same values in float64: what torch makes of 16 bits is no reference (differences.WIDE_SUMS)."""
    wide = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in sample.tensors.items()}
    return OpSample(sample.op, wide, sample.settings)


def results(call: Callable[..., Tensor], tensors: dict[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
    """The output, a gradient for each tensor that has one, and the running statistics after it."""
    y = call(**tensors)
    found = {"output": y, **gradients(y, tensors, direction.to(y.dtype))}
    return found | {name: tensors[name] for name in RUNNING if name in tensors}


def assert_results(actual: dict[str, Tensor], expected: dict[str, Tensor], about: object) -> None:
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert_alike(actual[name], wanted.to(actual[name].dtype), f"{about}: {name}", scale=10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_beside_torch_s(op: str, dtype: torch.dtype, route: str) -> None:
    """Values, dtypes and the layout of the output; versions of what is given."""
    for sample in op_samples(op, dtype, requires_grad=True):
        direction = torch.randn(sample.input.shape, dtype=torch.float64)
        tensors, others = sample.leaves(), sample.leaves()
        actual = results(sample.ours, tensors, direction)
        of_torch = results(sample.theirs, others, direction)
        wide = double(sample)
        expected = results(wide.theirs, wide.leaves(), direction)
        assert_results(actual, expected, sample)
        for name, result in of_torch.items():
            assert actual[name].dtype == result.dtype, f"{sample}: {name}"
        assert layout(actual["output"]) == layout(of_torch["output"])
        for name, t in tensors.items():
            assert (t._version > 0) == (sample.moves and name in RUNNING), f"{sample}: {name}"


@pytest.mark.parametrize("which", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(op: str, which: str, route: str) -> None:
    """A tensor in another layout gives what a contiguous one does."""
    for sample in op_samples(op, torch.float64, requires_grad=True):
        tensors = sample.leaves(LAYOUTS[which])
        if which == "negated" and differences.DECLARED_WRITES.applies(sample):
            tensors |= {name: sample.tensors[name].clone() for name in RUNNING if name in sample.tensors}
        direction = LAYOUTS[which](torch.randn(sample.input.shape, dtype=torch.float64))
        contiguous = {
            name: t.detach().clone(memory_format=torch.contiguous_format).requires_grad_(t.requires_grad)
            for name, t in tensors.items()
        }
        actual = results(sample.ours, tensors, direction)
        assert_results(actual, results(sample.ours, contiguous, direction.contiguous()), f"{sample} {which}")


@pytest.mark.parametrize("op", OPS)
def test_the_output_s_layout(op: str, route: str) -> None:
    """For every order of the input's axes it is torch's: what follows may call `view`, whatever the size."""
    settings: dict[str, Any] = {
        "batch_norm": {"training": True}, "group_norm": {"num_groups": 2}, "instance_norm": {},
        "layer_norm": {"normalized_shape": (2,)}, "rms_norm": {"normalized_shape": (2,)},
    }[op]  # fmt: skip
    for shape in ((4, 2), (3, 4, 2), (3, 4, 5, 2), (3, 4, 3, 2, 2)):
        if op == "instance_norm" and len(shape) == 2:
            continue
        for order in itertools.permutations(range(len(shape))):
            back = [order.index(axis) for axis in range(len(shape))]
            x = torch.randn([shape[axis] for axis in order]).permute(back)
            sample = OpSample(op, {"input": x}, settings)
            assert layout(sample.ours()) == layout(sample.theirs()), f"{sample} {x.stride()}"
            if x.ndim > 3 and op in ("batch_norm", "group_norm"):  # some of the channels of a larger tensor
                part = torch.cat([x, x], dim=1)[:, : x.shape[1]]
                sample = OpSample(op, {"input": part}, settings)
                assert layout(sample.ours()) == layout(sample.theirs()), f"{sample} {part.stride()}"


@pytest.mark.parametrize("op", OPS)
def test_what_is_only_read_is_not_copied(op: str, route: str) -> None:
    """Copy-on-write inputs, and gradients, stay as lazy as torch's leave them."""
    for sample in op_samples(op, torch.float32, requires_grad=True, empty=False):
        lazy = []
        for call in (sample.ours, sample.theirs):
            tensors = sample.leaves(torch._lazy_clone)
            direction = torch._lazy_clone(torch.randn(sample.input.shape))
            y = call(**tensors)
            torch.autograd.grad(y, [t for t in tensors.values() if t.requires_grad], direction)
            lazy.append([torch._C._is_cow_tensor(t) for t in (direction, *tensors.values())])
        ours, theirs = lazy
        assert all(o or not t for o, t in zip(ours, theirs, strict=True)), f"{sample}: {ours}, torch {theirs}"


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_autocast(op: str, lower: torch.dtype, route: str) -> None:
    """Outputs and gradients have the dtypes that torch's have."""
    for dtype in (torch.float32, lower):
        for sample in op_samples(op, dtype, requires_grad=True):
            found = []
            for call in (sample.ours, sample.theirs):
                tensors = sample.leaves()
                with torch.autocast("cpu", lower):
                    y = call(**tensors)
                found.append([y, *gradients(y, tensors, torch.ones_like(y)).values()])
            assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]], sample


class Subclass(Tensor):
    """A tensor by another name."""


@pytest.mark.parametrize("op", OPS)
def test_subclasses(op: str, route: str) -> None:
    """The output is of the class that torch's is, whichever tensor is of one."""
    for sample in op_samples(op, torch.float32):
        declared = differences.DECLARED_WRITES.applies(sample)
        for name in sample.differentiable if declared else sample.tensors:
            tensors, others = sample.leaves(), sample.leaves()
            tensors[name], others[name] = (t[name].as_subclass(Subclass) for t in (tensors, others))  # type: ignore[type-var]
            assert type(sample.ours(**tensors)) is type(sample.theirs(**others)), f"{sample} {name}"


@pytest.mark.parametrize("op", OPS)
def test_composite_compliance(op: str, route: str) -> None:
    """Forward, backward and forward-mode AD on wrappers of tensors, in all mixtures: what vmap and others rely on."""
    from torch.testing._internal import composite_compliance

    samples = [
        s for s in op_samples(op, torch.float64, requires_grad=True) if not differences.DECLARED_WRITES.applies(s)
    ]
    for sample in samples[:2]:

        def call(*tensors: Tensor, sample: OpSample = sample) -> Tensor:
            return sample.ours(**dict(zip(sample.tensors, tensors, strict=True)))

        def equal(actual: Any, expected: Any, **_: Any) -> None:
            torch.testing.assert_close(actual, expected)

        for check in (composite_compliance.check_with_mode, composite_compliance.check_all_permutations):
            check(call, tuple(sample.leaves().values()), {}, equal)
        composite_compliance.check_backward_formula(call, tuple(sample.leaves().values()), {}, assert_equal_fn=equal)
        composite_compliance.check_forward_ad_formula(call, tuple(sample.leaves().values()), {}, assert_equal_fn=equal)


@pytest.mark.parametrize("op", OPS)
def test_dtypes_that_torch_takes(op: str, route: str) -> None:
    """Those of the entry and no others; complex ones are refused on purpose."""
    for dtype in op_info(op).dtypes:
        sample = op_samples(op, torch.float32)[0]
        tensors = {name: t.to(dtype) for name, t in sample.tensors.items()}
        if differences.REAL_NUMBERS.applies(dtype):
            with pytest.raises(TypeError, match=f"^{op}: expected input of a floating point dtype"):
                sample.ours(**tensors)
        else:
            assert sample.ours(**tensors).dtype == dtype
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        tensors = {name: t.to(dtype) for name, t in op_samples(op, torch.float32)[0].tensors.items()}
        with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
            sample.theirs(**tensors)
        with pytest.raises(TypeError, match=f"^{op}: expected input of "):
            sample.ours(**tensors)


@pytest.mark.parametrize("op", OPS)
def test_refused_on_purpose(op: str, route: str) -> None:
    for sample in refused_samples(op, torch.float32):
        sample.theirs()
        with pytest.raises(ValueError, match=f"^{op}: expected "):
            sample.ours()


@pytest.mark.parametrize("op", ["group_norm", "layer_norm", "rms_norm"])
def test_errors(op: str, route: str) -> None:
    """What torch's entries say is refused; layer_norm's errors stand at the native operation."""
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (i for i in op_db if i.name == (f"native_{op}" if op == "layer_norm" else f"nn.functional.{op}"))
    checked = 0
    for error in info.error_inputs("cpu"):
        given = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(F, op)(given.input, *given.args, **given.kwargs)
        with pytest.raises(ValueError, match=f"^{op}: expected "):
            getattr(functional, op)(given.input, *given.args, **given.kwargs)
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("op", ["group_norm", "layer_norm", "instance_norm"])
def test_per_sample_gradients(op: str, route: str) -> None:
    """`call_for_per_sample_grads` gives what a backward for each sample gives."""
    layer, x = {
        "group_norm": (gb.GroupNorm(2, 4), torch.randn(3, 4, 5)),
        "layer_norm": (gb.LayerNorm(5), torch.randn(3, 4, 5)),
        "instance_norm": (gb.InstanceNorm1d(4, affine=True), torch.randn(3, 4, 5)),
    }[op]
    call_for_per_sample_grads(layer)(x).pow(2).sum().backward()
    expected = [torch.autograd.grad(layer(one.unsqueeze(0)).pow(2).sum(), list(layer.parameters())) for one in x]
    for i, parameter in enumerate(layer.parameters()):
        assert_alike(parameter.grad_sample, torch.stack([g[i] for g in expected]))
