"""What a norm is: one value that describes a module, the same for every operation, rule and study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gammabeta.introspection.probed import form_of
from gammabeta.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from gammabeta.layers.form import Form
from gammabeta.layers.group_norm import GroupNorm
from gammabeta.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from gammabeta.layers.layer_norm import LayerNorm
from gammabeta.layers.rms_norm import RMSNorm
from gammabeta.statistics import Running

OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.GroupNorm: GroupNorm,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
}
"""Our class for each of torch's."""
TORCHS = {ours: torchs for torchs, ours in OURS.items()}
"""torch's class for each of ours."""
TORCHS_MODULES = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm", "torch.nn.modules.normalization")
"""Where torch defines its norms and their base classes."""

CLASS, FROZEN, NAME, STATISTICS, PROBE = "class", "frozen", "name", "statistics", "probe"

_SCRIPTED = {cls.__name__ for cls in OURS} | {"SyncBatchNorm"}
_BY_CLASS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.instancenorm._InstanceNorm, "instance"),
    (nn.modules.batchnorm._NormBase, "batch"),
    (nn.GroupNorm, "group"),
    (nn.LayerNorm, "layer"),
    (nn.RMSNorm, "rms"),
)
# Parts of class names, without underscores. "batchnorm" is no part of another.
_BY_NAME = (
    ("rmsnorm", "rms"),
    ("layernorm", "layer"),
    ("groupnorm", "group"),
    ("instancenorm", "instance"),
    ("batchnorm", "batch"),
)
# What other libraries call ε.
_EPSILONS = ("eps", "variance_epsilon", "epsilon", "norm_eps")
_WITH_ACTIVATION = {"drop", "act"}


@dataclass(frozen=True)
class NormAxes:
    """The values of an input that share one mean and one variance.

    Attributes:
        samples: whether all samples of a batch share them, as in BatchNorm.
        groups: how many groups the channels of a sample form. None where each channel has statistics of its own, as in
            BatchNorm and InstanceNorm, and where the module does not say.
        last: how many last axes are normalized together, as in LayerNorm and RMSNorm. 0 in norms of channels, which
            have them on axis 1.
        centered: whether the mean is subtracted. RMSNorm does not.
        pointwise: whether each position has statistics of its own, over the channels on axis 1, as in timm's
            LayerNorm2d.
    """

    samples: bool = False
    groups: int | None = None
    last: int = 0
    centered: bool = True
    pointwise: bool = False

    @property
    def channel(self) -> int | None:
        """The input's axis along which γ and β run; None where they span several."""
        return 1 if self.last == 0 else -1 if self.last == 1 else None


@dataclass(frozen=True)
class NormAffine:
    """γ and β of a norm: y = (offset + weight)·x̂ + bias.

    Attributes:
        weight, bias: the names under which the module holds them; None for what it does not hold.
        offset: what is added to the weight to give γ. 0 in torch's norms and ours; 1 in norms that keep γ − 1, as
            Gemma's. None where it is unknown: a name does not tell, and neither does the class where a subclass has a
            forward of its own.
    """

    weight: str | None
    bias: str | None
    offset: float | None


@dataclass(frozen=True)
class NormLayer:
    """A module described as a norm.

    `known_by` says how far the rest can be trusted. A module of torch's classes or ours computes what they compute,
    unless a subclass has a forward of its own. What a probe showed was computed. The other kinds of evidence are
    hints: an operation that changes such a module first compares what it computes.

    Attributes:
        kind: "batch", "instance", "group", "layer" or "rms"; None where no evidence says.
        known_by: the evidence. `CLASS`: the module is an instance of torch's or our class, or was scripted from one.
            `FROZEN`: its class is called a frozen BatchNorm, as torchvision's, detectron2's and DETR's. `NAME`: a class
            of it is called a norm. `STATISTICS`: it holds a running mean and variance. `PROBE`: a copy of it computed
            one of the known forms on all probes.
        axes: over what it takes statistics; None where the kind is unknown.
        affine: its γ and β.
        eps: ε; None where the module does not say, and for RMSNorm's that is chosen by dtype.
        uses_running: whether evaluation normalizes by running statistics that it holds.
        tracks: whether its running statistics move in training.
        frozen: whether it normalizes by its running statistics in training too: by the source `Running`, or a frozen
            BatchNorm of another library.
        is_ours: whether it is gammabeta's, or a subclass.
        has_activation: whether it applies an activation that it holds as a child, beside `drop`, as timm's BatchNorms.
        scripted: whether it is a module of TorchScript.
    """

    kind: str | None
    known_by: str
    axes: NormAxes | None
    affine: NormAffine
    eps: float | None
    uses_running: bool
    tracks: bool
    frozen: bool
    is_ours: bool
    has_activation: bool
    scripted: bool


