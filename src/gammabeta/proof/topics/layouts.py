"""Memory layouts: tensors need not be contiguous or dense, and gradients need not have separate memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gammabeta.proof.call import Call, run
from gammabeta.proof.case import Case, Make, described, drawn
from gammabeta.proof.check import Comparison, assert_conforms, require
from gammabeta.proof.operations import CHANNEL_OPS, finishes, modes

SHAPE = (5, 6, 9)
IMAGES = (
    ((3, 6, 5, 4), torch.channels_last), ((2, 6, 3, 2, 4), torch.channels_last_3d), ((1, 6, 5, 4), torch.channels_last),
)  # fmt: skip


def strided(t: Tensor) -> Tensor:
    """Return t as every second element of twice as many."""
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def transposed(t: Tensor) -> Tensor:
    """Return t with the first axis contiguous."""
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def offset(t: Tensor) -> Tensor:
    """Return t as the rows of a wider tensor, from its second column on."""
    return torch.cat([t, t[..., :3]], dim=-1).roll(1, dims=-1)[..., 1 : 1 + t.shape[-1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"strided": strided, "transposed": transposed, "offset": offset}


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    for mode in modes(op):
        for name, layout in LAYOUTS.items():
            yield Case(described(name, mode), drawn(op, SHAPE, dtype, layout=layout, **mode))
        make = drawn(op, SHAPE, dtype, **mode)
        for name in ("element", "channel", "position"):
            yield Case(described("gradient_of_one", name, mode), _changed(make, _expanded_gradient(name)))
        yield Case(described("one_sample_expanded", mode), _changed(make, _expanded_input))
        yield Case(described("parameters_expanded", mode), _changed(make, _expanded_parameters))
        yield Case(described("parameters_strided", mode), _changed(make, _strided_parameters))
    if op in CHANNEL_OPS:
        yield from _channels_last(op, dtype)


def _channels_last(op: str, dtype: torch.dtype) -> Iterator[Case]:
    for shape, memory_format in IMAGES:

        def layout(t: Tensor, memory_format: torch.memory_format = memory_format) -> Tensor:
            return t.to(memory_format=memory_format)

        for mode in modes(op):
            for finish in finishes(op):
                make = drawn(op, shape, dtype, layout=layout, **mode, **finish)
                name = described("channels_last", shape, mode, finish)
                yield Case(name, make, _keeps_channels_last if op == "batch_norm" else assert_conforms)
                yield Case(f"{name}-gradient_contiguous", _changed(make, _contiguous_gradient))


def _keeps_channels_last(call: Call, route: str) -> list[Comparison]:
    memory_format = torch.channels_last if call.input.ndim == 4 else torch.channels_last_3d
    for name, result in run(call).items():
        if result.shape == call.input.shape:
            require(result.is_contiguous(memory_format=memory_format), f"{name} is not channels_last as x is")
    return assert_conforms(call, route)


def _changed(make: Make, change: Callable[[Call], Call]) -> Make:
    return lambda seed: change(make(seed))


def _contiguous_gradient(call: Call) -> Call:
    return replace(call, gradients=(call.gradients[0].contiguous(),))


def _expanded_gradient(of: str) -> Callable[[Call], Call]:
    """Return a change: to the gradient of a sum or a mean, one element expanded; or to one for each channel."""

    def change(call: Call) -> Call:
        g = call.gradients[0]
        source = {"element": g[:1, :1, :1], "channel": g[:1, :, :1], "position": g[:, :, :1]}[of]
        return replace(call, gradients=(source.expand(call.input.shape),) * len(call.gradients))

    return change


def _expanded_input(call: Call) -> Call:
    """Return the call with one sample as the whole batch, without copying it."""
    return call.with_tensors(input=call.input[:1].expand(call.input.shape))


def _expanded_parameters(call: Call) -> Call:
    names = ("weight", "bias")
    return call.with_tensors(**{n: t[:1].expand_as(t) for n in names if (t := call.tensor(n)) is not None})


def _strided_parameters(call: Call) -> Call:
    names = ("weight", "bias", "running_mean", "running_var")
    return call.with_tensors(**{n: strided(t) for n in names if (t := call.tensor(n)) is not None})
