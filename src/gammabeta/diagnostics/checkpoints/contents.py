"""What a checkpoint file holds: its vectors, and what was left out with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# No norm has more channels. A longer vector is a flat buffer of an optimizer or of sharded training.
_LONGEST = 10_000_000
# More tensors than any model has, and mappings nested more deeply than any checkpoint's.
LARGEST_COUNT, _DEEPEST = 1_000_000, 100
_LONG = f"vector of over {_LONGEST:,} values"
_VECTORS = ("weight", "bias", "running_mean", "running_var")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint. The message is one sentence for the person who named it."""


@dataclass
class Array:
    """A NumPy array in a pickle, which becomes a tensor when its values arrive."""

    tensor: Tensor


@dataclass
class Contents:
    """The vectors of a checkpoint, which are all that norms store.

    Attributes:
        vectors: the tensors with at most one axis, by key.
        matrices: the tensors of floats with several axes, by key: mapped from the file where that can be done, so that
            they are read only where they are looked at.
        keys: the keys of all tensors in the file.
        tensors: number of all tensors in the file.
        left_out: number of vectors that no rule can read, by what they are ("quantized tensor").
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[str, Tensor] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    tensors: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, key: str, tensor: Tensor) -> None:
        """Take a tensor in: a vector that rules can read is kept, another is counted."""
        self.keys.add(key)
        self.tensors += 1
        kind = _unreadable(tensor)
        if tensor.ndim > 1:
            # Repeated values would take longer to look at than the file is large.
            if tensor.dtype in _FLOATS and kind in (None, _LONG) and _is_stored(tensor):
                self.matrices[printable(key)] = tensor.detach()
            return
        if kind is None:
            self.vectors[printable(key)] = tensor.detach()
        else:
            self.left_out[kind] += 1

    def merge(self, other: Contents) -> None:
        """Take in the contents of another file of the same checkpoint."""
        self.vectors.update(other.vectors)
        self.matrices.update(other.matrices)
        self.keys |= other.keys
        self.tensors += other.tensors
        self.left_out.update(other.left_out)

    def norms(self) -> dict[str, Tensor]:
        """Return the vectors without those of layers whose vectors do not belong together, which are counted."""
        layers: dict[str, list[str]] = {}
        for key in self.vectors:
            name, _, last = key.rpartition(".")
            if last in (*_VECTORS, "num_batches_tracked"):
                layers.setdefault(name, []).append(key)
        state = dict(self.vectors)
        for keys in layers.values():
            layer = {key.rpartition(".")[2]: state[key] for key in keys}
            kind = _incoherent(layer)
            if kind is not None:
                self.left_out[kind] += 1
                for key in keys:
                    del state[key]
        return state


def printable(text: str) -> str:
    """Return a text with its control characters and lone surrogates as escapes, which a terminal does not obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, as which Python has the bytes of a name that is no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def flatten(value: Any, file: str, contents: Contents) -> None:
    """Add the tensors in nested mappings to the contents, their keys joined by dots.

    Raises:
        CheckpointError: the mappings are nested too deeply, contain themselves, or hold too much.
    """
    pending: list[tuple[str, Any, int]] = [("", value, 0)]
    visited = 0
    while pending:
        prefix, item, depth = pending.pop()
        visited += 1
        if depth > _DEEPEST or visited > LARGEST_COUNT or len(prefix) > 10_000:
            raise CheckpointError(
                f"{file}: expected a state_dict, got dicts inside dicts without an end, or over {LARGEST_COUNT:,} "
                "entries: this is no model's checkpoint."
            )
        if isinstance(item, Array):
            item = item.tensor
        if isinstance(item, Tensor):
            contents.add(prefix, item)
        elif isinstance(item, Mapping):
            inner = [(f"{prefix}.{key}" if prefix else key, part) for key, part in item.items() if isinstance(key, str)]
            pending += [(key, part, depth + 1) for key, part in reversed(inner)]


def _is_stored(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _unreadable(tensor: Tensor) -> str | None:
    """Return what a vector is if no rule can read it: "quantized tensor"; None if rules can."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"{type(tensor).__name__}"
    if tensor.is_quantized:
        return "quantized tensor"
    if tensor.layout != torch.strided:
        return "sparse tensor"
    if tensor.is_nested:
        return "nested tensor"
    if tensor.is_meta:
        return "vector without values"
    if tensor.is_complex():
        return "complex tensor"
    if tensor.numel() > _LONGEST:
        return _LONG
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        return "8-bit vector"
    return None


def _incoherent(layer: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a layer's vectors, if they cannot be those of one norm."""
    if "running_mean" not in layer and "running_var" not in layer:
        # A layer without statistics: a norm if weight and bias are vectors of floats.
        weight = layer.get("weight")
        if weight is None or weight.ndim != 1 or weight.shape != layer.get("bias", weight).shape:
            return None
        floats = weight.dtype in _FLOATS and layer.get("bias", weight).dtype in _FLOATS
        return None if floats else "layer whose vectors are no floats"
    vectors = [layer[name] for name in _VECTORS if name in layer]
    if any(vector.ndim != 1 or vector.dtype not in _FLOATS for vector in vectors):
        return "layer whose vectors are no floats"
    if len({len(vector) for vector in vectors}) > 1:
        return "layer whose vectors differ in length"
    count = layer.get("num_batches_tracked")
    if count is not None and (count.numel() != 1 or not bool(torch.isfinite(count).all())):
        return "layer whose num_batches_tracked is no number"
    return None
