"""Chromium, for the tests that open pages; without it, or without playwright, they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(PATH is None, reason="no Chromium on the path: apt-get install chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium, as playwright has it."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'gammabeta[test]'"
    )
    with playwright.sync_playwright() as driver:
        # Chromium has no sandbox for root, as in a container; the pages are our own.
        browser = driver.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
        yield browser
        browser.close()
