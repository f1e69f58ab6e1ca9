"""Where a norm's scale and shift can go: into the layer that alone feeds it, or the one that alone reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gammabeta.introspection.neighbours import LAYERS, Neighbours, Refusal, feature_axis
from gammabeta.introspection.observe import Call, Observation, axis_in, hooks_of
from gammabeta.surgery.folding.absorb import Layer
from gammabeta.surgery.folding.affine import Affine, Finish, affine_of

_PLAIN = {cls.forward for cls in LAYERS}
_PLAIN_CONVOLUTIONS = {cls._conv_forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}

AFTER, BEFORE, ALONE = "after", "before", "alone"


@dataclass(frozen=True)
class Place:
    """The place that a norm is folded into.

    Attributes:
        way: `AFTER` or `BEFORE` a layer, which absorbs it; or `ALONE`, as one multiply-add.
        layer: the layer's qualified name; "" for none.
        affine: what is absorbed, and the rest that stays.
        why: for `ALONE`, the reason.
    """

    way: str
    layer: str
    affine: Affine
    why: str = ""


class Sites:
    """The places of a model's norms.

    Args:
        model: the model that was observed, or a copy.
        observation: of one forward.
    """

    def __init__(self, model: nn.Module, observation: Observation) -> None:
        self.modules = dict(model.named_modules())
        self.observation = observation
        self._neighbours = Neighbours(self.modules, observation)
        self.owners: dict[int, set[nn.Module]] = {}
        for module in self.modules.values():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.owners.setdefault(_address(tensor), set()).add(module)

    def place(self, name: str) -> Place:
        """Return the place of the norm of that name.

        Raises:
            Refusal: there is no safe place.
        """
        norm = self.modules[name]
        if name == "":
            raise Refusal("it is the model itself")
        if isinstance(norm, torch.jit.ScriptModule):
            raise Refusal("it is scripted: fold before torch.jit.script or torch.jit.trace")
        _check_free(norm, "it")
        affine = affine_of(norm)
        call = self._neighbours.only_call(name, "it")
        if len(call.outputs) != 1 or not call.inputs:
            raise Refusal(f"it returns {len(call.outputs)} tensors, where one was expected")
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
            layer = self._producer(call, affine)
            if layer is not None:
                return Place(AFTER, layer, affine)
            why = self._describe_producer(call)
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

    def _producer(self, call: Call, affine: Affine) -> str | None:
        """Return the layer whose output the norm alone reads, through views and copies that keep the channels."""
        found = self._neighbours.producer(call.inputs[0], 1)
        if found is None or found.axis != found.features or found.output.shape[found.features] != len(affine.scale):
            return None
        self.check_layer(found.call.module, found.call)
        self._neighbours.check_alone(found, call)
        return found.call.module

    def _reader(self, call: Call, affine: Affine) -> str | None:
        """Return the layer that alone reads the norm's output, through views that keep the channels."""
        observation, out = self.observation, call.outputs[0]
        readers = self._neighbours.readers(out.data, call)
        calls = {observation.calls[op.call].index for op in readers if op.call is not None}
        if len(calls) != 1 or any(op.call is None for op in readers):
            return None
        reader = observation.calls[calls.pop()]
        layer = self.modules[reader.module]
        if not isinstance(layer, LAYERS) or not reader.inputs or reader.inputs[0].data != out.data:
            return None
        got = reader.inputs[0]
        if axis_in(out, 1, got) != feature_axis(layer, got):
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
        self.check_layer(reader.module, reader)
        self._neighbours.check_unseen(out.data, "the norm's output")
        return reader.module

    def check_layer(self, name: str, call: Call) -> None:
        """Check that neither the layer nor its weights are shared, and that it computes what torch's layer does.

        Raises:
            Refusal: it may not be changed.
        """
        layer, observation = self.modules[name], self.observation
        assert isinstance(layer, LAYERS)
        _check_free(layer, name)
        self._neighbours.only_call(name, name)
        for parameter, tensor in layer._parameters.items():
            if tensor is None:
                continue
            if len(self.owners[_address(tensor)]) > 1:
                others = [n for n, m in self.modules.items() if m in self.owners[_address(tensor)] and m is not layer]
                raise Refusal(
                    f"{name}.{parameter} is shared with {', '.join(others)}", "a weight of its own makes it foldable"
                )
            data = observation.state.get(f"{name}.{parameter}")
            if data is None:
                raise Refusal(f"{name}.{parameter} is not among the parameters that were observed")
            for op in observation.readers(data):
                if not observation.is_within(op, call):
                    raise Refusal(f"{name}.{parameter} is also read by {self._neighbours.describe(op)}")
        if not isinstance(layer._parameters.get("weight"), Tensor) or not layer.weight.is_floating_point():
            raise Refusal(f"{name} has no weight of a floating point type")
        if not _is_plain(layer) and not self._convolves_plainly(layer, name, call):
            raise Refusal(f"{name} has a forward of its own ({type(layer).__qualname__}), which does more than torch's")

    def _convolves_plainly(self, layer: Layer, name: str, call: Call) -> bool:
        """Return whether a subclass's call is one convolution with its own weight and returns the result."""
        observation = self.observation
        ops = [op for op in observation.operations if observation.is_within(op, call)]
        done = [op for op in ops if op.name == "aten.convolution"]
        if len(done) != 1 or len(done[0].inputs) < 2:
            return False
        weight, given = done[0].inputs[1], done[0].outputs[0]
        own = observation.state[f"{name}.weight"]
        return weight.data == own and weight.shape == tuple(layer.weight.shape) and call.outputs[0] == given

    def _describe_producer(self, call: Call) -> str:
        maker = self.observation.maker(call.inputs[0].data)
        return f"its input is made by {self._neighbours.describe(maker)}" if maker else "its input is the model's"


def _check_free(module: nn.Module, what: str) -> None:
    if parametrize.is_parametrized(module):
        raise Refusal(
            f"{what} is parametrized: torch.nn.utils.parametrize.remove_parametrizations first",
            "without the parametrization it is foldable",
        )
    if hooks_of(module):
        raise Refusal(f"{what} has hooks, which would see or change something else", "without the hooks it is foldable")


def _is_plain(layer: nn.Module) -> bool:
    plain = type(layer).forward in _PLAIN and "forward" not in vars(layer)
    return plain and getattr(type(layer), "_conv_forward", None) in (*_PLAIN_CONVOLUTIONS, None)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
