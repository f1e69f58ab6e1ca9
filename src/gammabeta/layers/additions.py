"""The part of a layer's repr that tells it from torch's and describes what torch's layer does not have."""

from __future__ import annotations

from typing import Any


def mark_ours(layer: Any) -> str:
    """Describe what torch's layer does not have, and end in the word gammabeta.

    The class's name stays as it is: other code compares it, and an adopted layer keeps that of its class.
    """
    return describe_additions(layer) + ", gammabeta"


def describe_additions(layer: Any) -> str:
    """Describe the activation and keep_float32 where they differ from the defaults."""
    slope = f", activation_slope={layer.activation_slope}" if layer.activation == "leaky_relu" else ""
    activation = "" if layer.activation is None else f", activation={layer.activation}{slope}"
    return activation + ("" if layer.keep_float32 else ", keep_float32=False")
