"""Distance of a norm's input statistics from its running ones, compared with what sampling explains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.measurement import Given, measure
from gammabeta.diagnostics.record import record_model
from gammabeta.introspection.batches import MOST, bounded, length_of
from gammabeta.introspection.forward import Forward
from gammabeta.moments import Moments
from gammabeta.pages.notebook import table

# Standard errors, root mean square over channels, above which a difference is more than sampling.
SIGNIFICANT = 4.0
# Differences that matter: mean shift in standard deviations, and log of the variance ratio.
SHIFT, RATIO = 0.5, 0.693
SHIFT_TITLE, RATIO_TITLE = "mean shift, σ (sampling)", "log variance ratio (sampling)"


@dataclass(frozen=True)
class Gap:
    """A norm's gap between input and running statistics, root mean square over the channels.

    Attributes:
        mean_shift: (input mean − running mean)/√running variance.
        log_variance_ratio: ln(input variance/running variance), both divided by n − 1.
        mean_error, variance_error: the standard errors of the two, 1/√n_eff and √(2/(n_eff − 1)).
    """

    mean_shift: float
    log_variance_ratio: float
    mean_error: float
    variance_error: float

    @property
    def significant(self) -> bool:
        """Whether the gap is more than sampling explains."""
        return (
            self.mean_shift > SIGNIFICANT * self.mean_error
            or self.log_variance_ratio > SIGNIFICANT * self.variance_error
        )

    @property
    def matters(self) -> bool:
        """Whether the gap is significant and large enough to matter."""
        return (self.mean_shift > max(SHIFT, SIGNIFICANT * self.mean_error)) or (
            self.log_variance_ratio > max(RATIO, SIGNIFICANT * self.variance_error)
        )

    def __str__(self) -> str:
        return (
            f"mean off by {self.mean_shift:.2f} standard deviations (sampling explains {self.mean_error:.2f}), log "
            f"variance by {self.log_variance_ratio:.2f} ({self.variance_error:.2f})"
        )


def gap_of(given: Given, running_mean: Tensor, running_var: Tensor, eps: float = 0.0) -> Gap | None:
    """Return the gap of one input: with an ε, as it is in the output, where ε is added to both variances.

    The standard error of the variance assumes a normal distribution: Var(ln s²) ≈ 2/(n − 1).

    Args:
        given: what the norm was given.
        running_mean, running_var: (C,).
        eps: ε, in the squared unit of x.

    Returns:
        The gap; None if the input does not tell its sampling error, or a running variance is not positive.
    """
    mean, var = running_mean.double(), running_var.double()
    if given.effective is None or given.effective < 3 or not bool((var > 0).all() & torch.isfinite(mean).all()):
        return None
    input_var = given.moments.var(1)
    varies = ~still_channels(given.moments)
    if not bool(varies.any()):
        return None
    shift = ((given.moments.mean - mean) / (var + eps).sqrt())[varies]
    ratio = torch.log((input_var[varies] + eps) / (var[varies] + eps))
    n = given.effective
    return Gap(_rms(shift), _rms(ratio), n**-0.5, (2 / (n - 1)) ** 0.5)


def still_channels(moments: Moments) -> Tensor:
    """Return which channels do not vary: (C,), booleans. Rounding of the mean is no variance."""
    var, mean = moments.var().flatten(), moments.mean.flatten()
    return var <= 1e-14 * mean.square()


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@dataclass(frozen=True)
class LayerGap:
    """One BatchNorm's gap.

    Attributes:
        name: its qualified name.
        samples: number of samples it was given.
        gap: the gap; None if nothing can be said.
        why: the reason if nothing can be said.
        still: number of channels that do not vary on the data, although their running variance is above ε. They have
            no variance to compare and are not in the gap.
    """

    name: str
    samples: int
    gap: Gap | None
    why: str = ""
    still: int = 0

    @property
    def differs(self) -> bool:
        """Whether the layer's input is not as in training: beyond sampling error, or with channels that died."""
        return self.still > 0 or (self.gap is not None and self.gap.significant)


