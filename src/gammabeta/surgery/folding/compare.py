"""Comparison of a changed model's outputs with the original's, on example inputs and on perturbed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gammabeta._torch_private import tree_map
from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.observe import tensors_in
from gammabeta.introspection.unchanged import unchanged

# Relative to the largest output: what tens of layers, each with one rounding more or less, may add up to.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_PERTURBED = 2


class Comparison:
    """The outputs of a model, to compare other models with.

    Args:
        model: the original, which stays unchanged.
        example_inputs, forward: as for `observe`. The inputs' floating point tensors are perturbed by noise of their
            own spread.

    Attributes:
        tolerance: that of the least precise floating dtype among parameters and outputs.
        inputs: the number of inputs that the original runs on. A perturbed one on which it raises is left out.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, forward: Forward | None = None) -> None:
        self._run = forward_batch("fold", forward)
        self._given = [example_inputs]
        self._outputs = [self._outputs_of(model, example_inputs)]
        generator = torch.Generator().manual_seed(0)
        for _ in range(_PERTURBED):
            other = tree_map(lambda leaf: _perturb(leaf, generator), example_inputs)
            try:
                outputs = self._outputs_of(model, other)
            except Exception:  # the model may accept only the user's inputs
                continue
            self._given.append(other)
            self._outputs.append(outputs)
        tensors = [*model.parameters(), *self._outputs[0]]
        dtypes = {tensor.dtype for tensor in tensors if tensor.dtype in TOLERANCES}
        self.tolerance = max((TOLERANCES[dtype] for dtype in dtypes), default=TOLERANCES[torch.float32])

    @property
    def inputs(self) -> int:
        return len(self._given)

    def error(self, other: nn.Module) -> tuple[float, str]:
        """Return the largest relative error of the other model, and what went wrong where that is infinite."""
        largest = 0.0
        for given, expected in zip(self._given, self._outputs, strict=True):
            try:
                outputs = self._outputs_of(other, given)
            except Exception as error:  # whatever a forward raises when a norm is gone
                return float("inf"), f"the forward raises {type(error).__name__}: {error}"
            if [o.shape for o in outputs] != [e.shape for e in expected]:
                return float("inf"), "the outputs have other shapes"
            for output, true in zip(outputs, expected, strict=True):
                largest = max(largest, _relative_error(output, true))
        return largest, ""

    def _outputs_of(self, model: nn.Module, given: Any) -> list[Tensor]:
        copy = copied(given)
        with unchanged(model), torch.no_grad():
            return [tensor.detach().clone() for tensor in tensors_in(self._run(model, copy))]


def _relative_error(output: Tensor, true: Tensor) -> float:
    """Return max|output − true|/max|true|.

    It is infinite where the two are not finite in the same places, and where integers differ.
    """
    if true.numel() == 0:
        return 0.0
    if not true.is_floating_point():
        return 0.0 if torch.equal(output, true) else float("inf")
    finite = torch.isfinite(true)
    if not torch.equal(torch.isfinite(output), finite):
        return float("inf")
    output, true = output[finite].double(), true[finite].double()
    if true.numel() == 0:
        return 0.0
    size = true.abs().max().item()
    return (output - true).abs().max().item() / (size or 1.0)


def _perturb(leaf: Any, generator: torch.Generator) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    values = leaf.detach().to("cpu", torch.float64)
    spread = values.std().item() if values.numel() > 1 else 0.0
    return (values + noise * (spread or 1.0)).to(leaf.device, leaf.dtype)
