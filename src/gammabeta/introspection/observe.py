"""What a forward does: every operation and module call in order, with the tensors that each reads and makes.

Tensors are distinguished by their data: a storage between two writes. A view has the data of its base. A tensor that
is written in place has new data from then on.

Folding, fusing and the check look up their questions here: which call made the input of a norm, through views that
keep its channels, and who reads its output. Nothing is traced, so any eager model works. An observation holds for the
inputs and the mode in which it was made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from gammabeta._torch_private import TorchDispatchMode
from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.hooks import hook_after, hook_before
from gammabeta.introspection.unchanged import storage_of, unchanged, written_by

# Operations that make another tensor of the same elements at the same indices.
_COPIES = ("aten.clone", "aten._to_copy", "aten.lift_fresh_copy")
# Where a module keeps the hooks that see or change its inputs and outputs.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Seen:
    """A tensor as an operation or a module saw it.

    Attributes:
        data: the number of its data. A view has its base's; a write gives a new one.
        shape, stride, offset: its geometry in the storage, in elements.
        dtype: of its elements.
    """

    data: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def layout(self) -> str:
        """ "contiguous", "channels_last" (of 4 or 5 axes) or "strided"."""
        if self.stride == _dense_strides(self.shape, range(len(self.shape))):
            return "contiguous"
        last = [0, *range(2, len(self.shape)), 1]
        if len(self.shape) in (4, 5) and self.stride == _dense_strides(self.shape, last):
            return "channels_last"
        return "strided"

    @property
    def is_dense(self) -> bool:
        """Whether every element from the offset on belongs to it, once."""
        step = 1
        for stride, size in sorted(zip(self.stride, self.shape, strict=True)):
            if size != 1:
                if stride != step:
                    return False
                step *= size
        return True


@dataclass(frozen=True)
class Operation:
    """One call of an operation in torch's dispatcher.

    Attributes:
        index: its position in the order.
        name: such as "aten.convolution".
        call: the index of the innermost module call that it runs in; None outside every module.
        inputs, outputs: its tensors. A tensor that it writes in place is in both, with different data.
    """

    index: int
    name: str
    call: int | None
    inputs: tuple[Seen, ...]
    outputs: tuple[Seen, ...]


@dataclass
class Call:
    """One call of a module.

    Attributes:
        index: its position in the order.
        module: the module's qualified name, the first if it has several; "" is the model itself.
        parent: the index of the module call that it runs in; None for the model's own.
        inputs, outputs: the tensors among its arguments and in its result.
        training: the module's mode.
    """

    index: int
    module: str
    parent: int | None
    inputs: tuple[Seen, ...]
    training: bool
    outputs: tuple[Seen, ...] = ()


@dataclass
class Observation:
    """The record of one forward.

    Attributes:
        calls: the module calls, in order.
        operations: the operations, in order.
        outputs: the tensors in the model's result.
        state: the data of each parameter and buffer, by qualified name (all names of a shared one).
        kept: data that something still held after the forward, other than parameters, buffers and outputs.
    """

    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    outputs: tuple[Seen, ...] = ()
    state: dict[str, int] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    _makers: dict[int, int] = field(default_factory=dict)
    _readers: dict[int, list[int]] = field(default_factory=dict)

    def calls_of(self, module: str) -> list[Call]:
        """Return the calls of the module of that qualified name."""
        return [call for call in self.calls if call.module == module]

    def maker(self, data: int) -> Operation | None:
        """Return the operation that made the data; None for inputs, parameters and buffers."""
        index = self._makers.get(data)
        return None if index is None else self.operations[index]

    def readers(self, data: int) -> list[Operation]:
        """Return the operations that read the data, through any view; taking a view is not reading."""
        return [self.operations[index] for index in self._readers.get(data, ())]

    def stack(self, call: int | None) -> list[Call]:
        """Return the call of that index and those that it runs in, innermost first."""
        found = []
        while call is not None:
            found.append(self.calls[call])
            call = self.calls[call].parent
        return found

    def is_within(self, event: Operation | Call, call: Call) -> bool:
        """Return whether an operation or call runs within the call, or is the call."""
        index = event.index if isinstance(event, Call) else event.call
        return call in self.stack(index)

    def producers(self, data: int) -> list[Call]:
        """Return the calls whose outputs have the data and whose inputs don't, innermost first."""
        return [
            call
            for call in reversed(self.calls)
            if any(seen.data == data for seen in call.outputs) and all(seen.data != data for seen in call.inputs)
        ]

    def trace_back(self, seen: Seen, axis: int) -> Iterator[tuple[Seen, int]]:
        """Trace a tensor back to what it is a view or a plain copy of, with the axis that corresponds there.

        The trace ends at an operation that computes, or where the axis is no longer whole.
        """
        while True:
            yield seen, axis
            maker = self.maker(seen.data)
            if maker is None:
                return
            made = next(out for out in maker.outputs if out.data == seen.data)
            at = axis_in(seen, axis, made)
            if at is None:
                return
            if made != seen:
                yield made, at
            source = maker.inputs[0] if maker.inputs else None
            if maker.name not in _COPIES or source is None or source.shape != made.shape:
                return
            seen, axis = source, at


