"""An ε that is unusually large, 0, or not the same throughout the model.

What it does: Finds norms whose ε is above 10⁻² or 0; an ε of 0 is an error in a BatchNorm in training mode, whose
forward raises. As notes, finds those with weights in float16 and a forward of
their own whose ε is 0 in float16, and models whose norms of one class have different ε.

Why it matters: ε is added to a variance. A large one keeps the layer from standardizing: `nn.BatchNorm2d(64, 0.8)`,
meant as a momentum, sets ε = 0.8, since ε is the second argument. 0 makes a constant channel NaN. In float16 10⁻⁸ is 0:
its smallest number is 6·10⁻⁸. Different ones in one model usually come from a port that changed some.

Example: `nn.BatchNorm2d(8, 0.8)`.

Use instead: 10⁻⁵, torch's default, or what the model was trained with.

Evidence: tests/diagnostics/rules/test_unusual_epsilon.py: a BatchNorm turns inputs of variance 0.1 into variance 0.11
with ε = 0.8, and into 1.00 with 10⁻⁵.

Limits: ε belongs to the trained weights: change it before training, not after. The fix therefore sets it only in
training mode and while all γ, β and running statistics are as constructed, or where the forward raises. Small ones are
harmless where a norm computes in float32, as torch's do in all dtypes: BERT's 10⁻¹² is not found.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.introspection.norms import CLASS, norm_of
from gammabeta.surgery.change import Change, transaction

severity = "warning"
sees = "S"

_MOST, _USUAL = 1e-2, 1e-5
# 10⁻² is written in ways that round to slightly more.
_ROUNDING = 1e-6


def check(record: Record) -> Iterator[Match]:
    by_class: dict[str, Counter[float]] = {}
    small: dict[tuple[str, str], list[Norm]] = {}
    wrong: list[tuple[Norm, str, bool]] = []
    for norm in record.norms:
        eps = norm.eps
        if eps is None:
            continue
        judgement = _judge(norm, eps)
        if judgement:
            raises = eps == 0 and _normalizes_by_batch(norm)
            if raises:
                judgement = "its forward in training raises"
            wrong.append((norm, f"ε is {eps:g}: {judgement}", raises))
        elif _vanishes(norm, eps):
            message = f"ε is {eps:g}, which is 0 in float16, the dtype of its weight"
            small.setdefault((norm.class_name, message), []).append(norm)
        else:
            by_class.setdefault(norm.class_name, Counter())[eps] += 1
    fresh = all(_is_as_constructed(norm) for norm in record.norms)
    for norm, message, raises in wrong:
        usual = by_class.get(norm.class_name, Counter({_USUAL: 1})).most_common(1)[0][0]
        fix = _fix(norm, usual, fresh or raises)
        yield Match(norm.name, message, {"eps": norm.eps}, fix, severity="error" if raises else None)
    for (class_name, message), norms in small.items():
        of = f" (in {len(norms)} layers of class {class_name})" if len(norms) > 1 else ""
        evidence = {"eps": norms[0].eps, "layers": [norm.name for norm in norms]}
        fix = Fix("run it in float32 or bfloat16, or see that its forward adds ε in float32")
        yield Match(norms[0].name, message + of, evidence, fix, severity="note")
    yield from _different(record, by_class)


def _different(record: Record, by_class: dict[str, Counter[float]]) -> Iterator[Match]:
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


def _judge(norm: Norm, eps: float) -> str:
    """Return what is wrong with an ε; "" if nothing."""
    if eps > _MOST * (1 + _ROUNDING):
        return "inputs with a variance below that are not standardized"
    return "a constant input gives NaN" if eps == 0 else ""


def _normalizes_by_batch(norm: Norm) -> bool:
    """Whether torch's function for a BatchNorm in training runs, which takes no ε of 0."""
    return norm.training and isinstance(norm.module, nn.modules.batchnorm._BatchNorm) and not norm.frozen


def _vanishes(norm: Norm, eps: float) -> bool:
    """Whether an ε is 0 in the dtype of the weight, in a norm that may add it there; torch's add it in float32."""
    if norm.module is None or norm.weight is None or norm.weight.dtype != torch.float16 or eps >= 2**-25:
        return False
    layer = norm_of(norm.module)
    return layer is not None and (layer.known_by != CLASS or type(norm.module).forward is not _own_forward(norm.module))


def _own_forward(module: nn.Module) -> object:
    """Return the forward of torch's or our class that the module's class extends."""
    known = (cls for cls in type(module).__mro__ if cls.__module__.startswith(("torch.nn.modules.", "gammabeta.")))
    return getattr(next(known, nn.Module), "forward", None)


def _is_as_constructed(norm: Norm) -> bool:
    """Whether nothing about a norm tells of training: γ of one value, β of zeros, no running statistic that moved."""
    if norm.has_statistics and not norm.has_initial_statistics:
        return False
    weight, bias = norm.weight, norm.bias
    same = weight is None or weight.is_meta or bool((weight == weight.flatten()[:1]).all())
    return same and (bias is None or bias.is_meta or not bool(bias.any()))


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _fix(norm: Norm, usual: float, fresh: bool) -> Fix:
    if not (fresh and norm.training and norm.module is not None and "eps" in vars(norm.module)):
        return Fix(f"keep what the model was trained with; in a new training use {usual:g}")
    return Fix(f"eps={usual:g}", partial(_set, norm, usual))


def _set(norm: Norm, eps: float) -> Change:
    assert norm.module is not None
    with transaction("set ε") as change:
        change.set_attribute(norm.module, "eps", eps, norm.name)
        change.note(norm.name, f"ε {eps:g} in place of {norm.eps:g}")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, 0.8))
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.2))
    return Example(model)
