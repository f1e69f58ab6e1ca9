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
    for name in ("anchors", "findings", "findings_first_edition", "findings_summary"):
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


def effect(name, value, low, high):
    return {"name": name, "value": value, "low": low, "high": high}


def study(anchors, title, *claims):
    return anchors.Study(title, title, ""), {"claims": claims}


def test_tables_have_a_row_for_each_confirmatory_study_and_network(anchors):
    digits = [
        effect("MLP, 4 layers, best learning rates", 3.18, 1.87, 5.41),
        effect("MLP, 4 layers, best learning rates, seconds", 9.9, 9.8, 9.95),
        effect("MLP, 4 layers, both at the best learning rate of no normalization, 0.25", 0.737, 0.624, 0.871),
        effect("MLP, 4 layers, both at the best learning rate of BatchNorm, 1", 19.8, 13.6, 28.8),
    ]
    mnist = [effect("ResNet, best learning rates", 2.04, 1.51, 2.75)]
    studies = [
        study(anchors, "digits", {"name": "faster_convergence", "effects": digits}),
        study(anchors, "text", {"name": "warmup", "effects": []}),
        study(anchors, "MNIST", {"name": "faster_convergence", "effects": mnist}),
    ]
    patterns = (r"(?P<network>.+), best learning rates", r"(?P<network>.+), both .* of no normalization, .+")
    lines = anchors.joined(studies, "faster_convergence", ("best", "same"), patterns).splitlines()
    assert lines == [
        "| study | network | best | same |",
        "| --- | --- | --- | --- |",
        "| digits | MLP, 4 layers | 3.2 [1.9, 5.4] | 0.74 [0.62, 0.87] |",
        "| MNIST | ResNet | 2.0 [1.5, 2.8] |  |",
    ]


def test_the_share_that_is_replayed_is_the_one_that_the_claim_said(anchors):
    said = (
        "the scale cancels exactly; the test loss without decay over that with it: constant learning rate 1.04 times "
        "[0.88, 1.23] (inconclusive; reproduced by learning rates alone: not judged), cosine learning rate 1.30 times "
        "[1.20, 1.40] (supported; reproduced by learning rates alone: 95%)"
    )
    effects = [effect("constant learning rate", 1.04, 0.88, 1.23), effect("cosine learning rate", 1.3, 1.2, 1.4)]
    claim = {"name": "weight_decay", "sentence": said, "effects": effects}
    assert anchors.decay([study(anchors, "MNIST", claim)]).splitlines()[2:] == [
        "| MNIST | constant | 1.04 [0.88, 1.23] | not judged |",
        "| MNIST | cosine | 1.30 [1.20, 1.40] | 95% |",
    ]


def test_the_page_has_what_the_confirmatory_study_says_beside_published_numbers(anchors):
    page = anchors.anchors()
    for stem, kept in anchors.present():
        for claim in (claim for claim in kept["claims"] if claim["name"] in anchors.CLAIMS_BESIDE):
            row = f"| [{claim['name']}](findings.md#{claim['name']}) | {stem.title} | {claim['verdict']} |"
            assert row in page
    claims = {claim["name"]: claim for claim in anchors.present()[0][1]["claims"]}
    for name in ("steps_4", "rise_at_2"):
        claim, of, digits = anchors.QUOTED[name]
        (one,) = (one for one in claims[claim]["effects"] if one["name"] == of)
        assert page.count(anchors.said(one, digits)) >= 2  # in the first table and in the section
    assert "findings_first_edition.md#small_batch" in page


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
