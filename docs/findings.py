"""Keep the results of full studies in docs/findings/*.json, and write docs/findings.md from them.

    python docs/findings.py NAME FOLDER    keeps the results of the study in FOLDER as docs/findings/NAME.json

docs/generate.py writes the page. Claims and recommendations that FOLDER lacks stay unchanged, so that a study of some
claims adds to the file. Where a result departs from the literature, findings_comments.md says why that may be.
"""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

Json = dict[str, Any]

HERE = Path(__file__).parent
KEPT = HERE / "findings"
# Two sets of seeds on the embedded tasks, and further data, in the order of the page.
FIRST, SECOND = "embedded", "embedded-again"
FURTHER = {"mnist": "MNIST", "vowels": "JapaneseVowels", "shakespeare": "tinyshakespeare"}
# The second edition, in quick settings: measured once with fresh replicates, and an exploratory set of others.
CONFIRMED, EXPLORED = "quick-confirmed", "quick-explored"
OPEN = ("inconclusive", "no room here")
ABSENT = ("does not apply", "interrupted", "failed")
EARLIER = (
    "**Judged by an earlier rule.** These studies ran before 2026-11-30. Their intervals are bootstrapped over seeds, "
    "and have no floor from the test set. Where a claim has several regimes, the median over them decided. Norms were "
    "recommended and advised against by their means where no interval decided, and no interval allows for the choice "
    "among several norms. The values of the seeds were not kept, so that nothing could be judged again by the rule of "
    "[claims.md](claims.md). Read a verdict below as one on the median, and a recommendation as open where its "
    "interval is not wholly beyond the margin. All seeds shared one split and one learning rate, tuned on other seeds: "
    "the luck of both is outside the intervals. Image networks ran at constant rates without momentum, for few hundred "
    "steps, on 2,000 training and 1,000 test images of MNIST. Claims of the same names measure something else today; "
    "[claims_history.md](claims_history.md) says what."
)


def keep(name: str, folder: str) -> None:
    """Merge the results in ``folder`` into docs/findings/NAME.json."""
    results: Json = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    path = KEPT / f"{name}.json"
    before: Json = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"claims": [], "recommended": []}
    claims = {claim["name"]: claim for claim in before["claims"]}
    for claim in results["claims"]:
        if claim["verdict"] not in ABSENT:
            # Of one core, over the claim's trials: unlike wall time, not affected by an interruption of the study.
            seconds = sum(float(results["trials"][key]["seconds"]) for key in claim["trials"])
            first = {key: claim["effects"][0][key] for key in ("value", "low", "high", "unit")}
            claims[claim["name"]] = {
                "name": claim["name"],
                "verdict": claim["verdict"],
                "sentence": claim["sentence"],
                "effect": first,
                "title": claim["title"],
                "tally": claim.get("tally", ""),
                "effects": [
                    {
                        **{key: effect[key] for key in ("name", "value", "low", "high", "null")},
                        "confidence": effect.get("confidence", 0.95),
                    }
                    for effect in claim["effects"]
                ],
                "seconds": round(seconds, 1),
                **{key: results[key] for key in ("status", "claims_hash") if key in results},
            }
    recommended = {(entry["kind"], entry["network"]): entry for entry in before["recommended"]}
    for entry in results["recommendations"]:
        if entry.get("picture"):
            keys = ("kind", "network", "headline", "scope", "settled", "seeds")
            of_network = {key: entry.get(key, "") for key in keys}
            recommended[entry["kind"], entry["network"]] = of_network
    kept = {
        "date": results["date"][:10],
        "machine": results["machine"],
        "torch": results["torch"],
        # Without the folders of data and results; a study that adds to the file keeps the first command.
        "command": before.get("command")
        or re.sub(r"(?<=[: ])/\S*/(?=[^/ ])", "", re.sub(r" --(out|jobs) \S+", "", results["command"])),
        "recommended": list(recommended.values()),
        "claims": list(claims.values()),
    }
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"kept {len(claims)} claims and {len(recommended)} recommendations in {path.name}")


def study_of(name: str) -> tuple[Json, dict[str, Json]]:
    """Return a kept study, and its claims by name."""
    kept: Json = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    return kept, {claim["name"]: claim for claim in kept["claims"]}


