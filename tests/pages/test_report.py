"""The report as a file: what it says, what it escapes, and what it refuses. test_browser.py tests how it looks."""

import copy
import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from tests.example_results import ARMS, HOSTILE, effect, error_by_batch_size, example_results, heatmap, losses

from gammabeta.lab.outcome import Axis, Effect, bars
from gammabeta.pages.picture import arm_of, figure, missing, number
from gammabeta.pages.report import (
    VERDICTS,
    ReportError,
    check,
    duration,
    embed,
    interval_svg,
    prose,
    read_results,
    write_report,
)


class Page(HTMLParser):
    """The page's elements, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside is None:
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_report(example_results(), tmp_path_factory.mktemp("study") / "report.html")
    return path, Page(path.read_text(encoding="utf-8"))


def test_what_is_much_is_folded(tmp_path):
    results = example_results()
    claim = next(claim for claim in results["claims"] if claim["name"] == "small_batch")
    claim["pictures"] = claim["pictures"] * 3
    claim["effects"] = claim["effects"] * 5
    page = Page(write_report(results, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("4 more pictures") == page.text.count("5 more effects") == 1
    pictures = [given["data-of"] for _, given in page.elements if given.get("data-of", "").startswith("small_batch-")]
    assert pictures == [f"small_batch-{index}" for index in range(1, 7)]
    numbers = [given["id"] for tag, given in page.elements if given.get("id", "") in pictures and tag == "script"]
    assert numbers == pictures


def test_the_recommendation_comes_first_then_the_verdicts_then_the_claims(page):
    text = page[1].text
    order = ("Use BatchNorm at batches of 16", "InstanceNorm on inputs of one", "2 supported", "none trains above 20 %")
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_several_recommendations_stand_one_below_the_other_with_their_reasons_folded(tmp_path):
    results = example_results()
    picture = error_by_batch_size()
    more = {
        "network": "GRU",
        "scope": "After 400 steps.",
        "picture": picture,
        "table": {"title": "Side by side", "columns": [], "rows": []},
    }
    results["recommendations"] += [{**results["recommendations"][0], **more, "headline": "On text use LayerNorm."}]
    page = Page(write_report(results, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (
        page.text.index("Use BatchNorm at batches")
        < page.text.index("On text use LayerNorm.")
        < page.text.index("After 400 steps.")
    )
    assert page.text.count("Why, what to avoid, what it costs") == page.text.count("GRU: why, what to avoid") == 1
    assert [given["id"] for tag, given in page.elements if given.get("id", "").startswith("comparison")] == [
        "comparison-2-1"
    ]
    assert "Why, what to avoid" not in Page(write_report(example_results(), tmp_path / "one.html").read_text()).text
    picture["series"][0]["y"] = []
    with pytest.raises(ReportError, match="a recommendation, picture 'Test error against batch size', series"):
        check(results)


def test_every_part_of_the_results_is_on_the_page(page):
    text = page[1].text
    for verdict in VERDICTS:
        assert verdict in text
    for part in (
        "Is it so that batchNorm needs a large enough batch?",
        "BatchNorm reaches a training loss of 0.1 in 1.9 times fewer steps",
        "1.9 [1.5, 2.2]",
        "6 of 23 needed",
        "depth 8, width 64, relu, He",
        "Ioffe & Szegedy 2015",
        "A processor of some kind, 2 cores",
        "4 March 2026, 05:06 UTC",
        "1 × 8 × 8",
        "2 min 23 s",
    ):
        assert part in re.sub(r"\s+", " ", text), part


def test_evidence_links_to_its_claim_and_only_to_claims_that_are_there(page):
    links = [a["href"] for tag, a in page[1].elements if tag == "a"]
    ids = {a["id"] for _, a in page[1].elements if "id" in a}
    assert "#claim-faster_convergence" in links
    assert all(link[1:] in ids for link in links if link.startswith("#"))


def test_what_comes_from_users_is_text_and_never_markup(page):
    path, parsed = page
    source = path.read_text(encoding="utf-8")
    assert '<script>alert("x")</script>' not in source
    assert "<b>bold</b>" not in source
    assert parsed.text.count('<script>alert("x")</script>') >= 8  # as a reader sees it, in title, question, criterion …
    assert "gammabeta study --quick --out 'a <b> folder'" in parsed.text


def test_plotly_is_handed_escaped_texts():
    hostile = next(claim for claim in example_results()["claims"] if claim["name"] == "hostile")
    trace, layout = (drawn := figure(hostile["pictures"][0]))["data"][0], drawn["layout"]
    texts = [
        trace["name"],
        layout["xaxis"]["title"]["text"],
        *(line for point in trace["customdata"] for line in point),
    ]
    assert all("<b>" not in text and "<script>" not in text for text in texts)
    assert "&lt;b&gt;" in trace["name"]
    # Plotly would fill in a user's template: their texts are in the data, not in the template.
    assert "%{y}" not in trace["hovertemplate"]


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page[1].elements:
        assert "src" not in attributes, (tag, attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"
    policy = next(a["content"] for tag, a in page[1].elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    styles = re.findall(r"<style>(.*?)</style>", page[0].read_text(encoding="utf-8"), re.S)
    assert not any("@import" in style or "url(" in style for style in styles)


def test_the_page_stays_small(page):
    assert page[0].stat().st_size < 6_000_000


def test_trials_are_listed_by_key_with_what_varies(page):
    tables = json.loads(next(s for s in page[1].scripts if '"columns":["trial"' in s and "rate" in s))
    (table,) = tables
    assert table["run"] == "gammabeta.lab.images.training:train"
    assert table["columns"][: table["given"]] == ["trial", "norm", "rate", "seed"]
    assert "network.width = 64" in table["same"]
    assert len(table["rows"]) == 24
    row = dict(zip(table["columns"], table["rows"][3], strict=True))
    assert "03c0ffee0003".startswith(row["trial"])
    assert row["norm"] == ARMS[3]
    assert row["steps"] == "–"
    assert row["loss"] == "2.3, 1.15, … 0.046 (50 values)"


def test_bare_results_make_a_page(tmp_path):
    path = write_report({"schema": 2, "claims": []}, tmp_path / "new" / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "No claim was decided in this run." in text
    assert "None: the claims that a recommendation needs were not decided" in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def broken(change):
    results = copy.deepcopy(example_results())
    change(results)
    return results


def first(results):
    return results["claims"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.update(schema=1),
            "results: expected schema 2, got 1: draw the report with the gammabeta that ran the study, "
            "or run the study again.",
        ),
        (lambda r: r.pop("claims"), "results: expected a list under 'claims', got NoneType."),
        (lambda r: first(r).pop("name"), "results.claims[0]: expected an object with a name."),
        (
            lambda r: first(r).update(verdict="true"),
            "claim faster_convergence: expected a verdict out of supported, contradicted, mixed, equivalent, "
            "reported, inconclusive, no room here, does not apply, failed, interrupted, got 'true'.",
        ),
        (
            lambda r: first(r)["effects"][0].pop("value"),
            "claim faster_convergence, an effect: expected an object with 'value'.",
        ),
        (
            lambda r: first(r)["pictures"][0].update(kind="pie"),
            "claim faster_convergence, picture 'Training loss': expected the kind line, bar or heatmap, got 'pie'.",
        ),
        (
            lambda r: first(r)["pictures"][0]["series"][1]["low"].pop(),
            "claim faster_convergence, picture 'Training loss', series 'BatchNorm': expected 40 values in low, "
            "as many as in x, got 39.",
        ),
        (
            lambda r: r["claims"][5]["pictures"][0]["heat"]["z"].pop(),
            "claim axes, picture 'What leaves the output as it is': expected z of 5 rows of 5, "
            "as many as y and x have labels.",
        ),
        (
            lambda r: first(r)["effects"][0].update(high=math.inf),
            "results.claims[0].effects[0].high: expected a finite number or null, got NaN or an infinity.",
        ),
    ],
)
def test_broken_results_are_refused_in_one_sentence(change, message, tmp_path):
    with pytest.raises(ReportError) as error:
        write_report(broken(change), tmp_path / "report.html")
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_results_that_are_no_object_are_refused():
    with pytest.raises(ReportError) as error:
        check([])
    assert str(error.value) == "results: expected an object, got list."


def test_read_results_says_what_is_missing(tmp_path):
    with pytest.raises(ReportError) as error:
        read_results(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/results.json: no such file; name the folder to which `gammabeta study --out` wrote."
    )
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ReportError) as error:
        read_results(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}/results.json: expected what a study writes, got a file that is not JSON"
    )
    (tmp_path / "results.json").write_text(json.dumps(example_results()), encoding="utf-8")
    assert read_results(tmp_path) == example_results()


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        *zip(ARMS, ("none", "batch", "group", "layer", "instance", "rms", "ghost", "renorm"), strict=True),
        ("BN, tuned", "batch"),
        ("batch in evaluation", "batch"),
        ("GN(4)", "group"),
        ("LN", "layer"),
        ("without a norm", "none"),
        ("IN", "instance"),
        ("in evaluation", None),
        ("sigmoid, 8 layers", None),
        ("batch size 4 of a Dropout net", "batch"),
        ("Batch Renorm", "renorm"),
    ],
)
def test_an_arm_is_known_by_its_name(name, arm):
    assert arm_of(name) == arm


def test_an_arm_has_one_colour_in_all_pictures_and_dashes_tell_its_series_apart():
    in_curves, in_errors = figure(losses())["data"], figure(error_by_batch_size())["data"]
    colours = [{t["name"]: t["line"]["color"] for t in traces if "name" in t} for traces in (in_curves, in_errors)]
    assert colours[0]["BatchNorm"] == colours[1]["BatchNorm"] == "@batch"
    assert len(set(colours[1].values())) == len(ARMS)
    twice = [t for t in in_curves if t.get("name", "").startswith("BatchNorm")]
    assert [t["line"]["color"] for t in twice] == ["@batch", "@batch"]
    assert twice[0]["line"]["dash"] != twice[1]["line"]["dash"]


@pytest.mark.parametrize(("values", "side"), [((-60.0, -4.0, 0.5), "right"), ((0.5, 4.0, 60.0), "left")])
def test_a_line_among_lying_bars_is_named_on_the_side_with_room(values, side):
    effects = [
        Effect(f"a rather long name of bar {v}", v, v, v, "points", (-1, 1), 0.0, "supported", 3) for v in values
    ]
    drawn = figure(asdict(bars("t", "c", "norm", Axis("difference"), effects)))
    assert drawn["data"][0]["orientation"] == "h"
    named = [shape for shape in drawn["layout"]["shapes"] if shape["label"]["text"]]
    assert [shape["label"]["xanchor"] for shape in named] == [side]


def test_intervals_are_error_bars_on_few_points_and_bands_on_many():
    data = figure(error_by_batch_size())["data"]
    y, low, high = (error_by_batch_size()["series"][1][key] for key in ("y", "low", "high"))
    assert data[1]["error_y"]["array"] == [h - v for h, v in zip(high, y, strict=True)]
    assert data[1]["error_y"]["arrayminus"] == [v - lo for lo, v in zip(low, y, strict=True)]
    curves = figure(losses())["data"]
    assert len(curves) == 6
    assert curves[0]["fill"] == "toself"
    assert len(curves[0]["x"]) == 2 * len(curves[1]["x"])


def test_a_band_has_a_gap_where_values_do_not_exist():
    picture = losses()
    series = picture["series"][0]
    series["low"][10] = series["high"][10] = series["y"][10] = None
    xs = figure(picture)["data"][0]["x"]
    assert xs.index(None) == 20
    assert xs.count(None) == 1


def test_log_axes_have_the_grid_s_own_values_as_ticks():
    axis = figure(error_by_batch_size())["layout"]["xaxis"]
    assert (axis["type"], axis["tickvals"], axis["title"]["text"]) == ("log", [2, 4, 8, 16, 32], "batch size (images)")


def test_a_heatmap_over_decades_is_coloured_by_decades_and_says_its_values():
    trace = figure(heatmap())["data"][0]
    assert trace["z"][0][1] == pytest.approx(-16)
    assert "value 1e−16" in trace["customdata"][0][1]
    assert figure(heatmap())["layout"]["annotations"][0]["text"] == "n/a"


def test_what_a_picture_cannot_show_is_said():
    assert missing(error_by_batch_size()) == "1 value does not exist: diverged, or not reached."
    picture = error_by_batch_size()
    picture["series"][0]["y"][:2] = [0.0, -1.0]
    assert missing(picture).endswith("2 values are 0 or less, off the log axis.")
    assert missing(losses()) == ""


def marks(svg):
    return {
        name: float(re.search(rf'class="{name}"[^>]*?{attribute}="([\d.]+)"', svg)[1])
        for name, attribute in (("zone", "x"), ("null", "x1"), ("interval", "x1"), ("value", "cx"))
    }


def test_an_interval_is_drawn_to_scale():
    svg = str(interval_svg(effect("a difference", 2.0, 1.0, 3.0, margin=[-1, 1], null=0)))
    at = marks(svg)
    # −1 … 3 over the whole width: null a quarter in, the interval from a half on, the value three quarters in.
    left, right = 16, 204
    assert at["zone"] == pytest.approx(left)
    assert at["null"] == pytest.approx(left + (right - left) / 4)
    assert at["interval"] == pytest.approx(left + (right - left) / 2)
    assert at["value"] == pytest.approx(left + (right - left) * 3 / 4)
    assert 'aria-label="2, interval 1 to 3, margin −1 to 1"' in svg


def test_ratios_are_drawn_with_half_and_twice_equally_far_from_one():
    at = marks(str(interval_svg(effect("a ratio", 2.0, 0.5, 2.0, margin=[0.5, 2.0], null=1.0))))
    assert at["null"] - at["interval"] == pytest.approx(at["value"] - at["null"])


def test_an_interval_without_bounds_runs_off_both_edges():
    svg = str(interval_svg(effect("one seed", 3.0, None, None, margin=[-1, 1], null=0)))
    assert 'x1="0.0" x2="220.0"' in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.905, "1.91"),
        (0.1, "0.1"),
        (-0.49, "−0.49"),
        (123.4, "123"),
        (100.0, "100"),
        (1e-16, "1e−16"),
        (2.5e7, "2.5e7"),
        (0.9999, "1"),
        (1797, "1797"),
        (123456, "123\u202f456"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.42, "0.42 s"), (12.34, "12 s"), (184, "3 min 4 s"), (4320, "1 h 12 min")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


def test_prose_knows_paragraphs_items_code_and_arxiv():
    assert str(prose("one\ntwo\n\n- a <b>\n- `c`\n\n(1502.03167)")) == (
        "<p>one two</p><ul><li>a &lt;b&gt;</li><li><code>c</code></li></ul>"
        '<p>(<a href="https://arxiv.org/abs/1502.03167">1502.03167</a>)</p>'
    )


def test_embedded_json_cannot_end_its_element():
    text = str(embed({"x": HOSTILE}))
    assert "<" not in text
    assert json.loads(text) == {"x": HOSTILE}
