"""Models that the tests of surgery share, and the complete state of a model as a value to compare."""

import copy

import torch
from torch import nn

import gammabeta as gb


class Residual(nn.Module):
    """A small network with every kind of norm and one shared BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3, momentum=0.3), nn.ReLU())
        self.shared = self.block[1]
        self.gn = nn.GroupNorm(2, 8)
        self.inorm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 6)
        self.bn2 = nn.BatchNorm1d(6, momentum=None)
        self.ln = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.stem(x)))
        x = self.shared(x + self.block(x))
        x = self.inorm(self.gn(x)).mean((2, 3)) + x.amax((2, 3))
        return self.head(self.rms(self.ln(self.bn2(self.drop(self.fc(x))))))


class FrozenBatchNorm2d(nn.Module):
    """A frozen BatchNorm as in detectron2 and DETR: buffers, and where `eps` is None ε only in the forward."""

    def __init__(self, channels, eps=None, wrong=0.0):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        self.hidden = 1e-5 if eps is None else eps
        self.wrong = wrong
        if eps is not None:
            self.eps = eps

    def forward(self, x):
        w, b, m, v = (getattr(self, n).reshape(1, -1, 1, 1) for n in ("weight", "bias", "running_mean", "running_var"))
        return (x - m) * (w * (v + self.hidden).rsqrt()) + b + self.wrong


def randomize(model, seed=0):
    """Set random Parameters, running means and variances, so that a layer that loses one is noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 3, generator=generator)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + name.endswith("weight") * 0.3)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
    return model


def model():
    return randomize(Residual())


def ours():
    m = model()
    gb.adopt(m)
    return m


def images(count=8, seed=1):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def whole(model):
    """Return the complete state of a model: classes, attributes, identities, hooks, flags, and the bits of tensors."""
    out = {}
    for name, module in model.named_modules(remove_duplicate=False):
        skip = ("_parameters", "_buffers", "_modules")
        attributes = {k: copy.copy(v) for k, v in module.__dict__.items() if k not in skip}
        out[name] = (
            type(module),
            id(module),
            {k: dict(v) if isinstance(v, dict) else v for k, v in attributes.items()},
            {k: id(child) for k, child in module._modules.items()},
            {k: tensor(p) for k, p in module._parameters.items()},
            {k: tensor(b) for k, b in module._buffers.items()},
            list(module._parameters),
            list(module._buffers),
        )
    return out


def tensor(t):
    """Return a tensor's identity, requires_grad and bits."""
    if t is None:
        return None
    return id(t), t.requires_grad, t.dtype, tuple(t.shape), t.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def hooked(model):
    """Return the model with hooks on its norms that count their calls."""
    calls = []
    for name, module in model.named_modules():
        if name in ("bn1", "ln"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls
