"""The health page: findings, then every norm's measurements as small curves, in one HTML file without scripts."""

from __future__ import annotations

import html
import math
from importlib.resources import files
from pathlib import Path

from gammabeta.diagnostics.findings import Diagnosis
from gammabeta.monitoring.watched import QUANTITIES, History, Watched
from gammabeta.pages.atomic import write_atomically

_WIDTH, _HEIGHT = 110, 26
_STYLE = """
svg.curve polyline { fill: none; stroke: var(--link); stroke-width: 1.5; }
.error { --accent: var(--contradicted); }
.warning { --accent: var(--inconclusive); }
.note { --accent: var(--equivalent); }
main > section { margin-bottom: 2.6rem; }
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
    shown = [q for q in QUANTITIES if any(norm.history.known(q) for norm in watched.norms.values())]
    heads = "".join(f'<th scope="col" title="{html.escape(QUANTITIES[q])}">{q.replace("_", " ")}</th>' for q in shown)
    rows = "".join(
        f'<tr><th scope="row"><code>{html.escape(norm.name or "(the model)")}</code></th>'
        + "".join(f"<td>{_curve(norm.history, q)}</td>" for q in shown)
        + f'<td class="n">{norm.calls}</td></tr>\n'
        for norm in watched.norms.values()
    )
    meanings = "".join(f"<dt>{q.replace('_', ' ')}</dt><dd>{html.escape(QUANTITIES[q])}</dd>" for q in shown)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Health of normalization: gammabeta watch</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header class="page">
<p class="brand"><b>γ</b>·x + <b>β</b><span>gammabeta watch</span></p>
<h1>Health of normalization</h1>
<ul class="facts"><li><span>steps</span> {watched.steps}</li><li><span>norms</span> {len(watched.norms)}</li>
<li><span>measured every</span> {watched.every} steps</li>
<li><span>found</span> {html.escape(diagnosis.summary())}</li></ul>
</header>
<main>
<section><h2>Findings</h2>
{_findings(diagnosis)}
</section>
<section><h2>Norms</h2>
<div class="scroll" tabindex="0" role="region" aria-label="norms"><table>
<thead><tr><th scope="col">norm</th>{heads}<th scope="col" class="n">forwards</th></tr></thead>
<tbody>
{rows}</tbody></table></div>
<dl class="method">{meanings}</dl>
</section>
</main>
</body>
</html>
"""


def _findings(diagnosis: Diagnosis) -> str:
    if not diagnosis.findings:
        return "<p>Nothing was found.</p>"
    return "<ul>" + "".join(
        f'<li class="{found.severity}"><span class="badge">{found.code} {found.name}</span> '
        f"<code>{html.escape(found.where or '(the model)')}</code>: {html.escape(found.message)}"
        + (f"<br><small>{html.escape(found.fix.what)}</small>" if found.fix else "")
        + "</li>\n"
        for found in diagnosis.findings
    ) + "</ul>"  # fmt: skip


def _curve(history: History, name: str) -> str:
    pairs = zip(history.steps, history.columns.get(name, []), strict=False)
    points = [(step, value) for step, value in pairs if math.isfinite(value)]
    if not points:
        return "–"
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = points[0][0], points[-1][0]
    drawn = " ".join(
        f"{_WIDTH * (step - first) / max(1, last - first):.1f},"
        f"{_HEIGHT - 2 - (_HEIGHT - 4) * (value - low) / ((high - low) or 1):.1f}"
        for step, value in points
    )
    label = f"{name.replace('_', ' ')} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
    return (
        f'<svg class="curve" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline points="{drawn}"/></svg><br>{points[-1][1]:.3g}'
    )
