"""Copies of timm 1.0's BatchNorms with an activation, and of its converters, for tests without timm."""

import torch
import torch.nn.functional as F
from torch import nn


class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, channels, act=nn.ReLU, **options):
        super().__init__(channels, **options)
        self.drop = nn.Identity()
        self.act = act()

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        training = self.training or self.running_mean is None
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class SyncBatchNormAct(nn.SyncBatchNorm):
    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class FrozenBatchNormAct2d(nn.Module):
    def __init__(self, channels, act=nn.ReLU, wrong=0.0):
        super().__init__()
        self.eps, self.wrong = 1e-5, wrong
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        self.drop, self.act = nn.Identity(), act()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x):
        w, b, m, v = (getattr(self, n).reshape(1, -1, 1, 1) for n in ("weight", "bias", "running_mean", "running_var"))
        scale = w * (v + self.eps).rsqrt()
        return self.act(self.drop(x * scale + b - m * scale)) + self.wrong


def convert_sync_batchnorm(module):
    out = module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        cls = SyncBatchNormAct if isinstance(module, BatchNormAct2d) else nn.SyncBatchNorm
        out = cls(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        if isinstance(module, BatchNormAct2d):
            out.act, out.drop = module.act, module.drop
        out.weight, out.bias = module.weight, module.bias
        out.running_mean, out.running_var = module.running_mean, module.running_var
        out.num_batches_tracked, out.training = module.num_batches_tracked, module.training
    for name, child in module.named_children():
        out.add_module(name, convert_sync_batchnorm(child))
    return out


def freeze_batch_norm_2d(module):
    out = module
    if isinstance(module, BatchNormAct2d):
        out = FrozenBatchNormAct2d(module.num_features)
        for name in ("weight", "bias"):
            getattr(out, name).data = getattr(module, name).data.clone()
        out.running_mean.data, out.running_var.data = module.running_mean.data, module.running_var.data
        out.eps, out.drop, out.act = module.eps, module.drop, module.act
    else:
        for name, child in module.named_children():
            out.add_module(name, freeze_batch_norm_2d(child))
    return out
