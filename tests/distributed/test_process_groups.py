"""Synced and groups in one process, without a process group."""

import copy
import pickle

import pytest
import torch

import gammabeta as gb
from gammabeta.statistics import Batch, Synced, groups

X = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("group", [None, (0, 1), "a name"])
def test_without_a_process_group_it_is_batch_bit_by_bit(group):
    ours = gb.BatchNorm1d(3, statistics=Synced(group), activation="relu")
    batch = gb.BatchNorm1d(3, statistics=Batch(), activation="relu")
    x, other = (X.clone().requires_grad_() for _ in range(2))
    ours(x).square().sum().backward()
    batch(other).square().sum().backward()
    assert torch.equal(x.grad, other.grad)
    assert torch.equal(ours.running_var, batch.running_var)
    gradient = torch.func.grad(lambda x: gb.functional.batch_norm(x, None, None, training=True).pow(3).sum())(X)
    norm = gb.BatchNorm1d(3, statistics=Synced(group), track_running_stats=False, affine=False)
    assert torch.equal(torch.func.grad(lambda x: norm(x).pow(3).sum())(X), gradient)


def test_one_value_per_channel_is_refused_as_batch_does():
    with pytest.raises(
        ValueError, match=r"^batch_norm: expected more than 1 value per channel in training.*, got 1 from "
    ):
        gb.BatchNorm1d(3, statistics=Synced())(X[:1, :, 0])


@pytest.mark.parametrize("group", [None, (0, 1), "a name"])
def test_it_is_copied_pickled_and_shown(group):
    norm = gb.BatchNorm1d(3, statistics=Synced(group))
    assert f"statistics=Synced(group={group!r})" in repr(norm)
    for other in (copy.copy(norm), copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert other.statistics == norm.statistics == Synced(group)
        assert hash(other.statistics) == hash(norm.statistics)


def test_ranks_are_a_set():
    assert Synced([1, 0]) == Synced(range(2)) == Synced((0, 1)) != Synced((0, 2))


@pytest.mark.parametrize("group", [1, 0.5, ("0", 1), (True, 2)])
def test_what_is_no_group(group):
    with pytest.raises(TypeError) as caught:
        Synced(group)
    assert str(caught.value) == (
        f"Synced: expected group None, a ProcessGroup, ranks as (0, 1) or a group's name, got {group!r}."
    )


@pytest.mark.parametrize("ranks", [(), (0, 0), (-1, 0)])
def test_ranks_that_cannot_be(ranks):
    with pytest.raises(ValueError, match=r"^Synced: expected ranks") as caught:
        Synced(ranks)
    assert str(caught.value) == f"Synced: expected ranks of at least 0, each once, at least one of them, got {ranks}."


def test_groups_of_one_process_are_the_default_group():
    assert groups(1) is groups(4) is None


@pytest.mark.parametrize(
    ("size", "kind", "text"),
    [
        (0, ValueError, "groups: expected size of at least 1 process, got 0."),
        (2.0, TypeError, "groups: expected size as an integer number of processes, got 2.0."),
        (True, TypeError, "groups: expected size as an integer number of processes, got True."),
    ],
)
def test_sizes_that_cannot_be(size, kind, text):
    with pytest.raises(kind) as caught:
        groups(size)
    assert str(caught.value) == text
