"""Properties of the fix, on random models with planted faults.

    python -m tests.diagnostics.fix_properties --minutes 60 --seed 0

prints each seed on which a property fails, with what was drawn and what failed, and at the end the seed to go on from.
`--only SEED` runs one and prints the diagnosis and the change. `--out FOLDER` writes the result to a dated file.

    a  the next check has no finding that was not there before, and none of those that the fix says it mended. Not new
       is what the first check says it could not see, what it says in evaluation if the cure is evaluation, and what
       wrong statistics hid of the model's making: a norm that is shared, behind dropout, frozen at 0 and 1, not to be
       folded, or whose variance is below ε
    b  outputs in evaluation move only where a finding says that they were wrong which was mended, if in part
    c  what is frozen stays frozen, also in the next step of training
    d  an optimizer that a scheduler holds is left alone; each training goes on
    e  the state_dict from before loads strictly, and the optimizers' from before where a scheduler holds them
    f  undo restores every bit
    g  the fix does not raise, and says why where it left something alone
    h  the check leaves everything as it was
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.census.results import write
from tests.diagnostics.planted_faults import Case
from tests.diagnostics.random_cases import build, train_step
from torch import Tensor, nn

import gammabeta as gb
from gammabeta.diagnostics.check import ForwardError

# Findings which say that outputs in evaluation are wrong: those about the statistics, and about ε.
MOVES = {"GB102", "GB103", "GB104", "GB105", "GB106", "GB108", "GB109", "GB110", "GB113", "GB305", "GB306", "GB309"}
# Findings which say that the statistics of the norm they name are wrong, frozen or not.
WRONG = {"GB102", "GB103", "GB105", "GB108", "GB113"}
# Findings about how a model is made, which are measured on inputs that wrong statistics change.
HIDDEN = {"GB104", "GB107", "GB113", "GB302", "GB603"}
# What it says is true of a healthy model, and is measured by the clock.
SPEED = {"GB602"}
# Adopted, a norm rounds at other places; bfloat16 has 8 bits, and a few layers follow.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.1}
_HIDDEN = {"_parameters", "_buffers", "_modules", "training"}


def bits(tensor: Tensor) -> bytes:
    """Return a tensor's bits, in which a NaN is equal to itself."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def describe(tensor: Tensor) -> tuple[Any, ...]:
    """Return all that must be the same of a tensor."""
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), bits(tensor)


def snapshot(case: Case) -> dict[str, Any]:
    """Return all of a case that an undo has to restore, by a name for each."""
    seen: dict[str, Any] = {}
    for name, module in case.model.named_modules(remove_duplicate=False):
        seen[f"class of {name}"] = type(module)
        seen[f"mode of {name}"] = module.training
        seen[f"children of {name}"] = [(key, id(child)) for key, child in module._modules.items()]
        seen[f"keys of {name}"] = [*module._parameters], [*module._buffers], sorted(module._non_persistent_buffers_set)
        for key, value in vars(module).items():
            if key not in _HIDDEN:
                plain = isinstance(value, int | float | str | tuple | bool | None)
                seen[f"{name}.{key}"] = value if plain else repr(value)
    for name, parameter in case.model.named_parameters(remove_duplicate=False):
        seen[f"object of {name}"] = id(parameter)
        seen[f"bits of {name}"] = describe(parameter)
        seen[f"requires_grad of {name}"] = parameter.requires_grad
        seen[f"gradient of {name}"] = None if parameter.grad is None else describe(parameter.grad)
    for name, buffer in case.model.named_buffers(remove_duplicate=False):
        seen[f"bits of {name}"] = describe(buffer)
    return seen | optimizers_of(case)


def optimizers_of(case: Case) -> dict[str, Any]:
    """Return the groups, settings and state of a case's optimizers."""
    seen: dict[str, Any] = {}
    for i, optimizer in enumerate(case.optimizers):
        seen[f"groups of optimizer {i}"] = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        seen[f"settings of optimizer {i}"] = copy.deepcopy(settings)
        for p, state in optimizer.state.items():
            of = {k: describe(v) if isinstance(v, Tensor) else v for k, v in state.items()}
            seen[f"state of {id(p)} in optimizer {i}"] = of
    return seen


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names under which two snapshots differ."""
    return [key for key in {**before, **after} if before.get(key, seen_nowhere) != after.get(key, seen_nowhere)]


seen_nowhere = object()


def generators() -> Any:
    """Return the states of the random number generators."""
    return bits(torch.get_rng_state()), random.getstate()


@torch.no_grad()
def outputs_of(case: Case) -> list[Tensor]:
    """Return the outputs in evaluation, and leave the modes."""
    modes = [(module, module.training) for module in case.model.modules()]
    try:
        found = case.model.eval()(case.batches[0][0])
    finally:
        for module, mode in modes:
            module.training = mode
    return list(found) if isinstance(found, tuple) else [found]


def statistics_of(model: nn.Module) -> dict[str, tuple[bytes, bytes]]:
    """Return the bits of the running statistics by the module's name."""
    return {
        name: (bits(module.running_mean.float()), bits(module.running_var.float()))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
    }


