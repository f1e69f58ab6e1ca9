"""Deep, narrow decoders, in which it matters where the norms stand: shared by rate_headroom and warmup."""

from collections.abc import Mapping
from typing import Any

from gammabeta.lab.experiment import Experiment

# each variant's name in tables, and its settings
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "no normalization": {"arm": "none"},
    "LayerNorm, pre-norm": {"arm": "layer"},
    "LayerNorm, post-norm": {"arm": "layer", "placement": "post"},
    "LayerNorm, peri-norm": {"arm": "layer", "placement": "peri"},
    "RMSNorm, pre-norm": {"arm": "rms"},
    "LayerNorm, pre-norm with QK-norm": {"arm": "layer", "placement": "pre, qk"},
}


def depths_of(experiment: Experiment) -> list[int]:
    """Return the numbers of layers."""
    return [3] if experiment.quick else [3, 6, 12]


def steps_of(experiment: Experiment) -> int:
    return 150 if experiment.quick else 400


def settings_of(experiment: Experiment, variant: str, depth: int) -> dict[str, Any]:
    """Return the settings of a deep decoder that `gammabeta.lab.text.rates.on_grid` takes."""
    size = {"width": 16, "context": 32, "batch": 8, "steps": steps_of(experiment)}
    return {**size, "layers": depth, **VARIANTS[variant]}
