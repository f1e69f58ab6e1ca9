"""Contestants that compute a norm forward or backward on a ring of buffers, so that no tensor is hot.

A ring has as many tensors x as fill the last-level cache twice, at least two. All contestants cycle through the same
ring. Backward is timed on its own: the forward of each buffer has run before, and its graph is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.benchmarks.contest import COMPILED, COPY, OURS, TORCH, Call, Contestant, Field, device_clock, wall_clock

MOST_SLOTS = 16
LAYOUTS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}

# From tensors of x's shape, then parameters, to tensors of x's shape.
Norm = Callable[..., "Tensor | tuple[Tensor, ...]"]


def last_level_cache() -> int:
    """Return the bytes of the largest cache that the system reports, at least 32 MiB."""
    found = [32 << 20]
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = size.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdigit():
            found.append(int(text[:-1]) << 10)
    return max(found)


def slots_for(tensor_bytes: int, device: str = "cpu") -> int:
    """Return how many tensors of that size fill the last-level cache twice: 2 to `MOST_SLOTS`."""
    cache = last_level_cache() if device == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_SLOTS, max(2, math.ceil(2 * cache / max(1, tensor_bytes))))


@dataclass(frozen=True)
class Inputs:
    """What a norm is called with: `count` tensors of x's shape, then the parameters.

    Args:
        shape, dtype, layout: of x and of every other such tensor; "contiguous" or "channels_last".
        parameters: leaves that take gradients, the same for all contestants.
        count: number of tensors of x's shape that go in.
        outputs: number of tensors of x's shape that come out.
        gradients: without them forward runs under `torch.no_grad`.
        device: of all tensors; on "cuda" the device's own clock is used.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    parameters: Sequence[Tensor] = ()
    count: int = 1
    outputs: int = 1
    gradients: bool = True
    device: str = "cpu"

    def tensor(self) -> Tensor:
        """Return a random tensor like x."""
        x = torch.randn(self.shape, device=self.device).to(self.dtype)
        return x.contiguous(memory_format=LAYOUTS[self.layout])

    @property
    def slots(self) -> int:
        return slots_for(math.prod(self.shape) * self.dtype.itemsize, self.device)


class Ring:
    """The tensors that all contestants of a row cycle through, and the calls on them."""

    def __init__(self, inputs: Inputs, backward: bool) -> None:
        torch.manual_seed(0)
        slots = range(inputs.slots)
        self.inputs = inputs
        self.tensors = [[inputs.tensor().requires_grad_(inputs.gradients) for _ in range(inputs.count)] for _ in slots]
        self.copies = [torch.empty_like(x, requires_grad=False) for x, *_ in self.tensors]
        self.cotangents = [[inputs.tensor() for _ in range(inputs.outputs)] for _ in slots] if backward else []

    def forward(self, norm: Norm) -> Contestant:
        """Return the contestant that runs the norm forward."""

        def ready(number: int) -> Call:
            tensors, parameters = self.tensors[number % len(self.tensors)], self.inputs.parameters
            if self.inputs.gradients:
                return lambda: norm(*tensors, *parameters)

            def call() -> object:
                with torch.no_grad():
                    return norm(*tensors, *parameters)

            return call

        return ready

    def backward(self, norm: Norm) -> Contestant:
        """Return the contestant that runs the norm backward, to all inputs and parameters, on kept graphs."""
        graphs: dict[int, tuple[Tensor, ...]] = {}

        def ready(number: int) -> Call:
            slot = number % len(self.tensors)
            leaves = [*self.tensors[slot], *self.inputs.parameters]
            if slot not in graphs:
                graphs[slot] = as_tuple(norm(*leaves))
            return lambda: torch.autograd.grad(graphs[slot], leaves, self.cotangents[slot], retain_graph=True)

        return ready

    def copy(self, number: int) -> Call:
        """Be the contestant that copies x."""
        slot = number % len(self.tensors)
        x = self.tensors[slot][0].detach()
        return lambda: self.copies[slot].copy_(x)

    def saved_bytes(self, norm: Norm) -> int:
        """Return the bytes that the norm's forward saves for its backward."""
        return saved_bytes(lambda: norm(*self.tensors[0], *self.inputs.parameters))


