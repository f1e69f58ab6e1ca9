"""The check: record a model, and run the rules over the record."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gammabeta.diagnostics.findings import SEVERITIES, Diagnosis, Finding
from gammabeta.diagnostics.measurement import measure
from gammabeta.diagnostics.mistaken import why_no_batch, why_no_loader
from gammabeta.diagnostics.probe import probe
from gammabeta.diagnostics.record import Record, record_model
from gammabeta.diagnostics.rule import Rule
from gammabeta.diagnostics.rule_page import SEES
from gammabeta.diagnostics.selection import chosen_rules, ignored_patterns, reason_to_ignore
from gammabeta.introspection.forward import BatchError, Forward, forward_batch, names_of, origin_is
from gammabeta.introspection.observe import observe, tensors_in
from gammabeta.introspection.unchanged import UninitializedError, random_states_kept, set_mode, unchanged


class ArgumentError(ValueError):
    """An argument with a value that `check` does not accept."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a type that `check` does not accept."""


class ForwardError(RuntimeError):
    """An exception of the model's forward on the inputs; the original is its cause."""


# Packages whose own errors are not those of the user's forward.
_OWN = ("gammabeta.introspection", "gammabeta.diagnostics")
_NOT_FINITE, _GAP = "GB404", "GB109"
INTENTS = ("contrastive", "gradient-penalty", "private", "memory")


def check(
    model: nn.Module,
    inputs: Any = None,
    *,
    loader: Iterable[Any] | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    batch_size: int | None = None,
    select: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    intent: str | None = None,
) -> Diagnosis:
    """Find what is wrong with a model's normalization; the model is left exactly as it was.

    Args:
        model: any module, in the mode in which it should be checked: some rules concern training mode, some evaluation
            mode.
        inputs: a batch as the model takes it: a tensor, a tuple or list of positional arguments, a mapping of keyword
            arguments, or (input, target) ("Batches" in docs/conventions.md). The model runs on it. None takes the
            loader's first batch.
        loader: batches of the same form. Fixes that need data recalibrate on it. Of an iterator, which gives each batch
            once, the first is taken now and is there again for the fix.
        forward: `forward(model, batch)`, for batches that go through the model in another way.
        optimizer: the optimizer, or a list of all that train the model.
        batch_size: number of samples per batch on one device in training; None takes that of the inputs, which are
            needed all the same.
        select: codes, prefixes of codes, or names of the rules to run; None runs all.
        ignore: rules not to run, in the same form; "GB401:head.*" ignores a rule for modules that match a glob.
        intent: the model's purpose, if the rules should hold it to one: "contrastive", "gradient-penalty" or
            "private"; or "memory", to be told what its training could do without.

    Returns:
        The `Diagnosis`.

    Raises:
        TypeError: an argument has the wrong type, or the inputs are no batch.
        ValueError: `select` or `ignore` names no rule, the intent or batch size is not a possible one, there is a batch
            size without inputs or a loader, or no optimizer holds a parameter of the model.
        ForwardError: the model's forward raised on the inputs.
    """
    optimizers = _optimizers(optimizer)
    _check_arguments(model, batch_size, intent, batches=inputs is not None or loader is not None)
    _check_optimizers(model, optimizers)
    _check_batches(model, inputs, loader, forward)
    if inputs is None and loader is not None and (forward is not None or _has_forward(model)):
        inputs, loader = _first_of(loader)
    record = record_model(
        model,
        inputs=inputs,
        loader=loader,
        forward=forward,
        optimizers=optimizers,
        batch_size=batch_size,
        intent=intent,
    )
    if inputs is not None:
        _observe(record, model, inputs)
    diagnosis = diagnose(record, select=select, ignore=ignore)
    # An iterator's batches are used up by the first recalibration.
    if inputs is None or loader is None or isinstance(loader, Iterator) or _GAP not in diagnosis.rules:
        return diagnosis

    def again() -> tuple[Finding, ...]:
        found = replace(record, observed=None, given=None, given_with_dropout=None, probe=None)
        found.norms = record_model(model).norms
        _observe(found, model, inputs)
        return diagnose(found, select=_GAP, ignore=ignore).findings

    return replace(diagnosis, _again=again)


def _has_forward(model: nn.Module) -> bool:
    """Whether the model has a forward; a ModuleDict of a student and a teacher has none."""
    return getattr(type(model).forward, "__name__", "") != "_forward_unimplemented"


def _first_of(loader: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Return the loader's first batch, and the loader with that batch still in it."""
    with random_states_kept():  # a DataLoader draws its workers' seed, and a sampler its order
        batches = iter(loader)
        first = next(batches, None)
    if first is None:
        raise ArgumentError(
            "check: expected a loader with at least one batch, got none: an iterator that is used up gives none, and "
            "neither does a DataLoader with drop_last=True of fewer samples than a batch."
        )
    if batches is not loader:
        return first, loader
    return first, itertools.chain([first], batches)  # an iterator gives each batch once


def _observe(record: Record, model: nn.Module, inputs: Any) -> None:
    """Run the model on the inputs, and fill in what that shows; in evaluation mode if its training mode raises."""
    forward = record.forward
    try:
        try:
            record.observed = observe(model, inputs, forward, operation="check")
        except ValueError:
            if not model.training:
                raise
            # For example a BatchNorm with one value per channel: evaluation mode shows which.
            with unchanged(model):
                set_mode(model, False)
                record.observed = observe(model, inputs, forward, operation="check")
        record.given = measure(model, inputs, forward)
        if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules()):
            record.given_with_dropout = measure(model, inputs, forward, dropout=True)
        record.probe = probe(model, inputs, forward)
    except Exception as error:
        if isinstance(error, UninitializedError):
            raise ArgumentError(f"check: {error}") from error
        if isinstance(error, BatchError) or any(origin_is(error, package) for package in _OWN):
            raise  # no forward of the user's raised it
        lines = str(error).strip().splitlines() or ["without a message"]
        if isinstance(error, MemoryError | OSError):  # of which the inputs are not the reason
            raise ForwardError(
                f"check: expected a forward that runs, got one that raised {type(error).__name__} on "
                f"{_describe(inputs)}: {lines[0]}"
            ) from error
        raise ForwardError(
            f"check: expected inputs that the model takes, got {_describe(inputs)}{_other_dtype(model, inputs)}"
            f"{_passed(record)}, on which its forward raised {type(error).__name__}: {lines[0]}"
        ) from error


