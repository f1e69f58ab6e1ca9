"""Every source of statistics × layout × dtype × mask × finish, against the oracle.

A source is a way to call the same norm: on parts of the batch, with the running statistics, with another scale and
shift. So the oracle's results for those calls, put together, are the source's, and so are their tolerances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conformance.call import DTYPES, RUNNING, Call, collect, masked_elements, random_call, result_dtypes
from tests.conformance.check import assert_close
from tests.conformance.magnitudes import magnitudes
from tests.conformance.oracle import expected
from tests.conformance.tolerances import row, tolerance, working_dtype
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.statistics import Batch, Ghost, Renorm, Running

SHAPE = (8, 6, 5, 4)
RENORM = Renorm(1.1, 0.4)


def masks() -> dict[str, Tensor | None]:
    random = torch.rand(SHAPE[0], *SHAPE[2:], generator=torch.Generator().manual_seed(0)) < 0.6
    one_sample_gone = random.clone()
    one_sample_gone[2] = False
    return {"none": None, "random": random, "a sample": one_sample_gone}


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}
FINISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual and silu": {"residual": True, "activation": "silu"},
}


def by_layer(call: Call, source: Any) -> dict[str, Tensor]:
    """Return the results of a layer with that source in training, as `run` does for the functional form."""
    layer = gb.BatchNorm2d(
        call.input.shape[1], statistics=source, activation=call.setting("activation"),
        activation_slope=call.setting("activation_slope"),
    )  # fmt: skip
    given = {name: t.detach().clone() for name, t in call.tensors.items() if t is not None}
    tensors: dict[str, Tensor | None] = dict(given)
    for name in ("weight", "bias"):
        tensors[name] = nn.Parameter(given[name])
        setattr(layer, name, tensors[name])
    for name in RUNNING:
        setattr(layer, name, tensors[name])
    for name in ("input", "residual"):
        if (tensor := call.tensor(name)) is not None:
            tensors[name] = tensor.detach().requires_grad_()
    y = layer(tensors["input"], tensors.get("residual"), mask=call.tensor("mask"))
    assert layer.num_batches_tracked == (0 if isinstance(source, Running) else 1)
    return collect(call, (y,), tensors)


def allowed(call: Call, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the error that the table allows our ops, by result."""
    measures, dtypes = magnitudes(call), result_dtypes(call)
    return {
        name: tolerance(call, row(working_dtype(call), name, "ops"), measures[name], result, dtypes[name])
        for name, result in wanted.items()
    }


def assert_within(got: Tensor, wanted: Tensor, error: Tensor, what: str) -> None:
    off = ~((got.double() - wanted).abs() <= error)
    assert not off.any(), f"{what}: {int(off.sum())} of {off.numel()} off, by up to {(got - wanted).abs()[off].max()}"


every_case = [
    pytest.mark.parametrize("dtype", DTYPES),
    pytest.mark.parametrize("mask", masks()),
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize("finish", FINISHES),
]


def cases(test: Any) -> Any:
    for mark in every_case:
        test = mark(test)
    return test


def a_call(layout: str, mask: str, finish: str, dtype: torch.dtype) -> Call:
    options = {"training": True, **FINISHES[finish]}
    return random_call("batch_norm", SHAPE, dtype, layout=LAYOUTS[layout], mask=masks()[mask], **options)


@cases
def test_batch(finish: str, layout: str, mask: str, dtype: torch.dtype, route: str) -> None:
    call = a_call(layout, mask, finish, dtype)
    assert_close(call, by_layer(call, Batch()), expected(call), "ops")


@cases
def test_running(finish: str, layout: str, mask: str, dtype: torch.dtype, route: str) -> None:
    call = a_call(layout, mask, finish, dtype)
    assert_close(call, by_layer(call, Running()), expected(call.with_settings(training=False)), "ops")


@cases
@pytest.mark.parametrize("size", [3, 2])
def test_ghost(size: int, finish: str, layout: str, mask: str, dtype: torch.dtype, route: str) -> None:
    call = a_call(layout, mask, finish, dtype)
    got, whole = by_layer(call, Ghost(size)), expected(call)
    assert_close(call.with_settings(), {n: got[n] for n in RUNNING}, {n: whole[n] for n in RUNNING}, "ops")
    of_parameters: dict[str, list[tuple[Tensor, Tensor]]] = {"grad weight": [], "grad bias": []}
    for start in range(0, SHAPE[0], size):
        here = slice(start, start + size)
        part = replace(
            call.with_tensors(
                **{n: t[here] for n in ("input", "residual", "mask") if (t := call.tensor(n)) is not None}
            ),
            gradients=tuple(g[here] for g in call.gradients),
        )
        wanted = expected(part)
        errors = allowed(part, wanted)
        for name, terms in of_parameters.items():
            terms.append((wanted[name], errors[name]))
        of_samples = [n for n in ("output", "grad input", "grad residual") if n in wanted]
        assert_close(part, {n: got[n][here] for n in of_samples}, {n: wanted[n] for n in of_samples}, "ops", "a part")
    for name, terms in of_parameters.items():
        wanted_sum, error = (torch.stack(t).sum(0) for t in zip(*terms, strict=True))
        # autograd adds the parts in the parameters' own dtype: a rounding of each partial sum.
        steps = torch.stack([w.abs() for w, _ in terms]).sum(0) * torch.finfo(dtype).eps * len(terms)
        assert_within(got[name], wanted_sum, error + steps, name)


@cases
def test_renorm(finish: str, layout: str, mask: str, dtype: torch.dtype, route: str) -> None:
    """(x̂·r + d)·γ + β is x̂ with scale r·γ and shift d·γ + β."""
    call = a_call(layout, mask, finish, dtype)
    x, elements = call.input.double(), masked_elements(call)
    counts = torch.ones_like(x, dtype=torch.bool) if elements is None else elements
    values = [x[:, c][counts[:, c]] for c in range(SHAPE[1])]
    mean = torch.stack([v.mean() for v in values])
    batch_std = (torch.stack([v.var(correction=0) for v in values]) + 1e-5).sqrt()
    running_mean, running_var = (call.tensors[n].double() for n in RUNNING)
    std = (running_var + 1e-5).sqrt()
    r = (batch_std / std).clamp(1 / RENORM.r_max, RENORM.r_max)
    d = ((mean - running_mean) / std).clamp(-RENORM.d_max, RENORM.d_max)
    assert (d.abs() == RENORM.d_max).any(), "nothing is clipped"
    weight, bias = call.tensors["weight"].double(), call.tensors["bias"].double()
    corrected = call.with_tensors(weight=r * weight, bias=d * weight + bias)
    got, wanted = by_layer(call, RENORM), expected(corrected)
    # r, d and the products with them round besides: about as often as what the table counts.
    errors = {name: 4 * error for name, error in allowed(corrected, wanted).items()}
    low = torch.finfo(dtype).eps
    wanted["grad weight"], errors["grad weight"] = (
        r * wanted["grad weight"] + d * wanted["grad bias"],
        r * errors["grad weight"] + d.abs() * errors["grad bias"],
    )
    # Scale and shift are float32 or better inside; their gradients are rounded to the parameters' dtype at the end.
    for name in ("grad weight", "grad bias"):
        errors[name] = errors[name] + 2 * low * (wanted[name].abs() + d.abs() * wanted["grad bias"].abs())
    for name, result in wanted.items():
        assert_within(got[name], result, errors[name], name)
