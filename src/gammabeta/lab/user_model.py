"""The user's model: the function that ``--model`` names, what it builds, and one rehearsal before anything is trained.

Every kind of data states its own :class:`Contract`: what the function is given, and what its model takes and returns.
Arguments that the target adds, as in ``net.py:build(width=64)``, are passed by name.
"""

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gammabeta.lab.comparison import kept_bytes
from gammabeta.lab.model_identity import fingerprint, weights
from gammabeta.lab.task import TaskError
from gammabeta.target import Function, TargetError, load_function

# Batches of the rehearsal. The second is there to find models for one size of batch.
SIZES = (8, 5)


@dataclass(frozen=True)
class Contract:
    """What a user's function is given for one task, and what its model takes and returns.

    Attributes:
        given: the function's positional arguments before ``norm``, by the names that errors and documentation use.
        norm: makes a layer of an arm: ``norm(arm, *arguments)``, where the user's function gives the arguments.
        put: puts an arm's layers in place of the BatchNorms of a model whose function does not take ``norm``; None
            where the function must take it.
        inputs: the model's inputs for a number of samples.
        scores: the shape of the model's output for these inputs.
        loss: of such an output, against the samples' labels.
        hint: what to do about an output of another type.
    """

    given: dict[str, Any]
    norm: Callable[..., nn.Module]
    put: Callable[[str, nn.Module, str], None] | None
    inputs: Callable[[int], tuple[Tensor, ...]]
    scores: Callable[[int], tuple[int, ...]]
    loss: Callable[[Tensor, int], Tensor]
    hint: str = "wrap the model in one whose forward returns only the scores"

    @property
    def forms(self) -> str:
        """The forms of the function."""
        names = ", ".join(self.given)
        return f"build({names}, norm)" + (f" or build({names})" if self.put else "")


def load_builder(target: str) -> Function:
    """Import the function that ``target`` names.

    Raises:
        TaskError: it cannot be imported, does not exist, or cannot be called.
    """
    if ":" not in target:
        raise TaskError(f"--model {target}: expected package.module:function or file.py:function.")
    try:
        return load_function(target)
    except TargetError as error:
        raise TaskError(f"--model {error}") from error


def takes_norm(builder: Callable[..., Any], arguments: dict[str, Any] | None = None, given: int = 2) -> bool:
    """Whether a user's function takes ``norm``: it has a parameter of that name, or one more without a default.

    Args:
        arguments: those that the target gives by name.
        given: the number of positional arguments before ``norm``.

    Raises:
        TypeError: it takes neither that many arguments nor one more.
    """
    try:
        signature = inspect.signature(builder)
    except ValueError:  # builtins
        return True
    arguments = arguments or {}
    parameters = list(signature.parameters.values())
    if "norm" in signature.parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    for count in (given, given + 1):
        try:
            signature.bind(*range(count), **arguments)
        except TypeError:
            continue
        return count > given
    raise TypeError(f"{getattr(builder, '__name__', 'build')}{signature}")


def build(target: str, contract: Contract, arm: str, seed: int) -> nn.Module:
    """Build the user's model with an arm's norms, in training mode, initialized by ``seed``.

    Raises:
        TaskError: the function or its model breaks the contract.
    """
    function = load_builder(target)
    with _seeded(seed):
        model = _call(target, function, contract, arm, [])
        _materialize(target, model, contract)
    if contract.put is not None and not _with_norm(target, function, contract):
        contract.put(target, model, arm)
    return model.train()


def user_network(target: str, contract: Contract, arm: str) -> dict[str, str]:
    """Rehearse what trials do with the user's model, and return what identifies it in a trial's settings.

    Args:
        arm: the usual norm, with which the model is rehearsed.

    Raises:
        TaskError: the contract is not kept, or the model cannot be trained; the message says where.
    """
    function = load_builder(target)
    with torch.random.fork_rng(devices=[]):
        made: list[nn.Module] = []
        with _seeded(0):
            first = _call(target, function, contract, arm, made)
        if _with_norm(target, function, contract):
            _check_norms(target, first, made)
        one, other = (build(target, contract, arm, 0) for _ in range(2))
        if weights(one) != weights(other):
            raise TaskError(
                f"--model {target}: expected the same weights whenever torch, numpy and random are seeded alike, got "
                "others: seed what else the function draws with, or return the model anew in each call."
            )
        identity = fingerprint(function.module, one, other)
        rehearse(target, one, contract)
    return {"kind": "user", "model": function.text, "fingerprint": identity}


