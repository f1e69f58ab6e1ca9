"""Least squares fit of a norm's γ and β to another norm's output, layer by layer in the order of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.functional import batch_norm, group_norm
from gammabeta.introspection.forward import Forward
from gammabeta.introspection.norms import is_norm_act, is_ours
from gammabeta.introspection.unchanged import modes_kept
from gammabeta.surgery.change import transaction
from gammabeta.surgery.norm_act import activation_of


@dataclass
class Site:
    """A layer that becomes another kind of norm, with what is known about it.

    Attributes:
        name, module: the layer, still unchanged.
        channels: C.
        groups: those of the norm that it becomes; None for BatchNorm.
        class_name: the former name of its class.
        rank: the number of axes of its input, where known.
        positions: the fewest positions in a call, where seen.
        calls: the number of calls in a forward.
        misplaced: why its inputs are not supported.
        weight, bias: γ and β of the norm that it becomes; the present ones until fitted.
        mean, var: running statistics of the BatchNorm that it becomes; var is divided by n − 1.
        batches: the number of batches that these are from.
        line: the moments of (standardized input, former output), once fitted.
        residual, residual_kept: the distance of the output from the former one, with γ and β fitted and unchanged.
    """

    name: str
    module: Any
    channels: int
    groups: int | None
    class_name: str
    rank: int | None = None
    positions: int | None = None
    calls: int = 0
    misplaced: str | None = None
    weight: Tensor | None = field(init=False)
    bias: Tensor | None = field(init=False)
    mean: Tensor | None = None
    var: Tensor | None = None
    batches: int = 0
    line: Line | None = None
    residual: float = 0.0
    residual_kept: float = 0.0

    def __post_init__(self) -> None:
        self.weight, self.bias = self.module.weight, self.module.bias

    @property
    def fits(self) -> bool:
        """Whether a γ or β was fitted."""
        return self.line is not None and (self.weight is not None or self.bias is not None)

    def former_output(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the former layer's output in evaluation, before residual and activation."""
        m = self.module
        if isinstance(m, nn.GroupNorm):
            return group_norm(x, m.num_groups, m.weight, m.bias, m.eps, mask=mask)
        if m.running_mean is not None:
            return batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps, mask=mask)
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            return batch_norm(x, None, None, m.weight, m.bias, training=True, eps=m.eps, mask=mask)
        return group_norm(x, self.channels, m.weight, m.bias, m.eps, mask=mask)

    def regressor(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the new γ and β scale and shift.

        For BatchNorm that is x itself, because its standardization is a scale and shift too.
        """
        return x if self.groups is None else group_norm(x, self.groups, None, None, self.module.eps, mask=mask)

    def new_forward(self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Run the forward of the norm that the layer becomes."""
        m = self.module
        finish: dict[str, Any] = {"residual": residual, "mask": mask}
        if is_ours(m):
            finish |= {"activation": m.activation, "activation_slope": m.activation_slope}
        elif is_norm_act(m):
            finish["activation"], finish["activation_slope"] = activation_of(m)
        if self.groups is None:
            return batch_norm(input, self.mean, self.var, self.weight, self.bias, eps=m.eps, **finish)
        return group_norm(input, self.groups, self.weight, self.bias, m.eps, **finish)

    def fit(self, line: Line) -> None:
        """Fit γ and β (whichever exist) by least squares."""
        self.line = line
        one, zero = torch.ones_like(line.mean_x), torch.zeros_like(line.mean_x)
        weight = one if self.weight is None else self.weight.detach().to(one)
        bias = zero if self.bias is None else self.bias.detach().to(zero)
        std, shift = one, zero
        if self.groups is None:
            self.mean, self.var = line.mean_x, line.xx / max(line.count - 1, 1)
            std, shift = torch.sqrt(self.var + self.module.eps), line.mean_x
        self.residual_kept = line.residual(weight / std, bias - weight * shift / std)
        if self.weight is not None:
            slope = line.slope(centered=self.bias is not None)
            weight = torch.where(slope.isfinite(), slope * std, weight)
        if self.bias is not None:
            bias = line.mean_y - weight / std * (line.mean_x - shift)
        self.residual = line.residual(weight / std, bias - weight * shift / std)
        self.weight = None if self.weight is None else weight.to(self.weight.dtype)
        self.bias = None if self.bias is None else bias.to(self.bias.dtype)


class Line:
    """The moments of pairs (x, y) by channel, in float64: all that a least squares line needs."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_x = self.mean_y = self.xx = self.yy = self.xy = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add pairs as rows (K, C).

        Source: Chan, Golub & LeVeque 1983, eq. 2.1, and its product form.
        """
        x, y = x.double(), y.double()
        k = x.shape[0]
        if k == 0:
            return
        mean_x, mean_y = x.mean(0), y.mean(0)
        dx, dy = x - mean_x, y - mean_y
        n = self.count + k
        gap_x, gap_y, share = mean_x - self.mean_x, mean_y - self.mean_y, self.count * k / n
        self.xx = self.xx + dx.square().sum(0) + gap_x.square() * share
        self.yy = self.yy + dy.square().sum(0) + gap_y.square() * share
        self.xy = self.xy + (dx * dy).sum(0) + gap_x * gap_y * share
        self.mean_x = self.mean_x + gap_x * (k / n)
        self.mean_y = self.mean_y + gap_y * (k / n)
        self.count = n

    def slope(self, *, centered: bool) -> Tensor:
        """Return the least squares slope, with an intercept or through 0.

        With an intercept it is NaN where x varies by no more than its rounding.
        """
        if centered:
            varies = self.xx > 1e-10 * self.count * self.mean_x.square()
            return torch.where(varies, self.xy / self.xx, torch.nan)
        return (self.xy + self.count * self.mean_x * self.mean_y) / (self.xx + self.count * self.mean_x.square())

    def residual(self, slope: Tensor, intercept: Tensor) -> float:
        """Return ‖y − slope·x − intercept‖/‖y − mean‖ over all channels."""
        offset = self.mean_y - slope * self.mean_x - intercept
        squares = self.yy - 2 * slope * self.xy + slope.square() * self.xx + self.count * offset.square()
        return (squares.clamp(min=0).sum() / self.yy.sum()).sqrt().item()


class _Reached(BaseException):
    """End of a forward at the layer that it was run for; no Exception, so that no handler on the way catches it."""


def look_at_calls(model: nn.Module, sites: list[Site], run: Forward, batch: Any) -> None:
    """Order the sites by their first call, and record the shapes and number of calls."""
    order: list[Site] = []

    def look(site: Site, x: Tensor, mask: Tensor | None) -> None:
        if site not in order:
            order.append(site)
        site.calls += 1
        if x.ndim < (site.rank or 2) or x.shape[1] != site.channels:
            site.misplaced = f"its input {tuple(x.shape)} has not its {site.channels} channels at axis 1"
            return
        site.rank = x.ndim
        positions = x[0, 0].numel() if x.shape[0] else 1
        site.positions = positions if site.positions is None else min(site.positions, positions)

    with _evaluating(model, sites, look):
        run(model, batch)
    sites.sort(key=lambda site: order.index(site) if site in order else len(order))


def fit_in_order(model: nn.Module, sites: Sequence[Site], run: Forward, batches: Sequence[Any]) -> None:
    """Fit each site, behind the sites already fitted, to its output in the unchanged model."""
    for index, site in enumerate(sites):
        if not site.calls:
            continue
        line, found = Line(), 0
        for batch in batches:
            formers = _values_at(model, site, [], run, batch, site.former_output)
            regressors = _values_at(model, site, sites[:index], run, batch, site.regressor)
            for (x, _), (y, mask) in zip(regressors, formers, strict=True):
                line.add(_rows(x, mask), _rows(y, mask))
            found += bool(formers)
        if line.count:
            site.batches = found
            site.fit(line)


def _values_at(
    model: nn.Module,
    site: Site,
    converted: Sequence[Site],
    run: Forward,
    batch: Any,
    value: Callable[[Tensor, Tensor | None], Tensor],
) -> list[tuple[Tensor, Tensor | None]]:
    """Return `value` of the site's inputs in a forward with some layers already converted."""
    out: list[tuple[Tensor, Tensor | None]] = []

    def look(_: Site, x: Tensor, mask: Tensor | None) -> None:
        out.append((value(x, mask), mask))
        if len(out) == site.calls:
            raise _Reached

    with _evaluating(model, [site], look) as temporary:
        for other in converted:
            if other.calls:
                temporary.set_attribute(other.module, "forward", other.new_forward, other.name)
        with suppress(_Reached):
            run(model, batch)
    return out


@contextmanager
def _evaluating(
    model: nn.Module, sites: Sequence[Site], look: Callable[[Site, Tensor, Tensor | None], None]
) -> Iterator[Any]:
    """Put the model in evaluation mode and show `look` every input of the sites; restore everything on leaving."""
    with modes_kept(model), transaction("convert") as temporary:
        for module in model.modules():
            module.training = False
        for site in sites:

            def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], site: Site = site) -> None:
                look(site, args[0] if args else kwargs["input"], kwargs.get("mask"))

            temporary.on_undo(site.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        try:
            yield temporary
        finally:
            temporary.roll_back()


def _rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return (N, C, *positions) as rows of channels, without masked positions."""
    rows = values.movedim(1, -1)
    return rows.reshape(-1, rows.shape[-1]) if mask is None else rows[mask.broadcast_to(rows.shape[:-1])]
