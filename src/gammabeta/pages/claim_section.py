"""A claim as a section of the page: its answer, its regimes, effects, pictures, tables and trials."""

from __future__ import annotations

import shlex

from gammabeta.pages.axes import Json, number
from gammabeta.pages.drawing import drawn
from gammabeta.pages.interval_picture import interval_svg
from gammabeta.pages.prose import capitalized
from gammabeta.pages.summary import replicates_of
from gammabeta.pages.trial_tables import trial_tables
from gammabeta.pages.verdicts import SIGNS

# What a claim shows without unfolding: more would make the page too long to read.
SHOWN = {"pictures": 2, "regimes": 12}
MOST_REPLICATES = 64  # of one more run: nobody waits for more
# Options that a study of one named claim has no use for, and refuses.
NOT_OF_CLAIMS = ("--claims", "--compare", "--first-look", "--until-settled", "--batch-size", "--devices", "--link")
_TEXTS = ("question", "sentence", "claim", "criterion", "method", "settings", "known", "tally")


def section(claim: Json, trials: Json, run: str) -> Json:
    """Return a claim as the template needs it: with every optional part, and with figures and intervals drawn.

    Args:
        claim: an entry of ``claims``.
        trials: all trials, by key.
        run: the command of the study, where the claim does not say its own.
    """
    claim = _without_room(claim) if claim["verdict"] == "no room here" else claim
    effects = [effect | {"svg": interval_svg(effect), "text": _text(effect)} for effect in claim.get("effects") or []]
    regimes, others = _regimes(claim.get("regimes") or {}, effects)
    exact = bool(claim.get("exact"))
    replicates = "" if exact else replicates_of(effects)
    deciding = int(not regimes and claim["verdict"] != "no room here")  # without regimes, the first effect decides
    pictures = [drawn(picture, replicates) for picture in claim.get("pictures") or []]
    return {
        **{key: claim.get(key) or "" for key in _TEXTS},
        "sentence": capitalized(str(claim.get("sentence") or "Not decided")),
        "name": claim["name"],
        "title": claim.get("title") or claim["name"],
        "verdict": claim["verdict"],
        "exact": exact,
        "sources": claim.get("sources") or [],
        "room": claim.get("room") or {},
        "seconds": claim.get("seconds"),
        "effects": effects,
        "regimes": regimes,
        "regime_table": _regime_table(regimes),
        "deciding": others[:deciding],
        "further": others[deciding:],
        "replicates": replicates,
        "pictures": pictures[: SHOWN["pictures"]],
        "more_pictures": pictures[SHOWN["pictures"] :],
        "tables": claim.get("tables") or [],
        "trials": trial_tables(claim.get("trials") or [], trials),
        "trial_count": len(claim.get("trials") or []),
        "command": _again(claim, run),
    }


def _without_room(claim: Json) -> Json:
    """Return a claim without room, and its regimes and effects without their own verdicts; identities keep theirs."""
    effects = [
        effect if list(effect.get("margin") or []) == [0, 0] else effect | {"verdict": claim["verdict"]}
        for effect in claim.get("effects") or []
    ]
    return claim | {
        "tally": "",
        "regimes": dict.fromkeys(claim.get("regimes") or {}, claim["verdict"]),
        "effects": effects,
    }


def _text(effect: Json) -> str:
    """Format an effect's value with its interval."""
    text = number(effect["value"])
    low, high = effect.get("low"), effect.get("high")
    if (low, high) not in ((None, None), (effect["value"], effect["value"])):
        text += f" [{number(low)}, {number(high)}]"
    return text


def _regimes(verdicts: Json, effects: list[Json]) -> tuple[list[Json], list[Json]]:
    """Return the regimes, each with its verdict and the effect that carries it, and all other effects.

    The effect is the first that is named after the regime and has its verdict; None where there is none. Regimes stand
    by verdict, so that those that differ are seen side by side.
    """
    order = {verdict: place for place, verdict in enumerate(SIGNS)}
    regimes, taken = [], set()
    for name, verdict in sorted(verdicts.items(), key=lambda item: order.get(item[1], len(order))):
        own = [i for i, effect in enumerate(effects) if i not in taken and _about(str(effect["name"]), name)]
        carrying = next((i for i in own if effects[i].get("verdict") == verdict), None)
        if carrying is None and len(own) == 1:
            carrying = own[0]
        taken.add(carrying)
        regimes.append({"name": name, "verdict": verdict, "effect": None if carrying is None else effects[carrying]})
    return regimes, [effect for i, effect in enumerate(effects) if i not in taken]


def _about(effect: str, regime: str) -> bool:
    """Whether an effect is named after a regime, which its name begins or ends with."""
    return effect == regime or effect.startswith((f"{regime},", f"{regime}:")) or effect.endswith(f", {regime}")


def effect_table(effects: list[Json]) -> Json:
    """Return effects as a table of full numbers."""
    columns = ["effect", "value", "low", "high", "unit", "margin, lower", "margin, upper", "verdict", "replicates"]
    rows = []
    for effect in effects:
        numbers = [effect["value"], effect.get("low"), effect.get("high")]
        margin = effect.get("margin") or [None, None]
        rows.append([effect["name"], *numbers, effect.get("unit"), *margin, effect.get("verdict"), effect.get("seeds")])
    return {"columns": columns, "rows": rows}


def _regime_table(regimes: list[Json]) -> Json:
    """Return regimes as a table of full numbers, each with the effect that carries its verdict."""
    nothing = {"name": "", "value": None}
    effects = effect_table([regime["effect"] or nothing for regime in regimes])
    rows = [[one["name"], one["verdict"], *row] for one, row in zip(regimes, effects["rows"], strict=True)]
    return {"columns": ["regime", "verdict of the regime", *effects["columns"]], "rows": rows}


def _again(claim: Json, run: str) -> str:
    """Return the command that measures a claim with as many fresh replicates as would settle it; "" where none would.

    More replicates in the same folder would be a second look at the first ones, which decides wrongly more often.
    """
    needed = [n for effect in claim.get("effects") or [] if (n := effect.get("seeds_needed")) and n <= MOST_REPLICATES]
    words = str(claim.get("command") or run.partition(" && ")[0])
    if claim["verdict"] != "inconclusive" or not needed or not words.startswith("gammabeta study"):
        return ""
    options = _options(shlex.split(words)[2:])
    if "--first-look" in options:
        options["--quick"] = None
    for name in NOT_OF_CLAIMS:
        options.pop(name, None)
    folder = f"{(options.get('--out') or 'gammabeta-study').rstrip('/')}-again"
    options |= {"--seed": str(int(options.get("--seed") or 0) + 1), "--seeds": str(max(needed)), "--out": folder}
    pairs = [word for pair in options.items() for word in pair if word is not None]
    return shlex.join(["gammabeta", "study", claim["name"], *pairs])


def _options(words: list[str]) -> dict[str, str | None]:
    """Return the options of a command line by name, None for those without a value."""
    found: dict[str, str | None] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = None if following.startswith("--") else following
    return found
