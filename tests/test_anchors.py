"""docs/anchors.md: what is derived holds, and the page has the figures that were measured."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def anchors():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        yield importlib.import_module("anchors")
    for name in ("anchors", "findings"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def kept():
    return json.loads((DOCS / "anchors.json").read_text(encoding="utf-8"))


def test_dropout_s_variance_is_the_derived_one(anchors):
    assert anchors.derived_ratio(0.5) == pytest.approx(2 * (1 + 1 / (math.pi - 1)) - 1 / (math.pi - 1))
    assert anchors.derived_ratio(0.5) == pytest.approx(2.467, abs=5e-4)
    assert anchors.derived_ratio(0.0) == 1.0
    assert anchors.dropout_ratio(7, 0.5) == pytest.approx(2.467, rel=0.02)


def test_gradients_grow_by_the_published_factor(anchors, monkeypatch):
    monkeypatch.setattr(anchors, "WIDTH", 256)
    monkeypatch.setattr(anchors, "DEPTH", 16)
    with_norm = anchors.growth(7, 256, anchors.standardized)
    without = anchors.growth(7, 256, lambda x: x)
    assert with_norm == pytest.approx(anchors.YANG, rel=0.03)
    assert without == pytest.approx(1.0, abs=0.05)


def test_the_residual_stream_grows_by_1_with_batch_norm_and_doubles_without(anchors, monkeypatch):
    monkeypatch.setattr(anchors, "WIDTH", 256)
    monkeypatch.setattr(anchors, "DEPTH", 8)
    assert anchors.residual_variances(7, anchors.standardized) == pytest.approx(list(range(1, 10)), rel=0.08)
    assert anchors.residual_variances(7, lambda x: x)[-1] == pytest.approx(2**8, rel=0.25)


def test_what_is_kept_agrees_with_what_is_derived(anchors, kept):
    assert kept["growth"]["batch 512"]["value"] == pytest.approx(anchors.YANG, rel=0.01)
    for p, found in kept["dropout"].items():
        assert found["derived"] == anchors.derived_ratio(float(p))
        assert found["drawn"]["low"] < found["derived"] < found["drawn"]["high"]
    trained = kept["trained dropout"]
    assert trained["predicted"]["value"] == pytest.approx(trained["measured"]["value"], rel=0.01)
    assert trained["measured"]["value"] < anchors.derived_ratio(0.5)
    assert trained["correlation"]["low"] > 1


def test_the_page_has_the_figures_that_were_kept(anchors, kept):
    page = anchors.anchors()
    assert "$" not in page
    for figure in (kept["growth"]["batch 512"], kept["growth"]["none"]):
        assert anchors.said(figure, 4) in page
    assert anchors.said(kept["batches of 2"]["gain of own share"], 1) in page
    assert anchors.said({"value": -0.25, "low": -1.0, "high": 0.5}, 1) == "−0.2 [−1.0, 0.5]"
    # Ioffe & Szegedy's steps, compared with those of the same learning rate
    assert round(31.0 / 13.3, 1) == 2.3
    assert "| BN-Baseline | 13.3 | 2.3 |" in page


def test_one_image_s_own_share_is_what_it_has_in_a_batch_of_two(anchors):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3, eps=1e-5).double().eval()
    one, other = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64)
    # With the other image's moments as the running ones, a share of 1/2 gives the statistics of the pair.
    norm.running_mean.copy_(other.mean((0, 2, 3)))
    norm.running_var.copy_(other.var((0, 2, 3), correction=0))
    with anchors.own_share(norm, 0.5):
        got = norm(one)
    pair = torch.nn.functional.batch_norm(torch.cat([one, other]), None, None, training=True, eps=1e-5)
    torch.testing.assert_close(got, pair[:1])
    assert not torch.equal(norm(one), got)  # outside, the running statistics serve again