def listed(recommended: list[Json]) -> str:
    """List the recommendations, each with its scope."""
    return "\n".join(f"- {entry['headline']} *{entry['scope']}*" for entry in recommended)


def judged_before(kept: Json) -> bool:
    """Whether some of what is kept of a study was judged by the rule before regimes were judged one by one."""
    return any("tally" not in claim for claim in kept["claims"]) or any(
        "settled" not in entry for entry in kept["recommended"]
    )


def status_of(studies: list[dict[str, Json]]) -> str:
    """Say whether the claims of these studies were confirmed, by which claims, or explored."""
    every = [claim for claims in studies for claim in claims.values()]
    hashes = {claim["claims_hash"] for claim in every if claim.get("status") == "confirmatory"}
    explored = sorted({claim["name"] for claim in every if claim.get("status") != "confirmatory"})
    meaning = (
        "A study is confirmatory if that was asked for before anything was measured, with the replicates of a seed "
        "that nobody had looked at, by claims that were not changed since; [claims_history.md](claims_history.md) has "
        "what was changed."
    )
    if not hashes:
        return f"**Exploratory.** None of these results comes from a confirmatory study. {meaning}"
    by = f"by the claims with the hash {', '.join(sorted(hashes))}"
    rest = (
        f", except for {', '.join(explored)}, which {'is' if len(explored) == 1 else 'are'} exploratory"
        if explored
        else ""
    )
    return f"**Confirmatory**, {by}{rest}. {meaning}"


def effect(claim: Json) -> str:
    """Format how many regimes were decided in which way, or the claim's main effect with its interval and unit."""
    if claim.get("tally"):
        return str(claim["tally"])
    value, low, high, unit = (claim["effect"][key] for key in ("value", "low", "high", "unit"))
    interval = "" if low is None or low == high else f" [{low:.3g}, {high:.3g}]"
    return f"{value:.3g}{interval} {unit}"


def comments_of() -> dict[str, str]:
    """Read findings_comments.md: the comment under each heading."""
    text = (HERE / "findings_comments.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (\w+)\n\n(.*?)\n(?=\n##|\Z)", text, re.M | re.S))


def findings() -> str:
    """Return the text of docs/findings.md: what the study found, claim by claim."""
    comments = comments_of()
    (first, one), (second, two) = study_of(FIRST), study_of(SECOND)
    further = {title: study_of(name) for name, title in FURTHER.items()}
    counts = Counter(claim["verdict"] for claim in one.values())
    lines = [
        "# What the study found",
        "<!-- Generated by docs/generate.py from docs/findings/ and docs/findings_comments.md: change those. -->",
        *confirmed(),
        "## The first edition's studies",
        f"Measured on {first['date']} on {first['machine']}, torch {first['torch']}, by `gammabeta study` on the "
        "embedded tasks (digits, strokes, text), with two disjoint sets of seeds (`--seed 0` and `--seed 1`). Numbers "
        "are estimates with their 95 % interval over seeds; [claims.md](claims.md) defines each effect and margin. "
        "Seconds are those of one core, over a claim's trials; claims share some trials.",
        *(
            [EARLIER]
            if any(judged_before(kept) for kept in (first, second, *(kept for kept, _ in further.values())))
            else []
        ),
        status_of([one, two, *(claims for _, claims in further.values())]),
        agreement(one, two),
        comments["study"],
        "## Recommendations",
        listed(first["recommended"]),
        comments["recommendations"],
        "## Verdicts",
        "\n".join(
            [
                "| claim | verdict | effect | with other seeds | effect | seconds |",
                "|---|---|---|---|---|---|",
                *(
                    f"| [{name}](#{name}) | {one[name]['verdict']} | {effect(one[name])} | {two[name]['verdict']} "
                    f"| {effect(two[name])} | {one[name]['seconds']:.0f} |"
                    for name in one
                ),
            ]
        ),
        ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".",
    ]
    for title, (kept, claims) in further.items():
        lines += on_further_data(title, kept, [(name, claims[name]) for name in one if name in claims])
    lines.append("## Claim by claim")
    for name, claim in one.items():
        lines += [f"### {name}", f"**{claim['verdict'].capitalize()}**: {claim['sentence']}."]
        lines.append(f"With other seeds, **{two[name]['verdict']}**: {two[name]['sentence']}.")
        for title, (_, claims) in further.items():
            if name in claims:
                lines.append(f"{title}, **{claims[name]['verdict']}**: {claims[name]['sentence']}.")
        lines += [comments[name]] if name in comments else []
    return "\n\n".join(lines) + "\n"


