"""Any mix of the dtypes of input, parameters, running statistics and residual."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.conformance.call import ADD_OPS, DTYPES, OPS, random_call
from tests.conformance.check import assert_conforms

MODES = {
    "batch_norm": [{"training": True}, {"training": False}],
    "instance_norm": [{"use_input_stats": True}, {"use_input_stats": False}],
}


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_any_mix(op: str, x: torch.dtype, route: str) -> None:
    """Outputs have the dtype to which x and residual promote, gradients that of their tensors."""
    residuals = DTYPES if op in ADD_OPS else (*DTYPES, None)
    for (i, parameters), (j, running) in itertools.product(enumerate(DTYPES), enumerate(DTYPES)):
        residual = residuals[(i + 2 * j) % len(residuals)]
        dtypes = dict.fromkeys(("weight", "bias"), parameters)
        dtypes |= {} if residual is None else {"residual": residual}
        dtypes |= dict.fromkeys(("running_mean", "running_var"), running)
        for mode in MODES.get(op, [{}]):
            call = random_call(op, (5, 6, 4), x, dtypes=dtypes, residual=residual is not None, **mode)
            assert_conforms(call, route)


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_whatever_is_differentiated(op: str, x: torch.dtype, route: str) -> None:
    """Nothing; the input alone, as in a model whose norms are frozen; the parameters alone, as in a first layer."""
    for parameters in (x, torch.float32):
        dtypes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), parameters)
        for mode in MODES.get(op, [{}]):
            for residual in (False, True):
                call = random_call(op, (40, 6, 4), x, dtypes=dtypes, residual=residual, **mode)
                for differentiated in ((), ("input",), ("weight", "bias"), ("residual",)):
                    if differentiated != ("residual",) or residual or op in ADD_OPS:
                        assert_conforms(call, route, str(differentiated), differentiated=differentiated)


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("op", [op for op in OPS if "rms" not in op])
def test_weight_and_bias_of_two_dtypes(op: str, x: torch.dtype, route: str) -> None:
    """Only one of the two."""
    for weight, bias in itertools.permutations(DTYPES, 2):
        for mode in MODES.get(op, [{}]):
            call = random_call(op, (5, 6, 4), x, dtypes={"weight": weight, "bias": bias}, **mode)
            absent = {"weight": None} if DTYPES.index(weight) < DTYPES.index(bias) else {"bias": None}
            assert_conforms(call, route)
            assert_conforms(call.with_tensors(**absent), route)


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("op", MODES)
def test_running_mean_and_var_of_two_dtypes(op: str, x: torch.dtype, route: str) -> None:
    for mean, var in itertools.permutations(DTYPES, 2):
        for mode in MODES[op]:
            call = random_call(op, (5, 6, 4), x, dtypes={"running_mean": mean, "running_var": var}, **mode)
            assert_conforms(call, route)


@pytest.mark.parametrize("op", OPS)
def test_mixed_with_mask_or_activation(op: str, route: str) -> None:
    if op in ADD_OPS:
        return
    mask = torch.rand(5, 6 if op in ("layer_norm", "rms_norm") else 4, generator=torch.Generator().manual_seed(0)) < 0.7
    for x, other in itertools.permutations(DTYPES, 2):
        dtypes = {"weight": other, "bias": x, "running_mean": other, "running_var": other, "residual": other}
        for mode in MODES.get(op, [{}]):
            for finish in ({"activation": "gelu"}, {"mask": mask, "activation": "relu"}):
                assert_conforms(random_call(op, (5, 6, 4), x, dtypes=dtypes, residual=True, **mode, **finish), route)
