"""Pictures as plotly figures, and effects as small pictures; test_browser.py tests how they look."""

import re

import pytest
from tests.example_results import (
    ARMS,
    axis,
    bars,
    effect,
    error_by_batch_size,
    example_results,
    gains,
    heatmap,
    losses,
)

from gammabeta.pages.arms import arm_of
from gammabeta.pages.axes import number
from gammabeta.pages.drawing import drawn
from gammabeta.pages.interval_picture import interval_svg
from gammabeta.pages.picture import figure, missing


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


def test_plotly_is_handed_escaped_texts():
    hostile = next(claim for claim in example_results()["claims"] if claim["name"] == "hostile")
    trace, layout = (whole := figure(hostile["pictures"][0]))["data"][0], whole["layout"]
    texts = [
        trace["name"],
        layout["xaxis"]["title"]["text"],
        *(line for point in trace["customdata"] for line in point),
    ]
    assert all("<b>" not in text and "<script>" not in text for text in texts)
    assert "&lt;b&gt;" in trace["name"]
    # Plotly would fill in a user's template: their texts are in the data, not in the template.
    assert "%{y}" not in trace["hovertemplate"]


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
    lying = bars()
    lying["series"] = [
        {"name": arm, "x": [f"a rather long name of bar {v}" for v in values], "y": list(values)} for arm in ARMS[:2]
    ]
    whole = figure(lying)
    assert whole["data"][0]["orientation"] == "h"
    assert [shape["label"]["xanchor"] for shape in whole["layout"]["shapes"]] == [side]


def test_effects_are_a_forest_with_the_margin_as_a_band_and_named_sides():
    whole = figure(gains())
    (trace,) = whole["data"]
    assert trace["mode"] == "markers"
    assert (trace["x"], trace["y"]) == ([2.0, -3.0, 0.5], [0, 1, 2])
    assert trace["error_x"]["array"] == pytest.approx([0.8, 1.5, None])
    band, null, dotted = whole["layout"]["shapes"]
    assert (band["type"], band["x0"], band["x1"], band["label"]["text"]) == ("rect", -1.0, 1.0, "margin")
    assert (null["x0"], null["x1"]) == (0.0, 0.0)
    assert (dotted["y0"], dotted["x0"], dotted["x1"]) == (2, 0, 1)  # an interval without ends crosses the picture
    words = [note["text"] for note in whole["layout"]["annotations"]]
    assert words == ["<b>← worse</b>", "<b>better than BatchNorm →</b>"]
    below = figure(gains() | {"caption": "Below 0: better than BatchNorm."})
    assert [note["text"] for note in below["layout"]["annotations"]] == [
        "<b>← better than BatchNorm</b>",
        "<b>worse →</b>",
    ]
    long = figure(gains() | {"caption": "Above 0: better than BatchNorm of each device's own batch."})
    assert [note["text"] for note in long["layout"]["annotations"]] == [words[0], "<b>better →</b>"]
    named = figure(gains() | {"caption": "Above 0: LayerNorm < is better; below: it is not."})
    assert [note["text"] for note in named["layout"]["annotations"]] == ["<b>LayerNorm &lt; is better →</b>"]
    assert figure(gains() | {"caption": "Nothing is said."})["layout"]["annotations"] == []


def test_a_picture_says_its_replicates_once():
    assert drawn(gains(), "4 replicates")["replicates"] == "4 replicates"
    for caption in ("Mean over 3 seeds.", "One seed; from right to left.", "12 replicates."):
        assert drawn(gains() | {"caption": caption}, "4 replicates")["replicates"] == ""


def test_an_interval_far_wider_than_the_others_runs_off_the_picture():
    wide = gains()
    wide["series"][0] |= {"y": [2.0, -3.0, 0.5, 1.0], "low": [1.2, -4.5, -0.5, -90.0], "high": [2.8, -1.5, 1.5, 92.0]}
    wide["series"][0]["x"] = [*wide["series"][0]["x"], "InstanceNorm"]
    low, high = figure(wide)["layout"]["xaxis"]["range"]
    assert -6 < low < -4.5 < 2.8 < high < 4
    ratios = gains() | {"y": axis("ratio", log=True)}
    ratios["series"][0] |= {"y": [1.0, 10.0, 100.0], "low": [1.0, 10.0, 100.0], "high": [1.0, 10.0, 100.0]}
    ratios["lines"] = []
    assert figure(ratios)["layout"]["xaxis"]["range"] == pytest.approx([-0.12, 2.12])  # in decades


@pytest.mark.parametrize(
    ("label", "title"),
    [
        ("test error", "test error (%), lower is better"),
        ("training loss", "training loss (%), lower is better"),
        ("test accuracy", "test accuracy (%), higher is better"),
        ("difference of test error", "difference of test error (%)"),
        ("test error above that at 32", "test error above that at 32 (%)"),
    ],
)
def test_an_axis_says_which_direction_is_better_where_that_is_plain(label, title):
    whole = figure(error_by_batch_size() | {"y": axis(label, "%")})
    assert whole["layout"]["yaxis"]["title"]["text"] == title


def test_two_margins_are_a_band_and_one_is_a_line():
    picture = error_by_batch_size()
    picture["lines"] = [{"axis": "y", "value": value, "label": "margin"} for value in (8.0, 10.0)]
    (band,) = figure(picture)["layout"]["shapes"]
    assert (band["type"], band["y0"], band["y1"]) == ("rect", 8.0, 10.0)
    assert [shape["type"] for shape in figure(error_by_batch_size())["layout"]["shapes"]] == ["line", "line"]


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
