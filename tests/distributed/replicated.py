"""Synced over all processes as one function of whole tensors, which every process computes alike.

That is what finite differences need: each process hands the same whole tensors in, computes its share, and gets the
whole output back. Both crossings are differentiable any number of times, and each is the other's gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


class Spread(torch.autograd.Function):
    """A tensor that all processes have and each uses in part: the identity, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, whole):
        return whole.clone()

    @staticmethod
    def backward(ctx, g):
        return Collect.apply(g)


class Collect(torch.autograd.Function):
    """The sum of the processes' tensors, which all of them get; its gradient is the identity."""

    @staticmethod
    def forward(ctx, part):
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, g):
        return Spread.apply(g)


def replicated(norm, sizes):
    """Turn `norm(share, weight, bias, *shares)` of each process's share into (x, weight, bias, *others) -> y."""
    before, size, after = (sum(sizes[: dist.get_rank()]), sizes[dist.get_rank()], sum(sizes[dist.get_rank() + 1 :]))

    def whole(x, weight, bias, *others):
        x, weight, bias, *others = (Spread.apply(t) for t in (x, weight, bias, *others))
        y = norm(x[before : before + size], weight, bias, *(t[before : before + size] for t in others))
        around = [y.new_zeros(n, *x.shape[1:]) for n in (before, after)]
        return Collect.apply(torch.cat((around[0], y, around[1])))

    return whole
