"""What torch's messages about the state_dicts of norms mean: keys that do not fit, and averages that fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gammabeta.diagnostics.explained_calls import Explain, Failure
from gammabeta.introspection.norms import kind_of

_STATISTICS = ("running_mean", "running_var")
_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class _Keys:
    """The keys that `load_state_dict` complained about, by what was wrong with them.

    Attributes:
        missing, unexpected: those that only the model has, and only the checkpoint.
        sizes: those of different shapes, each with the checkpoint's and the model's.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sizes: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, message: str) -> _Keys:
        """Read them from the message."""

        def listed(title: str) -> tuple[str, ...]:
            found = re.search(rf"{title} key\(s\) in state_dict: (.*?)\. ?(\n|$)", message)
            return tuple(re.findall(r'"([^"]+)"', found[1])) if found is not None else ()

        sizes = re.findall(
            r"size mismatch for (\S+): copying a param with shape torch.Size\(\[([\d, ]*)\]\) from checkpoint, the "
            r"shape in current model is torch.Size\(\[([\d, ]*)\]\)",
            message,
        )
        return cls(listed("Missing"), listed("Unexpected"), {key: (theirs, ours) for key, theirs, ours in sizes})

    @property
    def every(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.missing, *self.unexpected, *self.sizes)


def _loading(failure: Failure) -> tuple[str, str] | None:
    """Explain keys of norms that do not fit; None where keys of other layers do not fit either."""
    keys = _Keys.of(failure.message)
    model = next((m for m in failure.models if not keys.missing or _module(m, keys.missing[0]) is not None), None)
    counted = {key.rpartition(".")[0] for key in keys.every if _leaf(key) in (*_STATISTICS, _COUNT)}
    norms = {key for key in keys.every if key.rpartition(".")[0] in counted or _of_norm(model, key)}
    # A convolution before a norm has no bias; where the norm was folded into it, it has one.
    others = [key for key in keys.every if key not in norms and _leaf(key) != "bias"]
    if not norms or others:
        return None
    first = next(key for key in keys.every if key in norms)
    module = None if model is None else _module(model, first)
    failure.norm = module
    name = first.rpartition(".")[0] or "the model"
    count = len({key.rpartition(".")[0] for key in norms})
    who = name if count == 1 else f"{name} and {count - 1} more"
    leaves = [{_leaf(key) for key in part if key in norms} for part in (keys.missing, keys.unexpected)]
    return (
        _sizes(keys, norms)
        or _renamed(who, *leaves)
        or _missing(who, leaves[0], bool(keys.unexpected))
        or _unexpected(who, leaves[1], module)
    )


def _renamed(who: str, missing: set[str], unexpected: set[str]) -> tuple[str, str] | None:
    """Explain γ and β under TensorFlow's names."""
    names = {"weight": "gamma", "bias": "beta"}
    if not missing or missing - names.keys() or {names[leaf] for leaf in missing} != unexpected:
        return None
    theirs = " and ".join(names[leaf] for leaf in sorted(missing, reverse=True))
    return (
        f"the checkpoint has {theirs} for {who}, the model's {_names(missing)} under TensorFlow's names.",
        "Rename them: {re.sub(r'\\bgamma$', 'weight', re.sub(r'\\bbeta$', 'bias', key)): value for key, value in "
        "state_dict.items()}.",
    )


def _sizes(keys: _Keys, norms: set[str]) -> tuple[str, str] | None:
    key = next((key for key in keys.sizes if key in norms), None)
    if key is None:
        return None
    theirs, ours = keys.sizes[key]
    return (
        f"{key} has shape ({theirs}) in the checkpoint and ({ours}) in the model.",
        "Build the model with as many channels as the one that wrote the checkpoint. strict=False does not help: sizes "
        "are compared all the same.",
    )


def _missing(who: str, leaves: set[str], unexpected: bool) -> tuple[str, str] | None:
    if leaves == {_COUNT}:
        return (
            f"the checkpoint has no {_COUNT} for {who}: it comes from before torch 0.4.1, or from a converter.",
            "Only momentum=None and the checks read this number. Load with strict=False, which keeps the model's own, "
            "or add it to the state_dict: torch.zeros((), dtype=torch.int64).",
        )
    if leaves & set(_STATISTICS):
        return (
            f"the model keeps running statistics in {who}, and the checkpoint has none: there the norm was of another "
            "kind (GroupNorm, LayerNorm), was built with track_running_stats=False, or was folded into its neighbour.",
            "Build the model as it was when the checkpoint was written. Or load with strict=False, and then measure "
            "them: gammabeta.recalibrate(model, batches).",
        )
    if leaves and not unexpected:
        return (
            f"the model has {_names(leaves)} in {who}, and the checkpoint does not: there the norm was built without "
            "(affine=False, elementwise_affine=False or bias=False).",
            "Build the norm without them, too. Or load with strict=False: a weight of 1 and a bias of 0, as "
            "constructed, compute the same.",
        )
    return None


def _unexpected(who: str, leaves: set[str], module: nn.Module | None) -> tuple[str, str] | None:
    if leaves & {*_STATISTICS, _COUNT}:
        kind = "" if module is None else f" (a {type(module).__name__})"
        return (
            f"the checkpoint has running statistics for {who}{kind}, and the model keeps none there: its norm is of "
            "another kind, has track_running_stats=False, or was folded.",
            "Load into the model as it was when the checkpoint was written, and change it afterwards: "
            "gammabeta.convert(model, …), gammabeta.fold(model, inputs).",
        )
    if leaves:
        return (
            f"the checkpoint has {_names(leaves)} for {who}, and the model does not: its norm was built without "
            "(affine=False, elementwise_affine=False or bias=False).",
            "Build it with them. strict=False would drop what was trained.",
        )
    return None


def _averaging(failure: Failure) -> tuple[str, str] | None:
    """Explain an average of state_dicts that stumbled over an integer; None where no such entry is in sight."""
    model = next((m for m in failure.models if any(n.endswith(_COUNT) for n, _ in m.named_buffers())), None)
    if model is None and not any(_mentions_count(value) for values in failure.values for value in values.values()):
        return None
    failure.norm = None
    return (
        f"{_COUNT} of a BatchNorm is an integer (int64), which cannot take the fractions of an average.",
        "Average only the floating point entries, and take the norms' running statistics from "
        "gammabeta.merge_statistics(state_dicts): averages of variances leave out the variance between the means.",
    )


def _mentions_count(value: Any) -> bool:
    """Return whether a local variable is such a key, or a state_dict, a list of them or a model with one."""
    if isinstance(value, str):
        return value.endswith(_COUNT)
    if isinstance(value, Mapping):
        return any(isinstance(key, str) and key.endswith(_COUNT) for key in value)
    if isinstance(value, nn.Module):
        return any(name.endswith(_COUNT) for name, _ in value.named_buffers())
    return isinstance(value, list | tuple) and any(_mentions_count(item) for item in value[:1])


def _module(model: nn.Module, key: str) -> nn.Module | None:
    return dict(model.named_modules()).get(key.rpartition(".")[0])


def _of_norm(model: nn.Module | None, key: str) -> bool:
    module = None if model is None else _module(model, key)
    return module is not None and kind_of(module) is not None


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _names(leaves: set[str]) -> str:
    return " and ".join(sorted(leaves, reverse=True))


STATES: tuple[tuple[str, Explain], ...] = (
    (r"Error\(s\) in loading state_dict for", _loading),
    (
        r"can't be cast to the desired output type Long|could not infer output dtype.*Got: Long|"
        r'"lerp_\w+" not implemented for \'Long\'',
        _averaging,
    ),
)
