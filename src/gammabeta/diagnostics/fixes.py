"""Fixes shared by several rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from gammabeta.diagnostics.finding import Fix, Recalibration
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.introspection.norms import is_batch_norm
from gammabeta.surgery.change import Change
from gammabeta.surgery.freeze import freeze
from gammabeta.surgery.recalibrate import why_not_recalibrated


@dataclass(frozen=True)
class First:
    """What has to be done before a recalibration.

    Attributes:
        what: words that "and" can follow.
        apply: does it.
        keeps_checkpoints: whether the keys of the state_dict stay.
    """

    what: str
    apply: Callable[[], Change]
    keeps_checkpoints: bool = True


def recalibration(
    record: Record,
    norms: Norm | Sequence[Norm],
    *,
    first: First | None = None,
    part: str = "",
    broken_only: bool = False,
) -> Fix:
    """Build the fix that replaces running statistics by population statistics.

    The fix recalibrates on its own if the check was given a loader; otherwise it says what to call. Of norms that
    `recalibrate` does not take it says why.

    Args:
        record: what is known about the model.
        norms: the norm whose statistics are wrong, or several.
        first: what has to be done first.
        part: the qualified name of the module that runs on the batches, if it is not the model that was checked.
        broken_only: whether only channels whose statistics are not finite, or a negative variance, get new ones.

    Returns:
        The `Fix`.
    """
    every = {norm.name: norm.module for norm in ((norms,) if isinstance(norms, Norm) else norms)}
    if record.model is None:
        return Fix("load it into the model, then gammabeta.recalibrate(model, batches)")
    why_not = {
        name: "it is not there" if module is None else None if first else why_not_recalibrated(module)
        for name, module in every.items()
    }
    names = [name for name, reason in why_not.items() if reason is None]
    if not names:
        reason = next(iter(why_not.values()))
        return Fix(f"load right statistics from a checkpoint; gammabeta.recalibrate does not take it: {reason}")
    runs = record.model.get_submodule(part)
    before = f"{first.what} and " if first else ""
    inside = f"model.get_submodule({part!r})" if part else "model"
    batches = "batches" if record.loader is None else "loader"
    given = "; given loader=, the fix does it" if record.loader is None else ""

    def call(where_found: Sequence[str]) -> str:
        chosen = where_found if len(names) == 1 else names
        limits = where(runs, [name.removeprefix(f"{part}.") for name in chosen])
        return f"{before}gammabeta.recalibrate({inside}, {batches}{limits}){given}"

    if record.loader is None:
        return Fix(call(names), together=call)
    return Fix(
        call(names),
        first.apply if first else None,
        tuple(Recalibration(name, every[name], runs, record.loader, record.forward, broken_only) for name in names),  # type: ignore[arg-type]
        together=call,
        keeps_checkpoints=first is None or first.keeps_checkpoints,
    )


def freezing(model: nn.Module, norm: Norm) -> Fix:
    """Build the fix that freezes a BatchNorm."""

    def call(names: Sequence[str]) -> str:
        return f"gammabeta.freeze(model{where(model, names)})"

    freezes = norm.module if norm.has_statistics else None
    return Fix(call([norm.name]), partial(freeze, model, where=[*norm.names]), together=call, freezes=freezes)


def advised(record: Record, norm: Norm, *calls: str) -> Fix:
    """Build the advice to call something on a norm, which a person chooses and applies.

    Args:
        record: what is known about the model.
        norm: the norm.
        calls: the sentences, each about one call; "{where}" in them becomes the argument that limits it to the norms.

    Returns:
        The `Fix`.
    """

    def told(names: Sequence[str]) -> str:
        limits = f", where={list(names)}" if record.model is None else where(record.model, names)
        return "; ".join(calls).replace("{where}", limits)

    return Fix(told([norm.name]), together=told)


def at_each(one: str, each: str, name: str) -> Fix:
    """Build advice about one module: `one` has "{name}" for its name, and `each` says the same of several."""
    return Fix(one.replace("{name}", repr(name)), together=lambda names: each)


def is_still(norm: Norm) -> bool:
    """Return whether nothing of a norm trains: its γ and β, or the weights around one without them, are frozen."""
    return norm.affine_trains is False or (norm.affine_trains is None and norm.around_trains is False)


def where(model: nn.Module, names: Sequence[str], eligible: Callable[[nn.Module], bool] = is_batch_norm) -> str:
    """Return the argument `where` of a call that works on these modules and no others: ", where='backbone.*'".

    Args:
        model: the model.
        names: the modules' qualified names.
        eligible: which modules the operation works on.

    Returns:
        The text: "" if they are all that the operation works on, else a name, a glob, or a list of names and globs.
    """
    every = [name for name, module in model.named_modules() if eligible(module)]
    chosen = set(names)
    if len(names) > 1 and set(every) <= chosen:
        return ""
    globs = list(_globs("", every, chosen)) if chosen <= set(every) else list(names)
    return f", where={globs[0]!r}" if len(globs) == 1 else f", where={globs}"


def _globs(prefix: str, every: Iterable[str], chosen: set[str]) -> Iterator[str]:
    """Yield globs and names that match the chosen names and none of the others, level by level."""
    parts: dict[str, list[str]] = {}
    for name in every:
        head = name[len(prefix) :].partition(".")[0]
        parts.setdefault(prefix + head, []).append(name)
    for head, inside in parts.items():
        picked = [name for name in inside if name in chosen]
        if not picked:
            continue
        if len(picked) == 1:
            yield picked[0]
        elif len(picked) == len(inside) and head not in inside:
            yield f"{head}.*"
        elif head in inside:
            yield from picked
        else:
            yield from _globs(f"{head}.", inside, chosen)
