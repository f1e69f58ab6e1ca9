"""Synced over 2, 3 and 4 processes equals one process on the whole batch: outputs, gradients, running statistics."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.distributed.world import once

import gammabeta as gb
from gammabeta.statistics import Synced

CHANNELS, POSITIONS = 3, (5, 4)
SIZES = {"even": (4, 4, 4, 4), "uneven": (5, 1, 3, 2), "empty": (4, 0, 3, 1), "first empty": (0, 2, 1, 3)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FINISHES = ("plain", "residual and silu")
MASKED = (False, True)
PROCESSES = (2, 3, 4)
CASES = tuple(itertools.product(SIZES, LAYOUTS, FINISHES, MASKED))

# Sums over some hundred values in another order, in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def samples(case, processes):
    """Return x, residual, mask, direction of the loss, and the sizes of the processes' shares of them."""
    sizes = SIZES[case[0]][:processes]
    generator = torch.Generator().manual_seed(7)
    shape = (sum(sizes), CHANNELS, *POSITIONS)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * 2 + 30
    # Processes whose means lie apart: an average of their variances would be far from the whole batch's.
    x = x + torch.arange(shape[0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    residual, direction = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.rand(shape[0], *POSITIONS, generator=generator) > 0.4
    return x, residual, mask, direction, sizes


def layer(statistics=None, activation=None, **options):
    norm = gb.BatchNorm2d(CHANNELS, statistics=statistics, activation=activation, **options).double()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_(generator=generator)
        norm.running_var.uniform_(1, 6, generator=generator)
    return norm


def job():
    return {case: share(case) for case in CASES}


def share(case):
    """Return the results of this process for its share of a case."""
    _, layout, finish, masked = case
    x, residual, mask, direction, sizes = samples(case, dist.get_world_size())
    own = slice(sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1]))
    norm = layer(Synced(), None if finish == "plain" else "silu")
    x, residual = (t[own].contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for t in (x, residual))
    y = norm(x, None if finish == "plain" else residual, mask=mask[own] if masked else None)
    (y * direction[own]).sum().backward()
    return {
        "y": y.detach(),
        "g_x": x.grad,
        "g_residual": residual.grad,
        "g_weight": norm.weight.grad,
        "g_bias": norm.bias.grad,
        "running": torch.stack((norm.running_mean, norm.running_var)),
        "tracked": norm.num_batches_tracked,
        "layout kept": y.is_contiguous(memory_format=LAYOUTS[layout]),
    }


def shares(processes):
    return once("tests.distributed.test_exactness:job", processes)


def expected(case, processes):
    """Compute it in one process by torch's BatchNorm, with the values that count as rows of a matrix."""
    _, _, finish, masked = case
    x, residual, mask, direction, sizes = samples(case, processes)
    x.requires_grad_()
    residual.requires_grad_()
    norm = layer()
    weight, bias = norm.weight, norm.bias
    mask = mask if masked else torch.ones_like(mask)
    rows = x.movedim(1, -1)[mask]
    running = norm.running_mean, norm.running_var
    z = F.batch_norm(rows, *running, weight, bias, training=True, momentum=norm.momentum, eps=norm.eps)
    if finish != "plain":
        z = F.silu(z + residual.movedim(1, -1)[mask])
    y = x.new_zeros(*mask.shape, CHANNELS)
    y[mask] = z
    y = y.movedim(-1, 1)
    (y * direction).sum().backward()
    return {
        "y": y.detach(),
        "g_x": x.grad,
        "g_residual": residual.grad,
        "g_weight": weight.grad,
        "g_bias": bias.grad,
        "running": torch.stack(running),
    }, sizes


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(map(str, case)))
class TestEveryCase:
    def test_the_shares_together_are_the_whole_batch(self, case, processes):
        whole, sizes = expected(case, processes)
        ours = [result[case] for result in shares(processes)]
        assert [len(share["y"]) for share in ours] == list(sizes)
        for what in ("y", "g_x") if case[2] == "plain" else ("y", "g_x", "g_residual"):
            torch.testing.assert_close(torch.cat([share[what] for share in ours]), whole[what], **EXACT)

    def test_the_parameters_gradients_add_up_and_none_is_missing(self, case, processes):
        whole, sizes = expected(case, processes)
        ours = [result[case] for result in shares(processes)]
        for what in ("g_weight", "g_bias"):
            torch.testing.assert_close(sum(share[what] for share in ours), whole[what], **EXACT)
            assert all((share[what] == 0).all() for share, size in zip(ours, sizes, strict=True) if size == 0)

    def test_running_statistics_are_the_whole_batch_s_and_the_same_bits_everywhere(self, case, processes):
        whole, _ = expected(case, processes)
        ours = [result[case] for result in shares(processes)]
        for share in ours:
            torch.testing.assert_close(share["running"], whole["running"], **EXACT)
            assert torch.equal(share["running"], ours[0]["running"])
            assert share["tracked"] == 1

    def test_the_layout_is_kept(self, case, processes):
        assert all(result[case]["layout kept"] for result in shares(processes))
