"""What a study found, on one screen: its claims by verdict, identities apart from what is empirical."""

from __future__ import annotations

from collections.abc import Sequence

from gammabeta.pages.axes import Json, number

HEADINGS = {
    "supported": "Holds here",
    "contradicted": "Does not hold here",
    "mixed": "Holds in some regimes, not in others",
    "equivalent": "Makes no difference here",
    "inconclusive": "Not settled",
    "no room here": "Cannot show here",
    "reported": "Measured, without a verdict",
    "does not apply": "About other data",
    "failed": "Failed",
    "interrupted": "Not finished",
}


def groups(sections: Sequence[Json]) -> list[Json]:
    """Return the claims by verdict: each group's ``heading``, ``verdict`` and ``claims``, identities last."""
    found = []
    for exact in (False, True):
        for verdict, heading in HEADINGS.items():
            claims = [
                {**one, "short": _short(one)} for one in sections if one["exact"] == exact and one["verdict"] == verdict
            ]
            if claims:
                title = f"Identities: {heading[0].lower()}{heading[1:]}" if exact else heading
                found.append({"heading": title, "verdict": verdict, "claims": claims, "exact": exact})
    return found


def _short(section: Json) -> str:
    """Return a claim's result in a few words: in how many regimes it is so, or its effect; and the replicates."""
    if section["exact"] or not section["effects"] or section["verdict"] == "no room here":
        return ""
    main, counted = section["effects"][0], section["tally"]
    if "," not in counted:  # all regimes agree with the verdict, which the heading says
        counted = counted.removeprefix(f"{section['verdict']} in ")
    result = counted or f"{main['text']} {main.get('unit') or ''}".strip()
    return f"{result}; {section['replicates']}" if section["replicates"] else result


def replicates_of(effects: Sequence[Json]) -> str:
    """Say how many replicates effects are from: one number, or the fewest and the most. Counts of cases have none."""
    counts = sorted({one["seeds"] for one in effects if one.get("seeds") and one.get("margin") != [0, 0]})
    if not counts:
        return ""
    span = number(counts[0]) if len(counts) == 1 else f"{number(counts[0])} to {number(counts[-1])}"
    return f"{span} replicate{'s' if counts[-1] != 1 else ''}"
