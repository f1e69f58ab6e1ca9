"""Records, which the rules of the check read: a model's norms and what is known about them.

A rule is a pure function of a `Record`. The norms are always there. Observations on inputs, the optimizers, the loader
and the record of a watched training are there if they were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gammabeta.introspection.norms import NormLayer, norm_of

_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm of a model, or of a checkpoint.

    Attributes:
        name: its qualified name, the first if it has several.
        names: all of its qualified names.
        module: the layer; None in a checkpoint.
        class_name: name of its class; "" in a checkpoint.
        kind: "batch", "layer", "rms", "group", "instance", or "unknown" (in a checkpoint: only γ and β).
        eps: ε; None if it is unknown: in a checkpoint, or in an RMSNorm that takes it from the dtype.
        momentum: torch's momentum. None means an average over all batches, or no running statistics.
        training: whether it is in training mode.
        frozen: whether it normalizes by its running statistics in training too: `Running`, or a FrozenBatchNorm.
        tracks: whether its running statistics move in training.
        weight, bias: γ and β.
        running_mean, running_var, num_batches_tracked: the buffers, if there are any.
        affine_trains: whether γ or β require a gradient; None if there is neither.
        before_trains: whether the last weights registered before it require a gradient; None if there are none.
        around_trains: whether weights of the smallest module around it that has any require a gradient; None if there
            is no such module.
    """

    name: str
    kind: str
    names: tuple[str, ...] = ()
    module: nn.Module | None = None
    class_name: str = ""
    eps: float | None = None
    momentum: float | None = None
    training: bool = False
    frozen: bool = False
    tracks: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None
    affine_trains: bool | None = None
    before_trains: bool | None = None
    around_trains: bool | None = None

    @property
    def has_statistics(self) -> bool:
        """Whether there are a running mean and a running variance with values to look at."""
        return self.running_mean is not None and self.running_var is not None and not self.running_mean.is_meta

    @property
    def has_initial_statistics(self) -> bool:
        """Whether running mean and variance are exactly 0 and 1."""
        if not self.has_statistics:
            return False
        assert self.running_mean is not None
        assert self.running_var is not None
        return not bool(self.running_mean.any()) and bool((self.running_var == 1).all())

    @property
    def batches(self) -> int | None:
        """The value of num_batches_tracked; None if there is none."""
        count = self.num_batches_tracked
        return None if count is None or count.is_meta else int(count)


@dataclass
class Record:
    """What is known about a model.

    Attributes:
        model: the model; None for a checkpoint file.
        norms: its norms, in the order in which they are registered.
        optimizers: the optimizers that train it.
        batch_size: number of samples per batch, if the user says.
        intent: the model's purpose, if the user says: one of `check.INTENTS`.
        inputs: example inputs, as for `observe`.
        forward: `forward(model, batch)`, if batches go through the model in a way of their own.
        loader: an iterable of batches.
        observed: the observation of a forward on the inputs, for rules that see D.
        given: measurements of each BatchNorm's and InstanceNorm's input, call by call, in evaluation.
        given_with_dropout: the same with dropout on, beside it off (`measure`); None if the model has no dropout.
        probe: what further forwards showed (`probe`).
        watched: the record of a watched training, for rules that see W.
        tensors: all tensors of a checkpoint by key; those with several axes may be on the meta device.
    """

    model: nn.Module | None
    norms: tuple[Norm, ...]
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    batch_size: int | None = None
    intent: str | None = None
    inputs: Any = None
    forward: Any = None
    loader: Any = None
    observed: Any = None
    given: Any = None
    given_with_dropout: Any = None
    probe: Any = None
    watched: Any = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def parts(self) -> frozenset[str]:
        """The letters of what can be seen, as in `SEES`: S or F, and D, O, L, W."""
        letters = "F" if self.model is None else "S"
        letters += "D" if self.observed is not None else ""
        letters += "O" if self.optimizers else ""
        letters += "L" if self.loader is not None else ""
        return frozenset(letters + ("W" if self.watched is not None else ""))

    def norm(self, name: str) -> Norm:
        """Return the norm with a qualified name."""
        return next(norm for norm in self.norms if name in norm.names)

    def of_kind(self, *kinds: str) -> Iterator[Norm]:
        """Yield the norms of these kinds."""
        return (norm for norm in self.norms if norm.kind in kinds)