def rehearse(target: str, model: nn.Module, contract: Contract) -> None:
    """Do once what trials do: forward and backward on two sizes of batch, evaluation, and count the bytes kept.

    Raises:
        TaskError: one of these fails, or what it computes is not finite.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError(
            f"--model {target}: expected parameters that can be trained, got none whose requires_grad is True: do not "
            "freeze them in the function."
        )
    before = None
    for size in SIZES:
        scores = _scores(target, model.train(), contract, size, before)
        if not bool(torch.isfinite(scores).all()):
            raise TaskError(
                f"--model {target}: expected finite scores before training, got NaN or infinity for a batch of {size}: "
                "look for a division by zero, a logarithm, or weights that are not initialized."
            )
        _differentiate(target, model, contract.loss(scores, size), finite=True)
        before = size
    _count_and_evaluate(target, model, contract)


def try_once(target: str, model: nn.Module, contract: Contract) -> None:
    """Do once what trials do, on one batch, whatever the values are.

    Raises:
        TaskError: some pass fails.
    """
    scores = _scores(target, model.train(), contract, SIZES[0], None)
    _differentiate(target, model, contract.loss(scores, SIZES[0]), finite=False)
    _count_and_evaluate(target, model, contract)


def _count_and_evaluate(target: str, model: nn.Module, contract: Contract) -> None:
    size = SIZES[0]
    try:
        kept_bytes(model, lambda: contract.loss(model(*contract.inputs(size)), size))
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"--model {target}: the bytes that a forward pass keeps cannot be counted: {in_one_line(error)}."
        ) from error
    with torch.no_grad():
        _scores(target, model.eval(), contract, SIZES[-1], None)
    model.train()


def in_one_line(error: BaseException) -> str:
    """Return the error in one line, without a full stop."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(".: ")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch, and numpy and random too for as long as the function runs."""
    states = random.getstate(), np.random.get_state()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _check_arguments(target: str, function: Function, contract: Contract) -> None:
    """Check that the arguments in the target are the function's, and not those that the study gives."""
    try:
        parameters = inspect.signature(function.value).parameters
    except ValueError:
        return
    own = list(parameters)[: len(contract.given)]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in function.arguments:
        if name in (*own, *contract.given, "norm"):
            raise TaskError(
                f"--model {target}: expected arguments that the study does not give, got {name}: leave it out, or "
                "write another function that sets it."
            )
        if name not in parameters and not anything:
            raise TaskError(
                f"--model {target}: {function.name} has no argument {name}: it has {', '.join(parameters) or 'none'}."
            )


def _with_norm(target: str, function: Function, contract: Contract) -> bool:
    _check_arguments(target, function, contract)
    try:
        found = takes_norm(function.value, function.arguments, len(contract.given))
    except TypeError as error:
        raise TaskError(f"--model {target}: expected a function {contract.forms}, got {error}.") from error
    if not found and contract.put is None:
        signature = inspect.signature(function.value)
        raise TaskError(f"--model {target}: expected a function {contract.forms}, got {function.name}{signature}.")
    return found


