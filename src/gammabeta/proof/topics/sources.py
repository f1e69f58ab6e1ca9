"""Every source of statistics × layout × mask × finish, against the oracle.

A source is a way to call the same norm: on parts of the batch, with the running statistics, with another scale and
shift. So the oracle's results for those calls, put together, are the source's, and so are their tolerances.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.layers.batch_norm import BatchNorm2d
from gammabeta.proof.call import RUNNING, Call, collect, masked_elements, result_dtypes
from gammabeta.proof.case import Case, Holds, described, drawn
from gammabeta.proof.check import Comparison, assert_close, require
from gammabeta.proof.magnitudes import magnitudes
from gammabeta.proof.oracle import expected
from gammabeta.proof.routes import device
from gammabeta.proof.tolerances import row, tolerance, working_dtype
from gammabeta.proof.topics.layouts import strided
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
    "strided": strided,
}
FINISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual and silu": {"residual": True, "activation": "silu"},
}


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    if op != "batch_norm":
        return
    holds: dict[str, Holds] = {
        "batch": _batch, "running": _running, "ghost_3": partial(_ghost, 3), "ghost_2": partial(_ghost, 2),
        "renorm": _renorm,
    }  # fmt: skip
    for source, mask, layout, finish in itertools.product(holds, masks(), LAYOUTS, FINISHES):
        options = {"training": True, **FINISHES[finish]}
        make = drawn(op, SHAPE, dtype, layout=LAYOUTS[layout], mask=masks()[mask], **options)
        yield Case(described(source, layout, f"mask {mask}", finish), make, holds[source])


def by_layer(call: Call, source: Any) -> dict[str, Tensor]:
    """Return the results of a layer with that source in training, as `run` does for the functional form."""
    layer = BatchNorm2d(
        call.input.shape[1], statistics=source, activation=call.setting("activation"),
        activation_slope=call.setting("activation_slope"),
    )  # fmt: skip
    given = {name: t.detach().to(device(), copy=True) for name, t in call.tensors.items() if t is not None}
    tensors: dict[str, Tensor | None] = dict(given)
    for name in ("weight", "bias"):
        tensors[name] = nn.Parameter(given[name])
        setattr(layer, name, tensors[name])
    for name in RUNNING:
        setattr(layer, name, tensors[name])
    for name in ("input", "residual"):
        if (tensor := call.tensor(name)) is not None:
            tensors[name] = tensor.detach().to(device()).requires_grad_()
    y = layer(tensors["input"], tensors.get("residual"), mask=given.get("mask"))
    counted = 0 if isinstance(source, Running) else 1
    require(bool(layer.num_batches_tracked == counted), f"num_batches_tracked is not {counted}")
    there = replace(call, gradients=tuple(g.to(device()) for g in call.gradients))
    return {name: result.cpu() for name, result in collect(there, (y,), tensors).items()}


def allowed(call: Call, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the error that the table allows our ops, by result."""
    measures, dtypes = magnitudes(call), result_dtypes(call)
    return {
        name: tolerance(call, row(working_dtype(call), name, "ops"), measures[name], result, dtypes[name])
        for name, result in wanted.items()
    }


def assert_within(got: Tensor, wanted: Tensor, error: Tensor, what: str) -> None:
    off = ~((got.double() - wanted).abs() <= error)
    most = (got - wanted).abs()[off].max() if off.any() else 0
    require(not off.any(), f"{what}: {int(off.sum())} of {off.numel()} off, by up to {most}")


def _batch(call: Call, route: str) -> list[Comparison]:
    return assert_close(call, by_layer(call, Batch()), expected(call), "ops")


def _running(call: Call, route: str) -> list[Comparison]:
    return assert_close(call, by_layer(call, Running()), expected(call.with_settings(training=False)), "ops")


def _ghost(size: int, call: Call, route: str) -> list[Comparison]:
    got, whole = by_layer(call, Ghost(size)), expected(call)
    assert_close(call, {n: got[n] for n in RUNNING}, {n: whole[n] for n in RUNNING}, "ops")
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
        steps = torch.stack([w.abs() for w, _ in terms]).sum(0) * torch.finfo(call.input.dtype).eps * len(terms)
        assert_within(got[name], wanted_sum, error + steps, name)
    return []


def _renorm(call: Call, route: str) -> list[Comparison]:
    """(x̂·r + d)·γ + β is x̂ with scale r·γ and shift d·γ + β."""
    x, elements = call.input.double(), masked_elements(call)
    counts = torch.ones_like(x, dtype=torch.bool) if elements is None else elements
    values = [x[:, c][counts[:, c]] for c in range(SHAPE[1])]
    mean = torch.stack([v.mean() for v in values])
    batch_std = (torch.stack([v.var(correction=0) for v in values]) + 1e-5).sqrt()
    running_mean, running_var = (call.given(n).double() for n in RUNNING)
    std = (running_var + 1e-5).sqrt()
    r = (batch_std / std).clamp(1 / RENORM.r_max, RENORM.r_max)
    d = ((mean - running_mean) / std).clamp(-RENORM.d_max, RENORM.d_max)
    require(bool((d.abs() == RENORM.d_max).any()), "nothing is clipped")
    weight, bias = call.given("weight").double(), call.given("bias").double()
    corrected = call.with_tensors(weight=r * weight, bias=d * weight + bias)
    got, wanted = by_layer(call, RENORM), expected(corrected)
    # r, d and the products with them round besides: about as often as what the table counts.
    errors = {name: 4 * error for name, error in allowed(corrected, wanted).items()}
    low = torch.finfo(call.input.dtype).eps
    wanted["grad weight"], errors["grad weight"] = (
        r * wanted["grad weight"] + d * wanted["grad bias"],
        r * errors["grad weight"] + d.abs() * errors["grad bias"],
    )
    # Scale and shift are float32 or better inside; their gradients are rounded to the parameters' dtype at the end.
    for name in ("grad weight", "grad bias"):
        errors[name] = errors[name] + 2 * low * (wanted[name].abs() + d.abs() * wanted["grad bias"].abs())
    for name, result in wanted.items():
        assert_within(got[name], result, errors[name], name)
    return []
