"""The transaction: its table, how it undoes, when it refuses to; and the choice of modules."""

import pytest
import torch
from tests.surgery.models import hooked, images, model, ours, whole
from torch import nn

import gammabeta as gb
from gammabeta.introspection.where import select
from gammabeta.surgery.change import transaction


def edit_everything(change, m):
    change.set_class(m.ln, nn.Identity, "ln")
    change.set_attribute(m.gn, "eps", 0.25, "gn")
    change.set_attribute(m.gn, "never", 1, "gn")
    change.delete_attribute(m.gn, "num_groups")
    change.delete_buffer(m.bn1, "running_mean")
    change.set_buffer(m.bn1, "extra", torch.ones(2), persistent=False)
    change.set_parameter(m.fc, "weight", nn.Parameter(torch.zeros(2)))
    change.delete_parameter(m.fc, "bias")
    change.set_child(m, "drop", nn.Identity())
    change.overwrite(m.bn2, "running_var", torch.zeros(6))
    change.overwrite(m.rms, "weight", torch.zeros(6))
    change.require_grad(m.head.weight, False)


class TestTransaction:
    def test_undo_restores_the_whole_model_and_the_second_does_nothing(self):
        m = model()
        before = whole(m)
        with transaction("edit") as change:
            edit_everything(change, m)
        after = whole(m)
        assert all(after[name] != before[name] for name in ("ln", "gn", "bn1", "fc", "bn2", "rms", "head", ""))
        assert "running_mean" not in m.bn1.state_dict()
        change.undo()
        assert whole(m) == before
        m.gn.eps = 0.5
        change.undo()
        assert m.gn.eps == 0.5

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_inside_takes_everything_back(self, error):
        m = model()
        before = whole(m)
        with pytest.raises(error), transaction("edit") as change:  # noqa: PT012
            edit_everything(change, m)
            raise error
        assert whole(m) == before

    def test_leaving_the_context_undoes_also_after_an_exception(self):
        m = model()
        before = whole(m)
        with gb.adopt(m) as change:
            assert type(m.bn1) is gb.BatchNorm2d
            assert "bn1" in change.changed
        assert whole(m) == before
        with pytest.raises(ZeroDivisionError), gb.adopt(m):
            raise ZeroDivisionError
        assert whole(m) == before

    def test_what_happened_since_to_anything_else_stays(self):
        m = model()
        change = gb.adopt(m)
        calls = hooked(m)
        m.head.weight.data.zero_()
        m.train()(images())
        moved = m.bn1.running_mean.clone()
        change.undo()
        m.eval()(images())
        assert calls == ["bn1", "ln"] * 2
        assert torch.equal(m.bn1.running_mean, moved)
        assert m.head.weight.abs().max() == 0

    def test_buffers_come_back_bit_by_bit_after_a_move_to_another_dtype(self):
        m = model()
        before = m.bn1.running_mean.clone()
        with transaction("edit") as change:
            change.overwrite(m.bn1, "running_mean", torch.zeros(8))
        m.double()
        change.undo()
        assert torch.equal(m.bn1.running_mean, before.double())

    def test_changes_are_undone_in_the_opposite_order(self):
        m = model()
        adopted = gb.adopt(m)
        ghosts = gb.set_statistics(m, gb.statistics.Ghost(4), where="bn1")
        before = whole(m)
        with pytest.raises(RuntimeError) as raised:
            adopted.undo()
        assert str(raised.value) == (
            "adopt: expected bn1 as this change left it, with statistics Batch(), got Ghost(size=4): "
            "undo the later change first."
        )
        assert whole(m) == before
        ghosts.undo()
        adopted.undo()
        assert type(m.bn1) is nn.BatchNorm2d

    def test_a_change_takes_over_another(self):
        m = model()
        before = whole(m)
        with transaction("both") as change:
            change.include(gb.adopt(m, where="bn1"))
            change.include(gb.freeze(m, where="bn1"))
        assert change.changed == ["bn1", "bn1"]
        assert m.bn1.statistics == gb.statistics.Running()
        change.undo()
        assert whole(m) == before

    def test_it_prints_as_a_table(self):
        with transaction("measure") as change:
            change.note("", "was changed", gap=0.12345, samples=128.0)
            change.leave("layer1.bn", "it is shy")
        assert (
            str(change)
            == repr(change)
            == (
                "measure: 1 changed, 1 left alone\n"
                "  (the model)  was changed  gap 0.123  samples 128\n"
                "  layer1.bn    left alone: it is shy"
            )
        )
        assert change.changed == [""]
        assert change.left == {"layer1.bn": "it is shy"}
        assert str(gb.adopt(nn.Linear(2, 2))) == "adopt: nothing to change"

    def test_modules_with_the_same_outcome_share_a_row(self):
        with transaction("measure") as change:
            for name in ("a", "b", "c", "d", "longer"):
                change.count(name, "was changed", "were changed")
            change.note("e", "was changed", gap=1.0)
            for name in ("f", "g", "h"):
                change.leave(name, "it is shy")
            change.count("i", "was changed otherwise", "were changed otherwise")
        assert str(change) == (
            "measure: 7 changed, 3 left alone\n"
            "  a, b and 3 more  5 were changed\n"
            "  e                was changed  gap 1\n"
            "  f, g, h          left alone: it is shy\n"
            "  i                was changed otherwise"
        )
        assert change.changed == ["a", "b", "c", "d", "longer", "e", "i"]
        assert list(change.left) == ["f", "g", "h"]


