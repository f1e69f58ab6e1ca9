"""The arms of a study in its pictures: an arm has one colour and one marker in all of them."""

from __future__ import annotations

import re

from gammabeta.pages.axes import Json

# Markers make the colours safe for colour-blind readers: arms in similar colours still differ in shape.
MARKERS = {
    "none": "circle-open",
    "batch": "circle",
    "group": "square",
    "layer": "diamond",
    "instance": "triangle-up",
    "rms": "triangle-down",
    "ghost": "star",
    "renorm": "cross",
}
# The order matters: a ghost or renormalized batch norm is not plain "batch".
ARM_WORDS = (
    ("ghost", r"(?i:ghost)"),
    ("renorm", r"(?i:renorm)"),
    ("rms", r"(?i:rms)"),
    ("instance", r"(?i:instance)|\bIN\b"),
    ("group", r"(?i:group)|\bGN\b"),
    ("layer", r"(?i:layer[\s_-]?norm|\blayer\b)|\bLN\b"),
    ("batch", r"(?i:batch[\s_-]?norm|\bbatch\b)|\bBN\b"),
    ("none", r"(?i:\bnone\b|\bno norm|\bwithout\b|\bplain\b|unnormali[sz]ed)"),
)
OTHER_COLOURS = ("other1", "other2", "other3", "other4")
OTHER_MARKERS = ("pentagon", "hexagon", "x", "bowtie")
DASHES = ("solid", "dot", "dashdot", "longdash")


def arm_of(name: str) -> str | None:
    """Return the arm that a series' name contains ("BatchNorm, tuned" is ``batch``); None if it contains none."""
    for arm, words in ARM_WORDS:
        if re.search(words, name):
            return arm
    return None


def styles(series: list[Json]) -> list[Json]:
    """Return colour, marker and dash of every series: the arm's, with other dashes if an arm occurs several times."""
    styles: list[Json] = []
    others = 0
    seen: dict[str, int] = {}
    for one in series:
        arm = arm_of(one["name"])
        if arm:
            colour, marker = arm, MARKERS[arm]
        else:
            colour, marker = OTHER_COLOURS[others % 4], OTHER_MARKERS[others % 4]
            others += 1
        turn = seen.get(colour, 0)
        seen[colour] = turn + 1
        dash = "dash" if one.get("dash") else DASHES[turn % len(DASHES)]
        styles.append({"colour": colour, "marker": marker, "dash": dash, "turn": turn})
    return styles
