"""A forward in which what norms hand on is not kept for backward, but made again from what the norms keep.

Two of torch's mechanisms meet here. A dispatch mode sees every operation and notes which tensors can be made again at
little cost: a norm's output, from its input and statistics; what elementwise operations make of it; the sum with a
residual. A hook on saved tensors then keeps, in place of such a tensor, how to make it. Tensors are told apart by
storage and version, so it does not matter which code calls an operation.

Nothing is kept for this that was not kept before: a norm's input and statistics are saved by the norm itself, and any
other operand must be made again too, be saved already, or be small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from gammabeta._torch_private import TorchDispatchMode, storage_address, top_saved_tensor_hooks
from gammabeta.surgery.remade import Kept, Reader, Remade

# At most so many blocks of a residual network are made again one from another. While backward passes through them, the
# outputs of all of them are held.
_DEPTH = 8
# An operand with so many times fewer elements than the result is copied, and so needs to be saved by nobody else.
_SMALL = 16

_aten, _ours = torch.ops.aten, torch.ops.gammabeta


class Again(NamedTuple):
    """How a norm's output is made again.

    Attributes:
        op: the operation whose first result it is.
        args: its arguments.
        saved: those of its tensors that the norm saves for its own backward.
    """

    op: Any
    args: tuple[Any, ...]
    saved: tuple[Tensor, ...]


def _channel_norm(args: Any, results: Any) -> Again:
    x, weight, bias, residual, *rest = args
    _y, mean, var, _count = results
    return _channel_apply((x, mean, var, weight, bias, residual, *rest), results)._replace(saved=(x, mean, var))


def _channel_apply(args: Any, results: Any) -> Again:
    return Again(_ours.channel_apply_forward.default, tuple(args), (args[0],))


def _sample_norm(args: Any, results: Any) -> Again:
    return Again(_ours.sample_norm_forward.default, tuple(args), (args[0],))


def _add_sample_norm(args: Any, results: Any) -> Again:
    _x, _residual, channels, weight, bias, eps, center = args
    total = results[1]
    axes = total.ndim - channels, channels, 1
    again = total, *axes, weight, bias, None, None, eps, "none", 0.0, center
    return Again(_ours.sample_norm_forward.default, again, (total,))


def _torchs(op: Any) -> Callable[[Any, Any], Again]:
    return lambda args, results: Again(op, tuple(args), (args[0],))


def _torchs_batch_norm(op: Any) -> Callable[[Any, Any], Again]:
    def again(args: Any, results: Any) -> Again:
        x, weight, bias, mean, var, training, *rest = args
        # The statistics are taken again from x, and none is moved a second time.
        running = (None, None) if training else (mean, var)
        return Again(op, (x, weight, bias, *running, training, *rest), (x,))

    return again


_NORMS: dict[Any, Callable[[Any, Any], Again]] = {
    _ours.channel_norm_forward.default: _channel_norm,
    _ours.channel_apply_forward.default: _channel_apply,
    _ours.sample_norm_forward.default: _sample_norm,
    _ours.add_sample_norm_forward.default: _add_sample_norm,
    **{
        op: _torchs_batch_norm(op)
        for op in (
            _aten.native_batch_norm.default, _aten.cudnn_batch_norm.default, _aten.miopen_batch_norm.default,
        )
    },
    **{
        op: _torchs(op)
        for op in (
            _aten.native_layer_norm.default, _aten.native_group_norm.default, _aten._fused_rms_norm.default,
        )
    },
}  # fmt: skip


def _with_in_place(names: tuple[str, ...], overload: str) -> set[Any]:
    """Return operations and the same in place."""
    packets = [getattr(_aten, n) for name in names for n in (name, name + "_") if hasattr(_aten, n)]
    return {getattr(packet, overload) for packet in packets if overload in packet.overloads()}


_ELEMENTWISE = _with_in_place(
    (
        "relu", "hardtanh", "leaky_relu", "silu", "hardswish", "gelu", "elu", "mish", "sigmoid", "tanh", "hardsigmoid",
        "clone", "_to_copy", "constant_pad_nd",
    ),
    "default",
) | _with_in_place(("add", "sub", "mul"), "Tensor")  # fmt: skip

# By itself it is the last step of an RMSNorm that is written out, x·(1/√(mean(x²) + ε)), and saves x.
_MULTIPLY = _aten.mul.Tensor


class _Noted(NamedTuple):
    """A tensor that can be made again.

    Attributes:
        storage: as long as this refers to it, its address is given to no other.
        version: the one that it has after the operation.
        geometry: shape, strides, offset and dtype.
        remade: how it is made.
    """

    storage: StorageWeakRef
    version: int
    geometry: tuple[Any, ...]
    remade: Remade


class _Saved(NamedTuple):
    """A tensor that is kept for backward."""

    storage: StorageWeakRef
    version: int
    nbytes: int


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _is_plain(tensor: Any) -> bool:
    """Return whether a tensor has a storage with its elements, a version, and no meaning beyond them."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.is_inference())
    )