@dataclass(frozen=True)
class TrainEvalGap:
    """Result of `train_eval_gap`.

    Attributes:
        layers: the layers in the order in which the data passes through them.
        batches: number of batches that were looked at.
        first_only: whether they are the first of batches without a length, of which there may be more.
    """

    layers: tuple[LayerGap, ...]
    batches: int
    first_only: bool = False

    @property
    def first(self) -> LayerGap | None:
        """The first layer whose input is not as in training; None if there is none."""
        return next((layer for layer in self.layers if layer.differs), None)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'layer':{width}}  {SHIFT_TITLE}  {RATIO_TITLE}  samples"]
        for layer in self.layers:
            gap = layer.gap
            mark = "".join(f"  {part}" for part in self._marks(layer))
            if gap is None:
                lines.append(f"{layer.name:{width}}  {layer.why}{mark}")
                continue
            lines.append(
                f"{layer.name:{width}}  {gap.mean_shift:13.3f} ({gap.mean_error:.3f})  "
                f"{gap.log_variance_ratio:20.3f} ({gap.variance_error:.3f})  {layer.samples:7}{mark}"
            )
        return "\n".join(lines + self._below())

    def _repr_html_(self) -> str:
        rows = []
        for layer in self.layers:
            gap, found = layer.gap, self._marks(layer)
            if gap is None:
                rows.append((layer.name, "", "", "", ", ".join([layer.why, *found])))
                continue
            shift = f"{gap.mean_shift:.3f} ({gap.mean_error:.3f})"
            ratio = f"{gap.log_variance_ratio:.3f} ({gap.variance_error:.3f})"
            rows.append((layer.name, shift, ratio, str(layer.samples), ", ".join(found)))
        title = f"train_eval_gap: {len(self.layers)} BatchNorms on {self.batches} batches"
        return table(title, ("layer", SHIFT_TITLE, RATIO_TITLE, "samples", ""), rows, self._below())

    def _marks(self, layer: LayerGap) -> list[str]:
        still = [f"{layer.still} channel{'s' * (layer.still > 1)} without variance"] * bool(layer.still)
        return still + (["<- first"] if layer is self.first else ["*"] * layer.differs)

    def _below(self) -> list[str]:
        if self.first is None:
            lines = [f"none of {len(self.layers)} layers beyond {SIGNIFICANT:g} standard errors"]
        else:
            lines = [self._verdict(self.first)]
        return lines + [f"on the first {self.batches} batches: they have no length"] * self.first_only

    def _verdict(self, first: LayerGap) -> str:
        beyond = sum(layer.gap is not None and layer.gap.significant for layer in self.layers)
        still = sum(layer.still > 0 for layer in self.layers)
        parts = [f"{beyond} of {len(self.layers)} layers (*) beyond {SIGNIFICANT:g} standard errors"] * bool(beyond)
        parts += [f"{still} of {len(self.layers)} layers with channels that no longer vary"] * bool(still)
        known = self.layers[: self.layers.index(first)]
        if any(layer.gap is None for layer in known):
            return f"{' and '.join(parts)}, the first being {first.name}; of some layers before it nothing is known"
        return f"{' and '.join(parts)}, the first being {first.name}: everything before it is as in training"

    def plot(self) -> Any:
        """Draw both gaps by layer, in the order of the data, with what sampling explains.

        Returns:
            A plotly figure.

        Raises:
            ImportError: plotly is not installed: pip install gammabeta[study].
        """
        try:
            import plotly.graph_objects as go
        except ImportError as error:
            raise ImportError(
                "train_eval_gap: plot() needs plotly: pip install gammabeta[study], or print the result as a table."
            ) from error
        known = [(layer.name, layer.gap) for layer in self.layers if layer.gap is not None]
        names = [name for name, _ in known]
        series = {
            "mean shift": ("#2a6fbb", [gap.mean_shift for _, gap in known], [gap.mean_error for _, gap in known]),
            "log variance ratio": (
                "#c2571a",
                [gap.log_variance_ratio for _, gap in known],
                [gap.variance_error for _, gap in known],
            ),
        }
        figure = go.Figure()
        for name, (colour, values, errors) in series.items():
            figure.add_scatter(x=names, y=values, name=name, mode="lines+markers", line={"color": colour})
            bound = [SIGNIFICANT * error for error in errors]
            line = {"color": colour, "dash": "dot", "width": 1}
            figure.add_scatter(
                x=names, y=bound, name=f"{name}: {SIGNIFICANT:g} standard errors", mode="lines", line=line
            )
        figure.update_layout(
            title="Input statistics of BatchNorms compared with their running statistics",
            xaxis_title="layer, in the order of the data",
            yaxis_title="root mean square over channels (mean: in σ)",
            template="plotly_white",
            legend={"orientation": "h", "y": -0.3},
        )
        figure.update_xaxes(tickangle=-45, automargin=True)
        return figure


