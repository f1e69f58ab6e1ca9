"""The benchmarks' processes: they make calls together, and end."""

import multiprocessing
import os
import re

import pytest
import torch
import torch.distributed as dist

from gammabeta.benchmarks.contest import OURS, TORCH, contest
from gammabeta.benchmarks.subjects import synced
from gammabeta.benchmarks.world import World


def calls():
    """Return the calls of these tests' processes."""
    total = torch.zeros(())

    def add():
        one = torch.ones(())
        dist.all_reduce(one)
        return total.add_(one)

    def end():
        if dist.get_rank() > 0:
            os._exit(1)

    return {"add": add, "end": end}


@pytest.fixture
def children():
    """Return the child processes that were started since the test began; pools of other tests stay."""
    before = set(multiprocessing.active_children())
    return lambda: [process for process in multiprocessing.active_children() if process not in before]


def test_a_call_is_made_by_all_at_once_and_none_is_left(children):
    world = World(3, calls)
    assert [world.contestant("add")(number)().item() for number in range(2)] == [3, 6]
    world.settle()
    others = children()
    assert len(others) == 2
    world.close()
    assert not dist.is_initialized()
    assert not any(process.is_alive() for process in others)


def test_they_end_with_the_object(children):
    world = World(2, calls)
    (other,) = children()
    del world
    assert not other.is_alive()
    assert not dist.is_initialized()


def test_one_that_has_ended_is_noticed(children):
    world = World(2, calls)
    world.step("end")
    with pytest.raises(RuntimeError, match=r"^World: expected all processes to answer, got one that has ended\.$"):
        world.settle()
    world.close()
    assert children() == []


def test_a_process_with_a_group_is_left_with_it(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        text = (
            "World: expected a process without a default process group, since it makes its own, got one: call "
            "torch.distributed.destroy_process_group() first."
        )
        with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
            World(2, calls)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("row", synced.rows(True), ids=lambda row: row.name)
def test_synced_is_timed_beside_batch(row, children):
    result = contest(row, 1, 2, False)
    assert set(result.seconds) == {OURS, TORCH}
    assert all(low > 0 for low, _, _ in result.seconds.values())
    assert children() == []