def checked(case: Case) -> gb.Diagnosis:
    """Check a case with all that goes with it."""
    return gb.check(case.model, case.inputs, loader=case.loader, optimizer=case.optimizers or None)


def mended(diagnosis: gb.Diagnosis, change: gb.Change) -> list[gb.Finding]:
    """Return the findings that the fix says it mended: what it can mend and did not leave alone."""
    done = {entry.module for entry in change.entries if entry.done}
    left = [(entry.module, entry.what) for entry in change.entries if not entry.done]

    def claimed(finding: gb.Finding) -> bool:
        reasons = [what for module, what in left if module == finding.where]
        if finding.fix is None or not finding.fix.mends or any(finding.code in what for what in reasons):
            return False
        return finding.where in done or (bool(done) and not reasons and finding.severity != "note")

    return [finding for finding in diagnosis.findings if claimed(finding)]


def frozen_in(case: Case) -> set[str] | None:
    """Return the frozen norms: without gradients, and a step of training keeps their statistics.

    None if the step raises. The case is used up.
    """
    before = statistics_of(case.model)
    free = {name for name, module in case.model.named_modules() if any(p.requires_grad for p in module.parameters())}
    try:
        train_step(case)
    except Exception:
        return None
    after = statistics_of(case.model)
    return {name for name in before if before[name] == after.get(name) and name not in free}


def _same_outputs(before: list[Tensor], after: list[Tensor], exactly: bool) -> bool:
    for a, b in zip(before, after, strict=True):
        if exactly:
            if bits(a) != bits(b):
                return False
        elif not torch.allclose(a.float(), b.float(), rtol=ROUNDING[a.dtype], atol=ROUNDING[a.dtype], equal_nan=True):
            return False
    return True


Failures = list[tuple[str, str]]


def failures_of(seed: int, show: Callable[[Any], None] = lambda _: None) -> tuple[Failures, Case, int]:
    """Return the properties that fail on a seed, each with how, and the case, and how many findings were mended."""
    case = build(seed)
    failures: Failures = []
    start, random_before = snapshot(case), generators()
    try:
        diagnosis = checked(case)
    except Exception as error:
        changed = [("h", f"check changed {key}") for key in differing(start, snapshot(case))[:3]]
        if isinstance(error, ForwardError) and not _runs(case):
            return changed, case, 0
        return [("h", f"check raised {type(error).__name__}: {str(error).splitlines()[0][:200]}"), *changed], case, 0
    failures += [("h", f"check changed {key}") for key in differing(start, snapshot(case))[:3]]
    if generators() != random_before:
        failures.append(("h", "check changed the state of a random number generator"))
    show(diagnosis)
    state = copy.deepcopy(case.model.state_dict())
    outputs, statistics = outputs_of(case), statistics_of(case.model)
    optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in case.optimizers]
    before = diagnosis.findings
    if any(finding.code == "GB604" for finding in before):
        before += _in_evaluation(case).findings
    try:
        change = diagnosis.fix()
    except Exception as error:
        failures.append(("g", f"fix raised {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"))
        return failures + [("f", f"not as before: {key}") for key in differing(start, snapshot(case))[:3]], case, 0
    show(change)
    cured = mended(diagnosis, change)
    touched = [
        finding for finding in diagnosis.findings if finding.where in {e.module for e in change.entries if e.done}
    ]
    codes = {finding.code for finding in cured}
    failures += [("g", f"left {module!r} without a reason") for module, reason in change.left.items() if not reason]
    failures += _next_check(case, diagnosis, before, cured, show)
    classes = any(key.startswith("class of") for key in differing(start, snapshot(case)))
    if not {finding.code for finding in touched} & MOVES and not _same_outputs(
        outputs, outputs_of(case), exactly=not classes
    ):
        failures.append(("b", f"outputs in evaluation moved, mended: {sorted(codes)}"))
    failures += _modes_and_gradients(case, start, codes)
    failures += _frozen_statistics(case, frozen_in(build(seed)) or set(), statistics, touched)
    failures += _loads(case, state, optimizers)
    change.undo()
    failures += [("f", f"not as before: {key}") for key in differing(start, snapshot(case))[:3]]
    failures += _trains_on(seed, cured)
    return _few(failures), case, len(cured)