def _describe(inputs: Any) -> str:
    shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
    if shapes:
        return f"tensors of shapes {', '.join(map(str, shapes))}"
    return f"a {type(inputs).__qualname__}{', which is no tensor' if hasattr(inputs, '__array__') else ''}"


def _other_dtype(model: nn.Module, inputs: Any) -> str:
    """Say where the inputs have another floating dtype than the model's parameters."""
    given = {tensor.dtype for tensor in tensors_in(inputs) if tensor.is_floating_point()}
    held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if not given or not held or given & held:
        return ""
    words = (", ".join(sorted(str(dtype) for dtype in dtypes)) for dtypes in (given, held))
    return " of {}, while the parameters are {}".format(*words)


def _passed(record: Record) -> str:
    """Say how a batch of several parts went through the model."""
    if record.forward is not None or record.model is None or not isinstance(record.inputs, tuple | list | Mapping):
        return ""
    names = names_of(record.model, record.inputs)
    return f" (passed as {', '.join(names)}; forward= passes them in another way)" if names else ""


def diagnose(
    record: Record, *, select: str | Sequence[str] | None = None, ignore: str | Sequence[str] | None = None
) -> Diagnosis:
    """Run the rules that see what is in the record.

    Args:
        record: what is known about the model.
        select, ignore: which rules, as for `check`.

    Returns:
        The `Diagnosis`.
    """
    patterns = ignored_patterns(ignore)
    rules = chosen_rules(select, patterns)
    ran = [rule for rule in rules if record.parts & set(rule.sees)]
    found: list[Finding] = []
    ignored: list[tuple[Finding, str]] = []
    for rule in ran:
        for finding in rule.check(record):
            reason = reason_to_ignore(finding, record.model, patterns, rule)
            if reason is None:
                found.append(finding)
            else:
                ignored.append((finding, reason))
    # Stable: by rule, then in the model's order. What is not finite explains the other errors, so it leads.
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.code != _NOT_FINITE))
    codes = tuple(rule.code for rule in ran)
    return Diagnosis(tuple(found), tuple(ignored), len(record.norms), codes, _idle(rules, ran), _unseen(record))


def _unseen(record: Record) -> tuple[str, ...]:
    """Return the names of the norms whose inputs are not finite."""
    given = record.given or {}
    return tuple(
        name for name, calls in given.items() if not all(bool(call.moments.mean.isfinite().all()) for call in calls)
    )


def _idle(rules: Sequence[Rule], ran: Sequence[Rule]) -> dict[str, tuple[str, ...]]:
    """Return what the rules that did not run would need, with their codes."""
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


def _check_optimizers(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    own = {id(parameter) for parameter in model.parameters()}
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if optimizers and own and not own & held:
        raise ArgumentError(
            f"check: expected an optimizer of the model's parameters, got {len(held)} parameters, none of which is the "
            "model's: was it made from another model, or before this one was copied? It trains nothing here."
        )


def _check_batches(model: nn.Module, inputs: Any, loader: Any, forward: Any) -> None:
    forward_batch("check", forward)  # raises if that is no function of model and batch
    if inputs is not None and forward is None and not _has_forward(model):
        raise ArgumentError(
            f"check: expected a model with a forward for the inputs, got a {type(model).__qualname__}, which has none: "
            "say how they go through it by forward=lambda model, batch: …, or check its parts."
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_meta = next((name for name, tensor in tensors if tensor.is_meta), None)
    if on_meta is not None and (inputs is not None or loader is not None):
        raise ArgumentError(
            f"check: expected a model with values to run on the inputs, got one with {on_meta} on the meta device: "
            'initialize it, as by model.to_empty(device="cpu") and load_state_dict, or leave the inputs out.'
        )
    reason = None if inputs is None else why_no_batch(model, inputs, forward, "loader=")
    if reason is not None:
        raise ArgumentTypeError(f"check: expected inputs as one batch, got {reason}.")
    reason = None if loader is None else why_no_loader(loader, "inputs=")
    if reason is not None:
        raise ArgumentTypeError(f"check: expected loader as an iterable of batches, got {reason}.")


def _check_arguments(model: Any, batch_size: Any, intent: Any, *, batches: bool) -> None:
    if not isinstance(model, nn.Module):
        hint = ": pass an instance" if isinstance(model, type) else ""
        got = f"the class {model.__qualname__}" if isinstance(model, type) else f"a {type(model).__qualname__}"
        raise ArgumentTypeError(f"check: expected model as a torch.nn.Module, got {got}{hint}.")
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool)):
        raise ArgumentTypeError(
            f"check: expected batch_size as a number of samples, got a {type(batch_size).__qualname__}."
        )
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"check: expected batch_size of 1 or more, got {batch_size}.")
    if batch_size is not None and not batches:
        raise ArgumentError(
            f"check: expected inputs or a loader beside batch_size={batch_size}, got neither: only a forward shows how "
            "many values of a sample each norm sees."
        )
    if intent is not None and intent not in INTENTS:
        raise ArgumentError(f"check: expected intent as one of {', '.join(INTENTS)}, got {intent!r}.")
