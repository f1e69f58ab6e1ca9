"""PyTorch's own samples of the norms, as calls: what `torch.testing._internal` checks torch's operations with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gammabeta.proof.call import Call

OPS_WITH_SAMPLES = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")


@functools.cache
def op_info(op: str) -> Any:
    # Imported here: it takes seconds, and not every run of tests comes this way.
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (i for i in op_db if i.name == f"nn.functional.{op}" and i.variant_test_name == "")
    return info


def samples(op: str, dtype: torch.dtype) -> Iterator[Call]:
    """Return each sample with a random gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    for sample in op_info(op).sample_inputs("cpu", dtype, requires_grad=False):
        call = _call(op, sample)
        gradient = torch.randn(call.input.shape, generator=generator, dtype=torch.float64).to(dtype)
        yield Call(op, call.tensors, call.settings, (gradient,))


def error_samples(op: str) -> Iterator[Call]:
    """What torch's operation refuses."""
    info = op_info(op)
    if info.error_inputs_func is not None:
        for error in info.error_inputs("cpu"):
            yield _call(op, error.sample_input)


def _call(op: str, sample: Any) -> Call:
    given = inspect.signature(getattr(F, op)).bind(sample.input, *sample.args, **sample.kwargs).arguments
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    settings = {name: value for name, value in given.items() if value is not None and name not in tensors}
    if op in ("batch_norm",):
        tensors = {"running_mean": None, "running_var": None, **tensors}
    return Call(op, tensors, settings)