def confirmed() -> list[str]:
    """Return the section on the confirmatory study, in quick settings, and how far another set of replicates agrees."""
    (kept, claims), (_, others) = study_of(CONFIRMED), study_of(EXPLORED)
    counts = Counter(claim["verdict"] for claim in claims.values())
    apart, compared = differing(claims, others)
    named = f" ({'; '.join(apart)})" if apart else ""
    rows = [
        f"| [{name}](claims.md#{name}) | {claim['title']} | {claim['verdict']} | {effect(claim)} |"
        for name, claim in claims.items()
    ]
    return [
        "## What holds, by a confirmatory study in quick settings",
        f"`{kept['command']}`, {kept['date']}, {kept['machine']}, torch {kept['torch']}. {status_of([claims])} The "
        "settings are the quick ones: small networks, 3 to 6 replicates, the built-in data. Much stays open that more "
        "replicates or more data would decide.",
        ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".",
        listed(kept["recommended"]),
        "\n".join(["| claim | it says | verdict | regimes, or effect |", "|---|---|---|---|", *rows]),
        f"**Two disjoint sets of replicates**, this one and an exploratory one: {len(apart)} of {compared} effects "
        f"differ by more than √(h₁² + h₂²), their half widths together{named}; 5 % would where intervals cover. "
        "Effects that are ratios are compared by their logarithms.",
    ]


def differing(ones: dict[str, Json], others: dict[str, Json]) -> tuple[list[str], int]:
    """Return the effects whose values in two studies differ by more than both half widths, and how many there are.

    Only 95 % intervals with a finite width count, which identities and counts do not have.
    """
    apart, compared = [], 0
    for name, claim in ones.items():
        known = {effect["name"]: effect for effect in others.get(name, {}).get("effects", [])}
        for one in claim["effects"]:
            other = known.get(one["name"])
            pair = [_ends(effect) for effect in (one, other) if effect is not None]
            if len(pair) < 2 or None in pair:
                continue
            (a, low_a, high_a), (b, low_b, high_b) = (ends for ends in pair if ends is not None)
            compared += 1
            if abs(a - b) > math.hypot((high_a - low_a) / 2, (high_b - low_b) / 2):
                apart.append(f"{name}, {one['name']}")
    return apart, compared


def _ends(one: Json) -> tuple[float, float, float] | None:
    """Return an effect's value and its interval's ends, of a ratio as logarithms; None where they are no interval."""
    numbers = [one[key] for key in ("value", "low", "high")]
    if one["confidence"] != 0.95 or None in numbers or numbers[1] >= numbers[2]:
        return None
    if one["null"] == 1:
        numbers = [math.log(number) for number in numbers] if min(numbers) > 0 else [None]
    return None if None in numbers else (numbers[0], numbers[1], numbers[2])


def agreement(one: dict[str, Json], two: dict[str, Json]) -> str:
    """Tell in how many claims the two sets of seeds agree, and how many stay open."""
    differ = [name for name in one if one[name]["verdict"] != two[name]["verdict"]]
    opposed = [name for name in differ if {one[name]["verdict"], two[name]["verdict"]} == {"supported", "contradicted"}]
    undecided = [sum(claim["verdict"] in OPEN for claim in study.values()) for study in (one, two)]
    return (
        f"The second set of seeds gives the same verdict for {len(one) - len(differ)} of {len(one)} claims"
        + (f" (others: {', '.join(differ)})" if differ else "")
        + f"; {len(opposed) or 'none'} is supported by one and contradicted by the other. {undecided[0]} claims stay "
        f"open with the first set and {undecided[1]} with the second."
    )


def on_further_data(title: str, kept: Json, claims: list[tuple[str, Json]]) -> list[str]:
    """Return the section on one of the further data sets."""
    rows = [f"| [{name}](#{name}) | {claim['verdict']} | {effect(claim)} |" for name, claim in claims]
    return [
        f"## {title}",
        f"`{kept['command']}`.",
        *([listed(kept["recommended"])] if kept["recommended"] else []),
        "\n".join(["| claim | verdict | effect |", "|---|---|---|", *rows]),
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(*sys.argv[1:])
