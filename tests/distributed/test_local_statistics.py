"""GB502 in two processes: what is found before and after the fix."""

import functools

import torch
import torch.distributed as dist
from tests.distributed.world import run

import gammabeta as gb
from gammabeta.diagnostics.rules import local_statistics


def job():
    torch.manual_seed(dist.get_rank())
    found = {}
    for build in (local_statistics.flagged, local_statistics.clean):
        example = build()
        diagnosis = gb.check(example.model, example.inputs, select="GB502")
        found[build.__name__] = [(finding.where, finding.message) for finding in diagnosis.findings]
    example = local_statistics.flagged()
    found["worth"] = gb.check(example.model, example.inputs, select="GB502").findings[0].evidence["values"]
    x = torch.randn(4096, 16, 8)[dist.get_rank() :: 2]  # the same weights are not needed: the norm is fed by itself
    norm = example.model[1]
    means = []
    for batch in x[:200, :, 0]:
        norm.running_mean.zero_()
        norm.momentum = 1.0
        norm(batch[:, None].expand(-1, 16))
        means.append(float(norm.running_mean[0]))
    found["spread"] = float(torch.tensor(means).std())
    gb.check(example.model, example.inputs, select="GB502").fix()
    found["after"] = len(gb.check(example.model, example.inputs, select="GB502").findings)
    example.model(example.inputs)
    found["mean"] = example.model[1].running_mean.tolist()
    return found


@functools.cache
def ranks():
    return run("tests.distributed.test_local_statistics:job", 2, limit=100)


def test_the_flagged_example_is_found_on_every_rank_and_the_clean_one_on_none():
    for found in ranks():
        ((where, message),) = found["flagged"]
        assert where == "1"
        assert "over 2 processes they would be worth" in message
        assert found["clean"] == []


def test_batch_means_differ_by_the_standard_error_of_sixteen_values_and_are_equal_after_the_fix():
    one, other = ranks()
    for found in (one, other):
        # 200 means of 16 values: a spread of 1/4, known to 5 %; three of these.
        assert abs(found["spread"] - 0.25) < 0.04
        assert found["after"] == 0
        assert 10 < found["worth"] <= 16
    assert one["mean"] == other["mean"]
