"""Contestants that compute a norm forward or backward on a ring of buffers, so that no tensor is hot.

A ring holds as many tensors x as fill the last-level cache twice, and two at the least. All contestants go round the
same ring. Backward is timed alone: each buffer's forward has run before, and its graph is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

# Tensors of x's shape, then parameters in; tensors of x's shape out.
Norm = Callable[..., "Tensor | tuple[Tensor, ...]"]


def last_level_cache() -> int:
    """Bytes of the largest cache that the system names, 32 MiB where it names none."""
    found = [32 << 20]
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = size.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdigit():
            found.append(int(text[:-1]) << 10)
    return max(found)


def slots_for(tensor_bytes: int, device: str = "cpu") -> int:
    """How many tensors of that size fill the last-level cache twice: 2 to `MOST_SLOTS`."""
    cache = last_level_cache() if device == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_SLOTS, max(2, math.ceil(2 * cache / max(1, tensor_bytes))))


def norm_field(
    ours: Norm,
    theirs: Norm,
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    parameters: Sequence[Tensor] = (),
    inputs: int = 1,
    outputs: int = 1,
    backward: bool = False,
    gradients: bool = True,
    compiled: bool = True,
    device: str = "cpu",
    others: Mapping[str, Norm] | None = None,
) -> Field:
    """The contestants of a row of norms: ours, torch's, torch's compiled, and a copy of x.

    Args:
        ours, theirs: called norm(*inputs, *parameters).
        shape, dtype, layout: of x and of every other input; "contiguous" or "channels_last".
        parameters: leaves that take gradients, the same for all.
        inputs, outputs: how many tensors of x's shape go in and come out.
        backward: time the backward by `torch.autograd.grad`, to all inputs and parameters.
        gradients: without them forward runs under `torch.no_grad`.
        compiled: whether torch's function takes part compiled.
        device: of all tensors; on "cuda" the device's own clock times.
        others: more contestants by name; one that fails does not take part.

    Returns:
        The field, with the bytes that each forward saves for its backward.
    """
    slots = slots_for(math.prod(shape) * dtype.itemsize, device)
    torch.manual_seed(0)

    def tensor() -> Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout])

    ring = [[tensor().requires_grad_(gradients) for _ in range(inputs)] for _ in range(slots)]
    onto = [torch.empty_like(x, requires_grad=False) for x, *_ in ring]
    cotangents = [[tensor() for _ in range(outputs)] for _ in range(slots)] if backward else []

    def contestant(norm: Norm) -> Contestant:
        graphs: dict[int, tuple[Tensor, ...]] = {}

        def forward(number: int) -> Call:
            tensors = ring[number % slots]
            if gradients:
                return lambda: norm(*tensors, *parameters)

            def call() -> object:
                with torch.no_grad():
                    return norm(*tensors, *parameters)

            return call

        def back(number: int) -> Call:
            slot = number % slots
            tensors = ring[slot]
            if slot not in graphs:
                graphs[slot] = as_tuple(norm(*tensors, *parameters))
            leaves, given = [*tensors, *parameters], cotangents[slot]
            return lambda: torch.autograd.grad(graphs[slot], leaves, given, retain_graph=True)

        return back if backward else forward

    def copied(number: int) -> Call:
        slot = number % slots
        x = ring[slot][0].detach()
        return lambda: onto[slot].copy_(x)

    contestants = {OURS: contestant(ours), TORCH: contestant(theirs)}
    refused = join(contestants, COMPILED, contestant(compile_for_shapes(theirs))) if compiled else {}
    for name, norm in (others or {}).items():
        refused |= join(contestants, name, contestant(norm))
    contestants[COPY] = copied
    saved = {}
    if gradients:
        saved[OURS] = saved_bytes(lambda: ours(*ring[0], *parameters))
        saved[TORCH] = saved_bytes(lambda: theirs(*ring[0], *parameters))
    return Field(contestants, slots, saved, refused, wall_clock if device == "cpu" else device_clock)


def layer_field(
    ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...], inputs: int, phase: str, compiled: bool
) -> Field:
    """The contestants of a row of layers on one small, warm input.

    Args:
        ours, theirs: layers that take `inputs` tensors of that shape.
        shape: of x.
        inputs: how many tensors of x's shape forward takes.
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
    return out if isinstance(out, tuple) else (out,)


def compile_for_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a function for the shapes it is called with, forgetting what was compiled before."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """While compiled functions are built and run: code for that many threads, and backward more than once."""
    import torch._functorch.config
    import torch._inductor.config

    # Inductor writes the number of threads into its code; by its config it also enters the key of its cache.
    with (
        torch._inductor.config.patch({"cpp.threads": threads}),
        torch._functorch.config.patch(donated_buffer=False),  # else a kept graph is refused
    ):
        yield


def join(contestants: dict[str, Contestant], name: str, contestant: Contestant) -> dict[str, str]:
    """Add the contestant where it runs; else say why it does not: the first line of what it raised."""
    try:
        contestant(0)()
    except Exception as error:  # whatever a compiler raises: the other contestants are timed all the same
        lines = str(error).strip().splitlines()
        return {name: f"{type(error).__name__}: {lines[0] if lines else 'no message'}"}
    contestants[name] = contestant
    return {}


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of the storages that a forward saves for its backward, each counted once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    del out
    return sum(storages.values())
