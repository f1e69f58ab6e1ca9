"""recalibrate, reconcile and freeze in two processes: they equal one process with all data, and no rank waits."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import run
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

import gammabeta as gb

SIZES = ((8, 5, 12), (3, 6))  # each rank's batches: not as many, nor as large


def images(count, seed):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5 + seed


def batches(rank):
    return [images(count, 10 * rank + i) for i, count in enumerate(SIZES[rank])]


def model(seed=0):
    torch.manual_seed(0)
    m = nn.Sequential(
        nn.Conv2d(3, 6, 3), gb.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, momentum=None)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (m[1], m[4]):
            layer.weight.normal_(generator=generator)
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.num_batches_tracked.fill_(3 + 2 * seed)
    return m


def state(m):
    return {key: value.clone() for key, value in m.state_dict().items()}


def failing(m, batch):
    if dist.get_rank() == 1 and len(batch) == 6:
        raise OSError("in the middle")
    return m(batch)


def outcome(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def job():
    rank, world = dist.get_rank(), dist.group.WORLD
    out = {}
    m = model()
    change = gb.recalibrate(m, batches(rank), group=world)
    out["recalibrated"] = state(m)
    out["numbers"] = [dict(entry.numbers) for entry in change.entries]

    wrapped = DistributedDataParallel(model())
    gb.recalibrate(wrapped, batches(rank), group=world)
    out["wrapped"] = state(wrapped.module)

    m = model()
    gb.recalibrate(m, batches(rank) * 40, group=world, standard_error=0.1)
    out["early"] = state(m)

    m = model()
    before = state(m)
    out["failure"] = outcome(lambda: gb.recalibrate(m, batches(rank), group=world, forward=failing))
    out["empty"] = outcome(lambda: gb.recalibrate(m, batches(rank) if rank == 0 else [], group=world))
    out["out of reach"] = outcome(lambda: gb.recalibrate(m, batches(rank), group=world, standard_error=1e-4))
    out["unchanged"] = all(torch.equal(value, before[key]) for key, value in state(m).items())

    m = model(seed=rank)
    out["apart"] = state(m)
    change = gb.reconcile(m)
    out["reconciled"] = state(m)
    out["moved"] = change.entries[0].numbers["moved"]
    change.undo()
    out["undone"] = state(m)
    m[1].running_mean[2] = torch.nan if rank else 1.5
    gb.reconcile(m, where="1")
    out["one not finite"] = state(m)
    other = model() if rank == 0 else nn.Sequential(nn.BatchNorm2d(5))
    out["unlike"] = outcome(lambda: gb.reconcile(other))

    out["frozen"] = frozen(rank)
    out["sync"] = synced()
    sharded = fully_shard(nn.Sequential(fully_shard(nn.BatchNorm2d(3)), nn.BatchNorm2d(3)))
    out["sharded"] = gb.adopt(sharded).left
    return out


def synced():
    """Adopt, call and release torch's SyncBatchNorm of a group."""
    group = dist.new_group([0, 1])
    m = nn.Sequential(nn.SyncBatchNorm(3, process_group=group), nn.SyncBatchNorm(3))
    gb.adopt(m)
    sources = [repr(layer.statistics) for layer in m]
    m(images(4, dist.get_rank()))
    copied = copy.deepcopy(m)  # which a ProcessGroup would not let
    gb.release(m)
    torchs = [type(layer) is nn.SyncBatchNorm for layer in m]
    return sources, m[0].running_mean, torchs, m[0].process_group is group, m[1].process_group is None, len(copied)


def frozen(rank):
    """Return whether twenty steps under DDP, wrapped before and after freezing, leave the buffers bit-identical."""
    kept = []
    for freeze_first in (True, False):
        m = model()
        if freeze_first:
            gb.freeze(m)
        wrapped = DistributedDataParallel(m)
        if not freeze_first:
            gb.freeze(wrapped)
        before = [b.clone() for b in m.buffers()]
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
        weight = m[0].weight.clone()
        for step in range(20):
            optimizer.zero_grad()
            wrapped.train()(images(4, 100 * rank + step)).square().mean().backward()
            optimizer.step()
        update_bn([images(4, 1)], wrapped)
        kept.append(all(torch.equal(a, b) for a, b in zip(m.buffers(), before, strict=True)))
        kept.append(not torch.equal(weight, m[0].weight))
    return kept


@functools.cache
def results():
    return run("tests.distributed.test_surgery:job", 2)


@pytest.mark.parametrize("what", ["recalibrated", "wrapped"])
def test_recalibrating_over_two_processes_equals_one(what):
    alone = model()
    gb.recalibrate(alone, batches(0) + batches(1))
    for result in results():
        for key, value in alone.state_dict().items():
            # The same moments of batches in float64, merged in another order, and rounded to float32 once.
            torch.testing.assert_close(result[what][key], value, rtol=3e-7, atol=3e-7, msg=key)


