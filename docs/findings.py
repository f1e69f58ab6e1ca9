"""Keep the results of full studies in docs/findings/*.json, and write docs/findings.md from them.

    python docs/findings.py NAME FOLDER    keeps the results of the study in FOLDER as docs/findings/NAME.json

docs/generate.py writes the page. Claims and recommendations that FOLDER lacks stay unchanged, so that a study of some
claims adds to the file. Where a result departs from the literature, findings_comments.md says why that may be. The
results of the first edition are on a page of their own, by findings_first_edition.py.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from findings_summary import departs, replicates, summary

from gammabeta.lab.claims import CLAIMS

Json = dict[str, Any]

HERE = Path(__file__).parent
KEPT = HERE / "findings"


class Study(NamedTuple):
    """A confirmatory study that the page has a section on, once docs/findings/STEM.json is there.

    Attributes:
        stem: of the file's name.
        title: of the section.
        about: one sentence about the data.
    """

    stem: str
    title: str
    about: str


STUDIES = (
    Study(
        "quick-confirmed",
        "The embedded tasks, in quick settings",
        "The built-in data, small networks and few replicates: much stays open that more of either would decide.",
    ),
    Study(
        "batch-2",
        "Digits, at batches of 2",
        "The recommendation alone, where BatchNorm is said to suffer most.",
    ),
    Study(
        "mnist-whole",
        "MNIST, whole",
        "Grey images of 28 × 28 pixels of the ten handwritten digits, with the data set's own test set.",
    ),
    Study(
        "cifar10",
        "A part of CIFAR-10",
        "Colour images of 32 × 32 pixels in ten classes, decoded from JPEG: at most 500 of each for training, and 100 "
        "for the test.",
    ),
    Study(
        "shakespeare-confirmed",
        "tinyshakespeare",
        "A million characters of Shakespeare's plays, for language models that predict the next character.",
    ),
    Study(
        "vowels-confirmed",
        "JapaneseVowels",
        "640 utterances of 7 to 29 frames with 12 features each, by nine speakers, who are to be told apart.",
    ),
)
# Measured with other replicates than the first of these studies, and only explored: how far do the two agree?
AGAIN = {"quick-confirmed": "quick-explored"}
MEANING = (
    "A study is *confirmatory* if that was asked for before anything was measured, with the replicates of a seed that "
    "nobody had looked at, by claims that were not changed since; [claims_history.md](claims_history.md) has what was "
    "changed."
)
UNEXPLAINED = "**Unexplained.** This departs from the claim, and nothing has been written on why."
ABSENT = ("does not apply", "interrupted", "failed")


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
                "regimes": claim.get("regimes", {}),
                "settings": claim.get("settings", ""),
                "room": claim["room"]["control"],
                "effects": [
                    {
                        **{key: effect[key] for key in ("name", "value", "low", "high", "null")},
                        **{key: effect[key] for key in ("unit", "verdict", "seeds")},
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
            keys = ("kind", "network", "headline", "scope", "settled", "seeds", "how", "costs", "uncertain", "settle")
            of_network = {key: entry.get(key) or "" for key in keys}
            of_network["settled"] = bool(entry.get("settled"))
            of_network["settle"] = public(of_network["settle"])
            of_network |= {key: results[key] for key in ("status", "claims_hash") if key in results}
            of_network["avoid"] = entry.get("avoid", [])
            recommended[entry["kind"], entry["network"]] = of_network
    tasks = {task["name"]: task for task in before.get("tasks", [])}
    for task in results.get("tasks", []):
        tasks[task["name"]] = {key: task[key] for key in ("name", "kind", "description", "samples")}
    kept = {
        "date": results["date"][:10],
        "machine": results["machine"],
        "torch": results["torch"],
        "command": before.get("command") or public(results["command"]),  # the first one, of those that add to the file
        "tasks": list(tasks.values()),
        "recommended": list(recommended.values()),
        "claims": list(claims.values()),
    }
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"kept {len(claims)} claims and {len(recommended)} recommendations in {path.name}")


def public(command: str) -> str:
    """Return a command without the folders of this machine's data and results."""
    return re.sub(r"(?<=[: ])/\S*/(?=[^/ ])", "", re.sub(r" --(out|jobs) \S+", "", command))


def study_of(name: str) -> tuple[Json, dict[str, Json]]:
    """Return a kept study, and its claims by name."""
    kept: Json = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    return kept, {claim["name"]: claim for claim in kept["claims"]}