def _few(failures: Failures, most: int = 3) -> Failures:
    """Return the first failures of each property."""
    seen: Counter[str] = Counter()
    kept = []
    for letter, what in failures:
        seen[letter] += 1
        if seen[letter] <= most:
            kept.append((letter, what))
    return kept


def _runs(case: Case) -> bool:
    """Return whether the model itself runs on its inputs, in its own mode and in evaluation."""
    case = copy.deepcopy(case)
    try:
        for mode in (case.model.training, False):
            case.model.train(mode)(case.batches[0][0])
    except Exception:
        return False
    return True


def _in_evaluation(case: Case) -> gb.Diagnosis:
    """Check a case in evaluation mode, and leave the modes."""
    modes = [(module, module.training) for module in case.model.modules()]
    case.model.eval()
    try:
        return checked(case)
    finally:
        for module, mode in modes:
            module.training = mode


def _next_check(
    case: Case,
    diagnosis: gb.Diagnosis,
    before: tuple[gb.Finding, ...],
    cured: list[gb.Finding],
    show: Callable[[Any], None],
) -> Failures:
    try:
        after = checked(case)
    except Exception as error:
        return [("a", f"the next check raised {type(error).__name__}: {str(error).splitlines()[0][:200]}")]
    show(after)
    known = {(finding.code, name) for finding in before for name in (finding.where, *finding.modules)}
    gone = {(finding.code, finding.where) for finding in cured}
    found: Failures = []
    for finding in after.findings:
        key = finding.code, finding.where
        if finding.code in SPEED:
            continue
        hidden = finding.code in HIDDEN and any(one.code in MOVES for one in cured)
        if key not in known and not hidden and not _was_unseen(finding, diagnosis):
            found.append(("a", f"new: {finding.severity} {finding}"[:240]))
        elif key in gone:
            found.append(("a", f"still there: {finding.severity} {finding}"[:240]))
    return found


def _was_unseen(finding: gb.Finding, diagnosis: gb.Diagnosis) -> bool:
    """Return whether the first check said that it could not look at what a finding is about: a norm, or the outputs.

    What is not finite is named where it begins, which hides what is not finite elsewhere.
    """
    outputs = any(one.code in ("GB102", "GB404") for one in diagnosis.findings)
    return finding.where in diagnosis.unseen or (finding.code in ("GB309", "GB404") and outputs)


def _modes_and_gradients(case: Case, start: dict[str, Any], codes: set[str]) -> Failures:
    now = snapshot(case)
    changed = [key for key in differing(start, now) if key.startswith(("mode of", "requires_grad of"))]
    # GB604's cure is eval(), GB114's train(): of the whole model.
    found = [("c", f"changed {key}") for key in changed if not (key.startswith("mode") and codes & {"GB604", "GB114"})]
    if case.scheduler is not None:
        held = {key: value for key, value in start.items() if key.endswith(" optimizer 0")}
        found += [("d", f"changed {key}, which a scheduler holds") for key in held if now.get(key) != held[key]]
    mine = {id(p) for name, p in case.model.named_parameters() if name in case.meant_frozen}
    for i in range(len(case.optimizers)):
        key = f"groups of optimizer {i}"
        added = mine & ({p for group in now[key] for p in group} - {p for group in start[key] for p in group})
        if added:
            found.append(("c", f"{len(added)} parameters that were to be kept are now in optimizer {i}"))
    return found[:4]


def _frozen_statistics(
    case: Case, frozen: set[str], before: dict[str, tuple[bytes, bytes]], touched: list[gb.Finding]
) -> Failures:
    """Compare the statistics of frozen norms, but for those that a finding calls wrong which was mended, if in part."""
    if not any(parameter.requires_grad for parameter in case.model.parameters()):
        return []
    wrong = {finding.where for finding in touched if finding.code in WRONG}
    now = statistics_of(case.model)
    kept = [name for name in before if name in frozen and name not in wrong]
    return [("c", f"statistics of {name}, which are frozen, changed") for name in kept if now.get(name) != before[name]]


