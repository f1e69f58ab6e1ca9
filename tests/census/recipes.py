"""What `watch` says out loud of healthy recipes of training.

Each recipe of `recipes_of_steps.py` and `recipes_of_objectives.py` trains a tiny network for some 24 steps inside
`gammabeta.watch`. Every error and warning of the diagnosis is recorded. Those of `true_findings.py` are true, for the
reason that is given there: the recipe is faulty, and is here because it is common.

    python -m tests.census.recipes --out benchmarks/results

takes about a minute. `--only NAME` (a glob) prints the whole diagnosis.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from fnmatch import fnmatchcase
from typing import Any

import tests.census.recipes_of_objectives
import tests.census.recipes_of_steps  # noqa: F401 - both register their recipes
import torch
from tests.census.recipe import RECIPES
from tests.census.results import write
from tests.census.true_findings import reason_of

import gammabeta as gb

LOUD = ("error", "warning")


def run(name: str) -> list[gb.Diagnosis]:
    """Run a recipe, and return the diagnosis of each network that it watched."""
    watches: list[Any] = []

    def watching(model: Any, optimizer: Any) -> Any:
        watches.append(gb.watch(model, optimizer, every=5))
        return watches[-1]

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RECIPES[name](watching)
        return [watch.diagnosis() for watch in watches]


def said(name: str, diagnoses: list[gb.Diagnosis]) -> tuple[list[str], list[str]]:
    """Return false alarms and true findings, one line for each code."""
    groups: dict[str, list[gb.Finding]] = {}
    for diagnosis in diagnoses:
        for finding in diagnosis.findings:
            if finding.severity in LOUD:
                groups.setdefault(finding.code, []).append(finding)
    false, true = [], []
    for code, found in groups.items():
        reason = reason_of(f"recipe {name}", code)
        line = f"{name}: {found[0].severity} {len(found)} × {str(found[0])[:300]}"
        (false if reason is None else true).append(line if reason is None else f"{name}: {code}: {reason}")
    return false, true


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="only recipes whose name matches this glob")
    parser.add_argument("--out", help="folder for the dated result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, alarms, truths = [], [], []
    for name in RECIPES:
        if not fnmatchcase(name, options.only):
            continue
        start = time.monotonic()
        try:
            diagnoses = run(name)
        except Exception as error:
            alarms.append(f"{name}: raised {type(error).__name__}: {str(error)[:200]}")
            print(alarms[-1], flush=True)
            continue
        false, true = said(name, diagnoses)
        notes = sorted({finding.code for diagnosis in diagnoses for finding in diagnosis.notes})
        norms = sum(diagnosis.norms for diagnosis in diagnoses)
        rows.append(f"| {name.replace('_', ' ')} | {norms} | {len(false)} | {len(true)} | {', '.join(notes)} |")
        alarms, truths = alarms + false, truths + true
        print(f"{name} ({time.monotonic() - start:.1f} s)", *false, *true, sep="\n    ", flush=True)
        if options.only != "*":
            print(*diagnoses, sep="\n")
    if options.out:
        text = [
            f"{len(rows)} recipes.",
            *("", "| recipe | norms | false alarms | true findings | notes |", "|---|---:|---:|---:|---|", *rows),
            *("", "## What is not in the list", "", *([f"- {line}" for line in alarms] or ["Nothing."])),
            *("", "## True findings", "", *([f"- {line}" for line in truths] or ["None."])),
        ]
        print(write(options.out, "census_recipes", __doc__ or "", "python -m tests.census.recipes", text))
    return int(bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