def listed(recommended: list[Json]) -> str:
    """List the recommendations, each with its scope."""
    return "\n".join(f"- {entry['headline']} *{entry['scope']}*" for entry in recommended)


def measured(kept: Json) -> list[Json]:
    """Return the claims of a kept study, and its recommendations where their status was kept."""
    return [*kept["claims"], *(entry for entry in kept["recommended"] if "status" in entry)]


def status(entries: Sequence[Json]) -> str:
    """Say whether claims and recommendations were confirmed, by which claims, or explored."""
    hashes = {entry["claims_hash"] for entry in entries if entry.get("status") == "confirmatory"}
    explored = {entry.get("name") or entry["network"] for entry in entries if entry.get("status") != "confirmatory"}
    if not hashes:
        return "**Exploratory**"
    rest = (
        f", except for {', '.join(sorted(explored))}, which {'is' if len(explored) == 1 else 'are'} exploratory"
        if explored
        else ""
    )
    return f"**Confirmatory**, by the claims with the hash {', '.join(sorted(hashes))}{rest}"


def status_of(studies: Sequence[dict[str, Json]]) -> str:
    """Say whether the claims of these studies were confirmed or explored, and what that means."""
    said = status([claim for claims in studies for claim in claims.values()])
    none = " None of these results comes from a confirmatory study." if said == "**Exploratory**" else ""
    return f"{said}.{none} {MEANING}"


def effect(claim: Json) -> str:
    """Format how many regimes were decided in which way, or the claim's main effect with its interval and unit."""
    if claim.get("tally"):
        return str(claim["tally"])
    value, low, high, unit = (claim["effect"][key] for key in ("value", "low", "high", "unit"))
    interval = "" if low is None or low == high else f" [{low:.3g}, {high:.3g}]"
    return f"{value:.3g}{interval} {unit}"


def comments_of(edition: str) -> dict[str, str]:
    """Read the part of findings_comments.md on the "first" or "second" edition: the comment under each heading."""
    text = (HERE / "findings_comments.md").read_text(encoding="utf-8")
    part = re.split(rf"^# The {edition} edition's results\n", text, flags=re.M)[1]
    part = re.split(r"^# ", part, maxsplit=1, flags=re.M)[0]
    return dict(re.findall(r"^## (\w+)\n\n(.*?)\n(?=\n##|\s*\Z)", part, re.M | re.S))


def present() -> list[tuple[Study, Json]]:
    """Return the confirmatory studies that are kept, in the order of the page."""
    return [(study, study_of(study.stem)[0]) for study in STUDIES if (KEPT / f"{study.stem}.json").exists()]


def findings() -> str:
    """Return the text of docs/findings.md: what holds, then study by study, then claim by claim."""
    studies = present()
    lines = [
        "# What the study found",
        "<!-- Generated by docs/generate.py from docs/findings/ and docs/findings_comments.md: change those. -->",
        "## What of the taught holds here",
        opening(studies),
        *summary([{**kept, "title": study.title} for study, kept in studies]),
        *reading(),
    ]
    for study, kept in studies:
        lines += section(study, kept)
    lines += ["## Claim by claim", *claim_by_claim(studies)]
    return "\n\n".join(lines) + "\n"


def opening(studies: Sequence[tuple[Study, Json]]) -> str:
    """Say what the summary rests on, and how to read it."""
    titles = ", ".join(f"[{study.title}](#{anchor(study.title)})" for study, _ in studies)
    said = status([one for _, kept in studies for one in measured(kept)])
    return (
        f"{said} ([what that means](#how-to-read-this-page)). Measured here: {titles}. In brackets: the data, what "
        "all regimes have in common, and the number n of replicates."
    )


