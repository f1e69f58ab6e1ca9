"""Corrupted images: what a network meets in use that it was not trained on."""

import math

import torch
from torch import Tensor
from torch.nn import functional

CORRUPTIONS = ("noise", "blur", "rotation", "contrast")


def corrupted(x_nchw: Tensor, how: str, seed: int) -> Tensor:
    """Corrupt standardized images.

    Args:
        how: ``"noise"``: add normal noise of 1 standard deviation. ``"blur"``: a 3 × 3 mean filter. ``"rotation"``: by
            30 degrees. ``"contrast"``: half the contrast, and brighter by half a standard deviation.
        seed: of the noise.

    Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261), for the kinds.
    """
    if how == "noise":
        return x_nchw + torch.randn(x_nchw.shape, generator=torch.Generator().manual_seed(seed))
    if how == "blur":
        return functional.avg_pool2d(x_nchw, 3, 1, 1, count_include_pad=False)
    if how == "rotation":
        angle = math.radians(30)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
        grid = functional.affine_grid(turn.expand(len(x_nchw), 2, 3), list(x_nchw.shape), align_corners=False)
        return functional.grid_sample(x_nchw, grid, padding_mode="border", align_corners=False)
    if how == "contrast":
        return 0.5 * x_nchw + 0.5
    raise ValueError(f"corrupted: expected one of {', '.join(CORRUPTIONS)}, got {how}")