def norm_of(module: nn.Module, *, probe: bool = False) -> NormLayer | None:
    """Describe a module as a norm; None where nothing says that it is one.

    Evidence is taken in the order class, frozen BatchNorm, name, running statistics; the first that is found counts.
    Nothing runs, and no parametrization is computed.

    Args:
        module: any module.
        probe: whether to run a copy of a module that has a forward of its own (`probed.form_of`). Where that computes
            a known form, kind, axes, γ and β, and ε are those of the form, whatever the class is called.
    """
    evidence = _evidence(module)
    held = getattr(module, "form", None) if evidence is not None and is_ours(module) else None
    form = held if isinstance(held, Form) else None
    if form is None and probe and _is_worth_a_probe(module, evidence):
        form = form_of(module)
    if form is not None:
        evidence = form.kind, CLASS if is_ours(module) else PROBE
    if evidence is None:
        return None
    kind, known_by = evidence
    frozen = (
        known_by == FROZEN
        or getattr(module, "statistics", None) == Running()
        or (form is not None and form.kind == "batch")
    )
    values = [getattr(module, name, None) for name in _EPSILONS]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    eps = float(numbers[0]) if numbers else None
    return NormLayer(
        kind=kind,
        known_by=known_by,
        axes=_axes(module, kind) if form is None else _axes_of(form),
        affine=_affine(module, known_by) if form is None else NormAffine(form.weight, form.bias, form.offset),
        eps=eps if form is None else getattr(module, form.epsilon or "", form.eps),
        uses_running=_uses_running(module),
        tracks=not frozen
        and getattr(module, "running_mean", None) is not None
        and bool(getattr(module, "track_running_stats", False)),
        frozen=frozen,
        is_ours=is_ours(module),
        has_activation=_has_activation(module, known_by),
        scripted=_is_scripted(module),
    )


def _is_worth_a_probe(module: nn.Module, evidence: tuple[str | None, str] | None) -> bool:
    """Return whether a run can tell more than the class: where the class has a forward that is not torch's or ours."""
    if evidence is None or evidence[1] in (NAME, STATISTICS):
        return True
    known = evidence[1] == CLASS and evidence[0] in ("layer", "rms") and not _is_scripted(module)
    return known and _has_own_forward(type(module))


def _has_own_forward(cls: type[nn.Module]) -> bool:
    """Return whether a subclass of one of torch's norms or ours has a forward of its own."""
    known = (base for base in cls.__mro__ if base in OURS or base in TORCHS or base.__module__ in TORCHS_MODULES)
    base: Any = next(known, cls)
    return cls.forward is not base.forward


def _axes_of(form: Form) -> NormAxes:
    centered = form.kind != "rms"
    if form.kind == "batch":
        return NormAxes(samples=True)
    return NormAxes(last=1, centered=centered) if form.axis == -1 else NormAxes(centered=centered, pointwise=True)


def kind_of(module: nn.Module) -> str | None:
    """Return the kind of a norm; None where the module is none, or of no known kind."""
    evidence = _evidence(module)
    return None if evidence is None else evidence[0]


def is_ours(module: nn.Module) -> bool:
    """Return whether it is a norm of gammabeta's, or of a subclass."""
    return isinstance(module, (_BatchNorm, *TORCHS))


def is_norm(module: nn.Module) -> bool:
    """Return whether it is a norm of torch's or ours, a subclass of one, a scripted one, or a frozen BatchNorm.

    Operations on models look at these only, and give a reason where they leave one unchanged.
    """
    evidence = _evidence(module)
    return evidence is not None and evidence[1] in (CLASS, FROZEN)


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether it is such a norm and a BatchNorm."""
    return _evidence(module) in (("batch", CLASS), ("batch", FROZEN))


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Return whether it is a frozen BatchNorm of another library, by the name of its class."""
    return _evidence(module) == ("batch", FROZEN)


