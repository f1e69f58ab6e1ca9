"""The pages of the claims: a table, and one page a claim with how it is judged and what studies found."""

import html
import json
from pathlib import Path
from typing import Any

import statements
from api_pages import tree
from findings import STUDIES, comments_of, effect, spelled, upper
from forest import forest

from gammabeta.lab.claim import Claim
from gammabeta.lab.claims import CLAIMS

KEPT = Path(__file__).parents[1] / "findings"
TITLES = {
    **{study.stem: study.title for study in STUDIES},
    "quick-explored": "The embedded tasks, in quick settings, with other replicates",
    "embedded": "The embedded tasks, first edition",
    "embedded-again": "The embedded tasks, first edition, with other replicates",
    "mnist": "A part of MNIST, first edition",
    "shakespeare": "tinyshakespeare, first edition",
    "vowels": "JapaneseVowels, first edition",
}
Json = dict[str, Any]


def kept_studies() -> dict[str, Json]:
    """Return the kept studies by their titles: those of the findings first."""
    stems = sorted((path.stem for path in KEPT.glob("*.json")), key=lambda stem: [*TITLES, stem].index(stem))
    return {TITLES.get(stem, stem): json.loads((KEPT / f"{stem}.json").read_text(encoding="utf-8")) for stem in stems}


def claim_pages() -> dict[str, str]:
    """Return the pages of the claims by their place on the site."""
    studies, comments = kept_studies(), comments_of("second")
    found = {
        claim.name: [
            (title, kept, one) for title, kept in studies.items() for one in kept["claims"] if one["name"] == claim.name
        ]
        for claim in CLAIMS
    }
    verdicts = {name: of_claim[0][2]["verdict"] if of_claim else "not measured" for name, of_claim in found.items()}
    rows = [f"| [{claim.name}]({claim.name}.md) | {claim.title} | {verdicts[claim.name]} |" for claim in CLAIMS]
    index = [
        "# Claims",
        "",
        "What is taught about normalization, and what the study found. [One page](on-one-page.md) has all claims, how",
        "verdicts are reached, and the text that they come from; [the findings](../findings.md) say what holds.",
        "",
        "| claim | it says | verdict, in the first study on its page |",
        "|---|---|---|",
        *rows,
        "",
        *tree(["on-one-page", *(claim.name for claim in CLAIMS)]),
    ]
    pages = {
        f"claims/{claim.name}.md": page(claim, found[claim.name], comments.get(claim.name, "")) for claim in CLAIMS
    }
    return {"claims/index.md": "\n".join(index)} | pages


def page(claim: Claim, found: list[tuple[str, Json, Json]], comment: str) -> str:
    """Return the page of one claim."""
    parts = [f"# {claim.name}", f"*{claim.title}.*" + (" An exact claim." if claim.exact else "")]
    if found:
        parts += ["## What was found", *(result(*one) for one in found)]
    if comment:
        parts += ["## Comment", comment.replace("](findings", "](../findings").replace("](claims", "](../claims")]
    parts.append("## How it is judged")
    for heading, text in claim.sections.items():
        lines = [f"- {source}" for source in claim.sources] if heading == "Sources" else [" ".join(text.split())]
        parts.append(f"**{heading}**" + ("\n\n" if heading == "Sources" else ". ") + "\n".join(lines))
    if numbers := statements.carried(claim.name):
        parts.append(f"**Sentences of the text**. {', '.join(numbers)}.")
    parts += ["## Measure it", f"```sh\ngammabeta study {claim.name}\n```"]
    return "\n\n".join(parts) + "\n"


def result(title: str, kept: Json, one: Json) -> str:
    """Return what one study found: the verdict, the sentence, and the effects as a picture."""
    settings = f" Settings: {spelled(one['settings'])}." if one.get("settings") else ""
    status = one.get("status", "exploratory")
    parts = [
        f"### {title}",
        f'<span class="verdict">{html.escape(upper(one["verdict"]))}</span> {upper(one["sentence"])}.',
        f"Main effect: {effect(one)}. {upper(status)}, {kept['date']}, torch {kept['torch']}.{settings}",
        f"```sh\n{kept['command']}\n```",
    ]
    if one.get("room"):
        parts.append(f"Room: {one['room']}.")
    if picture := forest(one.get("effects", [])):
        parts.append(picture)
    return "\n\n".join(parts)
