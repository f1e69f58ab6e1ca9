"""reconcile in a group of one process, and after an exception; tests/distributed tests several processes."""

import copy

import pytest
import torch
import torch.distributed as dist
from tests.surgery.models import model, ours, whole

import gammabeta as gb
from gammabeta.surgery.change import Change


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("make", [model, ours])
class TestAlone:
    def test_one_rank_keeps_what_it_has(self, make, alone):
        m = make()
        before = copy.deepcopy(m.state_dict())
        change = gb.reconcile(m)
        assert change.changed == ["bn1", "block.1", "inorm", "bn2"]
        # the rounding of log(√σ²) in float64
        assert all(0 <= number < 1e-12 for entry in change.entries for number in entry.numbers.values())
        assert all(torch.equal(value, before[key]) for key, value in m.state_dict().items())

    def test_an_exception_in_the_middle_leaves_the_model(self, make, alone, monkeypatch):
        m, original = make(), Change.overwrite

        def failing(change, module, name, value):
            original(change, module, name, value + 1)
            if module is m.bn2:
                raise OSError("in the middle")

        monkeypatch.setattr(Change, "overwrite", failing)
        before = whole(m)
        with pytest.raises(OSError, match="in the middle"):
            gb.reconcile(m)
        assert whole(m) == before


def test_frozen_layers_are_left(alone):
    m = ours()
    gb.freeze(m, where="bn1")
    assert gb.reconcile(m).left == {"bn1": "it is frozen"}


def test_a_group_that_this_process_is_not_in(alone):
    m = ours()
    before = whole(m)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        gb.reconcile(m, dist.GroupMember.NON_GROUP_MEMBER)
    assert str(raised.value) == "reconcile: expected a group that this process is in, got one that it is not in."
    assert whole(m) == before
