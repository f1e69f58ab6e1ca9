"""set_statistics, freeze and unfreeze: what changes, what survives, and what training no longer changes."""

import copy
import pickle
import warnings

import pytest
import torch
from tests.surgery.models import hooked, images, model, ours, whole
from torch import nn
from torch.optim.swa_utils import update_bn

import gammabeta as gb
from gammabeta.statistics import Batch, Ghost, Renorm, Running
from gammabeta.surgery import freeze as freeze_module
from gammabeta.surgery import set_statistics as statistics_module

BATCH_NORMS = ["bn1", "block.1", "bn2"]


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


def buffers(m):
    return {n: b.clone() for n, b in m.named_buffers() if not n.startswith("inorm")}


def equal(m, before):
    return all(torch.equal(b, before[n]) for n, b in m.named_buffers() if not n.startswith("inorm"))


def train(m, steps=20, x=None):
    optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2)
    m.train()
    for seed in range(steps):
        optimizer.zero_grad()
        m(images(seed=seed) if x is None else x).square().mean().backward()
        optimizer.step()


class TestSetStatistics:
    @pytest.mark.parametrize("make", [model, ours])
    def test_every_batch_norm_gets_the_source_and_nothing_else_changes(self, make):
        m = make()
        calls = hooked(m)
        optimizer = torch.optim.Adam(m.parameters())
        before, parameters, keys = whole(m), [id(p) for p in m.parameters()], list(m.state_dict())
        change = gb.set_statistics(m, Ghost(4))
        assert change.changed == BATCH_NORMS
        assert change.entries[0].what == "Ghost(size=4) in place of Batch()"
        assert all(m.get_submodule(name).statistics == Ghost(4) for name in BATCH_NORMS)
        assert [id(p) for p in m.parameters()] == parameters
        assert list(m.state_dict()) == keys
        assert [id(p) for g in optimizer.param_groups for p in g["params"]] == parameters
        assert type(m.ln) is type(make().ln)
        m.eval()(images())
        assert calls == ["bn1", "ln"]
        m.train()
        change.undo()
        assert whole(m) == before

    def test_the_source_is_what_normalizes(self):
        m = nn.Sequential(nn.BatchNorm2d(3))
        gb.set_statistics(m, Ghost(2))
        x = images(4)
        expected = torch.cat([nn.BatchNorm2d(3)(part) for part in x.split(2)])
        torch.testing.assert_close(m(x), expected, rtol=1e-5, atol=1e-5)  # sums in another order

    def test_subclasses_frozen_ones_and_layers_without_statistics_are_left(self):
        m = nn.ModuleDict({"own": OwnForward(3), "bare": nn.BatchNorm2d(3, track_running_stats=False)})
        change = gb.set_statistics(m, Renorm())
        assert change.left == {
            "own": "OwnForward has a forward of its own, which would be lost",
            "bare": f"it has no running statistics, which {Renorm()} needs",
        }
        assert gb.set_statistics(ours(), Batch(), where="bn1").left == {"bn1": "its statistics are Batch() already"}

    def test_an_exception_in_the_middle_leaves_the_model(self, monkeypatch):
        m, original = model(), statistics_module.change_source

        def failing(change, name, module, source):
            original(change, name, module, source)
            if name == "block.1":
                raise OSError("in the middle")

        monkeypatch.setattr(statistics_module, "change_source", failing)
        before = whole(m)
        with pytest.raises(OSError, match="in the middle"):
            gb.set_statistics(m, Ghost(4))
        assert whole(m) == before

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (Ghost, "got the class Ghost: call it."),
            ("batch", "got 'batch'."),
        ],
    )
    def test_what_is_no_source(self, source, message):
        with pytest.raises(TypeError) as raised:
            gb.set_statistics(model(), source)
        expected = "set_statistics: expected a source such as gammabeta.statistics.Ghost(16), "
        assert str(raised.value) == expected + message


