"""Helpers of claims for layers: find them, read their outputs, and repeat Dropout's draws."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import gammabeta as gb


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.weight


def first_norm(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))


def in_front_of_norms(model: nn.Module, x_nchw: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """List (layer, BatchNorm) wherever a BatchNorm's input is a layer's output, so that its scale is irrelevant."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    found: dict[nn.Module, nn.Module] = {}
    hooks = []
    for module in model.modules():
        if is_layer(module):
            hooks.append(module.register_forward_hook(lambda m, _, y: made.setdefault(id(y), (m, y)) and None))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):

            def given(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
                layer, output = made.get(id(args[0]), (None, None))
                if layer is not None and output is args[0]:
                    found[layer] = norm

            hooks.append(module.register_forward_pre_hook(given))
    with gb.frozen_statistics(model), torch.no_grad():
        model(x_nchw)
    for hook in hooks:
        hook.remove()
    return list(found.items())


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at the observed layer; what follows it is not needed."""


def output_of(model: nn.Module, layer: nn.Module, x_nchw: Tensor) -> Tensor:
    """Return the output of ``layer`` when the model runs on x, in the model's mode."""
    return _seen(model, x_nchw, layer.register_forward_hook)


def input_of(model: nn.Module, layer: nn.Module, x_nchw: Tensor) -> Tensor:
    """Return the input of ``layer`` when the model runs on x, in the model's mode."""
    return _seen(model, x_nchw, layer.register_forward_pre_hook)


def _seen(model: nn.Module, x_nchw: Tensor, register: Callable[..., RemovableHandle]) -> Tensor:
    """Run the model on x up to the layer whose hook ``register`` adds, and return what a hook of its kind sees last."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], *output: Tensor) -> None:
        seen.append(output[0] if output else inputs[0])
        raise _Reached

    hook = register(look)
    try:
        with torch.no_grad(), contextlib.suppress(_Reached):
            model(x_nchw)
    finally:
        hook.remove()
    return seen[0]


@contextlib.contextmanager
def same_draws(model: nn.Module, seed: int) -> Iterator[None]:
    """Make Dropout, if a user's model has any, drop the same values in every forward pass inside this context."""
    if not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules()):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def dropout_of(rate: float) -> dict[str, Any]:
    return {"dropout": rate} if rate else {}
