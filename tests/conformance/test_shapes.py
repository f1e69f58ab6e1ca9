"""Sizes: ragged, one, none."""

from __future__ import annotations

import pytest
import torch
from tests.conformance.call import ADD_OPS, CHANNEL_OPS, DTYPES, OPS, SAMPLE_OPS, random_call
from tests.conformance.check import assert_conforms

import gammabeta as gb

CHANNEL_SHAPES = [
    (1, 1, 7), (1, 7, 769), (7, 1, 7), (769, 7), (7, 769), (2, 769), (2, 769, 1), (769, 1, 1), (1, 3, 1, 7),
    (2, 7, 7, 1), (3, 7, 1, 1, 2),
]  # fmt: skip
SAMPLE_SHAPES = [
    ((1, 1), 1), ((1, 7), 1), ((7, 1), 1), ((1, 769), 1), ((769, 7), 1), ((7, 769), 1), ((769,), 1), ((7, 769), 2),
    ((2, 7, 769), 1), ((769, 1, 7), 2), ((1, 1, 1, 7), 3),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", CHANNEL_SHAPES, ids=str)
@pytest.mark.parametrize("op", CHANNEL_OPS)
def test_channel_norms(op: str, shape: tuple[int, ...], dtype: torch.dtype, route: str) -> None:
    modes = {"batch_norm": [{"training": True}, {"training": False}], "instance_norm": [{}, {"running": False}]}
    groups = [g for g in (1, 7, 769) if shape[1] % g == 0]
    for mode in modes.get(op, [{"groups": g} for g in groups]):
        values = torch.Size(shape[2:]).numel() * (shape[0] if op == "batch_norm" else 1)
        if values == 1 and op != "group_norm" and mode.get("training", True):
            continue  # refused: one value per channel
        for finish in ({}, {"residual": True, "activation": "relu"}):
            assert_conforms(random_call(op, shape, dtype, **mode, **finish), route)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "normalized"), SAMPLE_SHAPES, ids=str)
@pytest.mark.parametrize("op", SAMPLE_OPS + ADD_OPS)
def test_sample_norms(op: str, shape: tuple[int, ...], normalized: int, dtype: torch.dtype, route: str) -> None:
    for finish in ({}, {"residual": True, "activation": "relu"}) if op in SAMPLE_OPS else ({},):
        assert_conforms(random_call(op, shape, dtype, normalized=normalized, **finish), route)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op: str, dtype: torch.dtype, route: str) -> None:
    """No sample: an empty output, gradients of zero for the parameters, running statistics as they were."""
    for shape in ((0, 6, 5), (0, 6, 3, 4), (0, 6)):
        if op == "instance_norm" and len(shape) == 2:
            continue  # refused: one position
        for mode in [{"training": True}, {"training": False}] if op == "batch_norm" else [{}]:
            for finish in ({}, {"residual": True, "activation": "silu"}) if op not in ADD_OPS else ({},):
                for running in (False, True) if op == "instance_norm" or mode.get("training") else (True,):
                    assert_conforms(random_call(op, shape, dtype, running=running, **mode, **finish), route)


def test_no_positions(route: str) -> None:
    for mode in ({"training": True}, {"training": False}):
        assert_conforms(random_call("batch_norm", (3, 6, 0), torch.float32, **mode), route)


def test_one_value_per_group_is_refused(route: str) -> None:
    """torch refuses it too; the message is ours, whoever computes."""
    with pytest.raises(ValueError, match=r"^group_norm: expected more than 1 value"):
        gb.functional.group_norm(torch.ones(1, 3, 1), 3)


def test_one_image_has_its_positions(route: str) -> None:
    """N = 1 in training is no obstacle where there are positions."""
    for dtype in DTYPES:
        assert_conforms(random_call("batch_norm", (1, 6, 5, 4), dtype, training=True, residual=True), route)
        assert_conforms(random_call("instance_norm", (1, 6, 5, 4), dtype), route)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_many_samples_in_half_precision(op: str, dtype: torch.dtype, route: str) -> None:
    """Sums over many samples: one that is kept in bfloat16 stops growing after 256 terms of a size."""
    settings = {"training": True} if op == "batch_norm" else {}
    for parameters in (dtype, torch.float32):
        given = dict.fromkeys(("weight", "bias"), parameters)
        assert_conforms(random_call(op, (600, 4, 2), dtype, dtypes=given, **settings), route, "many samples")