class TestFreeze:
    @pytest.mark.parametrize("make", [model, ours])
    def test_twenty_steps_leave_the_buffers_bit_identical(self, make):
        m = make()
        change = gb.freeze(m)
        assert change.changed == BATCH_NORMS
        before, weight, affine = buffers(m), m.stem.weight.clone(), m.bn1.weight.clone()
        train(m)
        assert equal(m, before)
        assert not torch.equal(m.stem.weight, weight)
        assert not torch.equal(m.bn1.weight, affine)
        control = make()
        train(control, 1)
        assert not equal(control, before)

    def test_in_training_it_computes_what_evaluation_does(self):
        m = ours()
        gb.freeze(m)
        m.inorm.eval()
        m.drop.p = 0.0
        expected = m.eval()(images())
        m.train()
        m.inorm.eval()
        torch.testing.assert_close(m(images()), expected, rtol=1e-5, atol=1e-5)  # two kernels

    def test_affine_stays_too_and_layer_norms_are_looked_at(self):
        m = model()
        change = gb.freeze(m, affine=True)
        assert change.changed == ["bn1", "block.1", "gn", "inorm", "bn2", "ln", "rms"]
        assert change.entries[0].what == "frozen: statistics (were Batch()), weight and bias"
        kept = {n: p.clone() for n, p in m.named_parameters() if not p.requires_grad}
        assert len(kept) == 13
        train(m)
        assert all(torch.equal(m.get_parameter(n), p) for n, p in kept.items())
        gb.unfreeze(m)
        assert all(p.requires_grad for p in m.parameters())

    def test_it_survives_copies_pickles_loading_and_update_bn(self):
        m = ours()
        gb.set_statistics(m, Ghost(4))
        gb.freeze(m)
        for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
            before = buffers(other)
            other.load_state_dict(m.state_dict())
            update_bn([images(seed=5)], other)
            train(other, 2)
            assert equal(other, before)
            gb.unfreeze(other)
            assert other.bn1.statistics == Ghost(4)
            train(other, 1)
            assert not equal(other, before)

    def test_a_state_dict_that_is_loaded_gives_the_frozen_statistics(self):
        m, source = ours(), ours()
        source.bn1.running_mean.add_(1)
        gb.freeze(m)
        m.load_state_dict(source.state_dict())
        assert torch.equal(m.bn1.running_mean, source.bn1.running_mean)
        train(m, 2)
        assert torch.equal(m.bn1.running_mean, source.bn1.running_mean)

    def test_it_survives_compiling(self):
        torch._dynamo.reset()
        m = ours()
        gb.freeze(m, where="bn*")
        before = m.bn1.running_mean.clone()
        compiled = torch.compile(m, backend="aot_eager")
        train(compiled, 2, images())
        assert torch.equal(m.bn1.running_mean, before)
        gb.unfreeze(compiled)
        train(compiled, 1, images())
        assert not torch.equal(m.bn1.running_mean, before)
        gb.freeze(compiled)
        before = m.bn1.running_mean.clone()
        train(compiled, 1, images())
        assert torch.equal(m.bn1.running_mean, before)
        torch._dynamo.reset()

    @pytest.mark.parametrize("affine", [True, False])
    def test_undo_and_an_exception_restore(self, affine, monkeypatch):
        m = model()
        m.bn2.weight.requires_grad_(False)
        before = whole(m)
        change = gb.freeze(m, affine=affine)
        assert whole(m) != before
        change.undo()
        assert whole(m) == before
        gb.freeze(m, affine=affine)
        gb.unfreeze(m)
        gb.release(m)
        assert whole(m) == before
        original = freeze_module._freeze

        def failing(change, name, *rest):
            original(change, name, *rest)
            if name == "bn2":
                raise OSError("in the middle")

        monkeypatch.setattr(freeze_module, "_freeze", failing)
        with pytest.raises(OSError, match="in the middle"):
            gb.freeze(m, affine=affine)
        assert whole(m) == before

    def test_unfreeze_undoes_and_an_exception_restores(self, monkeypatch):
        m = ours()
        gb.freeze(m, affine=True)
        before = whole(m)
        gb.unfreeze(m).undo()
        assert whole(m) == before
        original = freeze_module._thaw

        def failing(change, name, *rest):
            original(change, name, *rest)
            if name == "bn2":
                raise OSError("in the middle")

        monkeypatch.setattr(freeze_module, "_thaw", failing)
        with pytest.raises(OSError, match="in the middle"):
            gb.unfreeze(m)
        assert whole(m) == before

    def test_another_source_replaces_frozen_statistics_and_not_the_memory_of_gamma(self):
        m = ours()
        gb.freeze(m, affine=True, where="bn1")
        gb.set_statistics(m, Ghost(4), where="bn1")
        assert gb.unfreeze(m, where="bn1").entries[0].what == "unfrozen: weight and bias"
        assert m.bn1.statistics == Ghost(4)

    def test_halves_are_given_back_one_at_a_time(self):
        m = ours()
        gb.freeze(m, affine=True, where="bn1")
        gb.unfreeze(m, statistics=False)
        assert m.bn1.weight.requires_grad
        assert m.bn1.statistics == Running()
        gb.unfreeze(m)
        assert m.bn1.statistics == Batch()
        assert "frozen" not in vars(m.bn1)

    def test_what_is_frozen_already_and_what_is_not_say_so(self):
        m = ours()
        gb.freeze(m, where="bn1")
        assert gb.freeze(m, where="bn1").left == {"bn1": "its statistics are Running() already"}
        assert gb.unfreeze(m, where="bn2").left == {"bn2": "not frozen"}
        with pytest.warns(UserWarning, match="^freeze: 1 of 1") as caught:
            change = gb.freeze(OwnForward(3))
        assert change.left == {"": "OwnForward has a forward of its own, which would be lost"}
        assert str(caught[0].message) == (
            "freeze: 1 of 1 BatchNorms are not frozen: the model (OwnForward has a forward of its own, which would be "
            "lost). Mend the reason and freeze them again, or keep them in evaluation mode: model.train() ends that."
        )
        assert caught[0].filename == __file__

    def test_what_is_frozen_is_no_reason_to_warn(self):
        m = ours()
        gb.freeze(m)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gb.freeze(m, affine=True)
            gb.freeze(m, statistics=False, affine=True)

    def test_statistics_and_affine_of_a_layer_are_frozen_both_or_neither(self):
        m = nn.Sequential(nn.BatchNorm2d(3), *(OwnForward(3) for _ in range(5)))
        with pytest.warns(UserWarning, match=r"^freeze: 5 of 6 BatchNorms are not frozen: 1 .*, 2 .*, 3 .* and 2 more"):
            change = gb.freeze(m, affine=True)
        assert change.changed == ["0"]
        assert all(p.requires_grad for p in m[1:].parameters())
        assert not any(p.requires_grad for p in m[0].parameters())

    def test_statistics_that_were_not_tracked_are_used_in_training_once_they_are_frozen(self):
        """Freezing as Lightning does switches tracking off and leaves training to normalize by the batch."""
        m = nn.Sequential(nn.BatchNorm2d(3))
        m[0].running_mean.normal_()
        m[0].track_running_stats = False
        before = buffers(m)
        expected = m.eval()(images())
        gb.freeze(m)
        torch.testing.assert_close(m.train()(images()), expected, rtol=1e-5, atol=1e-5)  # two kernels
        assert equal(m, before)
        gb.unfreeze(m)
        assert not m[0].track_running_stats

    def test_neither_is_an_error(self):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            gb.freeze(model(), statistics=False)
        assert str(raised.value) == "freeze: expected statistics or affine to be True, got both False."


def test_a_layer_whose_statistics_cannot_be_frozen_is_left_whole_and_warned_of():
    m = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.warns(UserWarning, match="1 of 1 BatchNorms are not frozen"):
        change = gb.freeze(m, affine=True)
    assert change.changed == []
    assert "running statistics" in change.left["1"]
    assert all(parameter.requires_grad for parameter in m.parameters())
