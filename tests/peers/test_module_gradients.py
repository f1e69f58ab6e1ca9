"""Gradients of every module held against finite differences: by all inputs and parameters, and by each alone."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from tests.peers.modules import MODULES, module_samples
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

# One random direction for each check; every element of every Jacobian with GAMMABETA_PEERS=1, in some minutes.
FAST = not os.environ.get("GAMMABETA_PEERS")


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("name", MODULES)
def test_gradients(name: str, order: str, route: str) -> None:
    for sample in module_samples(name, torch.float64, requires_grad=True):
        module, _ = sample.pair(dtype=torch.float64)
        given = {"": sample.inputs[0], **dict(module.named_parameters())}
        together = tuple(given)
        if order == "first":
            for subset in dict.fromkeys((together, *((key,) for key in given))):
                function, leaves = by(module, given, subset)
                assert gradcheck(
                    function, leaves, fast_mode=FAST, check_forward_ad=True, check_batched_grad=True,
                    check_batched_forward_grad=True,
                ), f"{sample} {subset}"  # fmt: skip
        else:
            function, leaves = by(module, given, together)
            assert gradgradcheck(function, leaves, fast_mode=FAST, check_fwd_over_rev=True), sample


def by(
    module: nn.Module, given: dict[str, Tensor], subset: tuple[str, ...]
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The output as a function of some of the input ("") and the parameters, and leaves for these.

    The others are constants; the running statistics are the same in each call.
    """
    rest = {key: t.detach() for key, t in given.items() if key not in subset}

    def function(*tensors: Tensor) -> Tensor:
        state = {key: t.clone() for key, t in module.named_buffers()}
        state |= {**rest, **dict(zip(subset, tensors, strict=True))}
        x = state.pop("")
        return functional_call(module, state, (x,))  # type: ignore[no-any-return]

    return function, [given[key].detach().clone().requires_grad_() for key in subset]
