"""Rewrite the relative links of a Markdown file from the repository's tree to the site's."""

import posixpath
import re
from collections.abc import Callable

# Fenced blocks and code spans, which hold no links, and links.
TOKENS = re.compile(
    r"(?P<code>^ *(```+|~~~+).*?^ *\2 *$|(`+)(?!`).+?(?<!`)\3(?!`))"
    r"|(?P<link>\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>[^()\s]+)\))",
    re.M | re.S,
)


def rewritten(text: str, file: str, place: Callable[[str], str | None], repository: str) -> str:
    """Return the text with its relative links as they are on the site.

    Args:
        text: the Markdown.
        file: its path in the repository.
        place: where a file of the repository stands on the site; None if it has no page.
        repository: where links to other files lead; "" leaves their text.
    """
    here = place(file)
    assert here is not None, file

    def replaced(match: re.Match[str]) -> str:
        if match["code"] is not None:
            return match[0]
        words = rewritten(match["text"], file, place, repository)
        to, hash_, anchor = match["to"].partition("#")
        if re.match(r"[a-z]+:", to) or not to:
            return f"[{words}]({match['to']})"
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), to))
        where = place(target)
        if where is not None:
            return f"[{words}]({posixpath.relpath(where, posixpath.dirname(here))}{hash_}{anchor})"
        return f"[{words}]({repository.rstrip('/')}/{target}{hash_}{anchor})" if repository else words

    return TOKENS.sub(replaced, text)
