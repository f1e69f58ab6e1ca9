"""An ε that is unusually large or small, or not the same throughout the model.

What it does: Finds norms whose ε is above 10⁻² or 0. As notes, finds those whose ε is below 10⁻⁶, and models whose
norms of one class have different ε.

Why it matters: ε is added to a variance. A large one keeps the layer from standardizing: `nn.BatchNorm2d(64, 0.8)`,
meant as a momentum, sets ε = 0.8, since ε is the second argument. 0 makes a constant channel NaN. In float16 10⁻⁸ is 0:
its smallest number is 6·10⁻⁸. Different ones in one model usually come from a port that changed some.

Example: `nn.BatchNorm2d(8, 0.8)`.

Use instead: 10⁻⁵, torch's default, or what the model was trained with.

Evidence: tests/diagnostics/rules/test_unusual_epsilon.py: a BatchNorm turns inputs of variance 0.1 into variance 0.11
with ε = 0.8, and into 1.00 with 10⁻⁵.

Limits: ε belongs to the trained weights: change it before training, not after. The fix therefore sets it in training
mode only. Small ones are harmless where a norm computes in float32, as torch's do: BERT's is 10⁻¹².
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction

severity = "warning"
sees = "S"

_LEAST, _MOST, _USUAL = 1e-6, 1e-2, 1e-5
# 10⁻⁶ is written in many ways that round to slightly less.
_ROUNDING = 1e-6


def check(record: Record) -> Iterator[Match]:
    by_class: dict[str, Counter[float]] = {}
    small: dict[tuple[str, str], list[Norm]] = {}
    for norm in record.norms:
        eps = norm.eps
        if eps is None:
            continue
        judgement, level = _judge(norm, eps)
        if not judgement:
            by_class.setdefault(norm.class_name, Counter())[eps] += 1
        elif level == severity:
            yield Match(norm.name, f"ε is {eps:g}{judgement}", {"eps": eps}, _fix(norm), severity=level)
        else:
            small.setdefault((norm.class_name, f"ε is {eps:g}{judgement}"), []).append(norm)
    for (class_name, message), norms in small.items():
        of = f" (in {len(norms)} layers of class {class_name})" if len(norms) > 1 else ""
        evidence = {"eps": norms[0].eps, "layers": [norm.name for norm in norms]}
        yield Match(norms[0].name, message + of, evidence, _fix(*norms), severity="note")
    for class_name, counts in by_class.items():
        if len(counts) > 1:
            (usual, count), *others = counts.most_common()
            rest = [
                f"{eps:g} in {_names([n.name for n in record.norms if (n.class_name, n.eps) == (class_name, eps)])}"
                for eps, _ in others
            ]
            message = f"{class_name} has an ε of {usual:g} in {count} of its layers and {', '.join(rest)}"
            evidence = {f"{eps:g}": number for eps, number in counts.items()}
            fix = Fix("compare with what the model was trained with")
            yield Match("", message, evidence, fix, severity="note")


def _judge(norm: Norm, eps: float) -> tuple[str, str]:
    """Return what is wrong with an ε, "" if nothing, and the severity."""
    if eps > _MOST * (1 + _ROUNDING):
        return ": inputs with a variance below that are not standardized", severity
    if eps == 0:
        return ": a constant input gives NaN", severity
    if eps < _LEAST * (1 - _ROUNDING):
        in_float16 = ", and 0 in float16" if eps < 2**-25 else ""
        return f": below {_LEAST:g}{in_float16}", "note"
    return "", ""


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _fix(*norms: Norm) -> Fix:
    if not all(norm.training and norm.module is not None and "eps" in vars(norm.module) for norm in norms):
        return Fix("keep what the model was trained with; in a new training use 1e-05")
    return Fix("eps=1e-05", partial(_set, *norms))


def _set(*norms: Norm) -> Change:
    with transaction("set ε") as change:
        for norm in norms:
            assert norm.module is not None
            change.set_attribute(norm.module, "eps", _USUAL, norm.name)
            change.note(norm.name, f"ε {_USUAL:g} in place of {norm.eps:g}")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, 0.8))
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.2))
    return Example(model)
