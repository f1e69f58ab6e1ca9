"""Models of torch.nn and of transformers, and the same with their norms adopted."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta as gb


class Norms(nn.Module):
    """Every norm of torch.nn, behind a convolution."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.batch = nn.BatchNorm2d(8, momentum=momentum)
        self.group = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.tracked = nn.InstanceNorm2d(8, track_running_stats=True)
        self.layer = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.flat = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tracked(self.instance(self.group(self.batch(self.conv(x)).relu())))
        h = self.rms(self.layer(h.permute(0, 2, 3, 1)))
        return self.flat(h.mean((1, 2)))


def scattered(model: nn.Module) -> nn.Module:
    """Set γ, β and running statistics to values other than 0 and 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the model adopted, and unchanged."""
    ours = copy.deepcopy(scattered(model))
    gb.adopt(ours)
    return ours, model


def resnet18(width: int = 8) -> nn.Module:
    """Build a narrow ResNet-18 of transformers."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=width, hidden_sizes=[width, 2 * width, 4 * width, 8 * width], depths=[2, 2, 2, 2],
        layer_type="basic", num_labels=5,
    )  # fmt: skip
    return Logits(ResNetForImageClassification(config))


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Tensor:
        return self.model(x).logits


def assert_same_training(ours: nn.Module, theirs: nn.Module, *, tolerance: float = 1e-4) -> None:
    """Assert that gradients and buffers agree, name by name."""
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None and other.grad is not None:
            torch.testing.assert_close(
                mine.grad, other.grad, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
    for (name, mine), (other_name, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == other_name
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
