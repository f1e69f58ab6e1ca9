"""The report in a real Chromium: no errors, no requests, on a wide screen and on a phone."""

import json
from pathlib import Path

import pytest
from tests.chromium import needs_chromium
from tests.example_results import example_results

from gammabeta.pages.report import write_report

pytestmark = needs_chromium

EXAMPLE = example_results()
PICTURES = sum(len(claim.get("pictures") or []) for claim in EXAMPLE["claims"]) + len(EXAMPLE["recommendations"])
# Pictures of effects in claims, which paper has as a table.
TABULATED = 1


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(example_results(), tmp_path_factory.mktemp("study") / "report.html").as_uri()


@pytest.fixture
def visit(browser, address):
    """Open the report; errors are collected and checked after the test."""
    wrong, contexts = [], []

    def visit(width=1280, ready="", **context):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.add_init_script(ready)
        page.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
        page.on("request", lambda request: request.url == address or wrong.append(f"request: {request.url[:200]}"))
        page.goto(address)
        page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def drawn(page):
    """Return for every picture how many marks (curves, points, bars, cells' image) plotly has drawn in it."""
    return page.eval_on_selector_all(
        ".picture",
        """pictures => pictures.map(picture => picture.querySelector(".main-svg") === null ? 0 :
            [...picture.querySelectorAll(".trace path, .trace .point, .hm image, .heatmaplayer image")].filter(mark =>
                mark.getBoundingClientRect().width + mark.getBoundingClientRect().height > 2).length)""",
    )


def unfold(page, selector="details"):
    """Open folded parts, as a reader does, and wait for their pictures."""
    page.eval_on_selector_all(selector, "all => all.forEach(one => { one.open = true; })")
    inside = page.locator(f":is({selector}) .picture").count()
    page.wait_for_function("count => document.querySelectorAll('.js-plotly-plot').length >= count", arg=inside)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_every_picture_is_drawn_when_it_is_unfolded_and_nothing_sticks_out(visit, width, scheme):
    page = visit(width, color_scheme=scheme)
    assert page.locator(".js-plotly-plot").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unfold(page)
    page.wait_for_timeout(300)
    marks = drawn(page)
    assert len(marks) == PICTURES
    assert all(marks), marks
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A table that is wider than a phone scrolls inside itself.
    scrolls = page.eval_on_selector_all(".scroll", "all => all.some(one => one.scrollWidth > one.clientWidth)")
    assert scrolls == (width == 390)


def test_a_card_says_the_norm_and_how_sure_that_is_in_the_first_window(visit):
    page = visit(390)
    for text in ("Use BatchNorm at batches", "Not settled", "4 replicates", "gb.GroupNorm(8, channels)", "18 % less"):
        box = page.locator(".card").get_by_text(text).first.bounding_box()
        assert 0 < box["y"] < 900, text
    assert not page.get_by_text("Norms side by side").is_visible()
    page.get_by_text("Why, and what to avoid").click()
    page.wait_for_selector(".card .main-svg")
    assert page.get_by_text("Norms side by side").is_visible()


def test_what_holds_fits_one_screen_and_leads_to_the_claims(visit):
    page = visit()
    assert page.locator("section.summary").bounding_box()["height"] <= 900
    page.locator(".summary").get_by_text("BatchNorm needs a large enough batch").click()
    page.wait_for_selector("#claim-small_batch[open] .main-svg")


def test_a_command_is_copied_by_the_keyboard(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy the command that settles what is open")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => [...document.querySelectorAll('.copy')].some(one => one.textContent === 'Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == EXAMPLE["recommendations"][0]["settle"]


def test_a_table_is_saved_in_full_without_a_server(visit):
    page = visit(accept_downloads=True)
    unfold(page, "details.reasons")
    saved = {}
    for suffix in ("csv", "json"):
        with page.expect_download() as saving:
            page.locator(".reasons > .downloads").get_by_text(suffix.upper()).click()
        assert saving.value.suggested_filename == f"norms-1.{suffix}"
        saved[suffix] = Path(saving.value.path()).read_bytes().decode()
    assert saved["csv"].split("\r\n") == ['norm,"test error, %"', "GroupNorm,1.5", "BatchNorm,2.03125", ""]
    assert json.loads(saved["json"])["rows"] == [["GroupNorm", 1.5], ["BatchNorm", 2.03125]]


def test_paper_has_claims_and_reasons_and_leaves_the_rest_folded(visit):
    page = visit()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"() => document.querySelectorAll('.js-plotly-plot').length === {PICTURES - TABULATED}")
    assert page.locator("details.claim:not([open]), details.reasons:not([open])").count() == 0
    assert page.locator(":is(.how, .numbers, .trials)[open]").count() == 0
    page.emulate_media(media="print")
    assert sum(marks > 0 for marks in drawn(page)) == PICTURES - TABULATED
    widths = page.eval_on_selector_all(".js-plotly-plot", "all => all.map(one => one.layout.width)")
    assert set(widths) == {640, 440, 330}
    assert not page.locator(".copy, .downloads").first.is_visible()
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_plotly_is_there_when_loading_ends_so_that_printing_at_once_has_pictures(visit):
    page = visit(ready="window.addEventListener('load', () => { window.atLoad = typeof Plotly; })")
    assert page.evaluate("window.atLoad") == "object"


def test_pointing_at_a_value_says_it_with_its_unit_and_no_button_sends_it_away(visit):
    page = visit()
    unfold(page, "#claim-small_batch")
    titles = page.eval_on_selector_all(".modebar-btn", "all => all.map(one => one.dataset.title || '')")
    assert titles
    assert not [t for t in titles if any(word in t.lower() for word in ("cloud", "studio", "share", "edit"))]
    picture = page.locator("#claim-small_batch .picture").first
    picture.scroll_into_view_if_needed()
    point = picture.locator(".trace").nth(1).locator(".point").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2, steps=5)
    label = picture.locator(".hoverlayer .hovertext")
    label.wait_for(timeout=5000)
    text = label.first.text_content()
    assert "BatchNorm" in text
    assert "batch size: 2 images" in text
    assert "test error: 60 [51, 72] %" in text


def test_the_legend_hides_a_series_with_its_band(visit):
    page = visit()
    unfold(page, "#claim-faster_convergence")
    picture = page.locator("#claim-faster_convergence .picture").first
    picture.scroll_into_view_if_needed()
    before = picture.locator(".trace path").count()
    picture.locator(".legendtoggle").first.click()
    # Plotly waits for a second click before it takes the first for one.
    page.wait_for_function(
        "before => document.querySelectorAll('#claim-faster_convergence .picture .trace path').length < before",
        arg=before,
    )
    assert before - picture.locator(".trace path").count() >= 2


def test_trials_appear_when_they_are_opened(visit):
    page = visit()
    unfold(page, "details.claim")
    details = page.locator("#claim-faster_convergence details.trials")
    assert details.locator("table").count() == 0
    details.locator("summary").click()
    details.locator("table").wait_for()
    assert details.locator("tbody tr").count() == 24
    page.locator("#claim-hostile details.trials summary").click()
    page.locator("#claim-hostile details.trials p").first.wait_for()
    assert '<script>alert("x")</script>' in page.locator("#claim-hostile details.trials").text_content()


def test_colours_follow_the_system_and_paper_is_light(visit):
    page = visit(color_scheme="dark")
    unfold(page, "details.reasons")
    first = "document.querySelector('.js-plotly-plot').layout.font.color"
    page.wait_for_function(f"() => {first} === '#e6e8ec'")
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => {first} === '#1f2430'")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => {first} === '#e6e8ec'")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"() => {first} === '#1f2430'")
