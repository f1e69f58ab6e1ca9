"""The health page: what was found, then every norm's measurements as curves, in one HTML file without scripts."""

from __future__ import annotations

import datetime
import html
import math
import re
import sys
from importlib.resources import files
from pathlib import Path

import torch

from gammabeta.diagnostics.description import advice
from gammabeta.diagnostics.findings import Diagnosis, Finding
from gammabeta.diagnostics.selection import rule_of
from gammabeta.monitoring.curves import curve
from gammabeta.monitoring.watched import QUANTITIES, Watched
from gammabeta.pages.atomic import write_atomically

# The rule on values that are not finite, which leads the page.
_DIVERGED = "GB404"
# Modules that are listed before the others are folded away.
_SHOWN = 3
_STYLE = """
svg.curve polyline { fill: none; stroke: var(--link); stroke-width: 1.5; stroke-linejoin: round; }
svg.curve circle { fill: var(--link); }
svg.curve .axis { stroke: var(--rule); }
svg.curve .diverged { stroke: var(--contradicted); stroke-dasharray: 3 2; }
svg.curve text { fill: var(--muted); font-size: 9.5px; }
.error { --accent: var(--contradicted); }
.warning { --accent: var(--inconclusive); }
.note { --accent: var(--equivalent); }
main > section { margin-bottom: 2.6rem; }
.lead-finding { border-top-color: var(--contradicted); }
.lead-finding .headline { margin: 0 0 .4rem; }
.finding { border-left: 4px solid var(--accent); padding: .1rem 0 .1rem 1rem; margin: 1.3rem 0; max-width: 60rem; }
.finding > p { margin: .35rem 0; }
.finding ul { margin: .35rem 0; }
.finding li details { margin: .1rem 0 .5rem; }
.finding .extent { color: var(--muted); font-size: .9rem; margin-left: .5rem; }
.norms th, .norms td { vertical-align: middle; }
.norms tbody th { position: sticky; left: 0; background: var(--paper); min-width: 5rem; }
.norms code { overflow-wrap: normal; }
.norms td.plot { min-width: 0; padding-right: 1.2rem; }
.norms .last { display: block; margin-left: 50px; }
@media (max-width: 760px) { .norms tbody th { max-width: 7rem; } .norms code { overflow-wrap: anywhere; } }
"""


def write_health(watched: Watched, diagnosis: Diagnosis, path: Path | str) -> Path:
    """Write the health page; an existing file is replaced in one step.

    Args:
        watched: the record of the training.
        diagnosis: the findings in it.
        path: the file.

    Returns:
        The path.
    """
    return write_atomically(path, _page(watched, diagnosis))


def _page(watched: Watched, diagnosis: Diagnosis) -> str:
    style = (files("gammabeta.pages") / "report.css").read_text(encoding="utf-8") + _STYLE
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{_title(watched, diagnosis)}: gammabeta watch</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header class="page">
<p class="brand"><b>γ</b>·x + <b>β</b><span>gammabeta watch</span></p>
<h1>Health of normalization</h1>
<ul class="facts">{_facts(watched, diagnosis)}</ul>
</header>
<main>
{_lead(watched, diagnosis)}{_findings(watched, diagnosis)}
{_norms(watched)}
</main>
</body>
</html>
"""


def _title(watched: Watched, diagnosis: Diagnosis) -> str:
    lead = _diverged(watched, diagnosis)
    return "Health of normalization" if lead is None else html.escape(lead[0])


def _facts(watched: Watched, diagnosis: Diagnosis) -> str:
    written = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    gammabeta = sys.modules[__name__.partition(".")[0]].__version__
    facts = {
        "model": watched.model or "unknown",
        "steps": str(watched.steps),
        "norms": str(len(watched.norms)),
        "measured every": f"{watched.every} step{'s' * (watched.every > 1)}",
        "found": diagnosis.summary(),
        "written": written,
        "versions": f"gammabeta {gammabeta}, torch {torch.__version__}",
    }
    return "\n".join(f"<li><span>{name}</span> {html.escape(value)}</li>" for name, value in facts.items())


def _diverged(watched: Watched, diagnosis: Diagnosis) -> tuple[str, str, str] | None:
    """Return title, explanation and advice if something is not finite; None if all is."""
    found = next((finding for finding in diagnosis.findings if finding.code == _DIVERGED), None)
    if found is not None and found.severity == "note":
        return None  # it is over
    fix = found.fix.what if found is not None and found.fix is not None else ""
    if watched.divergence is not None:
        return watched.divergence.title, str(watched.divergence) if found is None else found.message, fix
    return None if found is None else ("The model holds values that are not finite", found.message, fix)


def _lead(watched: Watched, diagnosis: Diagnosis) -> str:
    lead = _diverged(watched, diagnosis)
    if lead is None:
        return ""
    title, text, fix = (html.escape(part) for part in lead)
    advice = f"<p>{fix[:1].upper()}{fix[1:]}.</p>" if fix else ""
    return f"""<section class="recommendation lead-finding">