def record_model(model: nn.Module, **parts: Any) -> Record:
    """Record a model, which is only read; `parts` are further fields of `Record`."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    described = {module: norm_of(module, probe=True) for module in names}
    norms = {module: norm for module, norm in described.items() if norm is not None and norm.kind is not None}
    of_norms = {id(p) for module in norms for p in module.parameters()}
    trains = _weights_that_train(model, of_norms)
    before: bool | None = None
    found = []
    for module, known in names.items():
        if module in norms:
            found.append(_norm(module, norms[module], tuple(known), before, _around(known[0], trains)))
        else:
            own = [p.requires_grad for p in module._parameters.values() if p is not None and id(p) not in of_norms]
            before = any(own) if own else before
    return Record(model, tuple(found), **parts)


def record_state(state: Mapping[str, Tensor]) -> Record:
    """Record a checkpoint, whose norms are recognized by their keys.

    Running statistics belong to a BatchNorm (or an InstanceNorm, which looks the same). γ and β without them belong to
    one of the others: the only other layer of torch's with a `weight` of one axis is PReLU, which has no bias.
    """
    found = []
    for key, value in state.items():
        name, dot, last = key.rpartition(".")
        weight, bias, mean, var, count = (state.get(name + dot + part) for part in _KEYS)
        if last == "running_mean":
            norm = Norm(name, "batch", (name,), tracks=True, weight=weight, bias=bias)
            found.append(replace(norm, running_mean=mean, running_var=var, num_batches_tracked=count))
        elif last == "weight" and value.ndim == 1 and mean is None:
            if bias is not None and bias.shape == value.shape:
                found.append(Norm(name, "unknown", (name,), weight=weight, bias=bias))
            elif bias is None and "norm" in name.rpartition(".")[2].lower():
                found.append(Norm(name, "rms", (name,), weight=weight))
    return Record(None, tuple(found), tensors=state)


def _norm(
    module: nn.Module, layer: NormLayer, names: tuple[str, ...], before: bool | None, around: bool | None
) -> Norm:
    assert layer.kind is not None
    affine = list(module.parameters())
    mean, var = _vector(module, "running_mean"), _vector(module, "running_var")
    return Norm(
        name=names[0],
        kind=layer.kind,
        names=names,
        module=module,
        class_name=type(module).__name__,
        eps=layer.eps,
        momentum=getattr(module, "momentum", None),
        training=module.training,
        frozen=layer.frozen,
        tracks=layer.tracks,
        weight=_affine(module, layer.affine.weight),
        bias=_affine(module, layer.affine.bias),
        running_mean=mean,
        running_var=var,
        num_batches_tracked=getattr(module, "num_batches_tracked", None),
        affine_trains=any(p.requires_grad for p in affine) if affine else None,
        before_trains=before,
        around_trains=around,
    )


def _affine(module: nn.Module, name: str | None) -> Tensor | None:
    """Return γ or β by the name that the module has for it; as a vector, where all other axes have the size 1."""
    value = None if name is None else _vector(module, name)
    return value.flatten() if value is not None and max(value.shape, default=1) == value.numel() else value


def _vector(module: nn.Module, name: str) -> Tensor | None:
    if parametrize.is_parametrized(module, name):
        return None  # reading it would compute it
    value = getattr(module, name, None)
    return value.detach() if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) else None


def _weights_that_train(model: nn.Module, of_norms: set[int]) -> dict[str, bool]:
    """Return whether any weight inside a module requires a gradient, for all modules with weights other than norms'."""
    trains: dict[str, bool] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in of_norms:
            while name:
                name = name.rpartition(".")[0]
                trains[name] = trains.get(name, False) or parameter.requires_grad
    return trains


def _around(name: str, trains: Mapping[str, bool]) -> bool | None:
    """Return whether weights of the smallest module around a norm that has any require a gradient."""
    while name:
        name = name.rpartition(".")[0]
        if name in trains:
            return trains[name]
    return None


def channels(values: Sequence[int], most: int = 4) -> str:
    """Format channel numbers for a message: "3, 7, 12 and 5 more"."""
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number of things for a message: "1 forward", "2 forwards"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