def reading() -> list[str]:
    """Say what the terms of the summary mean, and what it does not count."""
    return [
        "## How to read this page",
        f"{MEANING} A *regime* is one network, schedule or shift that a claim is judged in; [claims.md](claims.md) has "
        "the margin that its interval has to be beyond. Where several studies measured a claim, each counts as a "
        "regime. The networks are small, and larger ones may behave differently. The "
        "[first edition's studies](findings_first_edition.md) do not count here, and "
        "[anchors.md](anchors.md) holds these results against published numbers.",
    ]


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def section(study: Study, kept: Json) -> list[str]:
    """Return the section on one study: its data, what it recommends, and the verdicts on its claims."""
    claims = {claim["name"]: claim for claim in kept["claims"]}
    counts = Counter(claim["verdict"] for claim in claims.values())
    data = [
        f"*{task['name']}*: {task['description']} ({', '.join(f'{n:,} {part}' for part, n in task['samples'].items())})"
        for task in kept.get("tasks", [])
    ]
    found = {name: "" if claim["verdict"] == "no room here" else effect(claim) for name, claim in claims.items()}
    rows = [
        f"| [{name}](#{name}) | {claim['title']} | {claim['verdict']} | {found[name]} | {replicates(claim) or ''} |"
        for name, claim in claims.items()
    ]
    again = AGAIN.get(study.stem, "")
    return [
        f"## {study.title}",
        f"{study.about} `{kept['command']}`, {kept['date']}, {kept['machine']}, torch {kept['torch']}. "
        f"{status(measured(kept))}.",
        *(["\n".join(f"- {line}" for line in data)] if data else []),
        *(["Recommended:", "\n".join(card(entry) for entry in kept["recommended"])] if kept["recommended"] else []),
        *(
            [
                ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".",
                "\n".join(
                    ["| claim | it says | verdict | regimes, or effect | replicates |", "|---|---|---|---|---|", *rows]
                ),
            ]
            if claims
            else []
        ),
        *([compared(claims, study_of(again)[1])] if again and (KEPT / f"{again}.json").exists() else []),
    ]


def card(entry: Json) -> str:
    """Return a recommendation as the report's card has it: what, how sure, what to write, what it costs and so on."""
    about, _, what = entry["headline"].partition(": ")
    sure = "settled" if entry.get("settled") else "not settled"
    sure += f", {entry['seeds']} replicates. {entry.get('uncertain', '')}"
    lines = [f"- **{about}**", f"  - What: {what}", f"  - How sure: {sure.strip()}"]
    if entry.get("how"):
        lines.append(f"  - What to write: `{entry['how']}`")
    if entry.get("costs"):
        lines.append(f"  - What it costs: {entry['costs']}")
    lines += [f"  - Avoid: {worse}" for worse in entry.get("avoid", [])]
    if entry.get("settle"):
        lines.append(f"  - To settle it: `{entry['settle']}`")
    lines.append(f"  - *{entry['scope']}*")
    return "\n".join(lines)


def claim_by_claim(studies: Sequence[tuple[Study, Json]]) -> list[str]:
    """Return what each study found on each claim in one sentence, and the comment where that departs from the claim."""
    comments = comments_of("second")
    lines = []
    for known in CLAIMS:
        found = [(study, one) for study, kept in studies for one in kept["claims"] if one["name"] == known.name]
        if not found:
            continue
        lines += [f"### {known.name}", f"*{found[0][1]['title']}*. [How it is judged](claims.md#{known.name})."]
        for study, one in found:
            settings = f"; {spelled(one['settings'])}" if one.get("settings") else ""
            lines.append(f"**{upper(one['verdict'])}** ({study.title}{settings}). {upper(one['sentence'])}.")
            if one["verdict"] == "no room here" and one.get("room"):
                lines[-1] += f" Room: {one['room']}."
        if known.name in comments:
            lines.append(comments[known.name])
        elif departs([one for _, one in found]):
            lines.append(UNEXPLAINED)
    return lines


def spelled(settings: str) -> str:
    """Return settings without the brackets and quotes of Python, as in "width 16, layers 2" for a dictionary."""
    return re.sub(r"'(\w+)': ", r"\1 ", re.sub(r"[{}\[\]]", "", settings))


def upper(sentence: str) -> str:
    """Return a sentence with its first letter in upper case."""
    return sentence[:1].upper() + sentence[1:]


def compared(claims: dict[str, Json], others: dict[str, Json]) -> str:
    """Say how far the effects of two disjoint sets of replicates agree."""
    apart, count = differing(claims, others)
    named = f" ({'; '.join(apart)})" if apart else ""
    return (
        f"**Two disjoint sets of replicates**, this one and an exploratory one: {len(apart)} of {count} effects "
        f"differ by more than √(h₁² + h₂²), their half widths together{named}; 5 % would where intervals cover. "
        "Effects that are ratios are compared by their logarithms."
    )


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


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(*sys.argv[1:])
