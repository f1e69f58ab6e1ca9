"""The neighbours of a norm in an observed forward: the layer that feeds it, and who reads its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gammabeta.introspection.observe import Call, Observation, Operation, Seen, axis_in, hooks_of

LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
"""The layers that norms stand next to, and are folded into."""


class Refusal(Exception):  # noqa: N818
    """Reason why a change cannot be made safely here; the message goes into the report.

    Attributes:
        way: what would make the change possible, as a clause without an end; "" if nothing general can be said.
    """

    def __init__(self, reason: str, way: str = "") -> None:
        super().__init__(reason)
        self.way = way


@dataclass(frozen=True)
class Producer:
    """A layer whose output is the input of a call, through views and plain copies.

    Attributes:
        call: the layer's call.
        layer: the layer.
        output: its one output.
        axis: the axis of the output that corresponds to the one asked about; None where there is no such axis.
        path: the tensors from the call's input back to the output's data.
    """

    call: Call
    layer: Any
    output: Seen
    axis: int | None
    path: tuple[Seen, ...]

    @property
    def is_viewed(self) -> bool:
        """Whether the call's input is a view of the output, and no copy."""
        return self.output.data == self.path[0].data

    @property
    def features(self) -> int:
        """The axis of features in the output."""
        return feature_axis(self.layer, self.output)


class Neighbours:
    """The neighbours in one observed forward.

    Args:
        modules: the modules of the model that was observed, or of a copy, by qualified name.
        observation: of the forward.
    """

    def __init__(self, modules: Mapping[str, nn.Module], observation: Observation) -> None:
        self.modules = modules
        self.observation = observation

    def only_call(self, name: str, what: str) -> Call:
        """Return the one call of the module of that name.

        Raises:
            Refusal: it was not called, or more than once; `what` names it in the message.
        """
        calls = self.observation.calls_of(name)
        if not calls:
            raise Refusal(f"{what} was not called on the example inputs")
        if len(calls) > 1:
            way = "a separate layer for each call makes it foldable"
            raise Refusal(f"{what} is called {len(calls)} times in a forward", way)
        return calls[0]

    def producer(self, seen: Seen, axis: int, layers: tuple[type[nn.Module], ...] = LAYERS) -> Producer | None:
        """Trace a tensor back to the nearest layer of these classes that made it.

        None where an operation between them computes, where the axis is lost on the way, and where the layer does not
        return exactly one tensor.
        """
        path: list[Seen] = []
        for at, same in self.observation.trace_back(seen, axis):
            path.append(at)
            for call in self.observation.producers(at.data):
                layer = self.modules[call.module]
                if isinstance(layer, layers):
                    if len(call.outputs) != 1:
                        return None
                    output = call.outputs[0]
                    return Producer(call, layer, output, axis_in(at, same, output), tuple(path))
        return None

    def readers(self, data: int, call: Call) -> list[Operation]:
        """Return the operations outside the call that read the data."""
        observation = self.observation
        return [op for op in observation.readers(data) if not observation.is_within(op, call)]

    def escape(self, data: int) -> str | None:
        """Describe how the data leaves the forward; None where it does not."""
        if any(seen.data == data for seen in self.observation.outputs):
            return "also an output of the model"
        return "still held after the forward" if data in self.observation.kept else None

    def check_alone(self, producer: Producer, call: Call) -> None:
        """Check that only the call, and the copies on the way to it, read the producer's output.

        Raises:
            Refusal: something else reads it, a hook sees it, or it leaves the forward.
        """
        what = f"the output of {producer.call.module}"
        copies = {id(self.observation.maker(seen.data)) for seen in producer.path}
        for seen in producer.path:
            for op in self.readers(seen.data, call):
                if id(op) not in copies:
                    raise Refusal(f"{what} is also read by {self.describe(op)}")
            self.check_unseen(seen.data, what)

    def check_unseen(self, data: int, what: str) -> None:
        """Check that the data stays within the forward and that no hook sees it.

        Raises:
            Refusal: it does not; `what` names the data in the message.
        """
        escape = self.escape(data)
        if escape is not None:
            raise Refusal(f"{what} is {escape}")
        for call in self.observation.calls:
            sees = any(seen.data == data for seen in (*call.inputs, *call.outputs))
            if sees and hooks_of(self.modules[call.module]):
                raise Refusal(f"{what} is seen by the hooks of {call.module or 'the model'}")

    def describe(self, op: Operation) -> str:
        """Name an operation and the innermost module that it runs in."""
        names = [call.module for call in self.observation.stack(op.call)]
        return f"{op.name} in {names[0] or 'the model'}" if names else op.name


def feature_axis(layer: Any, seen: Seen) -> int:
    """Return the axis of features in a layer's input or output, which may lack a batch axis."""
    positions = len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0
    return len(seen.shape) - 1 - positions