def chosen(where, m=None):
    m = model() if m is None else m
    found = select(m, where, lambda module: isinstance(module, nn.BatchNorm2d), operation="op", kind="BatchNorms")
    assert all(m.get_submodule(name) is module for name, module in found)
    return [name for name, _ in found]


class TestWhere:
    @pytest.mark.parametrize(
        ("where", "names"),
        [
            (None, ["bn1", "block.1"]),
            ("*", ["bn1", "block.1"]),
            ("bn?", ["bn1"]),
            ("block.*", ["block.1"]),
            ("shared", ["block.1"]),  # its second name
            (["bn1", "block.*"], ["bn1", "block.1"]),
            (lambda name, module: module.eps > 1e-4, ["block.1"]),
            (lambda name, module: name == "shared", ["block.1"]),
        ],
    )
    def test_chooses_each_module_once_under_its_first_name(self, where, names):
        assert chosen(where) == names

    def test_a_list_may_hold_modules(self):
        m = model()
        assert chosen([m.shared], m) == ["block.1"]

    def test_names_hold_without_the_prefixes_of_wrappers(self):
        compiled = torch.compile(nn.DataParallel(model()))
        assert chosen("block.*", compiled) == ["_orig_mod.module.block.1"]

    @pytest.mark.parametrize(
        ("where", "error", "message"),
        [
            (
                "bn11",
                ValueError,
                "op: expected where to match BatchNorms, got 'bn11', which matches none: did you mean 'bn1'?",
            ),
            (
                ["bn1", "block"],
                ValueError,
                "op: expected where to match BatchNorms, got 'block', which matches none: did you mean 'block.*', "
                "those inside it?",
            ),
            (
                "encoder/*",
                ValueError,
                "op: expected where to match BatchNorms, got 'encoder/*', which matches none: there are bn1, block.1.",
            ),
            (
                lambda name, module: False,
                ValueError,
                "op: expected where to choose at least one of the model's 2 BatchNorms, got a predicate that is false "
                "for each: there are bn1, block.1.",
            ),
            (
                [nn.BatchNorm2d(3)],
                ValueError,
                "op: expected where to list BatchNorms of the model, got a BatchNorm2d that is none of its 2: there "
                "are bn1, block.1.",
            ),
            (
                3,
                TypeError,
                "op: expected where as a glob on the names, a list of globs and modules, or a predicate "
                "(name, module) -> bool, got int.",
            ),
        ],
    )
    def test_what_matches_nothing_is_an_error(self, where, error, message):
        with pytest.raises(error) as raised:
            chosen(where)
        assert str(raised.value) == message

    def test_a_model_without_any_says_so(self):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            gb.set_statistics(nn.Linear(2, 2), gb.statistics.Ghost(2), where="bn*")
        assert str(raised.value) == (
            "set_statistics: expected where to match BatchNorms, got 'bn*', which matches none: the model has none."
        )

    def test_an_operation_that_cannot_choose_leaves_the_model(self):
        m = ours()
        before = whole(m)
        with pytest.raises(ValueError, match="which matches none"):
            gb.freeze(m, where=["bn1", "nothing"])
        assert whole(m) == before
