"""What a forward does: every operation and module call in order, what each read and what it made.

Tensors are told apart by their data: a storage between two writes. A view has the data of its base; what is written in
place is other data from then on. So the questions of folding, fusing and the check are looked up: which call made what
a norm gets, through views that keep its channels, and who reads what it gives. Nothing is traced; any eager model will
do. What is seen holds for the inputs, and for the mode, in which it was seen.
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
from torch.utils._python_dispatch import TorchDispatchMode

from gammabeta.introspection.unchanged import arguments_of, storage_of, unchanged, written_by

# They make another tensor of the same elements at the same indices.
_COPIES = ("aten.clone", "aten._to_copy", "aten.lift_fresh_copy")
# Where hooks of a module stand that see or change what it gets and gives.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Seen:
    """A tensor as an operation or a module saw it.

    Attributes:
        data: the number of its data; views have their base's, and what is written to gets a new one.
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
    """One call of an operation of torch's dispatcher.

    Attributes:
        index: its place in the order.
        name: such as "aten.convolution".
        call: the index of the innermost module call that it runs in; None outside of all.
        inputs, outputs: its tensors. What it writes in place is in both, with other data.
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
        index: its place in the order.
        module: the module's qualified name; the first, if it has several; "" is the model itself.
        parent: the index of the module call that it runs in; None for the model's own.
        inputs, outputs: the tensors among its arguments and in what it gave.
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
    """What one forward did.

    Attributes:
        calls: the module calls, in order.
        operations: the operations, in order.
        outputs: the tensors that the model gave.
        state: the data of each parameter and buffer, by qualified name (all names of a shared one).
        kept: data that something still held when the forward was over, other than parameters, buffers and outputs.
    """

    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    outputs: tuple[Seen, ...] = ()
    state: dict[str, int] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    _makers: dict[int, int] = field(default_factory=dict)
    _readers: dict[int, list[int]] = field(default_factory=dict)

    def calls_of(self, module: str) -> list[Call]:
        """The calls of the module of that qualified name."""
        return [call for call in self.calls if call.module == module]

    def maker(self, data: int) -> Operation | None:
        """The operation that made the data; None for what came from outside: inputs, parameters, buffers."""
        index = self._makers.get(data)
        return None if index is None else self.operations[index]

    def readers(self, data: int) -> list[Operation]:
        """The operations that read the data, through whatever view; taking a view is not reading."""
        return [self.operations[index] for index in self._readers.get(data, ())]

    def stack(self, call: int | None) -> list[Call]:
        """The call of that index and those that it runs in, innermost first."""
        found = []
        while call is not None:
            found.append(self.calls[call])
            call = self.calls[call].parent
        return found

    def is_within(self, event: Operation | Call, call: Call) -> bool:
        """Whether an operation or call runs in the call, or is it."""
        index = event.index if isinstance(event, Call) else event.call
        return call in self.stack(index)

    def producers(self, data: int) -> list[Call]:
        """The calls that gave the data without having got it, the innermost first."""
        return [
            call
            for call in reversed(self.calls)
            if any(seen.data == data for seen in call.outputs) and all(seen.data != data for seen in call.inputs)
        ]

    def trace_back(self, seen: Seen, axis: int) -> Iterator[tuple[Seen, int]]:
        """From a tensor back to what it is a view or a plain copy of, with the axis that is the given one there.

        Ends where an operation computes, or where the axis is no longer whole.
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
    """The axis of another view of the same data that runs over the same elements; None where there is none.

    Of two dense views of the same elements an axis is the same if size and stride are: i = offset // stride mod size.
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


def observe(model: nn.Module, example_inputs: Any) -> Observation:
    """Run the model once, without gradients, and write down what happens; the model stays as it was.

    Args:
        model: any eager module, in the mode in which it is; compiled parts run eagerly.
        example_inputs: a tensor; a tuple or list of positional arguments; or a dict of keyword arguments.

    Returns:
        The observation, which holds no tensor.

    Raises:
        ValueError: the model has uninitialized parameters.
        Exception: whatever the forward raises.
    """
    args, kwargs = arguments_of(example_inputs)
    with unchanged(model), _plainly():
        recorder = _Recorder(model)
        with recorder.hooks(model), recorder:
            out = model(*args, **kwargs)
    observation = recorder.observation
    observation.outputs = tuple(recorder.seen(tensor) for tensor in tensors_in(out))
    observation.kept = recorder.kept(args, kwargs)
    return observation


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order."""
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
    """Whether the module has hooks that see or change what it gets and gives."""
    return any(vars(module).get(name) for name in HOOKS)


class _Recorder(TorchDispatchMode):
    """Writes operations down as they are dispatched, and module calls from hooks."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.observation = Observation()
        self.stack: list[int] = []
        # By the storage's address, which a weak reference keeps from being given to another, but not its memory.
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
        if made or not outputs:  # else it takes a view
            for data in {seen.data for seen in inputs}:
                observation._readers.setdefault(data, []).append(operation.index)
        return out

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Hooks that write down the calls of every module, behind all others of the module."""
        names = {module: name for name, module in model.named_modules()}
        calls = self.observation.calls

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = tuple(self.seen(tensor) for tensor in tensors_in((args, kwargs)))
            parent = self.stack[-1] if self.stack else None
            self.stack.append(len(calls))
            calls.append(Call(len(calls), names[module], parent, inputs, module.training))

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            call = calls[self.stack.pop()]
            call.outputs = tuple(self.seen(tensor) for tensor in tensors_in(out))

        handles = []
        try:
            for module in names:
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def kept(self, *given: Any) -> frozenset[int]:
        """The data that were made and are still held by someone; not what the model gave."""
        mine = {seen.data for seen in self.observation.outputs}
        mine |= {self.seen(tensor).data for tensor in tensors_in(given)}
        alive = {data for reference, data in self.storages.values() if not reference.expired()}
        return frozenset((alive & set(self.observation._makers)) - mine)

    def _new(self) -> int:
        self.count += 1
        return self.count - 1


@contextmanager
def _plainly() -> Iterator[None]:
    """No gradients, nothing compiled, and no fast path of torch's Transformer, which calls none of its norms."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
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
    """The strides of a dense tensor whose axes lie in that order, the last one closest."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(list(order)):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)
