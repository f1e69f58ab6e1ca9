"""The ResNet of resnet.py, as many people fine-tune: everything frozen but a new head."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))
from resnet import build as pretrained


def build() -> nn.Module:
    model = pretrained()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[-1] = nn.Linear(model[-1].in_features, 3)
    return model.train()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
