"""watch in several processes: what ranks exchange, and the rules that use it."""

import functools

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import run
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import RULES

PROCESSES = 2


def diagnosed(rule, example):
    torch.manual_seed(dist.get_rank())
    with gb.watch(example.model, example.optimizer) as watch:
        example.train()
        dist.barrier()
    return [(found.where, found.message) for found in watch.diagnosis(select=rule.code).findings]


def in_parallel(broadcast):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = nn.parallel.DistributedDataParallel(inner, broadcast_buffers=broadcast)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gb.watch(model, optimizer) as watch:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(32, 4) + 3 * dist.get_rank()).square().mean().backward()
            optimizer.step()
        dist.barrier()
    found = watch.diagnosis(select=[rule.code for rule in RULES if "W" in rule.sees]).findings
    return [finding.code for finding in found]


def job():
    found = {}
    for rule in RULES:
        if rule.code in ("GB112", "GB503"):
            for which in (rule.flagged, rule.clean):
                torch.manual_seed(0)
                found[rule.code, which.__name__] = diagnosed(rule, which())
    found["broadcast"] = in_parallel(True)
    found["not broadcast"] = in_parallel(False)
    return found


@functools.cache
def ranks():
    return run("tests.distributed.test_watch:job", PROCESSES, limit=100)


@pytest.mark.parametrize("code", ["GB112", "GB503"])
def test_the_flagged_example_is_found_on_every_rank_and_the_clean_one_on_none(code):
    for found in ranks():
        ((where, message),) = found[code, "flagged"]
        assert where == "1"
        if code == "GB503":
            assert message == (
                "it shares its statistics, but the ranks called it a different number of times up to step 8: rank 0 16 "
                "times, rank 1 8 times"
            )
        else:
            assert "standard deviations from those of rank" in message
        assert found[code, "clean"] == []


def test_buffers_that_are_broadcast_are_left_in_peace_and_others_are_found():
    for found in ranks():
        assert found["broadcast"] == []
        assert found["not broadcast"] == ["GB112"]
