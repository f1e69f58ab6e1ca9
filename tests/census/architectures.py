"""What the check says out loud of healthy architectures.

Each architecture of `subjects.py` is checked as constructed, and after 30 steps of an ordinary recipe: SGD with
momentum where it has BatchNorms, AdamW otherwise, both with `gammabeta.parameter_groups`, a learning rate that warms
up, and small data that can be learned. Each time in training mode and in evaluation, with inputs, loader and
optimizer. Every error and warning is recorded. Those of `true_findings.py` are true, for the reason that is given
there.

    python -m tests.census.architectures --out benchmarks/results

takes half an hour or so; a line for each architecture goes to `--lines` at once, and a second run goes on from
there. `--library timm`, `--only "timm resnet18"` (also a glob) choose; `--again` forgets the lines of those chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from tests.census.results import write
from tests.census.subjects import CLASSES, Subject, subjects
from tests.census.true_findings import reason_of
from torch import Tensor, nn
from torch.nn import functional as F

import gammabeta as gb
from gammabeta.introspection.observe import tensors_in

STEPS, LIMIT = 30, 60
LOUD = ("error", "warning")


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError after some seconds of the processor, whatever else the machine does."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def logits_of(outputs: Any) -> Tensor:
    """Return logits of the first tensor that a model returns: the mean over positions, and over groups of channels."""
    first = next(tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() and tensor.ndim > 1)
    pooled = first.mean(1) if first.ndim == 3 else first.flatten(2).mean(2) if first.ndim > 3 else first
    # All channels have a part, so that all scales of a last norm learn.
    groups = pooled[:, : pooled.shape[1] // CLASSES * CLASSES].unflatten(1, (CLASSES, -1))
    return groups.sum(2) / groups.shape[2] ** 0.5


def trained(model: nn.Module, batches: list[tuple[Any, Tensor]]) -> torch.optim.Optimizer:
    """Train a model for the steps of the recipe, and return the optimizer; without batches it is only made."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if has_batch_norm:
        optimizer: Any = torch.optim.SGD(gb.parameter_groups(model, 1e-4), lr=0.02, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(gb.parameter_groups(model, 0.05), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    model.train()
    for given, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(logits_of(called(model, given)), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return optimizer


def called(model: nn.Module, given: Any) -> Any:
    """Return the model's outputs on what it takes."""
    return model(**given) if isinstance(given, dict) else model(given)


def look_at(subject: Subject) -> dict[str, Any]:
    """Return the line of an architecture: its norms, and what the check said, state by state."""
    line: dict[str, Any] = {"library": subject.library, "name": subject.name}
    start = time.process_time()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    try:
        with at_most(LIMIT):
            model, batch = subject.build()
            labels = [torch.randint(CLASSES, (subject.labels,), generator=generator) for _ in range(STEPS)]
            batches = [(batch(generator, of), of) for of in labels]
            line["said"] = {**_said(model, batches, ()), **_said(model, batches, batches)}
            line["norms"] = line["said"].pop("norms")
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return line | {"seconds": round(time.process_time() - start, 1)}


def _said(model: nn.Module, batches: list[tuple[Any, Tensor]], taken: Any) -> dict[str, Any]:
    """Train on what is taken, and return what the check says in both modes."""
    optimizer = trained(model, taken)
    loader = [given if isinstance(given, dict) else (given, labels) for given, labels in batches[:4]]
    found: dict[str, Any] = {}
    for mode in (True, False):
        diagnosis = gb.check(model.train(mode), batches[0][0], loader=loader, optimizer=optimizer)
        state = f"{'trained' if taken else 'fresh'}, {'training' if mode else 'evaluation'}"
        loud = [finding for finding in diagnosis.findings if finding.severity in LOUD]
        groups: dict[tuple[str, str, str], list[gb.Finding]] = {}
        for finding in loud:
            groups.setdefault((finding.severity, finding.code, finding.name), []).append(finding)
        found[state] = [
            {"severity": key[0], "code": key[1], "name": key[2], "count": len(every), "first": str(every[0])[:300]}
            for key, every in groups.items()
        ]
        found[f"notes {state}"] = len({finding.code for finding in diagnosis.notes})
        found["norms"] = diagnosis.norms
    return found


def false_alarms(line: dict[str, Any]) -> list[str]:
    """Return what was said out loud of an architecture and is not in the list of true findings."""
    name = f"{line['library']} {line['name']}"
    return [
        f"{name} ({state}): {group['severity']} {group['count']} × {group['first']}"
        for state, groups in line.get("said", {}).items()
        if not state.startswith("notes")
        for group in groups
        if reason_of(name, group["code"]) is None
    ]


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Return the result as Markdown."""
    done = [line for line in lines if "error" not in line]
    failed = [line for line in lines if "error" in line]
    alarms = {f"{line['library']} {line['name']}": false_alarms(line) for line in done}
    libraries = Counter(line["library"] for line in done)
    codes: Counter[tuple[str, bool]] = Counter()
    for line in done:
        for code in {g["code"] for state, groups in line["said"].items() if "notes" not in state for g in groups}:
            codes[code, reason_of(f"{line['library']} {line['name']}", code) is not None] += 1
    quiet = sum(not found for found in alarms.values())
    text = [
        f"{len(done)} architectures with {sum(line['norms'] for line in done)} norms: "
        f"{', '.join(f'{count} of {library}' for library, count in libraries.items())}.",
        f"{quiet} are quiet or have true findings only; {len(done) - quiet} have others.",
        "",
        "| finding | architectures | true, by the list | others |",
        "|---|---:|---:|---:|",
    ]
    for code in sorted({code for code, _ in codes}):
        text.append(
            f"| {code} | {codes[code, True] + codes[code, False]} | {codes[code, True]} | {codes[code, False]} |"
        )
    text += ["", "## What is not in the list", ""]
    text += [f"- {one.replace('|', '¦')}" for found in alarms.values() for one in found] or ["Nothing."]
    text += ["", "## True findings", ""]
    reasons: dict[str, list[str]] = {}
    for line in done:
        name = f"{line['library']} {line['name']}"
        for code in {g["code"] for state, groups in line["said"].items() if "notes" not in state for g in groups}:
            if (reason := reason_of(name, code)) is not None:
                reasons.setdefault(f"{code}: {reason}", []).append(name)
    text += [f"- {reason} ({', '.join(names)})" for reason, names in sorted(reasons.items())] or ["None."]
    text += ["", "## Architectures", "", "| architecture | norms | seconds | kinds of notes |", "|---|---:|---:|---:|"]
    for line in done:
        notes = max(count for state, count in line["said"].items() if state.startswith("notes"))
        text.append(f"| {line['library']} {line['name']} | {line['norms']} | {line['seconds']} | {notes} |")
    blind = [f"{line['library']} {line['name']}" for line in done if not line["norms"]]
    if blind:
        text += ["", f"No norm was seen in {', '.join(blind)}."]
    if failed:
        text += ["", "## Not checked", "", *[f"- {line['library']} {line['name']}: {line['error']}" for line in failed]]
    return text


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", default=[], help="only this library; may be repeated")
    parser.add_argument("--only", default="*", help="only architectures whose name matches this glob")
    parser.add_argument("--lines", default="census-architectures.jsonl", help="where lines go, and where they are from")
    parser.add_argument("--again", action="store_true", help="forget the lines of those chosen")
    parser.add_argument("--out", help="folder for the dated result")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    chosen = [one for one in subjects(tuple(options.library)) if fnmatchcase(str(one), f"*{options.only}")]
    path = Path(options.lines)
    known = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    if options.again:
        names = {str(one) for one in chosen}
        known = [line for line in known if f"{line['library']} {line['name']}" not in names]
        path.write_text("".join(json.dumps(line) + "\n" for line in known))
    seen = {(line["library"], line["name"]) for line in known}
    for subject in chosen:
        if (subject.library, subject.name) in seen:
            continue
        line = look_at(subject)
        known.append(line)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        said = line.get("error") or f"{line['norms']} norms, {len(false_alarms(line))} false alarms"
        print(f"{subject}: {said} ({line['seconds']} s)", *false_alarms(line), sep="\n    ", flush=True)
    mine = {str(one) for one in chosen}
    lines = [line for line in known if f"{line['library']} {line['name']}" in mine]
    if options.out:
        command = " ".join(["python -m tests.census.architectures", *(f"--library {one}" for one in options.library)])
        command += "" if options.only == "*" else f' --only "{options.only}"'
        print(write(options.out, "census_architectures", __doc__ or "", command, table(lines)))
    return int(any("error" in line or false_alarms(line) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
