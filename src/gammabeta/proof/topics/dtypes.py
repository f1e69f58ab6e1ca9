"""Any mix of the dtypes of input, parameters, running statistics and residual; any choice of what is differentiated.

Outputs have the dtype to which x and residual promote, gradients that of their tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from gammabeta.proof.call import RUNNING
from gammabeta.proof.case import Case, described, differentiated, drawn
from gammabeta.proof.operations import ADD_OPS, DTYPES, SAMPLE_OPS, modes

PARAMETERS = ("weight", "bias")
SHAPE = (5, 6, 4)


def cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    yield from _any_mix(op, dtype)
    yield from _whatever_is_differentiated(op, dtype)
    yield from _of_two_dtypes(op, dtype)
    if op not in ADD_OPS:
        yield from _with_mask_or_activation(op, dtype)


def _any_mix(op: str, dtype: torch.dtype) -> Iterator[Case]:
    residuals = DTYPES if op in ADD_OPS else (*DTYPES, None)
    for (i, parameters), (j, running) in itertools.product(enumerate(DTYPES), enumerate(DTYPES)):
        residual = residuals[(i + 2 * j) % len(residuals)]
        dtypes = dict.fromkeys(PARAMETERS, parameters) | dict.fromkeys(RUNNING, running)
        dtypes |= {} if residual is None else {"residual": residual}
        for mode in modes(op):
            make = drawn(op, SHAPE, dtype, dtypes=dtypes, residual=residual is not None, **mode)
            yield Case(described("mix", parameters, running, residual, mode), make)


def _whatever_is_differentiated(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """Nothing; the input alone, as in a model whose norms are frozen; the parameters alone, as in a first layer."""
    for parameters in sorted({dtype, torch.float32}, key=str):
        dtypes = dict.fromkeys((*PARAMETERS, *RUNNING), parameters)
        for mode, residual in itertools.product(modes(op), (False, True)):
            for names in ((), ("input",), PARAMETERS, ("residual",)):
                if names != ("residual",) or residual or op in ADD_OPS:
                    make = drawn(op, (40, 6, 4), dtype, dtypes=dtypes, residual=residual, **mode)
                    name = described("differentiates", names or "nothing", parameters, mode, {"residual": residual})
                    yield Case(name, make, differentiated(*names))


def _of_two_dtypes(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """Weight and bias of two dtypes, one of them absent; running mean and variance of two."""
    for first, second in itertools.permutations(DTYPES, 2):
        for mode in modes(op):
            if "rms" not in op:
                dtypes = dict(zip(PARAMETERS, (first, second), strict=True))
                yield Case(described("parameters", first, second, mode), drawn(op, SHAPE, dtype, dtypes=dtypes, **mode))
                absent = "weight" if DTYPES.index(first) < DTYPES.index(second) else "bias"
                alone = drawn(op, SHAPE, dtype, dtypes=dtypes, **{absent: False}, **mode)
                yield Case(described("without", absent, first, second, mode), alone)
            if op in ("batch_norm", "instance_norm") and mode.get("running", True):
                dtypes = dict(zip(RUNNING, (first, second), strict=True))
                yield Case(described("running", first, second, mode), drawn(op, SHAPE, dtype, dtypes=dtypes, **mode))


def _with_mask_or_activation(op: str, dtype: torch.dtype) -> Iterator[Case]:
    size = SHAPE[:2] if op in SAMPLE_OPS else (SHAPE[0], SHAPE[2])
    mask = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.7
    for other in DTYPES:
        if other == dtype:
            continue
        dtypes = {"bias": dtype, **dict.fromkeys(("weight", *RUNNING, "residual"), other)}
        for mode in modes(op):
            for name, finish in (("gelu", {"activation": "gelu"}), ("mask", {"mask": mask, "activation": "relu"})):
                make = drawn(op, SHAPE, dtype, dtypes=dtypes, residual=True, **mode, **finish)
                yield Case(described("finish", name, other, mode), make)
