"""An adopted layer is still an instance of the class that it had, in every process, but none of its code runs."""

import abc
import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from tests.surgery.models import FrozenBatchNorm2d, images, randomize, whole
from tests.surgery.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize

import gammabeta as gb
from gammabeta.layers.batch_norm import BatchNorm
from gammabeta.statistics import Ghost, Running, Synced
from gammabeta.surgery.adopted_class import adopted_class, our_class

ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


def sync_norm_act(channels):
    m = SyncBatchNormAct(channels)
    m.drop, m.act = nn.Identity(), nn.SiLU()
    return m


MAKES = {
    "BatchNormAct2d": lambda: BatchNormAct2d(3, nn.SiLU),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(3, eps=1e-3),
    "FrozenBatchNormAct2d": lambda: FrozenBatchNormAct2d(3, nn.SiLU),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(3, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(1, 3),
    "LayerNorm": lambda: nn.LayerNorm(6),
    "RMSNorm": lambda: nn.RMSNorm(6),
}


@pytest.mark.parametrize("name", MAKES)
class TestEveryClass:
    def test_it_is_still_an_instance_of_the_old_class_and_computes_the_same(self, name):
        theirs = nn.Sequential(randomize(MAKES[name]()), nn.Conv2d(3, 2, 1))
        ours, old = copy.deepcopy(theirs), type(theirs[0])
        assert gb.adopt(ours).left == {}
        assert isinstance(ours[0], old)
        assert type(ours[0]).__name__ == old.__name__
        assert type(ours[0]).__module__.startswith("gammabeta.")
        assert our_class(ours[0]).__module__.startswith("gammabeta.layers.")
        for training in (True, False):
            torch.testing.assert_close(ours.train(training)(images()), theirs.train(training)(images()), **ROUNDING)
        state = theirs.state_dict()
        assert list(ours.state_dict()) == list(state)
        torch.testing.assert_close(dict(ours.state_dict()), dict(state), **ROUNDING)

    def test_state_dicts_go_both_ways(self, name):
        theirs, ours = randomize(MAKES[name]()), MAKES[name]()
        gb.adopt(ours)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(ours.eval()(images()), theirs.eval()(images()), **ROUNDING)
        again = MAKES[name]()
        again.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(dict(again.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)

    def test_copies_and_pickles_keep_the_class(self, name):
        m = randomize(MAKES[name]()).eval()
        gb.adopt(m)
        saved = io.BytesIO()
        torch.save(m, saved)
        saved.seek(0)
        pickled = [pickle.loads(pickle.dumps(m, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        for other in (copy.copy(m), copy.deepcopy(m), torch.load(saved, weights_only=False), *pickled):
            assert type(other) is type(m)
            assert torch.equal(other(images()), m(images()))
        assert pickle.loads(pickle.dumps(type(m))) is type(m)
        assert copy.deepcopy(type(m)) is type(m)

    def test_release_gives_back_the_old_class(self, name):
        m = randomize(MAKES[name]())
        before = whole(m)
        change = gb.adopt(m)
        copied = copy.deepcopy(m)
        assert gb.release(copied).left == {}
        assert type(copied) is before[""][0]
        assert dict(copied.named_buffers()).keys() == {k for k, b in before[""][5].items() if b is not None}
        change.undo()
        assert whole(m) == before


def test_another_process_makes_the_class_again(tmp_path):
    m = nn.Sequential(*(randomize(MAKES[name]()) for name in ("BatchNormAct2d", "FrozenBatchNormAct2d"))).eval()
    gb.adopt(m)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps((m, images(), m(images()))))
    script = (
        "import pickle, sys, torch\n"
        "m, x, y = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "assert torch.equal(m(x), y)\n"
        "from tests.surgery.norm_act import BatchNormAct2d, FrozenBatchNormAct2d\n"
        "assert isinstance(m[0], BatchNormAct2d) and isinstance(m[1], FrozenBatchNormAct2d)\n"
        "import gammabeta as gb\n"
        "print(gb.release(m).changed, type(m[0]) is BatchNormAct2d, type(m[1]) is FrozenBatchNormAct2d)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "['0', '1'] True True\n", done.stderr


def test_one_class_for_each_pair():
    first, second = (randomize(BatchNormAct2d(3)) for _ in range(2))
    gb.adopt(first)
    gb.adopt(second)
    assert type(first) is type(second)
    assert adopted_class(gb.LayerNorm, nn.LayerNorm) is gb.LayerNorm


def test_nothing_of_the_old_class_runs():
    class Loud(BatchNormAct2d):
        def __repr__(self):
            return "loud"

        def train(self, mode=True):
            raise AssertionError

        def __reduce_ex__(self, protocol):
            raise AssertionError

        def _load_from_state_dict(self, *args):
            raise AssertionError

    m = randomize(Loud(3))
    gb.adopt(m)
    assert isinstance(m, Loud)
    assert repr(m).startswith("Loud(\n  3, eps=1e-05, momentum=0.1, affine=True")
    assert "activation=relu" in repr(m)
    m.train().load_state_dict(m.state_dict())
    assert torch.equal(copy.deepcopy(m)(images()), m(images()))


class Abstract(BatchNormAct2d, abc.ABC):
    pass


def test_an_old_class_with_a_metaclass():
    m = randomize(Abstract(3))
    gb.adopt(m)
    assert isinstance(m, Abstract)
    assert pickle.loads(pickle.dumps(type(m))) is type(m)
    assert torch.equal(pickle.loads(pickle.dumps(m.eval()))(images()), m(images()))


def test_compiled_and_exported():
    torch._dynamo.reset()
    m = randomize(BatchNormAct2d(3, nn.SiLU))
    gb.adopt(m)
    eager, x = copy.deepcopy(m), images()
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), eager(x), **ROUNDING)
    torch.testing.assert_close(m.running_var, eager.running_var, **ROUNDING)
    exported = torch.export.export(m.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), m(x), **ROUNDING)
    torch._dynamo.reset()


def test_subclasses_that_wrappers_make():
    m = randomize(BatchNormAct2d(3))
    gb.adopt(m)
    expected = m.eval()(images())
    parametrizations.weight_norm(m, dim=0)
    assert isinstance(m, BatchNormAct2d)
    torch.testing.assert_close(m(images()), expected, **ROUNDING)
    parametrize.remove_parametrizations(m, "weight")
    assert gb.release(m).changed == [""]
    assert type(m) is BatchNormAct2d


def test_under_data_parallel(tmp_path):
    m = nn.Sequential(randomize(BatchNormAct2d(3)), randomize(FrozenBatchNorm2d(3)), nn.SyncBatchNorm(3))
    gb.adopt(m)
    single = copy.deepcopy(m)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        # A SyncBatchNorm would be refused here: "SyncBatchNorm layers only work with GPU modules".
        torch.testing.assert_close(DistributedDataParallel(m)(images()), single(images()), **ROUNDING)
    finally:
        dist.destroy_process_group()


class TestSync:
    @pytest.mark.parametrize("make", [nn.SyncBatchNorm, sync_norm_act])
    def test_on_a_cpu_it_is_no_sync_batch_norm_for_ddp_to_refuse(self, make):
        m = randomize(make(3))
        before, theirs = whole(m), copy.deepcopy(m)
        change = gb.adopt(m)
        assert type(m) is BatchNorm
        assert m.statistics == Synced()
        ours = copy.deepcopy(m)
        for training in (True, False):
            torch.testing.assert_close(ours.train(training)(images()), theirs.train(training)(images()), **ROUNDING)
        change.undo()
        assert whole(m) == before
        gb.adopt(m)
        assert gb.release(m).changed == [""]
        assert whole(m) == before

    def test_elsewhere_it_still_is_one(self):
        m = nn.SyncBatchNorm(3, device="meta")
        gb.adopt(m)
        assert isinstance(m, nn.SyncBatchNorm)
        assert our_class(m) is BatchNorm
        assert pickle.loads(pickle.dumps(m)).statistics == Synced()
        thawed = copy.deepcopy(m)
        gb.freeze(thawed)
        gb.unfreeze(thawed)
        assert isinstance(thawed, nn.SyncBatchNorm)
        gb.set_statistics(m, Ghost(2))  # after which it is no longer a SyncBatchNorm
        assert type(m) is BatchNorm
        gb.set_statistics(m, Synced())
        gb.release(m)
        assert type(m) is nn.SyncBatchNorm

    def test_a_forward_of_its_own_is_compared(self):
        wrong = sync_norm_act(3)
        wrong.__class__ = type("Wrong", (SyncBatchNormAct,), {"forward": lambda self, x: self.act(x)})
        assert gb.adopt(wrong).left == {"": "Wrong has a forward of its own, which computes something else than ours"}


class TestFrozen:
    def test_unfrozen_it_is_no_frozen_one_any_more_and_counts_batches(self):
        m = randomize(FrozenBatchNorm2d(3))
        gb.adopt(m)
        assert m.num_batches_tracked is None
        change = gb.unfreeze(m)
        assert type(m) is gb.BatchNorm2d
        m(images())
        assert m.num_batches_tracked == 1
        change.undo()
        assert isinstance(m, FrozenBatchNorm2d)
        assert m.statistics == Running()
        assert "num_batches_tracked" not in m.state_dict()

    def test_checkpoints_of_batch_norms_load_as_before(self):
        m = nn.Sequential(FrozenBatchNormAct2d(3))
        gb.adopt(m)
        state = randomize(nn.Sequential(nn.BatchNorm2d(3))).state_dict()
        assert "0.num_batches_tracked" in state
        m.load_state_dict(state, strict=True)
        torch.testing.assert_close(m[0].running_mean, state["0.running_mean"])
        assert "0.num_batches_tracked" in state

    def test_its_activation_is_compared(self):
        m = randomize(FrozenBatchNormAct2d(3, nn.SiLU, wrong=1e-2))
        assert gb.adopt(m).left == {
            "": "FrozenBatchNormAct2d does not compute "
            "(x − running_mean)/√(running_var + 1e-05)·weight + bias and then silu"
        }

    def test_a_counter_that_it_had_comes_back(self):
        m = randomize(FrozenBatchNorm2d(3))
        m.register_buffer("num_batches_tracked", torch.tensor(5))
        before = whole(m)[""][5]
        gb.adopt(m)
        assert m.num_batches_tracked == 5
        gb.release(m)
        assert whole(m)[""][5].keys() == before.keys()
        assert m.num_batches_tracked == 5


@pytest.mark.parametrize("name", ["BatchNormAct2d", "FrozenBatchNormAct2d"])
def test_conversion_to_another_norm_ends_it(name):
    m = nn.Sequential(randomize(MAKES[name]()))
    gb.adopt(m)
    if name.startswith("Frozen"):
        gb.unfreeze(m)
    assert our_class(m[0]) is gb.BatchNorm2d
    gb.convert(m, "group", groups=1, batches=[images()])
    assert type(m[0]) is gb.GroupNorm
    assert m[0].activation == "silu"


class AnyDimensions(nn.BatchNorm2d):
    """As libraries write one class for all dimensions."""

    def _check_input_dim(self, input):
        return


class AtLeastThree(nn.BatchNorm2d):
    def _check_input_dim(self, input):
        if input.dim() < 3:
            raise ValueError("mine")


class AsksItsBase(nn.BatchNorm2d):
    def _check_input_dim(self, input):
        super()._check_input_dim(input)


def test_a_check_of_the_dimensions_of_its_own_is_kept():
    torch.manual_seed(0)
    for cls in (AnyDimensions, AtLeastThree):
        norm, x = cls(4), torch.randn(8, 4, 6)
        expected = copy.deepcopy(norm)(x)
        assert gb.adopt(norm).changed
        # Two orders of summation in float32.
        torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)
        again = pickle.loads(pickle.dumps(norm))
        again(x)
    with pytest.raises(ValueError, match="mine"):
        again(torch.randn(8, 4))
    gb.freeze(norm)
    before = norm.running_mean.clone()
    norm.train()(x)
    assert torch.equal(norm.running_mean, before)
    left = gb.adopt(AsksItsBase(4)).left
    assert left == {"": "AsksItsBase has a _check_input_dim of its own, which would be lost"}
