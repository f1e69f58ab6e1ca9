"""Writes docs/findings.md from the results of full studies.

    python docs/findings.py EMBEDDED AGAIN [NAME=FOLDER …]

EMBEDDED and AGAIN are the folders of two full studies on the embedded tasks with other seeds; each further one is named
by the data it was about. Where what was found departs from the literature, findings_comments.md says why that may be.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# The comment under each claim's heading.
COMMENTS = dict(
    re.findall(r"^## (\w+)\n\n(.*?)\n(?=\n##|\Z)", (HERE / "findings_comments.md").read_text(), re.M | re.S)
)
OPEN = ("inconclusive", "no room here")
ABSENT = ("does not apply", "interrupted")


def results(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "results.json").read_text())
    return found


def effect(claim: dict[str, Any]) -> str:
    if not claim["effects"]:
        return ""
    first = claim["effects"][0]
    if first["low"] is None or first["low"] == first["high"]:
        return f"{first['value']:.3g} {first['unit']}"
    return f"{first['value']:.3g} [{first['low']:.3g}, {first['high']:.3g}] {first['unit']}"


def seconds(study: dict[str, Any], claim: dict[str, Any]) -> float:
    """Of one core, over the claim's trials: other than wall time the same when a study was interrupted."""
    return sum(float(study["trials"][key]["seconds"]) for key in claim["trials"])


def command(study: dict[str, Any]) -> str:
    """Without where files lay and where results went."""
    return re.sub(r"(?<=[: ])/\S*/(?=[^/ ])", "", re.sub(r" --out \S+", "", study["command"]))


def by_name(study: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {claim["name"]: claim for claim in study["claims"]}


def main(embedded: str, again: str, *others: str) -> None:
    first, second = results(embedded), results(again)
    one, two = by_name(first), by_name(second)
    further = {name: results(folder) for name, folder in (other.split("=", 1) for other in others)}
    same = [name for name in one if one[name]["verdict"] == two[name]["verdict"]]
    opposed = [name for name in one if {one[name]["verdict"], two[name]["verdict"]} == {"supported", "contradicted"}]
    counts = [Counter(claim["verdict"] for claim in study.values()) for study in (one, two)]
    undecided = [sum(count[verdict] for verdict in OPEN) for count in counts]
    lines = [
        "# What the study found",
        "",
        f"Measured on {first['date'][:10]} on {first['machine']}, torch {first['torch']}, by `gammabeta study` on the "
        "embedded tasks (digits, strokes, text), with two disjoint sets of seeds (`--seed 0` and `--seed 1`). Numbers "
        "are estimates with their 95 % interval over seeds; what each effect and margin is stands in "
        "[claims.md](claims.md). Seconds are those of one core, over a claim's trials; claims share some.",
        "",
        f"The second set of seeds gives the same verdict for {len(same)} of {len(one)} claims"
        + (f" (others: {', '.join(name for name in one if name not in same)})" if len(same) < len(one) else "")
        + f"; {len(opposed) or 'none'} is supported by one and contradicted by the other. Open are {undecided[0]} with "
        f"the first and {undecided[1]} with the second.",
        "",
        COMMENTS["study"],
        "",
        "## Recommendations",
        "",
        *(f"- {said['headline']}" for said in first["recommendations"]),
        "",
        "## Verdicts",
        "",
        "| claim | verdict | effect | with other seeds | effect | seconds |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{name}](#{name}) | {one[name]['verdict']} | {effect(one[name])} | {two[name]['verdict']} "
        f"| {effect(two[name])} | {seconds(first, one[name]):.0f} |"
        for name in one
    ]
    lines += ["", ", ".join(f"{count} {verdict}" for verdict, count in counts[0].most_common()) + "."]
    for name, study in further.items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{'Quick' if study['quick'] else 'Full'} study, `{command(study)}`, "
            f"{sum(float(trial['seconds']) for trial in study['trials'].values()) / 60:.0f} core minutes.",
        ]
        headlines = [said["headline"] for said in study["recommendations"]]
        lines += ["", *(f"- {headline}" for headline in headlines if not headline.startswith("No recommendation yet"))]
        lines += ["", "| claim | verdict | effect |", "|---|---|---|"]
        lines += [
            f"| [{claim['name']}](#{claim['name']}) | {claim['verdict']} | {effect(claim)} |"
            for claim in study["claims"]
            if claim["verdict"] not in ABSENT
        ]
    lines += ["", "## Claim by claim"]
    for name, claim in one.items():
        lines += ["", f"### {name}", "", f"**{claim['verdict'].capitalize()}**: {claim['sentence']}."]
        lines += ["", f"With other seeds, **{two[name]['verdict']}**: {two[name]['sentence']}."]
        for data, study in further.items():
            there = by_name(study).get(name)
            if there and there["verdict"] not in ABSENT:
                lines += ["", f"{data}, **{there['verdict']}**: {there['sentence']}."]
        lines += ["", COMMENTS[name]] if name in COMMENTS else []
    (HERE / "findings.md").write_text("\n".join(lines) + "\n")
    print(f"wrote findings.md: {len(same)} of {len(one)} the same, {undecided} open")


if __name__ == "__main__":
    main(*sys.argv[1:])