def is_norm_act(module: nn.Module) -> bool:
    """Return whether it is a subclass of torch's BatchNorm2d or SyncBatchNorm that holds its activation."""
    return _has_activation(module, CLASS)


def _evidence(module: nn.Module) -> tuple[str | None, str] | None:
    """Return the kind and what tells it."""
    if _is_scripted(module):
        # The class of a scripted module says nothing; the name of the class that was scripted is kept.
        name = str(getattr(module, "original_name", ""))
        if name in _SCRIPTED:
            return _kind_by_name(name), CLASS
    by_class = next((kind for cls, kind in _BY_CLASS if isinstance(module, cls)), None)
    if by_class is not None:
        return by_class, CLASS
    name = type(module).__name__.lower()
    if "frozen" in name and "batchnorm" in name:
        return "batch", FROZEN
    names = list(_class_names(module))
    named = next((kind for name in names if (kind := _kind_by_name(name)) is not None), None)
    if named is not None and _is_small(module):
        return named, NAME
    if any(name.rstrip("0123456789d").endswith("Norm") for name in names):
        return None, NAME
    return (None, STATISTICS) if _holds_statistics(module) else None


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _class_names(module: nn.Module) -> Iterator[str]:
    """The names of the module's classes, its own first; of a scripted module the one that it had."""
    if _is_scripted(module):
        yield str(getattr(module, "original_name", ""))
        return
    for cls in type(module).__mro__:
        if cls is nn.Module:
            return
        yield cls.__name__


def _kind_by_name(name: str) -> str | None:
    plain = name.lower().replace("_", "")
    return next((kind for part, kind in _BY_NAME if part in plain), None)


def _is_small(module: nn.Module) -> bool:
    """Return whether a module is a weight and a bias of one axis and nothing else: γ and β, by all that can be seen."""
    parameters = dict(module.named_parameters(recurse=False))
    return (
        not any(True for _ in module.children())
        and bool(parameters)
        and set(parameters) <= {"weight", "bias"}
        and all(p.ndim == 1 for p in parameters.values())
    )


def _axes(module: Any, kind: str | None) -> NormAxes | None:
    if kind == "batch":
        return NormAxes(samples=True)
    if kind == "instance":
        return NormAxes()
    if kind == "group":
        return NormAxes(groups=getattr(module, "num_groups", None))
    if kind in ("layer", "rms"):
        shape = getattr(module, "normalized_shape", (0,))
        # Other libraries' norms may hold the size of the last axis itself.
        return NormAxes(last=len(shape) if isinstance(shape, tuple | list) else 1, centered=kind == "layer")
    return None


def _affine(module: nn.Module, known_by: str) -> NormAffine:
    weight, bias = (name if _holds(module, name) else None for name in ("weight", "bias"))
    known = known_by == CLASS and (_is_scripted(module) or not _has_own_forward(type(module)))
    return NormAffine(weight, bias, 0.0 if known else None)


def _holds(module: nn.Module, name: str) -> bool:
    # A parametrized tensor would be computed by a look at it.
    return parametrize.is_parametrized(module, name) or getattr(module, name, None) is not None


def _uses_running(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.track_running_stats
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.running_mean is not None
    return _holds_statistics(module)


def _holds_statistics(module: nn.Module) -> bool:
    """Return whether there are buffers for a running mean and variance of the same channels."""
    if _is_scripted(module):
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    else:
        mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or nn.parameter.is_lazy(mean):
        return False
    return mean.ndim == 1 and mean.shape == var.shape


def _has_activation(module: nn.Module, known_by: str) -> bool:
    if _is_scripted(module) or is_ours(module) or {*module._modules} != _WITH_ACTIVATION:
        return False
    if known_by == FROZEN:
        return True
    # torch's own forward applies no activation, whatever the children are.
    base = nn.BatchNorm2d, nn.SyncBatchNorm
    return isinstance(module, base) and type(module) not in base
