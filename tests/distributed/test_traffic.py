"""The number of collectives that a layer makes, and their bytes."""

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import once
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta.statistics import Synced

CHANNELS = 6
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
NOT_COLLECTIVES = ("wait_tensor", "_wrap_tensor_autograd")


class Collectives(TorchDispatchMode):
    """A context that records the name and the bytes of each collective of this process."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and func._opname not in NOT_COLLECTIVES:
            tensors = [args[0]] if isinstance(args[0], torch.Tensor) else args[0]
            self.seen.append((func._opname, sum(t.numel() * t.element_size() for t in tensors)))
        return func(*args, **(kwargs or {}))


def layers(count=1, **options):
    return nn.Sequential(*(gb.BatchNorm1d(CHANNELS, statistics=Synced(), **options) for _ in range(count)))


def forward_and_backward(net, x, **options):
    with Collectives() as forward:
        y = net(x, **options)
    with Collectives() as backward:
        y.float().square().sum().backward()
    return forward.seen, backward.seen


def job():
    x = torch.randn(4, CHANNELS, 5)
    mask = torch.rand(4, 5) > 0.3
    found = {dtype: forward_and_backward(layers().to(dtype), x.to(dtype).requires_grad_()) for dtype in DTYPES}
    found["three layers"] = forward_and_backward(layers(3), x.requires_grad_())
    found["masked, silu"] = forward_and_backward(layers(activation="silu")[0], x.requires_grad_(), mask=mask)
    found["empty here"] = forward_and_backward(layers(), x[: 4 * dist.get_rank()].detach().requires_grad_())
    found["x needs no gradient"] = forward_and_backward(layers(), x.detach())
    net = layers(2)
    found["checkpointed"] = forward_and_backward(
        lambda x: checkpoint(net, x, use_reentrant=False), x.detach().requires_grad_()
    )
    once = layers(2)
    once(x)
    found["running after a checkpoint"] = [norm.running_var for norm in net], [norm.running_var for norm in once]
    with Collectives() as evaluation:
        layers().eval()(x)
    found["evaluation"] = evaluation.seen
    return found


def found():
    return once("tests.distributed.test_traffic:job", 2)


GATHER, REDUCE = "all_gather_into_tensor", "all_reduce"


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_collective_forward_and_one_backward_of_two_values_per_channel(dtype):
    """torch's SyncBatchNorm sends 2C + 1 and 2C; our count takes one value more, so that it is exact above 2^24."""
    value = 8 if dtype == torch.float64 else 4
    for seen in found():
        assert seen[dtype] == ([(GATHER, (2 * CHANNELS + 2) * value)], [(REDUCE, 2 * CHANNELS * value)])


def test_each_layer_has_its_own():
    for seen in found():
        forward, backward = seen["three layers"]
        assert [name for name, _ in forward] == [GATHER] * 3
        assert [name for name, _ in backward] == [REDUCE] * 3


@pytest.mark.parametrize("case", ["masked, silu", "empty here"])
def test_a_mask_and_an_empty_batch_cost_no_more(case):
    for seen in found():
        assert seen[case] == seen[torch.float32]


def test_where_x_needs_no_gradient_backward_is_silent():
    for seen in found():
        forward, backward = seen["x needs no gradient"]
        assert len(forward) == 1
        assert backward == []


def test_a_checkpoint_exchanges_again_and_moves_the_running_statistics_once():
    for seen in found():
        forward, backward = seen["checkpointed"]
        assert [name for name, _ in forward] == [GATHER] * 2
        assert sorted(name for name, _ in backward) == [GATHER] * 2 + [REDUCE] * 2
        for ours, plain in zip(*seen["running after a checkpoint"], strict=True):
            assert torch.equal(ours, plain)


def test_evaluation_is_silent():
    assert [seen["evaluation"] for seen in found()] == [[], []]
