"""What results look like in a notebook: tables of HTML that escape, run nothing and set no colours."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.pages.notebook import table
from gammabeta.proof.outcome import BackendOutcome, Cell, Verification

EVIL = "<script>alert(1)</script>&amp;\x07"


class Reader(HTMLParser):
    """Reads the tags, and the cells of the rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.open, self.text = set(), [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(shown):
    """Read what a notebook would show, which has no scripts, no links and no colours."""
    reader = Reader(shown._repr_html_() if hasattr(shown, "_repr_html_") else shown)
    assert reader.tags <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    styles = " ".join(value for name, value in reader.attributes if name == "style")
    assert {name for name, _ in reader.attributes} <= {"style", "class"}
    assert not re.search(r"(?<!border-)(color|background)\s*:|#[0-9a-f]{3}|rgb", styles.replace("currentColor", ""))
    return reader


def network():
    torch.manual_seed(0)
    layers = {EVIL: nn.Conv2d(3, 4, 3), "b<i>": nn.BatchNorm2d(4), "c": nn.Conv2d(4, 4, 3), "d": nn.BatchNorm2d(4)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name.replace(".", ""), layer)
    return model


def test_texts_are_escaped_wherever_they_stand():
    reader = read(table(EVIL, (EVIL,), [(EVIL,)], [EVIL]))
    assert "script" not in reader.tags
    assert reader.text.count("<script>alert(1)</script>&amp;") == 4
    assert "\x07" not in reader.text.replace(reader.rows[0][0], "")


def test_without_rows_there_is_no_table():
    assert read(table("nothing", ("a",), [], ["below"])).tags == {"div", "strong"}


def test_a_change_is_a_table_of_outcomes():
    model = network()
    reader = read(gb.adopt(model))
    assert reader.text.startswith("adopt: 2 changed, 0 left alone")
    assert reader.rows == [["modules", "outcome"], ["b<i>, d", "2 BatchNorm2d now run on gammabeta"]]
    assert read(gb.adopt(nn.Linear(2, 2))).text == "adopt: nothing to change"


def test_a_diagnosis_is_a_table_of_findings_with_what_to_do():
    model = network().eval()
    model.d.running_var[1] = -1.0
    diagnosis = gb.check(model, torch.randn(4, 3, 9, 9), select=["GB102", "GB301"])
    reader = read(diagnosis)
    assert reader.text.startswith(diagnosis.summary())
    head, poisoned, bias, *_ = reader.rows
    assert head == ["rule", "modules", "finding", "fix"]
    assert poisoned[:2] == ["GB102 poisoned-statistics (error)", "d"]
    assert "gammabeta.recalibrate(model" in poisoned[3]
    assert bias[0] == "GB301 bias-before-norm (note)"
    assert "<script>" in bias[1]
    for line in str(diagnosis).splitlines()[-1:]:
        assert line.strip() in reader.text


def test_a_folded_model_is_a_table_of_sites():
    result = gb.fold(network().eval(), torch.randn(2, 3, 9, 9))
    reader = read(result)
    assert reader.text.startswith("fold: 2 folded, 0 as one multiply-add, 0 refused")
    assert str(result.timing) in reader.text
    assert reader.rows[0] == ["norm", "outcome"]
    assert reader.rows[2] == ["d", "folded into c"]


def test_a_watch_is_a_table_of_the_last_measurements():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gb.watch(model, optimizer, every=2) as watch:
        assert read(watch).text.startswith("watch: 0 steps, 2 norms")
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 9, 9)).square().mean().backward()
            optimizer.step()
    head, first, second = read(watch).rows
    assert head[:4] == ["norm", "calls", "mean", "std"]
    assert (first[:2], second[:2]) == (["b<i>", "3"], ["d", "3"])
    history = watch.watched.norms["d"].history
    assert float(second[head.index("gap")]) == pytest.approx(history.known("gap")[-1], rel=1e-2)
    assert "gap: distance of the batch's statistics" in read(watch).text


def test_a_gap_is_a_table_of_layers_with_the_first_one_marked():
    model = network()
    batches = [torch.randn(8, 3, 9, 9) + 3 for _ in range(3)]
    gap = gb.train_eval_gap(model, batches)
    reader = read(gap)
    assert reader.rows[0] == ["layer", "mean shift, σ (sampling)", "log variance ratio (sampling)", "samples", ""]
    first, second = reader.rows[1:]
    found = gap.layers[0].gap
    assert first == [
        "b<i>", f"{found.mean_shift:.3f} ({found.mean_error:.3f})",
        f"{found.log_variance_ratio:.3f} ({found.variance_error:.3f})", "24", "<- first",
    ]  # fmt: skip
    assert second[0] == "d"
    assert str(gap).splitlines()[-1] in reader.text
    model.e = nn.BatchNorm2d(4)
    model.forward = lambda x: model.d(model.c(getattr(model, "b<i>")(model[0](x))))
    unseen = read(gb.train_eval_gap(model, batches)).rows[-1]
    assert (unseen[0], unseen[1:4]) == ("e", ["", "", ""])
    assert unseen[4]


def test_a_verification_is_a_table_of_backends_with_what_failed_below():
    failure = {"case": f"{EVIL}/mean", "backend": "torch", "seed": 3, "message": "x" * 700}
    backends = [
        BackendOutcome("native", on="avx2", cells={("layer_norm", "float32"): Cell(cases=7)}),
        BackendOutcome("torch", cells={("rms_norm", "float32"): Cell(cases=5, failed=1)}, failures=[failure]),
    ]
    reader = read(Verification(backends, {"native": Path("a&b.json")}, {}, {}, 12.3, 3))
    assert reader.text.startswith("gammabeta verify: FAILED, 12 s")
    assert reader.rows[1:] == [["native", "avx2", "7", "0", "passed"], ["torch", "-", "5", "1", "failed"]]
    assert "certificate of native: a&b.json" in reader.text
    assert "gammabeta verify --backend torch --case" in reader.text
    assert "x" * 600 + " …" in reader.text


def test_the_text_is_what_is_printed():
    model = network()
    change = gb.adopt(model)
    for line in str(change).splitlines():
        for part in re.split(r"\s{2,}", line.strip()):
            assert html.escape(part, quote=False) in change._repr_html_()
