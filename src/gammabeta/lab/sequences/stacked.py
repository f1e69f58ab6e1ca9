"""Networks of one shape side by side: their parameters stacked along a first axis, and trained by one AdamW.

The layers of S networks become layers with parameters (S, …), which map x (S, n, …) member by member. Each step then
runs once for all members and saves Python and dispatch. Members do not affect each other: no value is computed from two
of them, and each has its own learning rate, its own moments and its own clipping.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.sequences.networks import Dropout, DyT, SequenceNorm, StepGroupNorm


class StackedLinear(nn.Module):
    """S linear layers: (S, …, inputs) to (S, …, outputs), weight (S, outputs, inputs)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight, self.bias = _stacked(layers, "weight"), _stacked(layers, "bias")

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        y = torch.baddbmm(self.bias[:, None], rows, self.weight.transpose(1, 2))
        return y.view(*x.shape[:-1], -1)


class StackedEmbedding(nn.Module):
    """S embeddings: tokens (S, …) to (S, …, width), weight (S, tokens, width)."""

    def __init__(self, layers: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = _stacked(layers, "weight")

    def forward(self, tokens: Tensor) -> Tensor:
        members, count, _ = self.weight.shape
        shift = count * torch.arange(members).view(-1, *(1,) * (tokens.dim() - 1))
        return functional.embedding(tokens + shift, self.weight.flatten(0, 1))


class StackedDropout(nn.Module):
    """S Dropouts on (S, …), each with its own generator."""

    def __init__(self, layers: Sequence[Dropout]) -> None:
        super().__init__()
        self.layers = list(layers)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.layers[0].rate:
            return x
        return x * torch.stack([layer.kept(part) for layer, part in zip(self.layers, x, strict=True)])


class StackedDyT(nn.Module):
    """S DyTs on (S, …, C)."""

    def __init__(self, layers: Sequence[DyT]) -> None:
        super().__init__()
        self.alpha, self.weight, self.bias = (_stacked(layers, name) for name in ("alpha", "weight", "bias"))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return torch.addcmul(_over(self.bias, x), torch.tanh(_over(self.alpha, x) * x), _over(self.weight, x))


class StackedNorm(nn.Module):
    """S norms whose statistics are of one step's channels, on (S, …, C): LayerNorm, RMSNorm or GroupNorm."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.like, self.eps = type(layers[0]), layers[0].eps
        self.groups = layers[0].num_groups if isinstance(layers[0], nn.GroupNorm) else 1
        self.weight = _stacked(layers, "weight")
        self.bias = None if layers[0]._parameters.get("bias") is None else _stacked(layers, "bias")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if issubclass(self.like, nn.GroupNorm):
            y = gb.functional.group_norm(x.reshape(-1, x.shape[-1]), self.groups, eps=self.eps).view(x.shape)
        elif issubclass(self.like, nn.RMSNorm):
            y = gb.functional.rms_norm(x, [x.shape[-1]], eps=self.eps)
        else:
            y = gb.functional.layer_norm(x, [x.shape[-1]], eps=self.eps)
        if self.bias is None:
            return y * _over(self.weight, x)
        return torch.addcmul(_over(self.bias, x), y, _over(self.weight, x))


class StackedBatchNorm(nn.Module):
    """S BatchNorms on (S, n, time, C) or (S, n, C), with running statistics (S, C); only for training.

    A member's batch is as long as its own longest sequence. Padding beyond that, up to the longest of all members, is
    left out of the statistics that cover padding too.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layers: Sequence[SequenceNorm]) -> None:
        super().__init__()
        norms = [cast(nn.BatchNorm1d, layer.norm) for layer in layers]
        self.over_padding, self.eps = layers[0].arm == "padded", norms[0].eps
        self.momentum = float(norms[0].momentum or 0.0)
        self.weight, self.bias = _stacked(norms, "weight"), _stacked(norms, "bias")
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.stack([norm.get_buffer(name) for norm in norms]))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        if mask is None:
            var, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
            count = torch.tensor(float(rows.shape[1])).expand(mean.shape)
            centered = rows - mean
        else:
            counted = mask.any(dim=1, keepdim=True).expand_as(mask) if self.over_padding else mask
            counted = counted.reshape(x.shape[0], -1, 1).to(x.dtype)
            count = counted.sum(dim=1, keepdim=True).expand(-1, 1, x.shape[-1])
            share = counted / count.narrow(2, 0, 1).clamp(min=1)
            mean = (rows * share).sum(dim=1, keepdim=True)
            centered = rows - mean
            var = (centered.square() * share).sum(dim=1, keepdim=True)
        self._move(mean.detach()[:, 0], var.detach()[:, 0], count[:, 0])
        scale = torch.rsqrt(var + self.eps) * self.weight[:, None]
        return torch.addcmul(self.bias[:, None], centered, scale).view(x.shape)

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics of the channels that have two values or more, all of them finite."""
        unbiased = var * count / (count - 1)
        moves = (count > 1) & torch.isfinite(mean) & torch.isfinite(var)
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.copy_(torch.where(moves, running.lerp(new, self.momentum), running))


def _stacked(layers: Sequence[nn.Module], name: str) -> nn.Parameter:
    return nn.Parameter(torch.stack([layer.get_parameter(name).detach() for layer in layers]))


def _over(parameter: Tensor, x: Tensor) -> Tensor:
    """Shape a parameter (S, C) for x (S, …, C)."""
    return parameter.view(parameter.shape[0], *(1,) * (x.dim() - 2), -1)


def _joined(modules: Sequence[Any]) -> nn.Module | None:
    """Stack modules; None where the modules' own parameters and children have to be stacked instead."""
    first = modules[0]
    if isinstance(first, nn.Linear):
        return StackedLinear(modules)
    if isinstance(first, nn.Embedding):
        return StackedEmbedding(modules)
    if isinstance(first, Dropout):
        return StackedDropout(modules)
    if not isinstance(first, SequenceNorm):
        return None
    norms = [module.norm for module in modules]
    if isinstance(norms[0], nn.modules.batchnorm._BatchNorm):
        return StackedBatchNorm(modules)
    if isinstance(norms[0], DyT):
        return StackedDyT(norms)
    if isinstance(norms[0], StepGroupNorm):
        return StackedNorm([norm.norm for norm in norms])
    # without a norm, the layer of one network does it for all
    return cast(nn.Module, first) if isinstance(norms[0], nn.Identity) else StackedNorm(norms)


