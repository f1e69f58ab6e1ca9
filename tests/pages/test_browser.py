"""The report in a real Chromium: no errors, no requests, on a wide screen and on a phone."""

import shutil

import pytest
from tests.example_results import error_by_batch_size, example_results

from gammabeta.pages.report import write_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'gammabeta[test]'"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")

PICTURES = sum(len(claim.get("pictures") or []) for claim in example_results()["claims"])


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Chromium has no sandbox for root, as in a container; the page is our own.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(example_results(), tmp_path_factory.mktemp("study") / "report.html").as_uri()


@pytest.fixture
def visit(browser, address):
    """Open the report; errors are collected and checked after the test."""
    wrong, contexts = [], []

    def visit(width=1280, **context):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        page = contexts[-1].new_page()
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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_every_picture_is_drawn_and_nothing_sticks_out(visit, width, scheme):
    page = visit(width, color_scheme=scheme)
    marks = drawn(page)
    assert len(marks) == PICTURES
    assert all(marks), marks
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for summary in page.query_selector_all("summary"):
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_table_wider_than_a_phone_scrolls_inside_itself(visit):
    page = visit(390)
    assert page.eval_on_selector_all(".scroll", "all => all.some(one => one.scrollWidth > one.clientWidth)")


@pytest.fixture
def folded(browser, tmp_path):
    """A page with two pictures more than a claim shows without unfolding."""
    results = example_results()
    claim = next(claim for claim in results["claims"] if claim["name"] == "small_batch")
    claim["pictures"] = claim["pictures"] * 2
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(write_report(results, tmp_path / "report.html").as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    yield page
    page.close()


def test_paper_has_the_folded_pictures_too(folded):
    folded.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    folded.wait_for_function(f"() => document.querySelectorAll('.js-plotly-plot').length === {PICTURES + 2}")
    folded.emulate_media(media="print")
    assert all(drawn(folded))
    widths = folded.eval_on_selector_all(".picture", "all => all.map(one => one.layout.width)")
    assert widths == [640] * (PICTURES + 2)
    folded.emulate_media(media="screen")
    folded.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert folded.locator("#claim-small_batch details.more[open]").count() == 0


def test_a_folded_picture_is_drawn_when_it_is_unfolded(folded):
    assert sum(marks > 0 for marks in drawn(folded)) == PICTURES
    folded.locator("#claim-small_batch details.more summary").first.click()
    folded.wait_for_selector("#claim-small_batch details.more .main-svg")
    folded.wait_for_function(f"() => document.querySelectorAll('.js-plotly-plot').length === {PICTURES + 2}")
    assert all(drawn(folded))
    assert folded.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_recommendation_s_reasons_unfold_with_their_picture(browser, tmp_path):
    results = example_results()
    (one,) = results["recommendations"]
    table = {"title": "Norms side by side", "columns": ["norm", "test error, %"], "rows": [["GroupNorm", 1.5]]}
    more = {"headline": "On text use LayerNorm.", "network": "GRU", "picture": error_by_batch_size(), "table": table}
    results["recommendations"] = [one, one | more]
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(write_report(results, tmp_path / "report.html").as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    assert not page.get_by_text("Norms side by side").is_visible()
    page.get_by_text("GRU: why, what to avoid, what it costs").click()
    page.wait_for_selector(".recommended .main-svg")
    assert page.get_by_text("Norms side by side").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_pointing_at_a_value_says_it_with_its_unit(visit):
    page = visit()
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
    details = page.locator("#claim-faster_convergence details.trials")
    assert details.locator("table").count() == 0
    details.locator("summary").click()
    details.locator("table").wait_for()
    assert details.locator("tbody tr").count() == 24
    page.locator("#claim-hostile details.trials summary").click()
    page.locator("#claim-hostile details.trials p").wait_for()
    assert '<script>alert("x")</script>' in page.locator("#claim-hostile details.trials").text_content()


def test_no_button_sends_anything_away(visit):
    page = visit()
    titles = page.eval_on_selector_all(".modebar-btn", "all => all.map(one => one.dataset.title || '')")
    assert titles
    assert not [t for t in titles if any(word in t.lower() for word in ("cloud", "studio", "share", "edit"))]


def test_colours_follow_the_system_and_paper_is_light(visit):
    page = visit(color_scheme="dark")
    first = "document.querySelector('.picture').layout.font.color"
    assert page.evaluate(first) == "#e6e8ec"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => {first} === '#1f2430'")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => {first} === '#e6e8ec'")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"() => {first} === '#1f2430' && document.querySelector('.picture').layout.width === 640")


def test_it_prints(visit, tmp_path):
    pdf = visit().pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page/") >= 5
