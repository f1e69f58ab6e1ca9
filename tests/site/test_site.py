"""The site, built strictly and opened in a real Chromium.

Building takes minutes. GAMMABETA_SITE names a folder that `make site` has built, which is then opened instead.
"""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.chromium import needs_chromium
from tests.site.loading import ROOT, SITE

for package in ("sphinx", "furo", "myst_nb", "sphinx_copybutton"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'gammabeta[docs]'")
LIMIT = 1800  # seconds, for a build on a machine that is busy
# Pages that Sphinx makes for itself, which no page of ours leads to by a link in its text.
OWN = {"genindex.html", "search.html", "py-modindex.html"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    if built := os.environ.get("GAMMABETA_SITE"):
        return Path(built).resolve()
    folder = tmp_path_factory.mktemp("site")
    source, out = folder / "source", folder / "html"
    strict = ["-m", "sphinx", "-W", "-n", "--keep-going", "-b", "html", "-c", str(SITE), "-d", str(folder / "doctrees")]
    for words in ([str(SITE / "staging.py"), str(source)], [*strict, str(source), str(out)]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out


@pytest.fixture
def visit(browser, site):
    """Open a page of the site; errors are collected and checked after the test."""
    wrong, contexts = [], []

    def visit(name, width=1280, **context):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        page.goto((site / name).as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


class Links(HTMLParser):
    """The addresses and identifiers of a page."""

    def __init__(self, path):
        super().__init__()
        self.to, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found.get("id"), found.get("name") if tag == "a" else None} - {None}
        if tag == "a" and found.get("href"):
            self.to.append(found["href"])


def pages_of(site):
    """The pages by their paths, each with its links."""
    return {path: Links(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def test_every_relative_link_resolves_and_no_page_is_an_orphan(site):
    pages = pages_of(site)
    assert len(pages) > 200
    broken, reached = [], set()
    for path, links in pages.items():
        for to in links.to:
            if re.match(r"[a-z]+:", to):
                continue
            name, _, anchor = unquote(to).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {to}")
            elif target != path:
                reached.add(target)
    assert broken == []
    assert {path.relative_to(site).as_posix() for path in {*pages} - reached} <= OWN


@needs_chromium
def test_search_finds_what_is_named(visit):
    page = visit("index.html")
    page.locator(".sidebar-search").fill("recompute")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a")
    page.wait_for_function("() => /found|matching/.test(document.querySelector('#search-results').textContent)")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(one => one.getAttribute('href'))")
    assert any("api/recompute.html" in to for to in found), found


@needs_chromium
@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("get-started.html", "make study"),
        ("api/recompute.html", "import torch\n"),
        ("notebooks/deploy.html", "import torch\nfrom sklearn"),
        ("rules/GB101.html", "backbone = nn.Sequential("),
    ],
)
def test_code_is_copied_by_its_button(visit, name, begins):
    page = visit(name, permissions=["clipboard-read", "clipboard-write"])
    button = page.locator("article button.copybtn").first
    button.wait_for(state="attached")
    button.click(force=True)
    page.wait_for_function("() => document.querySelector('button.copybtn.success') !== null")
    assert page.evaluate("navigator.clipboard.readText()").startswith(begins)


@needs_chromium
def test_of_a_command_with_its_output_the_command_is_copied(visit):
    page = visit("get-started.html", permissions=["clipboard-read", "clipboard-write"])
    block = page.locator("div.highlight-console").first
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_function("() => document.querySelector('button.copybtn.success') !== null")
    assert page.evaluate("navigator.clipboard.readText()") == "gammabeta env"


@needs_chromium
def test_the_dark_theme_is_switched_on_and_pictures_follow(visit):
    page = visit("claims/small_batch.html")
    background = "getComputedStyle(document.body).backgroundColor"
    mark = "getComputedStyle(document.querySelector('.forest .value')).fill"
    seen = {(page.evaluate(background), page.evaluate(mark))}
    for _ in range(2):  # from the system's to light and dark, in an order that depends on the system
        page.locator("button.theme-toggle:visible").first.click()
        seen.add((page.evaluate(background), page.evaluate(mark)))
    assert page.evaluate("document.body.dataset.theme") in ("light", "dark", "auto")
    assert len({one for one, _ in seen}) == 2
    assert len({one for _, one in seen}) == 2


@needs_chromium
def test_nothing_sticks_out_on_a_phone(visit, site):
    page = visit("index.html", 390)
    wide = []
    for path in pages_of(site):
        page.goto(path.as_uri())
        if page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") > 390:
            wide.append(path.relative_to(site).as_posix())
    assert wide == []
