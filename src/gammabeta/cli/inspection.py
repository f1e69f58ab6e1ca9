"""A check as the command line asks for it: load the targets, read the project's configuration, run the rules."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.cli.blame import describe, of_the_user
from gammabeta.cli.configuration import Configuration, ConfigurationError, read_configuration, severity
from gammabeta.diagnostics.check import ArgumentError, ForwardError, check, diagnose
from gammabeta.diagnostics.checkpoint import read_checkpoint
from gammabeta.diagnostics.checkpoints.contents import CheckpointError
from gammabeta.diagnostics.findings import SEVERITIES, Diagnosis
from gammabeta.diagnostics.mistaken import why_no_batch, why_no_loader
from gammabeta.diagnostics.selection import SelectionError, check_patterns
from gammabeta.introspection.forward import BatchError
from gammabeta.target import TargetError, line_of, load_forward, load_model, load_object

# Options of a check that only a model can use.
_FOR_MODELS = ("inputs", "loader", "optimizer", "forward")
# What stands for arguments of `check` that its messages name.
_OPTIONS = {
    "forward=lambda model, batch: …": "--forward file.py:function",
    "forward=": "--forward",
    "loader=": "--loader",
    "inputs or a loader beside batch_size=": "--inputs or --loader beside --batch-size ",
}
# What the names of checkpoints end with, for the message where there is no such file.
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pickle", ".json", ".npz", ".h5", ".onnx")


class InspectionError(ValueError):
    """A check that cannot be run. The message is one sentence for the person who asked."""


@dataclass(frozen=True)
class Request:
    """A command-line check to run.

    Attributes:
        target: a model or a checkpoint file, as `gammabeta check` takes it.
        configuration: what was asked for; what it leaves open comes from pyproject.toml.
        inputs, loader, optimizer, forward: targets.
        batch_size, intent: as for `check`.
        training: the mode that the model is put into first; None leaves its mode.
    """

    target: str
    configuration: Configuration
    inputs: str | None = None
    loader: str | None = None
    optimizer: str | None = None
    forward: str | None = None
    batch_size: int | None = None
    intent: str | None = None
    training: bool | None = None


@dataclass(frozen=True)
class Inspection:
    """Result of a command-line check.

    Attributes:
        diagnosis: the findings.
        failed: whether any finding is as severe as `fail_on` asks.
        target: the target as it was given.
        file, line: where the target is defined, or the checkpoint itself; `file` is None if that is unknown.
        notes: sentences about the target, such as what of a checkpoint was left out.
    """

    diagnosis: Diagnosis
    failed: bool
    target: str
    file: str | None
    line: int
    notes: tuple[str, ...] = ()


def inspect(request: Request) -> Inspection:
    """Check a target; whatever the targets print goes to the standard error.

    Args:
        request: the target and its options.

    Returns:
        The `Inspection`.

    Raises:
        InspectionError: a target cannot be loaded, the configuration is wrong, or the model raises on the inputs.
    """
    targets = [request.target, *(text for name in _FOR_MODELS if (text := getattr(request, name)) is not None)]
    with contextlib.redirect_stdout(sys.stderr), _in_one_sentence(targets):
        chosen = _with_project_defaults(request.configuration)
        check_patterns(chosen.select, chosen.ignore)  # before a model is built
        file: str | None = request.target
        line = 1
        notes: tuple[str, ...] = ()
        if _is_checkpoint(request.target):
            diagnosis, file, notes = _check_checkpoint(request, chosen)
        else:
            diagnosis, file, line = _check_model(request, chosen)
    assert chosen.fail_on is not None
    grave = SEVERITIES[: SEVERITIES.index(chosen.fail_on) + 1]
    failed = any(finding.severity in grave for finding in diagnosis.findings)
    return Inspection(diagnosis, failed, request.target, file, line, notes)


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
    """Return whether a target is a file or a folder, and not package.module:name or file.py:name.

    What exists is a file, whatever its name, but for Python's. What does not exist is one if it looks like a path.
    """
    path = Path(target).expanduser()
    if os.path.lexists(path):
        return path.suffix != ".py"
    looks_like_one = os.sep in target or "/" in target or path.suffix.lower() in _SUFFIXES
    return ":" not in target and looks_like_one and path.suffix != ".py"


def _check_checkpoint(request: Request, chosen: Configuration) -> tuple[Diagnosis, str, tuple[str, ...]]:
    """Return the diagnosis, the file to show it at, and what of the checkpoint was left out."""
    given = [f"--{name}" for name in _FOR_MODELS if getattr(request, name) is not None]
    if given:
        raise InspectionError(f"{request.target}: a checkpoint has no model that {given[0]} could be for.")
    checkpoint = read_checkpoint(Path(request.target).expanduser())
    path = Path(request.target).expanduser()
    file = next(iter(checkpoint.files)) if path.is_dir() else path
    return diagnose(checkpoint.record, select=chosen.select, ignore=chosen.ignore), str(file), checkpoint.notes


def _check_model(request: Request, chosen: Configuration) -> tuple[Diagnosis, str | None, int]:
    """Return the diagnosis, and the file and line at which the model is defined."""
    found = load_model(request.target)
    model: Any = found.value
    if request.training is not None:
        model.train(request.training)
    diagnosis = check(
        model,
        **_given(request, model),
        batch_size=request.batch_size,
        intent=request.intent,
        select=chosen.select,
        ignore=chosen.ignore,
    )
    return diagnosis, found.file, found.line


def _given(request: Request, model: Any) -> dict[str, Any]:
    """Load the options that a model can use, and refuse those of which one holds what another takes."""
    if request.forward is not None and request.inputs is None and request.loader is None:
        raise InspectionError(
            "--forward: expected a batch for it as well, got neither --inputs nor --loader: pass one of them."
        )
    given = {
        name: load_forward(text) if name == "forward" else load_object(text, model)
        for name in _FOR_MODELS
        if (text := getattr(request, name)) is not None
    }
    for name, value in given.items():
        if value is None:
            raise InspectionError(f"--{name}: expected {getattr(request, name)} to return something, got None.")
    if "inputs" in given:
        reason = why_no_batch(model, given["inputs"], given.get("forward"), "--loader")
        if reason is not None:
            raise InspectionError(f"--inputs: expected one batch, got {request.inputs}, {reason}.")
    if "loader" in given:
        reason = why_no_loader(given["loader"], "--inputs")
        if reason is not None:
            raise InspectionError(f"--loader: expected batches, got {request.loader}, {reason}.")
    return given


@contextlib.contextmanager
def _in_one_sentence(targets: Sequence[str]) -> Iterator[None]:
    """Turn errors made for the person who asked, and those of their code, into an `InspectionError`."""
    try:
        yield
    except (TargetError, CheckpointError, ConfigurationError, SelectionError) as error:
        raise InspectionError(str(error)) from error
    except (ForwardError, ArgumentError, BatchError) as error:
        text = str(error)
        for argument, option in _OPTIONS.items():
            text = text.replace(argument, option)
        raise InspectionError(text) from error
    except InspectionError:
        raise
    except SystemExit as error:
        raise InspectionError(
            f"your code calls sys.exit({error.code!r}){line_of(error)}: leave that out where the check runs it."
        ) from error
    except Exception as error:
        place = of_the_user(error, targets)
        if place is None:
            raise
        raise InspectionError(
            f"your code raised {describe(error).rstrip('.')} ({place}): mend it, and check again."
        ) from error
