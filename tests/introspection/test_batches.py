"""Loaders without a length, which may never end: how many batches each operation takes, and that it says so."""

import itertools
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import gammabeta as gb
from gammabeta.diagnostics import gap
from gammabeta.introspection import batches as limits
from gammabeta.introspection.batches import MOST, length_of
from gammabeta.surgery import recalibrate as recalibration

FEW = 12


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].running_mean.fill_(5.0)
        model[1].num_batches_tracked.fill_(100)
    return model.eval()


def draw():
    while True:
        yield torch.randn(8, 3) + 1


class Stream(IterableDataset):
    def __iter__(self):
        return (x for batch in draw() for x in batch)


class EndlessSampler(torch.utils.data.Sampler):
    def __iter__(self):
        return itertools.cycle(range(40))


class Loader:
    def __iter__(self):
        return draw()


class LoaderWithoutLength(Loader):
    def __len__(self):
        raise NotImplementedError("a stream")


class LoaderThatSaysItIsEndless(Loader):
    def __len__(self):
        return sys.maxsize


ENDLESS = {
    "generator": draw,
    "cycle": lambda: itertools.cycle([torch.randn(8, 3) for _ in range(5)]),
    "repeat": lambda: itertools.repeat(torch.randn(8, 3)),
    "IterableDataset": lambda: DataLoader(Stream(), batch_size=8),
    "its iterator": lambda: iter(DataLoader(Stream(), batch_size=8)),
    "sampler": lambda: DataLoader(TensorDataset(torch.randn(40, 3)), batch_size=8, sampler=EndlessSampler()),
    "iterable": Loader,
    "a length that raises": LoaderWithoutLength,
    "a length without end": LoaderThatSaysItIsEndless,
}


@pytest.fixture(params=ENDLESS, ids=lambda name: name.replace(" ", "_"))
def endless(request, monkeypatch):
    for module in (limits, gap, recalibration):
        monkeypatch.setattr(module, "MOST", FEW)
    return ENDLESS[request.param]()


def test_an_endless_loader_has_no_length(endless):
    assert length_of(endless) is None


def test_the_fix_ends_and_says_how_many_batches_it_took(endless):
    model = network()
    diagnosis = gb.check(model, loader=endless)
    assert "GB109" in [finding.code for finding in diagnosis.findings]
    change = diagnosis.fix()
    (entry,) = [entry for entry in change.entries if entry.done]
    assert entry.what.endswith(f", on the first {FEW} batches: they have no length")
    assert entry.numbers["batches"] == FEW
    assert entry.numbers["samples"] == 8 * FEW
    assert float(model[1].running_mean.abs().max()) < 3
    change.undo()
    assert bool((model[1].running_mean == 5).all())


def test_recalibrate_ends_and_says_how_many_batches_it_took(endless):
    model = network()
    (entry,) = gb.recalibrate(model, endless).entries
    assert entry.what == f"recalibrated, on the first {FEW} batches: they have no length"
    assert int(model[1].num_batches_tracked) == FEW


def test_the_gap_ends_and_says_how_many_batches_it_took(endless):
    found = gb.train_eval_gap(network(), endless)
    assert (found.batches, found.first_only) == (FEW, True)
    assert str(found).endswith(f"on the first {FEW} batches: they have no length")


def test_convert_ends(endless):
    model = network()
    assert gb.convert(model, to="layer", batches=endless).changed == ["1"]


def test_precision_that_no_batch_can_give_ends_too(endless):
    unreached = nn.ModuleDict({"used": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)})
    with pytest.raises(ValueError, match="reach none of norm"):
        gb.recalibrate(unreached, endless, standard_error=0.01, forward=lambda model, x: x)
    still = nn.BatchNorm1d(3, eps=0)
    gb.recalibrate(still, (torch.ones(8, 3) for _ in draw()), standard_error=0.01)  # 0/0
    assert int(still.num_batches_tracked) == FEW
    spoiled = nn.BatchNorm1d(3)
    left = gb.recalibrate(spoiled, (x * float("nan") for x in draw()), standard_error=0.01).left
    assert left == {"": "no channel was finite in any batch"}


def test_a_fix_stops_once_the_statistics_are_exact_enough():
    model = network()
    change = gb.check(model, loader=(torch.randn(256, 3) for _ in itertools.count())).fix()
    (entry,) = [entry for entry in change.entries if entry.done]
    assert max(entry.numbers["mean_error"], entry.numbers["var_error"]) <= 0.02
    assert 8 <= entry.numbers["batches"] < 100


def test_the_limit_is_the_documented_one():
    model = network()
    assert gb.recalibrate(model, draw()).entries[0].numbers["batches"] == MOST == 1000


@pytest.mark.parametrize("count", [3, FEW - 1])
def test_what_ends_earlier_is_taken_whole(count, monkeypatch):
    monkeypatch.setattr(recalibration, "MOST", FEW)
    given = [torch.randn(8, 3) for _ in range(count)]
    whole, streamed = network(), network()
    gb.recalibrate(whole, given)
    change = gb.check(streamed, loader=iter(given)).fix()
    assert [entry.what for entry in change.entries if entry.done] == ["recalibrated"]
    torch.testing.assert_close(streamed[1].running_mean, whole[1].running_mean, rtol=1e-6, atol=1e-6)


def test_a_loader_that_goes_on_behind_its_length_is_taken_once():
    class Nominal(Loader):
        def __len__(self):
            return 7

    model = network()
    gb.recalibrate(model, Nominal())
    assert int(model[1].num_batches_tracked) == 7
    assert gb.train_eval_gap(model, Nominal()).batches == 7


def test_a_long_list_is_taken_whole(monkeypatch):
    for module in (limits, gap, recalibration):
        monkeypatch.setattr(module, "MOST", FEW)
    given = [torch.randn(8, 3) for _ in range(FEW + 3)]
    model = network()
    assert gb.recalibrate(model, given).entries[0].what == "recalibrated"
    assert int(model[1].num_batches_tracked) == FEW + 3
    found = gb.train_eval_gap(model, given)
    assert (found.batches, found.first_only) == (FEW + 3, False)
