"""The part of a layer's repr that describes what torch's layer does not have."""

from __future__ import annotations

from typing import Any


def describe_additions(layer: Any) -> str:
    """Describe the activation and keep_float32 where they differ from the defaults."""
    slope = f", activation_slope={layer.activation_slope}" if layer.activation == "leaky_relu" else ""
    activation = "" if layer.activation is None else f", activation={layer.activation}{slope}"
    return activation + ("" if layer.keep_float32 else ", keep_float32=False")