def stackable(arm: str) -> bool:
    """Whether an arm's networks can be stacked: not where a batch is normalized in several parts."""
    return ":" not in arm


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """Stack networks of one architecture, one of those in :mod:`gammabeta.lab.sequences.networks`.

    Its forward takes inputs with a first axis of members. :func:`put_back` returns the parameters to the members.
    """
    whole = copy.deepcopy(models[0])
    for name, _ in list(models[0].named_parameters(recurse=False)):
        # every sample of a member shares it, so an axis of samples comes between
        setattr(whole, name, nn.Parameter(_stacked(models, name).detach().unsqueeze(1)))
    for name, _ in list(models[0].named_children()):
        parts = [model.get_submodule(name) for model in models]
        setattr(whole, name, _joined(parts) or stack(parts))
    return whole


@torch.no_grad()
def put_back(whole: nn.Module, models: Sequence[nn.Module]) -> None:
    """Copy parameters and running statistics of a stacked network into the networks that it was made of."""
    stacked = dict([*whole.named_parameters(), *whole.named_buffers()])
    for index, model in enumerate(models):
        for name, own in [*model.named_parameters(), *model.named_buffers()]:
            # a SequenceNorm became one layer, without the name of the norm within
            of_all = stacked.get(name)
            if of_all is None:
                of_all = stacked.get(name.replace(".norm.norm.", ".").replace(".norm.", "."))
            if of_all is not None:
                own.copy_(of_all[index].view(own.shape))


class AdamW:
    """AdamW on stacked parameters, each member with its own learning rate and clipping.

    g is the member's gradient, scaled down where its norm exceeds ``clip``. With m ← β₁m + (1 − β₁)g and
    v ← β₂v + (1 − β₂)g², θ ← θ(1 − ηλ) − η·m̂/(√v̂ + ε), where m̂ and v̂ are m and v over 1 − βᵗ. As torch's, with
    β = (0.9, 0.999) and ε = 1e-8. λ is ``decay`` for the weights of linear layers, and 0 for all others.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
    """

    def __init__(self, model: nn.Module, rates: Sequence[float], decay: float = 0.0, clip: float | None = None) -> None:
        members = len(rates)
        decayed = {id(module.weight) for module in model.modules() if isinstance(module, StackedLinear)}
        parameters = list(model.parameters())
        self.parameters = parameters
        self.flat = torch.cat([parameter.detach().reshape(members, -1) for parameter in parameters], dim=1)
        self.m, self.v = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.rates = torch.tensor(rates, dtype=self.flat.dtype)[:, None]
        self.clip, self.steps = clip, 0
        decays, start = [], 0
        for parameter in parameters:
            end = start + parameter.numel() // members
            decays.append(torch.full((end - start,), decay if id(parameter) in decayed else 0.0))
            parameter.data = self.flat[:, start:end].view(parameter.shape)
            start = end
        self.decays = torch.cat(decays) if decay else None

    def step(self, losses: Tensor, factor: float) -> None:
        """Take a step down the members' losses (S,) at ``factor`` times their learning rates."""
        self.steps += 1
        gradients = torch.autograd.grad(losses.sum(), self.parameters)
        g = torch.cat([gradient.reshape(len(self.flat), -1) for gradient in gradients], dim=1)
        if self.clip is not None:
            # as torch's clip_grad_norm_
            g.mul_((self.clip / (torch.linalg.vector_norm(g, dim=1, keepdim=True) + 1e-6)).clamp_(max=1.0))
        rates = factor * self.rates
        if self.decays is not None:
            self.flat.mul_(1 - rates * self.decays)
        self.m.lerp_(g, 1 - 0.9)
        self.v.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
        scale = self.v.sqrt().div_(math.sqrt(1 - 0.999**self.steps)).add_(1e-8)
        self.flat.sub_(torch.div(self.m, scale, out=scale).mul_(rates / (1 - 0.9**self.steps)))
