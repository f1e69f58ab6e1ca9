"""A recommendation as a card: which norm, how sure that is, what to write and what it costs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gammabeta.pages.axes import Json
from gammabeta.pages.drawing import drawn
from gammabeta.pages.prose import calls

SIDES = {"for": "For", "against": "Against", "neither": "On neither side"}
_HEADLINE = re.compile(r"For (?P<where>.+?): (?P<what>(?:use|keep) .+?)\.(?: (?P<because>.+))?", re.DOTALL)
_NONE = re.compile(r"(?P<what>No recommendation)(?: yet)?(?: (?:for|on) (?P<where>.+?))?: (?P<because>.+)", re.DOTALL)
# The card says them beside the badge.
_REPLICATES = re.compile(r",? ?over \d+ (?:seeds|replicates)| \(\d+ (?:seeds|replicates)\)")


def card(one: Json, claims: Mapping[str, Json]) -> Json:
    """Return a recommendation as the template needs it.

    Args:
        one: an entry of ``recommendations``.
        claims: the study's claims by name, which evidence refers to.

    Returns:
        The entry with ``what`` to use on which network (``where``) and ``because`` of what; ``write``, the call that
        does it, and what belongs to it (``and_then``); ``evidence``, the items of each side; and ``pictures``, drawn.
    """
    headline = str(one["headline"])
    found = _HEADLINE.fullmatch(headline) or _NONE.fullmatch(headline)
    said = found.groupdict() if found else {"what": headline, "where": None, "because": None}
    items = [_evidence(item, claims) for item in one.get("evidence") or []]
    how = str(one.get("how") or "")
    write = calls(how)[0] if calls(how) else ""
    return {
        **one,
        "what": f"{said['what'][0].upper()}{said['what'][1:]}" if said["what"] else "",
        "long": found is None,
        "where": said["where"] or "",
        "because": _REPLICATES.sub("", said["because"] or ""),
        "write": write,
        "and_then": how.removeprefix(write).lstrip(",; "),
        "evidence": {side: [item for item in items if item["side"] == side] for side in SIDES},
        "pictures": [drawn(one["picture"], f"{one['seeds']} replicates" if one.get("seeds") else "")]
        if one.get("picture")
        else [],
    }


def _evidence(item: Json, claims: Mapping[str, Json]) -> Json:
    """Return a piece of evidence with the title of its claim apart from what is said of it, and its replicates."""
    claim: Mapping[str, Any] = claims.get(str(item.get("claim")), {})
    title = str(claim.get("title") or "")
    text = str(item.get("text") or "")
    effects = [] if claim.get("exact") else claim.get("effects") or []
    return {
        "side": item.get("side") if item.get("side") in SIDES else "neither",
        "link": f"#claim-{claim['name']}" if claim else "",
        "title": title,
        "text": text.removeprefix(f"{title}:").strip() if title else text,
        "replicates": effects[0].get("seeds") if effects else None,
    }
