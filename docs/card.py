"""Write docs/images/card-light.png and card-dark.png: the first recommendation on a study's page, in a browser.

    python docs/card.py report.html

It needs playwright and a Chromium on the path.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH = 820


def main(page: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(
                color_scheme=scheme, device_scale_factor=2, viewport={"width": WIDTH, "height": 900}
            )
            tab = context.new_page()
            tab.goto(Path(page).resolve().as_uri())
            tab.locator("article.card").first.screenshot(path=IMAGES / f"card-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