def train_eval_gap(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> TrainEvalGap:
    """Measure how far the data's statistics are from the running ones, layer by layer in the order of the data.

    For each BatchNorm, from the merged moments of all batches, root mean square over channels:

        mean shift          (mean − running mean)/√running variance
        log variance ratio  ln(variance/running variance), both divided by n − 1

    The standard errors are 1/√n and √(2/(n − 1)) for n effective values. The model runs in evaluation, so layers behind
    the first one with a gap see its effect. Channels that do not vary on the data have no ratio. They are left out of
    both, and counted if their running variance says that they varied in training. The model stays as it was.

    Args:
        model: any module with BatchNorms that have running statistics.
        batches: each as the model takes it: a tensor, a tuple or list of positional arguments, a mapping of keyword
            arguments, or (input, target) ("Batches" in docs/conventions.md). All of them are used, or the first 1000 of
            batches without a length; a few hundred samples usually suffice.
        forward: `forward(model, batch)`, for batches that go through the model in another way.

    Returns:
        The `TrainEvalGap`: `print` it, or call `plot()`.

    Raises:
        ValueError: the model has no BatchNorm with running statistics, or there are no batches.
        TypeError: a batch is none of these.
        Exception: whatever the forward raises on them.
    """
    norms = {n: norm for norm in record_model(model).of_kind("batch") if norm.has_statistics for n in norm.names}
    if not norms:
        raise ValueError("train_eval_gap: expected a model with BatchNorms that have running statistics, got none.")
    found: dict[str, list[Given]] = {}
    taken = 0
    for batch in bounded(batches):
        for name, calls in measure(model, batch, forward, operation="train_eval_gap").items():
            found.setdefault(name, []).extend(calls)
        taken += 1
    if not taken:
        raise ValueError("train_eval_gap: expected batches, got none: is the loader a generator that was used up?")
    layers = [_layer(name, calls, norms[name]) for name, calls in found.items() if name in norms]
    missed = [name for name in dict.fromkeys(norm.name for norm in norms.values()) if name not in found]
    layers += [LayerGap(name, 0, None, _why_not_seen(norms[name])) for name in missed]
    return TrainEvalGap(tuple(layers), taken, taken == MOST and length_of(batches) is None)


def _why_not_seen(norm: Any) -> str:
    scripted = isinstance(norm.module, torch.jit.ScriptModule)
    return "inside a scripted module, whose calls cannot be seen" if scripted else "not called"


def _layer(name: str, calls: list[Given], norm: Any) -> LayerGap:
    """Return the gap of one layer from all of its calls."""
    whole = calls[0].moments
    for call in calls[1:]:
        whole = whole.merge(call.moments)
    samples = sum(call.samples for call in calls)
    worth = [call.effective for call in calls if call.effective is not None]
    if not worth:
        return LayerGap(name, samples, None, "batches of one sample do not tell the sampling error")
    # Batches of one sample are taken to be worth as much per sample as the others.
    counted = sum(call.samples for call in calls if call.effective is not None)
    gap = gap_of(Given(samples, whole, sum(worth) * samples / counted), norm.running_mean, norm.running_var)
    alive = norm.running_var.double() > (norm.eps or 0.0)
    still = int((still_channels(whole) & alive.to(whole.mean.device)).sum()) if samples > 1 else 0
    why = "" if gap is not None else "too few values, or a variance that is not positive"
    return LayerGap(name, samples, gap, why, still)