def norm_field(
    ours: Norm,
    theirs: Norm,
    inputs: Inputs,
    *,
    backward: bool = False,
    compiled: bool = True,
    others: Mapping[str, Norm] | None = None,
) -> Field:
    """Return the contestants of a row of norms: ours, torch's, torch's compiled, and a copy of x.

    Args:
        ours, theirs: called norm(*tensors, *parameters).
        inputs: what they are called with.
        backward: whether to time the backward, by `torch.autograd.grad` to all inputs and parameters.
        compiled: whether torch's function takes part compiled.
        others: more contestants by name; one that fails does not take part.

    Returns:
        The field, with the bytes that each forward saves for its backward.
    """
    ring = Ring(inputs, backward)
    contestant = ring.backward if backward else ring.forward
    contestants = {OURS: contestant(ours), TORCH: contestant(theirs)}
    refused = join(contestants, COMPILED, contestant(compile_for_shapes(theirs))) if compiled else {}
    for name, norm in (others or {}).items():
        refused |= join(contestants, name, contestant(norm))
    contestants[COPY] = ring.copy
    saved = {OURS: ring.saved_bytes(ours), TORCH: ring.saved_bytes(theirs)} if inputs.gradients else {}
    return Field(contestants, inputs.slots, saved, refused, wall_clock if inputs.device == "cpu" else device_clock)


def layer_field(
    ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...], inputs: int, phase: str, compiled: bool
) -> Field:
    """Return the contestants of a row of layers on one small, warm input.

    Args:
        ours, theirs: layers that take `inputs` tensors of that shape.
        shape: of x.
        inputs: number of tensors of x's shape that forward takes.
        phase: "forward in training", "evaluation" (without gradients) or "step" (forward and backward).
        compiled: whether torch's layer takes part compiled.
    """
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for _ in range(inputs)]
    given = torch.randn(shape)
    for layer in (ours, theirs):
        layer.train(phase != "evaluation")

    def contestant(layer: Callable[..., Tensor], parameters: list[Tensor]) -> Contestant:
        def evaluate() -> object:
            with torch.no_grad():
                return layer(*tensors)

        def step() -> object:
            return torch.autograd.grad(layer(*tensors), [*tensors, *parameters], given)

        call: Call = {"forward in training": lambda: layer(*tensors), "evaluation": evaluate, "step": step}[phase]
        return lambda number: call

    contestants = {
        OURS: contestant(ours, list(ours.parameters())),
        TORCH: contestant(theirs, list(theirs.parameters())),
    }
    if not compiled:
        return Field(contestants)
    refused = join(contestants, COMPILED, contestant(compile_for_shapes(theirs), list(theirs.parameters())))
    return Field(contestants, refused=refused)


def as_tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a norm as a tuple."""
    return out if isinstance(out, tuple) else (out,)


def compile_for_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the shapes it is called with, forgetting what was compiled before."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """Configure torch.compile for code for that many threads, and for backward more than once."""
    import torch._functorch.config
    import torch._inductor.config

    # Inductor writes the number of threads into its code. Set in its config, it is also part of the key of its cache.
    with (
        torch._inductor.config.patch({"cpp.threads": threads}),
        torch._functorch.config.patch(donated_buffer=False),  # else torch refuses a kept graph
    ):
        yield


def join(contestants: dict[str, Contestant], name: str, contestant: Contestant) -> dict[str, str]:
    """Add the contestant where it runs; else return why it does not: the first line of what it raised."""
    try:
        contestant(0)()
    except Exception as error:  # whatever a compiler raises; the other contestants are still timed
        lines = str(error).strip().splitlines()
        return {name: f"{type(error).__name__}: {lines[0] if lines else 'no message'}"}
    contestants[name] = contestant
    return {}


def saved_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes of the storages that a forward saves for its backward, each counted once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    del out
    return sum(storages.values())