<p class="headline">{title}</p>
<p>{text[:1].upper()}{text[1:]}.</p>
{advice}{_why(_DIVERGED)}
</section>
"""


def _findings(watched: Watched, diagnosis: Diagnosis) -> str:
    """Return the findings by rule; those behind a divergence are said to be so."""
    diverged = _diverged(watched, diagnosis) is not None
    groups = [group for group in diagnosis.by_rule() if not (diverged and group[0].code == _DIVERGED)]
    head = "Also found" if diverged else "Findings"
    if not groups:
        return "" if diverged else f"<section><h2>{head}</h2>\n<p>Nothing was found.</p>\n</section>"
    after = "<p>Much of this may follow from the divergence: look there first.</p>\n" if diverged else ""
    shown = "".join(_group(group, cured=not diverged) for group in groups)
    return f"<section><h2>{head}</h2>\n{after}{shown}</section>"


def _group(group: tuple[Finding, ...], *, cured: bool) -> str:
    """Return the findings of one rule: its sentence, the modules, the reason, and one piece of advice if asked for."""
    first = group[0]
    by_message: dict[str, list[str]] = {}
    for found in group:
        by_message.setdefault(found.message, []).append(found.where or "(the model)")
    items = [f"<li>{_modules(names, _text(message))}</li>" for message, names in by_message.items()]
    shown, rest = (items[:_SHOWN], items[_SHOWN:]) if len(items) > _SHOWN + 1 else (items, [])
    folded = f"<details><summary>{len(rest)} more</summary>\n<ul>{''.join(rest)}</ul></details>" if rest else ""
    what = advice(group) if cured else []
    others = " The same for the other modules." if len(what) > 1 else ""
    cure = f"<p><b>Fix</b>: {_text(what[0])}.{others}</p>" if what else ""
    extent = f"{first.severity}, {len(group)} module{'s' * (len(group) > 1)}"
    return f"""<div class="finding {first.severity}">
<p><span class="badge">{first.code} {first.name}</span> <span class="extent">{extent}</span></p>
<p><b>{html.escape(rule_of(first.code).title)}.</b></p>
<ul>{"".join(shown)}</ul>{folded}
{cure}{_why(first.code)}
</div>
"""


def _modules(names: list[str], message: str) -> str:
    """Return a message with its modules: the first few, and all others folded away behind it."""
    every = [f"<code>{html.escape(name)}</code>" for name in names]
    if len(every) <= _SHOWN + 1:
        return f"{', '.join(every)}: {message}"
    rest = f"<details><summary>the {len(every) - _SHOWN} others</summary>{', '.join(every[_SHOWN:])}</details>"
    return f"{', '.join(every[:_SHOWN])} and {len(every) - _SHOWN} others: {message}{rest}"


def _text(text: str) -> str:
    """Escape a text; what is between backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _why(code: str) -> str:
    rule = rule_of(code)
    parts = "".join(f"<p>{_text(rule.line(heading))}</p>" for heading in ("Why it matters", "Limits"))
    return f"<details><summary>Why it matters, and when {code} is wrong</summary>{parts}</details>"


def _norms(watched: Watched) -> str:
    shown = [q for q in QUANTITIES if any(norm.history.known(q) for norm in watched.norms.values())]
    heads = "".join(f'<th scope="col" title="{html.escape(QUANTITIES[q])}">{q.replace("_", " ")}</th>' for q in shown)
    at = None if watched.divergence is None else watched.divergence.step
    rows = "".join(
        f'<tr><th scope="row"><code>{html.escape(norm.name or "(the model)")}</code></th>'
        + "".join(f'<td class="plot">{curve(norm.history, q, at)}</td>' for q in shown)
        + f'<td class="n">{norm.calls}</td></tr>\n'
        for norm in watched.norms.values()
    )
    meanings = "".join(f"<dt>{q.replace('_', ' ')}</dt><dd>{html.escape(QUANTITIES[q])}</dd>" for q in shown)
    mark = "; the dashed line is the step at which training diverged" if math.isfinite(at or math.nan) else ""
    legend = (
        "Each curve runs over the measured steps, whose first and last are below it, between the least and the largest "
        f"value beside it. The number under it is the last value{mark}."
    )
    return f"""<section><h2>Norms</h2>
<p>{legend}</p>
<div class="scroll" tabindex="0" role="region" aria-label="norms"><table class="norms">
<thead><tr><th scope="col">norm</th>{heads}<th scope="col" class="n">forwards</th></tr></thead>
<tbody>
{rows}</tbody></table></div>
<dl class="method">{meanings}</dl>
</section>"""
