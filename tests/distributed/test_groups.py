"""Which processes take part, also in copies and in other processes."""

import copy
import pickle
import re

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import once

import gammabeta as gb
from gammabeta.statistics import Batch, Synced, groups

PROCESSES = 4
NEIGHBOURS = {2: ((0, 1), (0, 1), (2, 3), (2, 3)), 3: ((0, 1, 2),) * 3 + ((3,),)}


def batch():
    return torch.randn(PROCESSES, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 5


def output(norm):
    """Return the results of this process for its sixth of the batch."""
    return copy.deepcopy(norm).double()(batch()[dist.get_rank()]).detach()


def layer(*group):
    return gb.BatchNorm1d(3, statistics=Synced(*group))


def error(call):
    try:
        call()
    except Exception as caught:
        return type(caught).__name__, str(caught)
    return None


def job():
    rank = dist.get_rank()
    pairs, threes = groups(2), groups(3)
    reversed_pairs = [dist.new_group(ranks) for ranks in ((0, 2), (1, 3))][rank % 2]
    mixed = layer(reversed_pairs)
    found = {
        "everyone": output(layer()),
        2: output(layer(pairs)),
        3: output(layer(threes)),
        "one": output(layer(groups(1))),
        "by ranks": output(layer(tuple(dist.get_process_group_ranks(pairs)))),
        "by name": output(layer(pairs.group_name)),
        "mixed": output(mixed),
        "mixed, pickled": output(pickle.loads(pickle.dumps(mixed))),
        "world is the default": Synced(dist.group.WORLD) == Synced(),
        "all in one": (groups(4), groups(9)),
        "shown": repr(layer(pairs)),
        "equal": Synced(pairs) == Synced(tuple(dist.get_process_group_ranks(pairs))),
        "pickle": pickle.dumps(mixed),
    }
    # Two groups of the same ranks: the one that was given is used.
    twin = groups(2)
    found["the one that was given"] = Synced(twin).peers().name == twin.group_name != pairs.group_name
    # Ranks of which this process has no group.
    found["unmade"] = error(lambda: output(layer((0, 1, 3) if rank != 2 else (2, 3, 0))))
    found["of others"] = error(lambda: output(layer((0, 2) if rank % 2 else (1, 3))))
    found["not a member"] = error(lambda: Synced(dist.new_group([0])))
    found["no such name"] = error(lambda: output(layer("nobody")))
    x = batch()[rank].requires_grad_()
    norm = layer().double()
    found["transform"] = error(lambda: torch.func.grad(lambda x: norm(x).sum())(x))
    return found


def found():
    return once("tests.distributed.test_groups:job", PROCESSES)


def together(ranks):
    """Compute by torch, for the batches of these processes together, the part of each."""
    x = batch()[list(ranks)]
    y = torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, training=True)
    return dict(zip(ranks, y.unflatten(0, x.shape[:2]), strict=True))


def same(ours, ranks, rank):
    torch.testing.assert_close(ours, together(ranks)[rank], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", range(PROCESSES))
class TestWhoTakesPart:
    def test_everyone_by_default(self, rank):
        same(found()[rank]["everyone"], range(PROCESSES), rank)

    @pytest.mark.parametrize("size", NEIGHBOURS)
    def test_groups_are_of_neighbours_and_the_last_may_be_smaller(self, rank, size):
        same(found()[rank][size], NEIGHBOURS[size][rank], rank)

    def test_a_group_of_one_is_batch(self, rank):
        batchwise = gb.BatchNorm1d(3, statistics=Batch()).double()(batch()[rank])
        assert torch.equal(found()[rank]["one"], batchwise)

    @pytest.mark.parametrize("by", ["by ranks", "by name"])
    def test_ranks_and_a_name_stand_for_a_group(self, rank, by):
        same(found()[rank][by], NEIGHBOURS[2][rank], rank)

    @pytest.mark.parametrize("which", ["mixed", "mixed, pickled"])
    def test_any_group_of_torch_s_and_its_copies(self, rank, which):
        same(found()[rank][which], (rank % 2, rank % 2 + 2), rank)

    def test_a_copy_shows_and_equals(self, rank):
        results = found()[rank]
        assert results["equal"]
        assert results["world is the default"]
        assert results["the one that was given"]
        assert results["all in one"] == (None, None)
        assert f"statistics=Synced(group={NEIGHBOURS[2][rank]})" in results["shown"]

    def test_a_layer_comes_out_of_its_pickle_where_there_are_no_processes(self, rank):
        norm = pickle.loads(found()[rank]["pickle"])
        assert norm.statistics == Synced((rank % 2, rank % 2 + 2))
        same(norm.double()(batch()[rank]), (rank,), rank)


@pytest.mark.parametrize("rank", range(PROCESSES))
class TestErrors:
    def test_ranks_without_a_group(self, rank):
        ranks = (0, 1, 3) if rank != 2 else (0, 2, 3)
        assert found()[rank]["unmade"] == (
            "RuntimeError",
            f"Synced: expected a process group of ranks {ranks}, got none in this process: make it first, by "
            "gammabeta.statistics.groups(size) or torch.distributed.new_group(ranks) in every process.",
        )

    def test_ranks_of_others(self, rank):
        ranks = (0, 2) if rank % 2 else (1, 3)
        assert found()[rank]["of others"] == (
            "RuntimeError",
            f"Synced: expected this process to be one of ranks {ranks}, got rank {rank}: give each process the ranks "
            "of its own group, as gammabeta.statistics.groups(size) does.",
        )

    def test_a_group_that_the_process_is_not_in(self, rank):
        expected = (
            "ValueError",
            f"Synced: expected a process group that this process, rank {rank}, is in, got one that it is not in: give "
            "each process its own group, as gammabeta.statistics.groups(size) does.",
        )
        assert found()[rank]["not a member"] == (expected if rank else None)

    def test_a_name_that_nobody_has(self, rank):
        kind, text = found()[rank]["no such name"]
        assert kind == "RuntimeError"
        assert re.fullmatch(
            r"Synced: expected the name of a process group of this process, which has '0'(, '\w+')+; got 'nobody': "
            r"make it first, by torch\.distributed\.new_group in every process\.",
            text,
        )

    def test_a_transform(self, rank):
        assert found()[rank]["transform"] == (
            "RuntimeError",
            "batch_norm: expected statistics of this process only inside a torch.func transform or forward-mode AD, "
            "got Synced over 4 processes, which neither differentiates through: use torch.autograd, or "
            "gammabeta.statistics.Batch() there.",
        )