class Remaking(TorchDispatchMode):
    """What one forward has noted; `remaking()` runs a forward under it."""

    supports_higher_order_operators = True

    def __init__(self, *, remake: bool = True, count: bool = False) -> None:
        """`remake`: False keeps everything. `count`: whether small tensors are counted as well."""
        super().__init__()
        self._remake, self._count = remake, count
        # By the storage's address.
        self._noted: dict[int, _Noted] = {}
        self._saved: dict[int, _Saved] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Return True: compiled parts of a model stay compiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _NORMS:
            if self._in_force() and all(_is_plain(a) for a in args if isinstance(a, Tensor)):
                self._note_norm(_NORMS[func](args, result), result if isinstance(result, Tensor) else result[0])
        elif func in _ELEMENTWISE and self._in_force():
            self._note_elementwise(func, args, kwargs or {}, result)
        return result

    def pack(self, tensor: Tensor) -> Kept | Reader:
        """Return what is kept in place of a tensor that autograd saves."""
        if tensor.is_leaf:  # parameters, statistics, masks
            if self._count and _is_plain(tensor):
                self._keep(tensor)
            return Kept(tensor)
        if _is_plain(tensor):
            noted = self._find(tensor)
            if noted is not None:
                return noted.remade.reader(tensor)
            self._keep(tensor)
        # Not the tensor itself: where it is a node's own result, it would hold the node that holds it.
        return Kept(tensor.detach())

    def kept_bytes(self, aside: set[Tensor]) -> int:
        """Return the bytes of the storages that are kept, without those of some tensors."""
        left_out = {storage_address(tensor.untyped_storage()) for tensor in aside if _is_plain(tensor)}
        return sum(saved.nbytes for address, saved in self._saved.items() if address not in left_out)

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._saved[storage_address(storage)] = _Saved(StorageWeakRef(storage), tensor._version, storage.nbytes())

    def _in_force(self) -> bool:
        """Return whether tensors that are saved now come here, not to hooks of a checkpoint inside of the model."""
        hooks = top_saved_tensor_hooks()
        return self._remake and hooks is not None and hooks[0] == self.pack

    def _find(self, tensor: Tensor) -> _Noted | None:
        """Return what was noted of a tensor, or of the one that it is a view of."""
        noted = self._noted.get(storage_address(tensor.untyped_storage()))
        if noted is None or noted.version != tensor._version or noted.geometry[-1] != tensor.dtype:
            return None
        return noted

    def _note_norm(self, again: Again, result: Tensor) -> None:
        sources: list[Kept | Reader] = []
        for tensor in (a for a in again.args if isinstance(a, Tensor)):
            if any(tensor is s for s in again.saved) or tensor.dtype == torch.bool:
                source: Kept | Reader | None = self._reader(tensor) or Kept(tensor)
            else:
                source = self._source(tensor, result, vector=tensor.shape != result.shape)
            if source is None:
                return
            sources.append(source)
        self._note(result, result._version, _call(again.op, again.args, {}), sources)

    def _note_elementwise(self, func: Any, args: Any, kwargs: dict[str, Any], result: Tensor) -> None:
        operands = [a for a in args if isinstance(a, Tensor)]
        if not all(map(_is_plain, operands)):
            return
        in_place = result is args[0]
        noted = [self._find(operand) for operand in operands]
        if not any(noted) and func is not _MULTIPLY:
            return
        if in_place and (noted[0] is None or noted[0].geometry != _geometry(result)):
            return
        sources = [self._source(operand, result) for operand in operands]
        if None not in sources:
            # What is written in place gets its new version only after this.
            self._note(result, result._version + in_place, _call(func, args, kwargs, in_place=in_place), sources)

    def _reader(self, tensor: Tensor) -> Reader | None:
        noted = self._find(tensor)
        return None if noted is None else noted.remade.reader(tensor)

    def _source(self, tensor: Tensor, result: Tensor, *, vector: bool = False) -> Kept | Reader | None:
        """Return what is kept of an operand; None where it would be kept for this alone.

        `vector`: whether it is a parameter or statistic of a norm, which must not change until backward.
        """
        reader = self._reader(tensor)
        if reader is not None:
            return reader
        if vector or tensor.numel() * _SMALL <= result.numel():
            # A sharded parameter is freed until its own layer's backward, which comes after this one's.
            copy = tensor.clone()
            if self._count:
                self._keep(copy)
            return Kept(copy, tensor if vector else None)
        saved = self._saved.get(storage_address(tensor.untyped_storage()))
        return Kept(tensor.detach()) if saved is not None and saved.version == tensor._version else None

    def _forget(self) -> None:
        """Drop what was noted of storages that are gone.

        A weak reference keeps a storage's head, of some hundred bytes beside the freed elements: malloc could neither
        join nor reuse the block between two such heads.
        """
        for table in (self._noted, self._saved):
            for address in [address for address, found in table.items() if found.storage.expired()]:
                del table[address]

    def _note(self, result: Tensor, version: int, make: Any, sources: list[Any]) -> None:
        self._forget()
        depth = max((s.depth for s in sources if isinstance(s, Reader)), default=0) + (len(sources) > 1)
        if depth <= _DEPTH:
            storage = result.untyped_storage()
            remade = Remade(make, tuple(sources), result, depth)
            noted = _Noted(StorageWeakRef(storage), version, _geometry(result), remade)
            self._noted[storage_address(storage)] = noted


def _call(op: Any, args: Any, kwargs: dict[str, Any], *, in_place: bool = False) -> Callable[..., Tensor]:
    """Return a function that calls an operation with its tensors given anew, and returns its first result."""
    is_tensor = [isinstance(a, Tensor) for a in args]
    constants = [None if tensor else a for a, tensor in zip(args, is_tensor, strict=True)]

    def make(*taken: tuple[Tensor, bool]) -> Tensor:
        values = [value for value, _free in taken]
        if in_place and not taken[0][1]:
            values[0] = values[0].clone()
        given = iter(values)
        result = op(*(next(given) if t else c for c, t in zip(constants, is_tensor, strict=True)), **kwargs)
        return result if isinstance(result, Tensor) else result[0]

    return make


@contextmanager
def remaking(*, remake: bool = True, count: bool = False) -> Iterator[Remaking]:
    """Run a forward in which what norms hand on is made again in backward; or is only counted."""
    mode = Remaking(remake=remake, count=count)
    with torch.autograd.graph.saved_tensors_hooks(mode.pack, lambda kept: kept.value()), mode:
        yield mode
