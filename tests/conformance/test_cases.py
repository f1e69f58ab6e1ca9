"""Every case of every topic of `gammabeta.proof`, the ones that `gammabeta verify` runs, on every route."""

from __future__ import annotations

import pytest
import torch

from gammabeta.proof.catalogue import TOPICS, dtype_name, entries
from gammabeta.proof.operations import DTYPES, OPS

PLACES = [
    pytest.param(topic, op, dtype, id=f"{topic}-{op}-{dtype_name(dtype)}")
    for topic in TOPICS
    for op in OPS
    for dtype in DTYPES
    if topic != "ranks" and next(TOPICS[topic](op, dtype), None) is not None
]


@pytest.mark.parametrize(("topic", "op", "dtype"), PLACES)
def test_every_case(topic: str, op: str, dtype: torch.dtype, route: str) -> None:
    for case in TOPICS[topic](op, dtype):
        if case.on(route):
            try:
                case.holds(case.make(0), route)
            except Exception as error:
                error.add_note(f"in {topic}/{op}/{dtype_name(dtype)}/{case.name}") if hasattr(
                    error, "add_note"
                ) else None
                raise


def test_names_are_unique() -> None:
    names = [entry.name for entry in entries(thorough=True)]
    assert len(names) == len(set(names)) > 5000


def test_a_part_of_the_cases_meets_every_topic_operation_and_dtype() -> None:
    part = {(e.topic, e.op, e.dtype) for e in entries()}
    whole = {(e.topic, e.op, e.dtype) for e in entries(thorough=True)}
    assert whole == part