def axis_in(seen: Seen, axis: int, other: Seen) -> int | None:
    """Return the axis of another view of the same data that runs over the same elements; None where there is none.

    In two dense views of the same elements, axes of equal size and stride are the same: i = offset // stride mod size.
    """
    if seen.data != other.data or not (seen.is_dense and other.is_dense) or seen.offset != other.offset:
        return None
    if _numel(seen.shape) != _numel(other.shape):
        return None
    size, stride = seen.shape[axis], seen.stride[axis]
    for i, (s, t) in enumerate(zip(other.shape, other.stride, strict=True)):
        if s == size and (t == stride or size == 1):
            return i
    return None


def observe(model: nn.Module, batch: Any, forward: Forward | None = None, *, operation: str = "observe") -> Observation:
    """Run the model once, without gradients, and record what happens; the model stays unchanged.

    Args:
        model: any eager module, observed in its present mode. Compiled parts run eagerly. Of a scripted or traced part
            all operations are recorded, but only the outermost call: TorchScript calls what is inside.
        batch: what the model takes, as `forward_batch` says.
        forward: `forward(model, batch)`, for batches that go through the model in another way.
        operation: name of the operation that asks, for messages.

    Returns:
        The `Observation`, which holds no tensor.

    Raises:
        ValueError: the model has uninitialized parameters.
        Exception: whatever the forward raises.
    """
    run, given = forward_batch(operation, forward), copied(batch)
    with unchanged(model), _plainly():
        recorder = _Recorder(model)
        with recorder.hooks(model), recorder:
            out = run(model, given)
    observation = recorder.observation
    observation.outputs = tuple(recorder.seen(tensor) for tensor in tensors_in(out))
    observation.kept = recorder.kept(given)
    return observation


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for item in dataclasses.fields(value) for t in tensors_in(getattr(value, item.name, None))]
    return []


def hooks_of(module: nn.Module) -> bool:
    """Return whether the module has hooks that see or change its inputs or outputs."""
    return any(vars(module).get(name) for name in HOOKS)


class _Recorder(TorchDispatchMode):
    """Recorder of operations, as they are dispatched, and of module calls, from hooks."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.observation = Observation()
        self.stack: list[int] = []
        # By the storage's address. The weak reference keeps the address from being reused, but not the memory.
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.count = 0
        for name, tensor in _state(model):
            self.observation.state[name] = self.seen(tensor).data

    def seen(self, tensor: Tensor) -> Seen:
        storage = storage_of(tensor)
        if storage is None or tensor.layout != torch.strided:
            return Seen(self._new(), tuple(tensor.shape), (0,) * tensor.ndim, 0, tensor.dtype)
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = StorageWeakRef(storage), self._new()
        data = self.storages[storage._cdata][1]
        return Seen(data, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tuple(self.seen(tensor) for tensor in tensors_in((args, kwargs)))
        out = func(*args, **kwargs)
        known = self.count
        written = written_by(func, args, kwargs)
        for tensor in written:
            storage = storage_of(tensor)
            if storage is not None:
                self.storages[storage._cdata] = StorageWeakRef(storage), self._new()
        given = [*tensors_in(out), *written]
        outputs = tuple(dict.fromkeys(self.seen(tensor) for tensor in given))
        made = {seen.data for seen in outputs if seen.data >= known}
        observation = self.observation
        operation = Operation(
            len(observation.operations), _name(func), self.stack[-1] if self.stack else None, inputs, outputs
        )
        observation.operations.append(operation)
        for data in made:
            observation._makers[data] = operation.index
        if made or not outputs:  # otherwise it takes a view
            for data in {seen.data for seen in inputs}:
                observation._readers.setdefault(data, []).append(operation.index)
        return out

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Record the calls of every module by hooks, which run after the module's other hooks."""
        names = {module: name for name, module in model.named_modules()}
        calls = self.observation.calls

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = tuple(self.seen(tensor) for tensor in tensors_in((args, kwargs)))
            parent = self.stack[-1] if self.stack else None
            self.stack.append(len(calls))
            calls.append(Call(len(calls), names[module], parent, inputs, bool(getattr(module, "training", False))))

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            call = calls[self.stack.pop()]
            call.outputs = tuple(self.seen(tensor) for tensor in tensors_in(out))

        handles = []
        try:
            for module in names:
                handles.append(hook_before(module, enter, with_kwargs=True))
                handles.append(hook_after(module, leave, with_kwargs=True, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def kept(self, *given: Any) -> frozenset[int]:
        """Return the data that were made and that something still holds, without inputs and the model's outputs."""
        mine = {seen.data for seen in self.observation.outputs}
        mine |= {self.seen(tensor).data for tensor in tensors_in(given)}
        alive = {data for reference, data in self.storages.values() if not reference.expired()}
        return frozenset((alive & set(self.observation._makers)) - mine)

    def _new(self) -> int:
        self.count += 1
        return self.count - 1


@contextmanager
def _plainly() -> Iterator[None]:
    """Turn off gradients, compilation and the fast path of torch's Transformer, which calls none of its norms."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), eagerly():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _name(func: Any) -> str:
    schema = getattr(func, "_schema", None)
    return schema.name.replace("::", ".") if schema is not None else str(func)


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _dense_strides(shape: tuple[int, ...], order: Any) -> tuple[int, ...]:
    """Return the strides of a dense tensor whose axes lie in that order, the last one innermost."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(list(order)):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)
