"""Assemble the source tree of the site: the Markdown of the repository, the pages of the site, and generated ones.

    python docs/site/staging.py FOLDER

Nothing is rewritten in the repository. `place` says where a file of the repository stands on the site; links between
files follow it, and links to files that have no page become links to `REPOSITORY`, or text where there is none.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from api_pages import api_pages  # noqa: E402
from claim_pages import claim_pages  # noqa: E402
from faq_page import faq_pages  # noqa: E402
from links import rewritten  # noqa: E402
from rule_pages import rule_pages  # noqa: E402
from works_with import works_with_pages  # noqa: E402

# Parts of generated pages, which the pages themselves repeat.
PARTS = ("docs/findings_comments.md", "docs/anchors_text.md")
RENAMED = {
    "README.md": "index.md",  # for links alone: the front page of the site is one of its own pages
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "docs/rules.md": "rules/on-one-page.md",
    "docs/claims.md": "claims/on-one-page.md",
}
GENERATED: tuple[Callable[[], dict[str, str]], ...] = (api_pages, rule_pages, claim_pages, faq_pages, works_with_pages)
# Where the sources are to be read, such as the address of a branch's tree; links to source files are text without it.
REPOSITORY = os.environ.get("GAMMABETA_REPOSITORY", "")


def place(path: str) -> str | None:
    """Return where a file of the repository stands in the site's source tree; None if it has no page."""
    if path in RENAMED:
        return RENAMED[path]
    if path in PARTS or not path.endswith(".md"):
        return None
    for folder, under in (("docs/site/pages", ""), ("docs/recipes", "recipes/"), ("benchmarks/results", "benchmarks/")):
        if path.startswith(f"{folder}/"):
            return under + path.removeprefix(f"{folder}/")
    return path.removeprefix("docs/") if path.startswith("docs/") and path.count("/") == 1 else None


def markdown() -> dict[str, str]:
    """Return the repository's Markdown that has a page, by its place on the site."""
    files = [
        path.relative_to(ROOT).as_posix() for folder in ("docs", "benchmarks") for path in (ROOT / folder).rglob("*.md")
    ]
    files += ["CHANGELOG.md", "CONTRIBUTING.md"]
    pages = {}
    for file in sorted(files):
        if (where := place(file)) is not None:
            assert where not in pages, f"{file}: expected a place of its own, but {where} is taken"
            pages[where] = rewritten((ROOT / file).read_text(encoding="utf-8"), file, place, REPOSITORY)
    return pages


def stage(folder: Path) -> None:
    """Write the source tree, touching only what changed, so that a second build reads only that."""
    pages = markdown()
    for generate in GENERATED:
        made = generate()
        assert not pages.keys() & made.keys(), f"expected new pages, but these exist: {pages.keys() & made.keys()}"
        pages |= made
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    stage(Path(sys.argv[1]))
