"""The debug mode: processes that disagree all raise an error, instead of waiting for each other."""

import pytest
import torch
import torch.distributed as dist
from tests.distributed.world import once
from torch import nn

import gammabeta as gb
from gammabeta.distributed import agreement
from gammabeta.statistics import Synced, groups

PROCESSES = 3
WAIT = 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = gb.BatchNorm1d(4, statistics=Synced())
        self.second = gb.BatchNorm1d(4, statistics=Synced())

    def forward(self, x, swapped=False):
        for norm in (self.second, self.first) if swapped else (self.first, self.second):
            x = norm(x)
        return x


def error(call):
    try:
        call()
    except Exception as caught:
        return type(caught).__name__, str(caught)
    return None


def job():
    rank = dist.get_rank()
    last = rank == PROCESSES - 1
    net = nn.Sequential(nn.Linear(4, 4), Block())
    x = torch.randn(5, 4)
    found = {"agree": error(lambda: net(x))}
    found["dtype"] = error(lambda: gb.BatchNorm1d(4, statistics=Synced())(x.bfloat16() if last else x))
    found["channels"] = error(lambda: gb.BatchNorm1d(4 - last, statistics=Synced())(x[:, last:]))
    found["gradient"] = error(lambda: net[1].first(x.clone().requires_grad_(not last)))
    found["order"] = error(lambda: net[1](x, swapped=last))
    found["one value"] = error(lambda: net[1](x[: int(rank == 1)]))
    found["agree again"] = error(lambda: net(x))
    # One process may evaluate alone.
    if rank == 0:
        found["alone"] = error(lambda: net.eval()(x))
        net.train()
    found["after one evaluated alone"] = error(lambda: net(x))
    parallel = nn.parallel.DistributedDataParallel(nn.Sequential(net[1]))
    found["parallel"] = error(lambda: parallel(x.half() if last else x))
    pairs = gb.BatchNorm1d(4, statistics=Synced(groups(2)))
    found["in a pair"] = error(lambda: pairs(x if rank == 0 else x.double()))
    # From here on one process does not call, and the others have to end on their own.
    net[1].second.train(not last)
    found["evaluation"] = error(lambda: net(x))
    if not last:
        found["absent"] = error(lambda: net[1].first(x))
    return found


def found():
    return once("tests.distributed.test_agreement:job", PROCESSES, {"GAMMABETA_DEBUG": str(WAIT)})


def everywhere(case):
    """Return the result that all processes share."""
    texts = [results[case] for results in found()]
    assert texts == texts[:1] * PROCESSES
    return texts[0]


def test_who_agrees_is_left_alone():
    assert everywhere("agree") is everywhere("agree again") is everywhere("after one evaluated alone") is None
    assert found()[0]["alone"] is None


ENDING = (
    ": they would wait for each other forever, or take each other's numbers for their own. Make them the same on every "
    "rank."
)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("dtype", "BatchNorm1d: {} dtype, got rank 0: float32; rank 1: float32; rank 2: bfloat16"),
        ("channels", "BatchNorm1d: {} channels, got rank 0: 4 channels; rank 1: 4 channels; rank 2: 3 channels"),
        (
            "gradient",
            "BatchNorm1d: {} gradient, got rank 0: with gradient; rank 1: with gradient; rank 2: without gradient",
        ),
    ],
)
def test_what_they_may_disagree_on(case, text):
    ranks = "expected ranks 0, 1 and 2, which share its statistics, to agree on"
    assert everywhere(case) == ("RuntimeError", text.format(ranks) + ENDING)


def test_layers_in_another_order_are_named_as_each_process_sees_them():
    told = "got rank 0: first (BatchNorm1d); rank 1: first (BatchNorm1d); rank 2: second (BatchNorm1d)"
    for rank, results in enumerate(found()):
        own = "second" if rank == 2 else "first"
        assert results["order"] == (
            "RuntimeError",
            f"{own} (BatchNorm1d): expected ranks 0, 1 and 2, which share its statistics, to agree on layer, {told}"
            + ENDING,
        )


def test_the_layer_s_name_is_that_in_the_model_inside_of_ddp():
    kind, text = everywhere("parallel")
    assert kind == "RuntimeError"
    assert text.startswith("0.first (BatchNorm1d): expected ranks 0, 1 and 2, which share its statistics, to agree on ")
    assert "rank 1: float32; rank 2: float16" in text


def test_one_value_on_all_processes_together():
    assert everywhere("one value") == (
        "ValueError",
        "first (BatchNorm1d): expected more than 1 value per channel in training, and in evaluation without running "
        "statistics, got 1 on all 3 processes together: the variance of one value is 0 and the output would be the "
        "bias whatever comes in. Use larger batches.",
    )


def test_a_group_has_ranks_of_its_own():
    first, second, alone = (results["in a pair"] for results in found())
    assert first == second
    assert first[1].startswith("BatchNorm1d: expected ranks 0 and 1, which share its statistics, to agree on dtype, ")
    assert alone is None


@pytest.mark.parametrize("rank", [0, 1])
class TestWhoDoesNotCome:
    def test_because_it_evaluates(self, rank):
        assert found()[rank]["evaluation"] == (
            "RuntimeError",
            "1.second (BatchNorm1d): expected ranks 0, 1 and 2 to call it in training, since they share its "
            f"statistics, got no call from rank 2 in {WAIT} s: rank 2 called 1.second (BatchNorm1d) in evaluation. "
            "Call the layer on every rank of its group, in the same mode.",
        )

    def test_because_it_is_elsewhere(self, rank):
        kind, text = found()[rank]["absent"]
        assert kind == "RuntimeError"
        assert text.startswith("BatchNorm1d: expected ranks 0, 1 and 2 to call it in training, ")

    def test_the_one_that_evaluates_goes_on(self, rank):
        assert found()[2]["evaluation"] is None


@pytest.mark.parametrize(("text", "seconds"), [("", 0), ("0", 0), ("1", 30), ("2.5", 2.5), ("100", 100)])
def test_how_long_they_wait(text, seconds):
    assert agreement._wait_from(text) == seconds


@pytest.mark.parametrize("text", ["yes", "-1", "inf", "nan"])
def test_what_the_environment_may_not_say(text):
    with pytest.raises(ValueError, match=r"^GAMMABETA_DEBUG: ") as caught:
        agreement._wait_from(text)
    assert str(caught.value) == (
        f"GAMMABETA_DEBUG: expected 0, 1, or the number of seconds to wait for other processes, got {text!r}."
    )