def test_the_numbers_are_those_of_all_ranks():
    alone = model()
    change = gb.recalibrate(alone, batches(0) + batches(1))
    for result in results():
        for numbers, entry in zip(result["numbers"], change.entries, strict=True):
            for key in ("samples", "mean_error", "var_error"):
                assert numbers[key] == pytest.approx(entry.numbers[key], rel=1e-9)


def test_all_ranks_end_with_the_same_bits_also_when_they_stop_early():
    for what in ("recalibrated", "early", "reconciled"):
        first, second = (result[what] for result in results())
        assert all(torch.equal(first[key], second[key]) for key in first if "running" in key or "tracked" in key)
    tracked = results()[0]["early"]["1.num_batches_tracked"].item()
    assert 8 <= tracked < 200  # batches of both, fewer than the two hundred that there are


def test_a_rank_s_failure_is_told_to_all_and_none_waits_or_changes():
    own, other = results()[1]["failure"], results()[0]["failure"]
    assert own == ("OSError", "in the middle")
    assert other == (
        "RuntimeError",
        "recalibrate: expected every rank of the group to come through, got an exception on rank 1: see what it "
        "printed; nothing was changed.",
    )
    for result in results():
        assert result["empty"] == (
            "ValueError",
            "recalibrate: expected at least one batch, got none on rank 1: an iterator that is used up gives none.",
        )
        assert result["out of reach"][0] == "ValueError"
        assert "times as many are needed" in result["out of reach"][1]
        assert result["unchanged"]


def test_reconciled_statistics_keep_the_variance_between_the_means():
    counts = torch.tensor([3.0, 5.0], dtype=torch.float64)
    for layer in ("1", "4"):
        mean = torch.stack([result["apart"][f"{layer}.running_mean"] for result in results()]).double()
        var = torch.stack([result["apart"][f"{layer}.running_var"] for result in results()]).double()
        share = (counts / counts.sum())[:, None]
        merged = (share * mean).sum(0)
        expected = (share * (var + mean.square())).sum(0) - merged.square()
        for result in results():
            # float64 rounded to float32
            torch.testing.assert_close(
                result["reconciled"][f"{layer}.running_mean"].double(), merged, rtol=2e-7, atol=1e-7
            )
            torch.testing.assert_close(
                result["reconciled"][f"{layer}.running_var"].double(), expected, rtol=2e-7, atol=0
            )
            assert result["reconciled"][f"{layer}.num_batches_tracked"] == 5


def test_reconciling_is_undone_and_tells_how_far_each_rank_went():
    for result in results():
        assert all(torch.equal(result["undone"][key], result["apart"][key]) for key in result["apart"])
    far = [result["moved"] for result in results()]
    assert 0 < far[1] < far[0]  # rank 1 has counted more batches, and so is nearer


def test_a_rank_that_is_not_finite_is_left_out_of_that_channel():
    for result in results():
        assert result["one not finite"]["1.running_mean"][2] == 1.5
        assert result["one not finite"]["1.running_mean"].isfinite().all()


def test_ranks_with_different_models_are_told():
    for result, here in zip(results(), ("1, 4", "0"), strict=True):
        assert result["unlike"] == (
            "ValueError",
            "reconcile: expected the same norms on every rank, got other names or channels: rank 0 has 2, rank 1 has "
            f"1, among them {here} here.",
        )


def test_frozen_statistics_stay_under_ddp():
    assert [result["frozen"] for result in results()] == [[True] * 4] * 2


def test_sync_batch_norm_keeps_its_group_there_and_back():
    whole = torch.cat([images(4, 0), images(4, 1)])
    for sources, mean, torchs, same_group, no_group, _ in (result["sync"] for result in results()):
        assert sources == ["Synced(group=(0, 1))", "Synced(group=None)"]
        torch.testing.assert_close(mean, 0.1 * whole.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)  # order of the sums
        assert torchs == [True, True]
        assert same_group
        assert no_group


def test_a_norm_that_fsdp_manages_is_left():
    for result in results():
        assert result["sharded"] == {"0": "FSDP manages it: adopt before fully_shard"}


def test_reconciling_without_torch_distributed_is_an_error():
    m = model()
    before = copy.deepcopy(m.state_dict())
    with pytest.raises(RuntimeError) as raised:
        gb.reconcile(m)
    assert str(raised.value) == (
        "reconcile: expected torch.distributed to be initialized, got that it is not: call "
        "torch.distributed.init_process_group first."
    )
    assert all(torch.equal(value, before[key]) for key, value in m.state_dict().items())
