"""The check: a record of the model, and the rules run over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import SEVERITIES, Diagnosis, Finding
from gammabeta.diagnostics.measurement import measure
from gammabeta.diagnostics.probe import probe
from gammabeta.diagnostics.record import Record, record_model
from gammabeta.diagnostics.rule import SEES, Rule
from gammabeta.diagnostics.selection import chosen_rules, ignored_patterns, reason_to_ignore
from gammabeta.introspection.observe import observe, tensors_in
from gammabeta.introspection.unchanged import unchanged


class ArgumentError(ValueError):
    """An argument that `check` cannot do with."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of another type."""


class ForwardError(RuntimeError):
    """The model's forward raised on the inputs; the exception is the cause."""


INTENTS = ("contrastive", "gradient-penalty", "private")


def check(
    model: nn.Module,
    inputs: Any = None,
    *,
    loader: Iterable[Any] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    batch_size: int | None = None,
    select: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    intent: str | None = None,
) -> Diagnosis:
    """Finds what is wrong with the normalization of a model; the model is left exactly as it was.

    Args:
        model: any module, in the mode in which it is to be checked: some rules are about training mode, some about
            evaluation.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments. The model runs on them.
        loader: batches of what the model takes; a few are looked at, and fixes that need data recalibrate on it.
        optimizer: the optimizer, or all that train the model.
        batch_size: how many samples a batch will have on one device, where it is not that of the inputs.
        select: codes, beginnings of codes or names of the rules that run; all where it is None.
        ignore: those that do not; "GB401:head.*" ignores one for the modules of a glob.
        intent: what the model is for, if the rules should hold it to that: "contrastive", "gradient-penalty" or
            "private".

    Returns:
        The `Diagnosis`.

    Raises:
        TypeError: an argument of another type.
        ValueError: select or ignore names no rule; an intent or batch size that there is not.
        ForwardError: the model's forward raised on the inputs.
    """
    optimizers = _optimizers(optimizer)
    _check_arguments(model, batch_size, intent)
    record = record_model(
        model, inputs=inputs, loader=loader, optimizers=optimizers, batch_size=batch_size, intent=intent
    )
    if inputs is not None:
        _look(record, model, inputs)
    return diagnose(record, select=select, ignore=ignore)


def _look(record: Record, model: nn.Module, inputs: Any) -> None:
    """Run the model on the inputs, and fill in what was seen; in evaluation where its training mode raises."""
    try:
        try:
            record.observed = observe(model, inputs)
        except ValueError:
            if not model.training:
                raise
            # A BatchNorm with one value per channel, say: in evaluation it is seen which.
            with unchanged(model):
                record.observed = observe(model.eval(), inputs)
        record.given = measure(model, inputs)
        if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules()):
            record.given_with_dropout = measure(model, inputs, dropout=True)
        record.probe = probe(model, inputs)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["without a message"]
        raise ForwardError(
            f"check: expected inputs that the model takes, got {_described(inputs)}, on which its forward raised "
            f"{type(error).__name__}: {lines[0]}"
        ) from error


def _described(inputs: Any) -> str:
    shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
    return f"tensors of shapes {', '.join(map(str, shapes))}" if shapes else f"a {type(inputs).__qualname__}"


def diagnose(
    record: Record, *, select: str | Sequence[str] | None = None, ignore: str | Sequence[str] | None = None
) -> Diagnosis:
    """Runs the rules that see what is in the record.

    Args:
        record: what is known.
        select, ignore: which rules, as `check` takes them.

    Returns:
        The `Diagnosis`.
    """
    patterns = ignored_patterns(ignore)
    rules = chosen_rules(select, patterns)
    ran = [rule for rule in rules if record.parts & set(rule.sees)]
    found: list[Finding] = []
    put_aside: list[tuple[Finding, str]] = []
    for rule in ran:
        for finding in rule.check(record):
            reason = reason_to_ignore(finding, record.model, patterns, rule)
            if reason is None:
                found.append(finding)
            else:
                put_aside.append((finding, reason))
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: by rule, then as the model goes
    codes = tuple(rule.code for rule in ran)
    return Diagnosis(tuple(found), tuple(put_aside), len(record.norms), codes, _idle(rules, ran))


def _idle(rules: Sequence[Rule], ran: Sequence[Rule]) -> dict[str, tuple[str, ...]]:
    """What the rules that did not run would need."""
    needs: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        if rule not in ran:
            need = " or ".join(SEES[letter] for letter in rule.sees if letter != "F" or len(rule.sees) == 1)
            needs[need] = (*needs.get(need, ()), rule.code)
    return needs


def _optimizers(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    every = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    for optimizer in every:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentTypeError(
                f"check: expected optimizer as a torch.optim.Optimizer or a list of them, got a "
                f"{type(optimizer).__qualname__}."
            )
    return every


def _check_arguments(model: Any, batch_size: Any, intent: Any) -> None:
    if not isinstance(model, nn.Module):
        hint = ": hand an instance" if isinstance(model, type) else ""
        got = f"the class {model.__qualname__}" if isinstance(model, type) else f"a {type(model).__qualname__}"
        raise ArgumentTypeError(f"check: expected model as a torch.nn.Module, got {got}{hint}.")
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool)):
        raise ArgumentTypeError(
            f"check: expected batch_size as a number of samples, got a {type(batch_size).__qualname__}."
        )
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"check: expected batch_size of 1 or more, got {batch_size}.")
    if intent is not None and intent not in INTENTS:
        raise ArgumentError(f"check: expected intent as one of {', '.join(INTENTS)}, got {intent!r}.")
