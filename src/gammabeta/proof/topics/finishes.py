"""Residual and activation: every activation, with and without a residual, with and without scale and shift."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from gammabeta.proof.call import ACTIVATIONS, Call
from gammabeta.proof.case import Case, described, drawn
from gammabeta.proof.operations import ADD_OPS, modes
from gammabeta.proof.random_call import random_call

SHAPE = (6, 6, 9)
AT_KINKS = (("relu", 0.0), ("relu6", 6.0), ("hardswish", -3.0), ("hardswish", 3.0), ("leaky_relu", 0.0))


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    finished = op not in ADD_OPS
    for mode in modes(op):
        for activation, residual in itertools.product(ACTIVATIONS, (False, True)) if finished else ():
            settings = {**mode, "activation": activation, "activation_slope": 0.2}
            # Wide enough to reach both kinks of relu6 and hardswish and their flat ends.
            make = drawn(op, SHAPE, dtype, residual=residual, scale=3.0, **settings)
            yield Case(described(activation or "none", {"residual": residual}, mode), make)
        for weight, bias in ((False, False), (True, False), (False, True)):
            for finish in ({}, {"residual": True, "activation": "gelu"}) if finished else ({},):
                make = drawn(op, SHAPE, dtype, weight=weight, bias=bias, **finish, **mode)
                yield Case(described({"weight": weight, "bias": bias}, finish, mode), make)
    if op == "batch_norm":
        for kinked, at in AT_KINKS:
            yield Case(described("at_kink", kinked, at), partial(_at_a_kink, dtype, kinked, at))


def _at_a_kink(dtype: torch.dtype, activation: str, bias: float, seed: int) -> Call:
    """Make a call with a constant input: x̂ is 0, z is the bias, and the bias is at the activation's kink."""
    call = random_call("batch_norm", (4, 3, 5), dtype, training=True, seed=seed)
    constant, at = torch.full((4, 3, 5), 2.0, dtype=dtype), torch.full((3,), bias, dtype=dtype)
    return call.with_tensors(input=constant, bias=at).with_settings(activation=activation)
