"""Folding of norms into the layers next to them, for inference, with proof that the outputs stay."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.introspection.forward import Forward, copied, forward_batch
from gammabeta.introspection.neighbours import Refusal
from gammabeta.introspection.observe import Observation, observe
from gammabeta.introspection.unchanged import unchanged
from gammabeta.introspection.where import Where, select
from gammabeta.pages.notebook import table
from gammabeta.surgery.change import Change
from gammabeta.surgery.folding import absorb
from gammabeta.surgery.folding.affine import MultiplyAdd, is_candidate
from gammabeta.surgery.folding.branches import Branches, Finder, merge
from gammabeta.surgery.folding.compare import Comparison
from gammabeta.surgery.folding.settle import Edit, settle
from gammabeta.surgery.folding.sites import AFTER, ALONE, Place, Sites
from gammabeta.surgery.folding.timing import Timing, time_pairs


@dataclass(frozen=True)
class Site:
    """The outcome for one norm.

    Attributes:
        norm: its qualified name.
        way: "after" or "before" the layer that absorbed it; "beside", as a branch of its own that was merged with the
            layer; "alone", as one multiply-add; "refused".
        layer: the layer's qualified name; "" for none.
        reason: why the norm was refused, or became a multiply-add.
        error: for a site that was put back, the largest relative error with it: on its own where that exceeded the
            tolerance, else together with the sites that stayed.
    """

    norm: str
    way: str
    layer: str = ""
    reason: str = ""
    error: float | None = None

    @property
    def folded(self) -> bool:
        """Whether a layer absorbed it."""
        return bool(self.layer) and self.way != "refused"

    def __str__(self) -> str:
        if self.way == "refused":
            return f"refused: {self.reason}"
        if not self.layer:
            return f"one multiply-add: {self.reason}"
        return f"folded into {self.layer}" + {"before": " behind it", "beside": " beside it"}.get(self.way, "")


@dataclass(frozen=True)
class Folded:
    """A model with its norms folded away; it prints as a table.

    Attributes:
        model: the new model.
        sites: one for each norm that was chosen, in the order of the forward.
        branches: parallel layers that were added, and are one convolution now.
        error: the largest relative error of an output, max|y′ − y|/max|y|, on the example inputs and perturbed ones.
        tolerance: the bound on the relative error, by the least precise dtype.
        inputs: the number of inputs on which the two models were compared.
        timing: the times of a forward on the example inputs, before and after, in pairs.
    """

    model: nn.Module
    sites: list[Site]
    branches: list[Branches]
    error: float
    tolerance: float
    inputs: int
    timing: Timing

    @property
    def folded(self) -> list[Site]:
        """The sites that a layer absorbed."""
        return [site for site in self.sites if site.folded]

    @property
    def refused(self) -> list[Site]:
        """The sites that were left unchanged."""
        return [site for site in self.sites if site.way == "refused"]

    @property
    def seconds(self) -> tuple[float, float]:
        """The median times of a forward, in seconds, before and after."""
        return self.timing.seconds

    @property
    def speedup(self) -> float:
        """The time of a forward before, over that after; the median over pairs. `timing.spread` is its interval."""
        return self.timing.speedup

    def __str__(self) -> str:
        title, *measured = self._summary()
        rows = self._rows()
        width = max((len(name) for name, _ in rows), default=0)
        lines = [title, *(f"  {line}" for line in measured), *(f"  {name:<{width}}  {what}" for name, what in rows)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title, *measured = self._summary()
        return table(title, ("norm", "outcome"), self._rows(), measured)

    def _summary(self) -> list[str]:
        alone = len(self.sites) - len(self.folded) - len(self.refused)
        return [
            f"fold: {len(self.folded)} folded, {alone} as one multiply-add, {len(self.refused)} refused",
            f"largest relative error {self.error:.1e} on {self.inputs} inputs (tolerance {self.tolerance:.0e})",
            str(self.timing),
        ]

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(site.norm or "(the model)", str(site)) for site in self.sites]
        return rows + [(branches.layers[0], str(branches)) for branches in self.branches]


def fold(model: nn.Module, example_inputs: Any, *, where: Where = None, forward: Forward | None = None) -> Folded:
    """Make a new model, for inference, with its norms folded into the convolutions and linear layers next to them.

        W' = W·scale, b' = b·scale + shift,  scale = γ/√(σ² + ε), shift = β − μ·scale,  for each channel

    μ and σ² are the running statistics as they are: each batch moved σ² by its variance divided by n − 1.

    The data flow is observed on the example inputs, so any eager model works. Where control flow depends on the
    data, only the path of the example inputs is seen: a norm that another path uses elsewhere is folded as on this
    one. A norm is folded into the layer that makes its input, through views that keep the channels. Otherwise it is
    folded into the layer that reads its output, if that does not pad with zeros. A norm without such a neighbour
    becomes one multiply-add. What follows scale and shift in the norm's own forward (an activation, a residual)
    stays in place.

    A layer or norm is refused that is called more than once, shares its weights, has hooks or parametrizations, or
    whose tensor has another reader; so is a norm that uses the batch's statistics.

    Branches are merged: where convolutions of one input, and norms beside them, are only added, as in RepVGG and
    MobileOne, one convolution takes their place. The model's own forward goes on adding: the other branches give a zero
    without axes.

    Then the outputs are compared with the original's, on the example inputs and on perturbed ones. A site that makes
    them differ is put back.

    Args:
        model: in evaluation mode. It stays unchanged.
        example_inputs: a batch as the model takes it: a tensor, a tuple or list of positional arguments, or a mapping
            of keyword arguments ("Batches" in docs/conventions.md). Its floating point tensors are
            perturbed for the comparison.
        where: a glob on the norms' names, a list of names and modules, or a predicate (name, module) -> bool.
        forward: `forward(model, batch)`, for inputs that go through the model in another way.

    Returns:
        The `Folded`: the new model, the outcome for each norm, the error and the measured time.

    Raises:
        ValueError: `where` chooses no norm; the model is compiled, uninitialized, or cannot be copied.
        Exception: whatever the model's forward raises.

    Source: Jacob et al. 2018 (1712.05877), eq. 14, for convolution then norm; Ding et al. 2021 (2101.03697), section
    3.3, for branches.
    """
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "fold: expected an eager model, got one from torch.compile, whose graphs would go on with the norms: fold "
            "model._orig_mod, then compile what comes out."
        )
    names = [name for name, _ in select(model, where, is_candidate, operation="fold", kind="norms")]
    observation = observe(model, example_inputs, forward, operation="fold")
    try:
        new = copy.deepcopy(model)
    except Exception as error:  # whatever a module's tensors raise
        raise ValueError(
            f"fold: expected a model that copy.deepcopy can copy, got {type(error).__name__}: {error} Remove "
            "what holds computed tensors: torch.nn.utils.remove_weight_norm, or outputs kept as attributes."
        ) from error
    order = {call.module: call.index for call in reversed(observation.calls)}
    names.sort(key=lambda name: order.get(name, len(order)))
    sites, places = [], {}
    finder = Sites(new, observation)
    for name in names:
        try:
            places[name] = place = finder.place(name)
            sites.append(Site(name, place.way, place.layer, place.why))
        except Refusal as refusal:
            sites.append(Site(name, "refused", reason=str(refusal)))
    comparison = Comparison(model, example_inputs, forward)
    settled = settle(new, {name: _fold_into(new, name, place) for name, place in places.items()}, comparison)
    bad = settled.rejected
    sites = [
        replace(site, way="refused", layer="", reason=bad[site.norm][0], error=bad[site.norm][1])
        if site.norm in bad
        else site
        for site in sites
    ]
    branches, off = _merge_branches(new, sites, partial(observe, new, example_inputs, forward), comparison)
    into = {layer: each.layers[0] for each in branches if not each.reason for layer in each.layers}
    sites = [
        replace(site, way="beside", layer=into[site.norm], reason="") if site.norm in into else site for site in sites
    ]
    timing = _time(model, new, example_inputs, forward_batch("fold", forward))
    off = settled.error if off is None else off
    return Folded(new, sites, branches, off, comparison.tolerance, comparison.inputs, timing)


def _merge_branches(
    new: nn.Module, sites: Sequence[Site], look: Callable[[], Observation], comparison: Comparison
) -> tuple[list[Branches], float | None]:
    """Merge the branches that took a norm; return them, and the model's error, None where there are none."""
    chosen = {site.layer or site.norm for site in sites if site.way != "refused"}
    if not chosen:
        return [], None
    found = Finder(new, look()).find(chosen)
    if not found:
        return [], None
    settled = settle(new, {each.layers[0]: partial(merge, new, each) for each in found}, comparison)
    rejected = settled.rejected
    return [
        replace(each, reason=rejected[each.layers[0]][0], error=rejected[each.layers[0]][1])
        if each.layers[0] in rejected
        else each
        for each in found
    ][::-1], settled.error


