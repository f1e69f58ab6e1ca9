"""The augmentation of small colour images: a random crop after padding, and a flip."""

import torch
from torch import Tensor
from torch.nn import functional

PADDING = 4


def crop_and_flip(x_nchw: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, c, h, w), each shifted by up to 4 pixels in each direction and flipped with probability 1/2.

    What is shifted in is 0, the training images' mean.

    Source: He et al. 2015 (1512.03385), section 4.2; Lee et al. 2015 (1409.5185).
    """
    count, _, height, width = x_nchw.shape
    shifts = torch.randint(2 * PADDING + 1, (2, count), generator=generator)
    is_flipped = torch.randint(2, (count, 1), generator=generator).bool()
    rows = shifts[0][:, None] + torch.arange(height)
    columns = shifts[1][:, None] + torch.arange(width)
    columns = torch.where(is_flipped, columns.flip(1), columns)
    padded = functional.pad(x_nchw, (PADDING,) * 4)
    each = torch.arange(count)[:, None, None]
    # Indexing leaves the channels last, which is how ResNet-20 takes images.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
