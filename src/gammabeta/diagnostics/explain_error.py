"""Explanations of torch's errors about norms, and of tools that accept only torch's own classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from torch import Tensor, nn

from gammabeta.diagnostics.explained_calls import CALLS, Failure
from gammabeta.diagnostics.explained_inputs import INPUTS
from gammabeta.diagnostics.explained_states import STATES
from gammabeta.introspection.norms import kind_of


@dataclass(frozen=True)
class Explanation:
    """Explanation of one of torch's exceptions.

    Attributes:
        where: the norm's qualified name; "" if it is the model itself, or was not found.
        why: the cause, in a sentence.
        fix: what to do.
    """

    where: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why} {self.fix}" if self.where else f"{self.why} {self.fix}"


def explain_error(exception: BaseException, model: nn.Module | None = None) -> Explanation | None:
    """Say which norm caused one of torch's exceptions, why, and what to do.

    Args:
        exception: the exception as caught, with its traceback: the norm and its input are looked up there.
        model: the model in which the norm gets its name; None takes the outermost module in the traceback.

    Returns:
        The `Explanation`; None if the message is not a known one about norms.
    """
    message = str(exception)
    failure: Failure | None = None
    for pattern, explain in (*CALLS, *INPUTS, *STATES):
        if re.search(pattern, message):
            if failure is None:
                failure = _failure(exception, model)
            explained = explain(failure)
            if explained is not None:
                return Explanation(_name(failure.norm, failure.models), *explained)
    return None


@contextmanager
def explained_errors(model: nn.Module | None = None) -> Iterator[None]:
    """Re-raise torch's normalization errors with an explanation attached; leave all others unchanged.

    The type stays. The explanation is a note (`BaseException.add_note`); on Python 3.10, which has no notes, it is
    appended to the message.

    Args:
        model: the model in which the norm gets its name; None takes the outermost module in the traceback.
    """
    try:
        yield
    except Exception as error:
        explanation = explain_error(error, model)
        if explanation is not None:
            if hasattr(error, "add_note"):
                error.add_note(f"gammabeta: {explanation}")
            else:
                error.args = (f"{error}\ngammabeta: {explanation}",)
        raise


def _failure(exception: BaseException, model: nn.Module | None) -> Failure:
    """Gather what the traceback tells: the innermost norm that was running, its input, and all running modules."""
    failure = Failure(str(exception), raised=exception.__traceback__ is not None)
    if model is not None:
        failure.models.append(model)
    step = exception.__traceback__
    while step is not None:
        values = step.tb_frame.f_locals
        failure.values.append(values)
        for module in _modules_of(step.tb_frame):
            if not isinstance(module, nn.parallel.DistributedDataParallel):
                failure.models.append(module)
            if kind_of(module) is not None:
                failure.norm = module
                given = next((values[n] for n in ("input", "x") if isinstance(values.get(n), Tensor)), None)
                failure.x = given if given is not None else failure.x
        step = step.tb_next
    return failure


def _modules_of(frame: FrameType) -> list[nn.Module]:
    """Return the modules of a frame: the one whose method it is, or those that torch.jit or torch.ao works on."""
    values = frame.f_locals
    about = [values.get("self")]
    if str(frame.f_globals.get("__name__")).startswith("torch."):
        listed = values.get("mod_list")
        about += [values.get("nn_module"), values.get("model"), *(listed if isinstance(listed, list) else [])]
    return [module for module in about if isinstance(module, nn.Module)]


def _name(norm: nn.Module | None, roots: list[nn.Module]) -> str:
    """Return the norm's name in the first module that has it: some tools work on a copy of the model."""
    for root in roots:
        for name, module in root.named_modules():
            if module is norm:
                return str(name)
    return ""
