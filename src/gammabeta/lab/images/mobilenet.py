"""A small MobileNet: convolutions that are separable into a depthwise and a pointwise one."""

from itertools import pairwise

from torch import Tensor, nn

from gammabeta.lab.norms import norm


class MobileNet(nn.Module):
    """A 3 × 3 convolution and four separable ones with 16, 24, 24 and 48 channels, then a linear classifier.

    A separable convolution is a 3 × 3 convolution of each channel on its own, norm, relu, a 1 × 1 convolution, norm and
    relu. The first convolution halves images above 16 pixels, and the last separable one halves all.

    Source: Howard et al. 2017, MobileNets (1704.04861), section 3.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm_name: str) -> None:
        super().__init__()
        widths = (16, 16, 24, 24, 48)
        stride = 2 if max(shape[1:]) > 16 else 1
        layers: list[nn.Module] = [
            nn.Conv2d(shape[0], widths[0], 3, stride, 1, bias=False),
            norm(norm_name, widths[0]),
            nn.ReLU(),
        ]
        for inputs, channels in pairwise(widths):
            layers += [
                nn.Conv2d(inputs, inputs, 3, 2 if channels == widths[-1] else 1, 1, groups=inputs, bias=False),
                norm(norm_name, inputs),
                nn.ReLU(),
                nn.Conv2d(inputs, channels, 1, bias=False),
                norm(norm_name, channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return scores
