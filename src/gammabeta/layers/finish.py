"""How a layer's repr tells its activation."""

from __future__ import annotations


def describe_finish(activation: str | None, slope: float) -> str:
    if activation is None:
        return ""
    return f", activation={activation}" + (f", activation_slope={slope}" if activation == "leaky_relu" else "")
