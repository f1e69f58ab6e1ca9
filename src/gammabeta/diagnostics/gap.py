"""How far the statistics that a norm is given are from its running ones, beside what sampling explains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.diagnostics.measurement import Given, measure
from gammabeta.diagnostics.record import record_model
from gammabeta.introspection.forward import input_of

# Standard errors that a difference has to exceed, root mean square over channels, to be more than sampling.
SIGNIFICANT = 4.0
# From where on it matters: standard deviations of mean shift, and log of the variance ratio.
SHIFT, RATIO = 0.5, 0.693


@dataclass(frozen=True)
class Gap:
    """Root mean squares over the channels.

    Attributes:
        mean_shift: (mean given − running mean)/√running variance.
        log_variance_ratio: ln(variance given/running variance), both divided by n − 1.
        mean_error, variance_error: the standard errors of the two, 1/√n_eff and √(2/(n_eff − 1)).
    """

    mean_shift: float
    log_variance_ratio: float
    mean_error: float
    variance_error: float

    @property
    def significant(self) -> bool:
        """Whether sampling does not explain it."""
        return (
            self.mean_shift > SIGNIFICANT * self.mean_error
            or self.log_variance_ratio > SIGNIFICANT * self.variance_error
        )

    @property
    def matters(self) -> bool:
        """Whether it is significant and large."""
        return (self.mean_shift > max(SHIFT, SIGNIFICANT * self.mean_error)) or (
            self.log_variance_ratio > max(RATIO, SIGNIFICANT * self.variance_error)
        )

    def __str__(self) -> str:
        return (
            f"mean off by {self.mean_shift:.2f} standard deviations (sampling gives {self.mean_error:.2f}), log "
            f"variance by {self.log_variance_ratio:.2f} ({self.variance_error:.2f})"
        )


def gap_of(given: Given, running_mean: Tensor, running_var: Tensor) -> Gap | None:
    """The gap; None where the inputs do not tell sampling error, or a running variance is not positive.

    The variances' errors are a normal distribution's: Var(ln s²) ≈ 2/(n − 1).
    """
    mean, var = running_mean.double(), running_var.double()
    if given.effective is None or given.effective < 3 or not bool((var > 0).all() & torch.isfinite(mean).all()):
        return None
    of_inputs = given.moments.var(1)
    varies = of_inputs > 0
    if not bool(varies.any()):
        return None
    shift = ((given.moments.mean - mean) / var.sqrt())[varies]
    ratio = torch.log(of_inputs[varies] / var[varies])
    n = given.effective
    return Gap(_rms(shift), _rms(ratio), n**-0.5, (2 / (n - 1)) ** 0.5)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@dataclass(frozen=True)
class LayerGap:
    """One BatchNorm's gap.

    Attributes:
        name: its qualified name.
        samples: how many it was given.
        gap: None where nothing can be said.
        why: then, the reason.
    """

    name: str
    samples: int
    gap: Gap | None
    why: str = ""


@dataclass(frozen=True)
class TrainEvalGap:
    """What `train_eval_gap` found.

    Attributes:
        layers: in the order in which the data goes through them.
        batches: how many were looked at.
    """

    layers: tuple[LayerGap, ...]
    batches: int

    @property
    def first(self) -> LayerGap | None:
        """The first layer whose gap sampling does not explain; None where there is none."""
        return next((layer for layer in self.layers if layer.gap is not None and layer.gap.significant), None)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'layer':{width}}  mean shift, σ (sampling)  log variance ratio (sampling)  samples"]
        for layer in self.layers:
            gap = layer.gap
            if gap is None:
                lines.append(f"{layer.name:{width}}  {layer.why}")
                continue
            mark = "  <- first" if layer is self.first else "  *" if gap.significant else ""
            lines.append(
                f"{layer.name:{width}}  {gap.mean_shift:13.3f} ({gap.mean_error:.3f})  "
                f"{gap.log_variance_ratio:20.3f} ({gap.variance_error:.3f})  {layer.samples:7}{mark}"
            )
        if self.first is None:
            lines.append(f"no layer of {len(self.layers)} beyond {SIGNIFICANT:g} standard errors")
        else:
            beyond = sum(layer.gap is not None and layer.gap.significant for layer in self.layers)
            lines.append(
                f"{beyond} of {len(self.layers)} layers (*) beyond {SIGNIFICANT:g} standard errors, the first "
                f"{self.first.name}: what is before it is as in training"
            )
        return "\n".join(lines)

    def plot(self) -> Any:
        """A plotly figure: both gaps by layer, in the order of the data, over what sampling explains.

        Raises:
            ImportError: plotly is not installed: pip install gammabeta[study].
        """
        try:
            import plotly.graph_objects as go
        except ImportError as error:
            raise ImportError(
                "train_eval_gap: plot() needs plotly: pip install gammabeta[study], or print the result as a table."
            ) from error
        told = [(layer.name, layer.gap) for layer in self.layers if layer.gap is not None]
        names = [name for name, _ in told]
        series = {
            "mean shift": ("#2a6fbb", [gap.mean_shift for _, gap in told], [gap.mean_error for _, gap in told]),
            "log variance ratio": (
                "#c2571a",
                [gap.log_variance_ratio for _, gap in told],
                [gap.variance_error for _, gap in told],
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
            title="What BatchNorms are given beside their running statistics",
            xaxis_title="layer, in the order of the data",
            yaxis_title="root mean square over channels (mean: in σ)",
            template="plotly_white",
            legend={"orientation": "h", "y": -0.3},
        )
        figure.update_xaxes(tickangle=-45, automargin=True)
        return figure


def train_eval_gap(model: nn.Module, batches: Iterable[Any]) -> TrainEvalGap:
    """How far the statistics of the data are from the running ones, layer by layer in the order of the data.

    For each BatchNorm, root mean square over channels, of the moments of all batches merged:

        mean shift          (mean − running mean)/√running variance
        log variance ratio  ln(variance/running variance), both divided by n − 1

    beside the standard errors 1/√n and √(2/(n − 1)) that n effective values have. The model runs in evaluation: layers
    behind the first with a gap are given what that one makes of it. The model stays as it was.

    Args:
        model: any module with BatchNorms that have running statistics.
        batches: of what the model takes: tensors, tuples that begin with one, or mappings of keyword arguments; all of
            them are taken, a few hundred samples tell most.

    Returns:
        The `TrainEvalGap`: `print` it, or `plot()`.

    Raises:
        ValueError: no BatchNorm with running statistics, or no batches.
        TypeError: batches that are not as above.
        Exception: whatever the forward raises on them.
    """
    norms = {n: norm for norm in record_model(model).of_kind("batch") if norm.has_statistics for n in norm.names}
    if not norms:
        raise ValueError("train_eval_gap: expected a model with BatchNorms that have running statistics, got none.")
    found: dict[str, list[Given]] = {}
    taken = 0
    for batch in batches:
        inputs = input_of(batch, "train_eval_gap", "hand a generator of what the model takes.")
        for name, calls in measure(model, inputs if isinstance(inputs, Tensor) else dict(inputs)).items():
            found.setdefault(name, []).extend(calls)
        taken += 1
    if not taken:
        raise ValueError("train_eval_gap: expected batches, got none: is the loader a generator that was used up?")
    layers = [_layer(name, calls, norms[name]) for name, calls in found.items() if name in norms]
    missed = [name for name in dict.fromkeys(norm.name for norm in norms.values()) if name not in found]
    layers += [LayerGap(name, 0, None, "not called") for name in missed]
    return TrainEvalGap(tuple(layers), taken)


def _layer(name: str, calls: list[Given], norm: Any) -> LayerGap:
    whole = calls[0].moments
    for call in calls[1:]:
        whole = whole.merge(call.moments)
    samples = sum(call.samples for call in calls)
    worth = [call.effective for call in calls if call.effective is not None]
    if not worth:
        return LayerGap(name, samples, None, "batches of one sample do not tell the sampling error")
    # What batches of one sample are worth, the others tell.
    counted = sum(call.samples for call in calls if call.effective is not None)
    gap = gap_of(Given(samples, whole, sum(worth) * samples / counted), norm.running_mean, norm.running_var)
    return LayerGap(name, samples, gap, "" if gap is not None else "too few values, or a variance that is not positive")
