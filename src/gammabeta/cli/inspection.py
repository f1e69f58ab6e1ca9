"""A check as the command line asks for it: load the targets, read the project's configuration, run the rules."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.cli.configuration import Configuration, ConfigurationError, read_configuration, severity
from gammabeta.diagnostics.check import ArgumentError, ForwardError, check, diagnose
from gammabeta.diagnostics.checkpoint import SUFFIXES, CheckpointError, record_checkpoint
from gammabeta.diagnostics.findings import SEVERITIES, Diagnosis
from gammabeta.diagnostics.selection import SelectionError, check_patterns
from gammabeta.target import TargetError, load_model, load_object

# Options of a check that only a model can use.
_FOR_MODELS = ("inputs", "loader", "optimizer")


class InspectionError(ValueError):
    """A check that cannot be run. The message is one sentence for the person who asked."""


@dataclass(frozen=True)
class Request:
    """A command-line check to run.

    Attributes:
        target: a model or a checkpoint file, as `gammabeta check` takes it.
        configuration: what was asked for; what it leaves open comes from pyproject.toml.
        inputs, loader, optimizer: targets.
        batch_size, intent: as for `check`.
        training: the mode that the model is put into first; None leaves its mode.
    """

    target: str
    configuration: Configuration
    inputs: str | None = None
    loader: str | None = None
    optimizer: str | None = None
    batch_size: int | None = None
    intent: str | None = None
    training: bool | None = None


@dataclass(frozen=True)
class Inspection:
    """Result of a command-line check.

    Attributes:
        diagnosis: the findings.
        failed: whether any finding is as severe as `fail_on` asks.
        file, line: where the target is defined, or the checkpoint itself; `file` is None if that is unknown.
    """

    diagnosis: Diagnosis
    failed: bool
    file: str | None
    line: int


def inspect(request: Request) -> Inspection:
    """Check a target; whatever the targets print goes to the standard error.

    Args:
        request: the target and its options.

    Returns:
        The `Inspection`.

    Raises:
        InspectionError: a target cannot be loaded, the configuration is wrong, or the model raises on the inputs.
    """
    with contextlib.redirect_stdout(sys.stderr), _in_one_sentence():
        chosen = _with_project_defaults(request.configuration)
        check_patterns(chosen.select, chosen.ignore)  # before a model is built
        file: str | None = request.target
        line = 1
        if _is_checkpoint(request.target):
            diagnosis = _check_checkpoint(request, chosen)
        else:
            diagnosis, file, line = _check_model(request, chosen)
    assert chosen.fail_on is not None
    grave = SEVERITIES[: SEVERITIES.index(chosen.fail_on) + 1]
    return Inspection(diagnosis, any(finding.severity in grave for finding in diagnosis.findings), file, line)


def _with_project_defaults(given: Configuration) -> Configuration:
    """Fill in from pyproject.toml, then from the defaults, what the command line leaves open."""
    project = read_configuration(Path.cwd())
    fail_on = project.fail_on or "error"
    return Configuration(
        select=project.select if given.select is None else given.select,
        ignore=project.ignore if given.ignore is None else given.ignore,
        fail_on=fail_on if given.fail_on is None else severity(given.fail_on, "--fail-on"),
    )


def _is_checkpoint(target: str) -> bool:
    return ":" not in Path(target).name and (target.endswith(SUFFIXES) or Path(target).is_file())


def _check_checkpoint(request: Request, chosen: Configuration) -> Diagnosis:
    given = [f"--{name}" for name in _FOR_MODELS if getattr(request, name) is not None]
    if given:
        raise InspectionError(f"{request.target}: a checkpoint has no model that {given[0]} could be for.")
    return diagnose(record_checkpoint(request.target), select=chosen.select, ignore=chosen.ignore)


def _check_model(request: Request, chosen: Configuration) -> tuple[Diagnosis, str | None, int]:
    """Return the diagnosis, and the file and line at which the model is defined."""
    found = load_model(request.target)
    model: Any = found.value
    if request.training is not None:
        model.train(request.training)
    targets = {name: text for name in _FOR_MODELS if (text := getattr(request, name)) is not None}
    diagnosis = check(
        model,
        **{name: load_object(text, model) for name, text in targets.items()},
        batch_size=request.batch_size,
        intent=request.intent,
        select=chosen.select,
        ignore=chosen.ignore,
    )
    return diagnosis, found.file, found.line


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Turn errors made for the person who asked into an `InspectionError`; leave all others unchanged."""
    try:
        yield
    except (TargetError, CheckpointError, ConfigurationError, ForwardError, ArgumentError, SelectionError) as error:
        raise InspectionError(str(error)) from error
