"""A check as the command line asks for it: targets loaded, the project's configuration read, the rules run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.cli.configuration import Configuration, ConfigurationError, configuration, severity
from gammabeta.diagnostics.check import ArgumentError, ForwardError, check, diagnose
from gammabeta.diagnostics.checkpoint import SUFFIXES, CheckpointError, record_checkpoint
from gammabeta.diagnostics.findings import SEVERITIES, Diagnosis
from gammabeta.diagnostics.selection import SelectionError, check_patterns
from gammabeta.target import TargetError, load_model, load_object


class InspectionError(ValueError):
    """What was asked for cannot be checked. The message is one sentence for the person who asked."""


@dataclass(frozen=True)
class Inspection:
    """What came of it.

    Attributes:
        diagnosis: the findings.
        failed: whether any is as severe as asked.
        file, line: where the target is defined, or the checkpoint itself; None where nobody knows.
    """

    diagnosis: Diagnosis
    failed: bool
    file: str | None
    line: int


def inspect(
    target: str,
    given: Configuration,
    *,
    inputs: str | None = None,
    loader: str | None = None,
    optimizer: str | None = None,
    batch_size: int | None = None,
    intent: str | None = None,
    training: bool | None = None,
) -> Inspection:
    """Checks a target; what the targets print goes to the standard error.

    Args:
        target: a model or a checkpoint file, as `gammabeta check` takes it.
        given: what was asked for; the rest is taken from pyproject.toml.
        inputs, loader, optimizer: targets.
        batch_size, intent: as `check` takes them.
        training: the mode that the model is put in first; None leaves it.

    Returns:
        The `Inspection`.

    Raises:
        InspectionError: a target cannot be loaded, the configuration is wrong, or the model raises on the inputs.
    """
    with contextlib.redirect_stdout(sys.stderr), _in_one_sentence():
        project = configuration(Path.cwd())
        select = project.select if given.select is None else given.select
        ignore = project.ignore if given.ignore is None else given.ignore
        fail_on = "error"
        if given.fail_on is not None:
            fail_on = severity(given.fail_on, "--fail-on")
        elif project.fail_on is not None:
            fail_on = project.fail_on
        check_patterns(select, ignore)  # before a model is built
        file: str | None = target
        line = 1
        options: dict[str, Any] = {"inputs": inputs, "loader": loader, "optimizer": optimizer}
        if ":" not in Path(target).name and (target.endswith(SUFFIXES) or Path(target).is_file()):
            told = [f"--{name}" for name, value in options.items() if value is not None]
            if told:
                raise InspectionError(f"{target}: a checkpoint has no model that {told[0]} could be for.")
            diagnosis = diagnose(record_checkpoint(target), select=select, ignore=ignore)
        else:
            found = load_model(target)
            model, file, line = found.value, found.file, found.line
            if training is not None:
                model.train(training)
            loaded = {name: load_object(text, model) for name, text in options.items() if text is not None}
            diagnosis = check(model, **loaded, batch_size=batch_size, intent=intent, select=select, ignore=ignore)
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return Inspection(diagnosis, any(finding.severity in grave for finding in diagnosis.findings), file, line)


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    try:
        yield
    except (TargetError, CheckpointError, ConfigurationError, ForwardError, ArgumentError, SelectionError) as error:
        raise InspectionError(str(error)) from error
