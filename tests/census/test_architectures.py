"""A sample of the census of architectures (`architectures.py`), and what the whole of it has to hold."""

import logging
import warnings

import pytest
from tests.census.architectures import false_alarms, look_at, table
from tests.census.subjects import GRAPHS, SEGMENTATION, TIMM, TORCHVISION, subjects
from tests.census.transformers_families import FAMILIES
from tests.census.true_findings import TRUE

SAMPLE = (
    "timm test_resnet",
    "timm test_convnext",
    "transformers bert",
    "transformers clip_vision_model",
    "transformers gemma",
    "transformers llama",
    "transformers t5",
    "transformers wav2vec2",
    "torch_geometric GCN BatchNorm",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_healthy_architecture_raises_no_false_alarm(name):
    subject = next((one for one in subjects() if str(one) == name), None)
    if subject is None:
        pytest.skip(f"{name.partition(' ')[0]} is not installed")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = look_at(subject)
    finally:
        logging.disable(logging.NOTSET)
    assert "error" not in line, line["error"]
    assert line["norms"] > 0
    assert false_alarms(line) == []
    assert any(name in row for row in table([line]))


def test_what_is_said_out_loud_is_counted():
    said = {"severity": "error", "code": "GB103", "name": "untrained-statistics", "count": 3, "first": "a: b"}
    line = {"library": "timm", "name": "x", "norms": 3, "seconds": 1.0, "said": {"fresh, training": [said]}}
    assert false_alarms(line) == ["timm x (fresh, training): error 3 × a: b"]
    assert "| GB103 | 1 | 0 | 1 |" in table([{**line, "said": {**line["said"], "notes fresh, training": 0}}])


def test_the_census_is_large_enough():
    assert len(FAMILIES) >= 60
    assert len(TIMM) + len(TORCHVISION) + len(FAMILIES) + len(SEGMENTATION) + len(GRAPHS) >= 150


def test_each_true_finding_has_a_reason():
    for glob, code, reason in TRUE:
        assert code.startswith("GB")
        assert len(reason) > 20, glob
