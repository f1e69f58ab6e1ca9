"""The summary at the top of docs/findings.md: what of the taught holds, by the verdicts of the kept studies."""

from collections.abc import Sequence
from typing import Any

from gammabeta.lab.claims import CLAIMS

Json = dict[str, Any]

# The heading of each group, in the order of the page, and the verdicts whose regimes are named. Where none are, the
# group is one paragraph, else a list.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "exact": ("**Holds exactly**, as an identity", ()),
    "holds": ("**Holds** in every regime that has room", ("supported",)),
    "some": ("**Holds only in some regimes**, and not in others", ("supported", "contradicted", "equivalent")),
    "fails": ("**Does not hold** in any regime that has room", ("contradicted", "equivalent")),
    "open, for": ("**Open**, but holds in the regimes named", ("supported", "contradicted", "equivalent")),
    "open, against": ("**Open**, but does not hold in the regimes named", ("contradicted", "equivalent")),
    "open": ("**Open** in every regime", ()),
    "no room": ("**No room** to judge it here", ()),
    "reported": ("**Reported**, without a verdict", ()),
}
# What is said of the regimes of each verdict.
WORDS = {
    "supported": "holds",
    "contradicted": "contradicted",
    "equivalent": "no difference",
}
AGAINST = {"contradicted", "equivalent"}


def summary(studies: Sequence[Json]) -> list[str]:
    """Return the summary of kept studies: each claim of any of them once, grouped by what its verdicts come to.

    Args:
        studies: as they are kept, each with its ``title``.
    """
    known = {claim["name"] for study in studies for claim in study["claims"]}
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for claim in CLAIMS:
        if claim.name in known:
            found = [(study, one) for study in studies for one in study["claims"] if one["name"] == claim.name]
            group = group_of([one for _, one in found], exact=claim.exact)
            groups[group].append(_line(found, group))
    lines = []
    for group, (heading, named) in GROUPS.items():
        said = groups[group]
        if said and named:
            lines.append(f"{heading} ({len(said)}):\n\n" + "\n".join(f"- {line}" for line in said))
        elif said:
            lines.append(f"{heading} ({len(said)}): {'; '.join(said)}.")
        elif group == "fails":
            lines.append(f"{heading}: no claim so far.")
    return lines


def group_of(found: Sequence[Json], *, exact: bool = False) -> str:
    """Return the group of a claim by its results in one study or several, each study being one more regime.

    It holds, or does not, where all studies with room say so, and holds only in some regimes where one study or two of
    them show both. In all other cases it is open.
    """
    verdicts = {one["verdict"] for one in found} - {"no room here"}
    if not verdicts:
        return "no room"
    if verdicts == {"reported"}:
        return "reported"
    verdicts -= {"reported"}
    if verdicts == {"supported"}:
        return "exact" if exact else "holds"
    if "mixed" in verdicts or ("supported" in verdicts and verdicts & AGAINST):
        return "some"
    if verdicts <= AGAINST:
        return "fails"
    single = verdicts.union(*(one.get("regimes", {}).values() for one in found if one["verdict"] != "no room here"))
    if "supported" in single:
        return "open, for"
    return "open, against" if single & AGAINST else "open"


def departs(found: Sequence[Json]) -> bool:
    """Whether a claim's results, in one study or several, call for a comment: it fails somewhere, or had no room."""
    return any(
        one["verdict"] in ("mixed", "no room here") or {one["verdict"], *one.get("regimes", {}).values()} & AGAINST
        for one in found
    )


def replicates(claim: Json) -> int | None:
    """Return how many replicates a claim's first effect is taken from; None for an identity, which has none."""
    count = next((int(effect.get("seeds", 1)) for effect in claim["effects"]), 1)
    return count if count > 1 else None


def where(study: Json, claim: Json) -> list[str]:
    """Return the data that a claim was measured on, the number of replicates, and whether it was only explored.

    The data are those of the study's tasks of the claim's kind, or what the study is called where these were not kept.
    """
    kinds = {known.name: known.kind for known in CLAIMS}
    data = [task["name"] for task in study.get("tasks", []) if task["kind"] == kinds.get(claim["name"])]
    count = replicates(claim)
    explored = [] if claim.get("status") == "confirmatory" else ["exploratory"]
    return [*(data or [study["title"]]), *([f"n = {count}"] if count else []), *explored]


def regimes_of(claim: Json, verdicts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Name the regimes of a claim that have these verdicts, as in "GRU and LSTM"; more than two are counted.

    Returns:
        The parts that the names of all regimes with room have in common, and what is left of the names by verdict.
    """
    judged = {
        name: verdict for name, verdict in claim.get("regimes", {}).items() if verdict in (*WORDS, "inconclusive")
    }
    split = {name: name.split(", ") for name in judged}
    first = next(iter(split.values()), [])
    shared = [part for part in first if len(split) > 1 and all(part in parts for parts in split.values())]
    named = {}
    for verdict in verdicts:
        rest = [[part for part in split[name] if part not in shared] for name, own in judged.items() if own == verdict]
        if rest and len(rest) <= 2 and all(rest):
            named[verdict] = _joined(rest)
        elif rest:
            named[verdict] = f"{len(rest)} of {len(judged)} regimes"
    return shared, named


def _joined(regimes: Sequence[Sequence[str]]) -> str:
    """Join one or two names given by their parts, and say what both begin with once."""
    first, *others = regimes
    same = 0
    while others and same < min(len(first), len(others[0])) - 1 and first[same] == others[0][same]:
        same += 1
    return " and ".join([", ".join(first), *(", ".join(other[same:]) for other in others)])


def _line(found: Sequence[tuple[Json, Json]], group: str) -> str:
    """Name a claim, with a link to its results, and say of each study where it was measured and which regimes decided.

    Args:
        found: each study that measured the claim, and the claim as it is kept of it.
        group: of ``GROUPS``.
    """
    title = f"[{found[0][1]['title']}](#{found[0][1]['name']})"
    if group == "exact":
        return title
    differ = len({one["verdict"] for _, one in found}) > 1
    places = []
    for study, one in found:
        shared, named = regimes_of(one, GROUPS[group][1])
        said = "; ".join(
            name if group == "holds" else f"{WORDS[verdict]}: {name}" for verdict, name in named.items()
        ) or (one["verdict"] if differ else "")
        data, *rest = where(study, one)
        place = ", ".join([data, *(shared if named else []), *rest])
        places.append(f"({place}): {said}" if said else f"({place})")
    return f"{title} {'; '.join(places)}"
