"""Where a norm's scale and shift can go: into the layer that alone makes what it gets, or alone reads what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

from gammabeta.introspection.observe import Call, Observation, Operation, Seen, axis_in, hooks_of
from gammabeta.surgery.folding.absorb import Layer
from gammabeta.surgery.folding.affine import Affine, Finish, affine_of
from gammabeta.surgery.refusal import Refusal

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_LAYERS = (*_CONVOLUTIONS, nn.Linear)
_PLAIN = {cls.forward for cls in _LAYERS}
_PLAIN_CONVOLUTIONS = {cls._conv_forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}

AFTER, BEFORE, ALONE = "after", "before", "alone"


@dataclass(frozen=True)
class Place:
    """Where a norm goes.

    Attributes:
        way: `AFTER` a layer or `BEFORE` one, which takes it up; or `ALONE`, as one multiply-add.
        layer: the layer's qualified name; "" for none.
        affine: what is taken up, and the rest that stays.
        why: for one that is alone, why.
    """

    way: str
    layer: str
    affine: Affine
    why: str = ""


class Sites:
    """Looks for the places of a model's norms.

    Args:
        model: what was observed, or a copy.
        observation: of one forward of it.
    """

    def __init__(self, model: nn.Module, observation: Observation) -> None:
        self.modules = dict(model.named_modules())
        self.observation = observation
        self.owners: dict[int, set[nn.Module]] = {}
        for module in self.modules.values():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.owners.setdefault(_address(tensor), set()).add(module)

    def place(self, name: str) -> Place:
        """The place of the norm of that name.

        Raises:
            Refusal: there is none that is safe.
        """
        norm = self.modules[name]
        if name == "":
            raise Refusal("it is the model itself")
        _check_free(norm, "it")
        affine = affine_of(norm)
        call = self._only_call(name, "it")
        if len(call.outputs) != 1 or not call.inputs:
            raise Refusal(f"it gives {len(call.outputs)} tensors, where one was expected")
        if len(call.inputs) > 1:
            if (
                not isinstance(affine.rest, Finish)
                or len(call.inputs) > 2
                or not call.inputs[1].dtype.is_floating_point
            ):
                raise Refusal("it is called with a mask, or with more tensors than input and residual")
        elif isinstance(affine.rest, Finish) and affine.rest.activation is None:
            affine = Affine(affine.scale, affine.shift, None)
        refusal = None
        try:
            layer = self._maker(call, affine)
            if layer is not None:
                return Place(AFTER, layer, affine)
            why = self._made_by(call)
        except Refusal as error:
            refusal = error
        if affine.rest is None:
            try:
                layer = self._reader(call, affine)
                if layer is not None:
                    return Place(BEFORE, layer, affine)
            except Refusal as error:
                if refusal is None:
                    why += f"; {error}"
        if refusal is not None:
            raise refusal
        return Place(ALONE, "", affine, why)

    def _maker(self, call: Call, affine: Affine) -> str | None:
        """The layer whose output, through views and copies that keep the channels, the norm alone reads."""
        observation = self.observation
        passed: list[Seen] = []
        for seen, axis in observation.trail(call.inputs[0], 1):
            passed.append(seen)
            for giver in observation.givers(seen.data):
                layer = self.modules[giver.module]
                if not isinstance(layer, _LAYERS):
                    continue
                if len(giver.outputs) != 1:
                    return None
                out = giver.outputs[0]
                features = _features(layer, out, given=True)
                if axis_in(seen, axis, out) != features or out.shape[features] != len(affine.scale):
                    return None
                self._check_layer(giver.module, giver)
                for link in passed:
                    self._check_alone(link.data, call, giver.module, passed)
                return giver.module
        return None

    def _reader(self, call: Call, affine: Affine) -> str | None:
        """The layer that alone reads what the norm gives, through views that keep the channels."""
        observation, out = self.observation, call.outputs[0]
        readers = [op for op in observation.readers(out.data) if not observation.is_within(op, call)]
        calls = {observation.calls[op.call].index for op in readers if op.call is not None}
        if len(calls) != 1 or any(op.call is None for op in readers):
            return None
        reader = observation.calls[calls.pop()]
        layer = self.modules[reader.module]
        if not isinstance(layer, _LAYERS) or not reader.inputs or reader.inputs[0].data != out.data:
            return None
        got = reader.inputs[0]
        if axis_in(out, 1, got) != _features(layer, got, given=False):
            return None
        what = f"{reader.module} behind it"
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            raise Refusal(f"{what} is transposed: its borders do not see the whole shift")
        if isinstance(layer, nn.modules.conv._ConvNd):
            padded = layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice)
            if padded and bool((affine.shift != 0).any()):
                raise Refusal(f"{what} pads with zeros, which the norm does not shift")
            if not _is_plain(layer):
                raise Refusal(f"{what} has a forward of its own ({type(layer).__qualname__})")
        self._check_layer(reader.module, reader)
        self._check_unseen(out.data, reader.module, "what the norm gives")
        return reader.module

    def _check_layer(self, name: str, call: Call) -> None:
        """That the layer is its own, its weights too, and that it computes what torch's does."""
        layer, observation = self.modules[name], self.observation
        assert isinstance(layer, _LAYERS)
        _check_free(layer, name)
        self._only_call(name, name)
        for parameter, tensor in layer._parameters.items():
            if tensor is None:
                continue
            if len(self.owners[_address(tensor)]) > 1:
                others = [n for n, m in self.modules.items() if m in self.owners[_address(tensor)] and m is not layer]
                raise Refusal(f"{name}.{parameter} is shared with {', '.join(others)}")
            data = observation.state.get(f"{name}.{parameter}")
            if data is None:
                raise Refusal(f"{name}.{parameter} is not among the parameters that were observed")
            for op in observation.readers(data):
                if not observation.is_within(op, call):
                    raise Refusal(f"{name}.{parameter} is also read by {self._describe(op)}")
        if not isinstance(layer._parameters.get("weight"), Tensor) or not layer.weight.is_floating_point():
            raise Refusal(f"{name} has no weight of a floating point type")
        if not _is_plain(layer) and not self._convolves_plainly(layer, name, call):
            raise Refusal(f"{name} has a forward of its own ({type(layer).__qualname__}), which does more than torch's")

    def _convolves_plainly(self, layer: Layer, name: str, call: Call) -> bool:
        """Whether a subclass's call is one convolution with the very weight, whose result it gives."""
        observation = self.observation
        ops = [op for op in observation.operations if observation.is_within(op, call)]
        done = [op for op in ops if op.name == "aten.convolution"]
        if len(done) != 1 or len(done[0].inputs) < 2:
            return False
        weight, given = done[0].inputs[1], done[0].outputs[0]
        own = observation.state[f"{name}.weight"]
        return weight.data == own and weight.shape == tuple(layer.weight.shape) and call.outputs[0] == given

    def _check_alone(self, data: int, call: Call, layer: str, passed: Sequence[Seen]) -> None:
        """That none but the norm, and the copies on the way to it, reads what the layer gives."""
        observation = self.observation
        way = {id(observation.maker(seen.data)) for seen in passed}
        for op in observation.readers(data):
            if not observation.is_within(op, call) and id(op) not in way:
                raise Refusal(f"what {layer} gives is also read by {self._describe(op)}")
        self._check_unseen(data, layer, f"what {layer} gives")

    def _check_unseen(self, data: int, layer: str, what: str) -> None:
        observation = self.observation
        if any(seen.data == data for seen in observation.outputs):
            raise Refusal(f"{what} is also an output of the model")
        if data in observation.kept:
            raise Refusal(f"{what} is still held after the forward")
        for call in observation.calls:
            if any(seen.data == data for seen in (*call.inputs, *call.outputs)):
                module = self.modules[call.module]
                if hooks_of(module):
                    raise Refusal(f"{what} is seen by the hooks of {call.module or 'the model'}")

    def _only_call(self, name: str, what: str) -> Call:
        calls = self.observation.calls_of(name)
        if not calls:
            raise Refusal(f"{what} was not called on the example inputs")
        if len(calls) > 1:
            raise Refusal(f"{what} is called {len(calls)} times in a forward")
        return calls[0]

    def _made_by(self, call: Call) -> str:
        maker = self.observation.maker(call.inputs[0].data)
        return f"its input is made by {self._describe(maker)}" if maker else "its input is the model's"

    def _describe(self, op: Operation) -> str:
        names = [call.module for call in self.observation.stack(op.call)]
        return f"{op.name} in {names[0] or 'the model'}" if names else op.name


def _check_free(module: nn.Module, what: str) -> None:
    if parametrize.is_parametrized(module):
        raise Refusal(f"{what} is parametrized: torch.nn.utils.parametrize.remove_parametrizations first")
    if hooks_of(module):
        raise Refusal(f"{what} has hooks, which would see or change something else")


def _is_plain(layer: nn.Module) -> bool:
    plain = type(layer).forward in _PLAIN and "forward" not in vars(layer)
    return plain and getattr(type(layer), "_conv_forward", None) in (*_PLAIN_CONVOLUTIONS, None)


def _features(layer: nn.Module, seen: Seen, *, given: bool) -> int:
    """The axis of channels in what the layer gets or gives; without a batch too."""
    axes = len(seen.shape)
    return axes - 1 if isinstance(layer, nn.Linear) else axes - 1 - len(layer.kernel_size)  # type: ignore[arg-type]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