def _call(target: str, function: Function, contract: Contract, arm: str, made: list[nn.Module]) -> nn.Module:
    """Call the user's function and return its model; the norms that it asked for are appended to ``made``."""

    def norm_of_arm(*arguments: Any, **options: Any) -> nn.Module:
        made.append(contract.norm(arm, *arguments, **options))
        return made[-1]

    with_norm = _with_norm(target, function, contract)
    arguments = dict(function.arguments)
    positional = list(contract.given.values())
    words = [str(value) for value in positional] + ["norm"] * with_norm
    words += [f"{name}={value!r}" for name, value in arguments.items()]
    called = f"build({', '.join(words)})"
    if with_norm and _has(function.value, "norm"):
        arguments = {"norm": norm_of_arm, **arguments}
    elif with_norm:
        positional.append(norm_of_arm)
    try:
        model = function.value(*positional, **arguments)
    except (Exception, SystemExit) as error:
        raise TaskError(f"--model {target}: {called} raised {in_one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise TaskError(f"--model {target}: expected {called} to return an nn.Module, got {type(model).__name__}.")
    return model


def _has(builder: Callable[..., nn.Module], name: str) -> bool:
    try:
        return name in inspect.signature(builder).parameters
    except ValueError:
        return False


def _materialize(target: str, model: nn.Module, contract: Contract) -> None:
    """Give lazy layers their shapes by one forward pass in evaluation."""
    if not _lazy(model):
        return
    with torch.no_grad():
        _scores(target, model.eval(), contract, SIZES[0], None)
    left = _lazy(model)
    if left:
        raise TaskError(
            f"--model {target}: expected every lazy layer to be called in forward, which gives it its shape; "
            f"{', '.join(left)} was not: leave it out, or write its number of inputs."
        )


def _lazy(model: nn.Module) -> list[str]:
    return [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]


def _check_norms(target: str, model: nn.Module, made: list[nn.Module]) -> None:
    """Check that all layers made by norm(channels) are part of the model."""
    if not made:
        raise TaskError(f"--model {target}: norm was never called; put norm(channels) where the model normalizes.")
    if not set(made) <= set(model.modules()):
        raise TaskError(f"--model {target}: a layer made by norm(channels) is not part of the model that was returned.")


def _scores(target: str, model: nn.Module, contract: Contract, size: int, before: int | None) -> Tensor:
    """Return the model's scores for a batch; ``before`` is another size that it has taken."""
    given = contract.inputs(size)
    inputs = tuple(tensor.clone() for tensor in given)
    try:
        scores = model(*inputs)
    except (Exception, SystemExit) as error:
        mode = "" if model.training else " in evaluation"
        works = "" if before is None else f"; a batch of {before} it takes: write forward for every size"
        raise TaskError(
            f"--model {target}: the model does not take a batch of shape {tuple(inputs[0].shape)}{mode}: "
            f"{in_one_line(error)}{works}."
        ) from error
    expected = contract.scores(size)
    if not isinstance(scores, Tensor):
        raise TaskError(
            f"--model {target}: expected scores of shape {expected} for a batch of {size}, got "
            f"{type(scores).__name__}: {contract.hint}."
        )
    if tuple(scores.shape) != expected:
        raise TaskError(
            f"--model {target}: expected scores of shape {expected} for a batch of {size}, got {tuple(scores.shape)}."
        )
    if not all(torch.equal(before, after) for before, after in zip(given, inputs, strict=True)):
        raise TaskError(
            f"--model {target}: expected a forward that leaves its inputs as they are, got one that changes them in "
            "place: other networks are trained on the same data, so leave out inplace=True on the input, or clone it."
        )
    return scores


def _differentiate(target: str, model: nn.Module, loss: Tensor, *, finite: bool) -> None:
    """Run the backward pass, and check that it reaches parameters, where asked with finite gradients."""
    if not loss.requires_grad:
        raise TaskError(
            f"--model {target}: expected scores that depend on parameters, got none with a gradient: leave out "
            "torch.no_grad and detach in forward."
        )
    model.zero_grad()
    try:
        loss.backward()
    except (Exception, SystemExit) as error:
        raise TaskError(f"--model {target}: the backward pass raised {in_one_line(error)}.") from error
    reached = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    wrong = next((name for name, grad in reached.items() if not bool(torch.isfinite(grad).all())), None)
    if not reached:
        raise TaskError(
            f"--model {target}: expected gradients of the model's parameters, got none: leave out torch.no_grad and "
            "detach in forward."
        )
    if finite and wrong is not None:
        raise TaskError(
            f"--model {target}: expected finite gradients before training, got NaN or infinity in that of {wrong}: "
            "look for a square root or a norm at zero, or for weights that are not initialized."
        )