def _loads(case: Case, state: dict[str, Tensor], optimizers: list[Any]) -> Failures:
    now, found = copy.deepcopy(case.model.state_dict()), []
    try:
        case.model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        found.append(("e", f"the state_dict from before does not load: {' '.join(str(error).split())[:200]}"))
    else:
        case.model.load_state_dict(now, strict=True)
    if case.scheduler is not None:
        kept = copy.deepcopy(case.optimizers[0].state_dict())
        try:
            case.optimizers[0].load_state_dict(optimizers[0])
            case.optimizers[0].load_state_dict(kept)
        except ValueError as error:
            found.append(("e", f"the optimizer's state from before does not load: {error}"))
    return found


def _trains_on(seed: int, cured: list[gb.Finding]) -> Failures:
    """Fix the case again and take a step of training: it runs, and frozen things stay."""
    frozen, case = frozen_in(build(seed)), build(seed)
    checked(case).fix()
    thawing = {finding.where for finding in cured if finding.code == "GB101"}
    # Statistics of NaN stay NaN in a layer that trains too.
    poisoned = {finding.where for finding in cured if finding.code == "GB102"}
    kept = {
        name: bits(parameter)
        for name, parameter in case.model.named_parameters()
        if not parameter.requires_grad or name in case.meant_frozen
    }
    before = statistics_of(case.model)
    try:
        train_step(case)
        train_step(case)
    except Exception as error:
        what = f"training raised {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        return [] if frozen is None else [("d", what)]
    after = statistics_of(case.model)
    moved = {name for name in before if before[name] != after.get(name)}
    found: Failures = []
    if any(parameter.requires_grad for parameter in case.model.parameters()):
        found += [
            ("c", f"a step moves the statistics of {name}, which were frozen")
            for name in sorted(moved & (((frozen or set()) - poisoned) | thawing))
        ]
    found += [
        ("c", f"a step moves {name}, which was frozen")
        for name, parameter in case.model.named_parameters()
        if name in kept and bits(parameter) != kept[name]
    ]
    return found[:4]


@dataclass
class Tally:
    """What a run has seen: the next seed, the findings mended, failures by property and their lines, what was drawn."""

    following: int
    mended: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    drawn: Counter[str] = field(default_factory=Counter)


def run(first: int, until: float) -> Tally:
    """Run seeds from the first on, until a time."""
    tally = Tally(first)
    while time.monotonic() < until:
        failures, case, cured = failures_of(tally.following)
        tally.mended += cured
        tally.drawn.update({word.split(" in ")[0] for word in case.traits.words})
        if failures:
            tally.failures.update({letter for letter, _ in failures})
            found = [f"seed {tally.following}: {', '.join(case.traits.words)}"]
            found += [f"    {letter}: {what}" for letter, what in failures]
            tally.lines += found
            print("\n".join(found), flush=True)
        tally.following += 1
    return tally


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="run this seed alone, and print everything")
    parser.add_argument("--out", help="folder for the dated result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.only is not None:
        failures, case, _ = failures_of(options.only, print)
        print(f"seed {options.only}: {', '.join(case.traits.words)}", *[f"    {a}: {b}" for a, b in failures], sep="\n")
        return bool(failures)
    tally = run(options.seed, time.monotonic() + 60 * options.minutes)
    failed = sum(not line.startswith(" ") for line in tally.lines)
    counts = ", ".join(f"{letter} {count}" for letter, count in sorted(tally.failures.items()))
    result = (
        f"{tally.following - options.seed} models (seeds {options.seed} to {tally.following - 1}), {tally.mended} "
        f"findings mended, {failed} models with a failure{': ' if counts else ''}{counts}"
    )
    print(f"{result}; go on with --seed {tally.following}")
    if options.out:
        command = f"python -m tests.diagnostics.fix_properties --minutes {options.minutes:g} --seed {options.seed}"
        failures = ["```", *tally.lines, "```"] if tally.lines else ["None failed."]
        drawn = [f"| {word.replace('_', ' ')} | {count} |" for word, count in sorted(tally.drawn.items())]
        table = ["", "## What was drawn", "", "| what | models |", "|---|---:|", *drawn]
        text = [f"{result}.", "", *failures, *table]
        print(write(options.out, "fix_properties", __doc__ or "", command, text))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