def _fold_into(model: nn.Module, name: str, place: Place) -> Edit:
    """Return the edit that folds one norm; a layer may absorb a norm behind it and one before it."""

    def edit(change: Change) -> None:
        norm = model.get_submodule(name)
        scale, shift, rest = place.affine.scale, place.affine.shift, place.affine.rest
        if place.way == ALONE:
            dtype = _dtype(norm)
            left: nn.Module = MultiplyAdd(scale.to(dtype), shift.to(dtype), rest)
        else:
            layer: Any = model.get_submodule(place.layer)
            weight, bias = (absorb.after if place.way == AFTER else absorb.before)(layer, scale, shift)
            required = layer.weight.requires_grad
            change.set_parameter(layer, "weight", nn.Parameter(weight, required))
            change.set_parameter(layer, "bias", nn.Parameter(bias, required))
            left = nn.Identity() if rest is None else rest
        change.replace(model, norm, left.train(norm.training))

    return edit


def _dtype(norm: nn.Module) -> torch.dtype:
    """Return the dtype of a norm's statistics."""
    var = norm.running_var
    assert isinstance(var, Tensor)
    return var.dtype


def _time(model: nn.Module, new: nn.Module, example_inputs: Any, run: Forward) -> Timing:
    """Time a forward of each model."""
    given = copied(example_inputs)
    with unchanged(model, watch=False), unchanged(new, watch=False), torch.no_grad():
        return time_pairs(partial(run, model, given), partial(run, new, given))
