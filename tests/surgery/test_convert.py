"""convert: every kind of norm, the least squares fit in the order of the data, and the accuracy that is kept."""

import copy
import functools

import pytest
import torch
from sklearn.datasets import load_digits
from tests.surgery.models import FrozenBatchNorm2d, hooked, images, model, ours, randomize, whole
from torch import nn
from torch.nn import functional as F

import gammabeta as gb
from gammabeta.lab.images.networks import ResNet
from gammabeta.surgery import convert as convert_module

# float32 against float64, through a few layers
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def network(channels=8):
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU(),
            nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
        )
    )  # fmt: skip


def batches():
    return [images(12, 1), images(7, 2)]


class TestKinds:
    @pytest.mark.parametrize("adopted", [False, True])
    @pytest.mark.parametrize(
        ("to", "groups", "expected"),
        [("group", 4, 4), ("group", None, 2), ("layer", None, 1), ("instance", None, 8)],
    )
    def test_batch_norm_becomes_each_with_its_parameters(self, adopted, to, groups, expected):
        m = network()
        if adopted:
            gb.adopt(m)
        objects = [m[1], m[1].weight, m[1].bias]
        m[1].eval()
        change = gb.convert(m, to, groups=groups)
        assert change.changed == ["1", "4"]
        assert all(a is b for a, b in zip([m[1], m[1].weight, m[1].bias], objects, strict=True))
        assert m[1].eps == 1e-3
        assert not m[1].training
        assert m[4].training
        fresh = gb.InstanceNorm2d(8, affine=True) if to == "instance" else gb.GroupNorm(expected, 8)
        assert type(m[1]) is type(fresh)
        assert set(vars(m[1])) == set(vars(fresh))
        assert list(m[1].state_dict()) == list(fresh.state_dict())
        assert set(m[1]._buffers) == set(fresh._buffers)
        x = m[0](images())
        torch.testing.assert_close(m[1](x), F.group_norm(x, expected, *objects[1:], 1e-3), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("to", ["group", "layer", "instance"])
    def test_there_and_back_to_batch(self, to):
        m = network().eval()
        gb.convert(m, to)
        before = m(batches()[0])
        change = gb.convert(m, "batch", batches=batches())
        assert type(m[1]) is gb.BatchNorm2d
        assert set(vars(m[1])) == set(vars(gb.BatchNorm2d(8)))
        assert list(m.state_dict()) == list(network().state_dict())
        x = torch.cat([m[0](b) for b in batches()])
        torch.testing.assert_close(m[1].running_mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(m[1].running_var, x.var((0, 2, 3)), rtol=1e-5, atol=1e-5)
        assert m[1].num_batches_tracked == 2
        assert all(entry.numbers["residual"] <= entry.numbers["kept"] for entry in change.entries)
        assert (m(batches()[0]) - before).norm() < before.norm()

    def test_an_activation_and_a_source_are_handled(self):
        m = nn.Sequential(gb.BatchNorm2d(8, activation="silu", statistics=gb.statistics.Ghost(2)))
        gb.convert(m, "group", groups=2)
        assert repr(m[0]) == repr(gb.GroupNorm(2, 8, activation="silu"))
        assert "statistics" not in vars(m[0])


class TestFit:
    def test_what_can_be_said_exactly_is(self):
        """On one sample, instance norm is linear in x for each channel, as batch norm is in evaluation."""
        x = torch.randn(1, 4, 5, 5) * torch.tensor([1.0, 3.0, 0.5, 2.0]).reshape(-1, 1, 1) + 2
        m = randomize(gb.InstanceNorm2d(4, affine=True))
        expected = m(x)
        change = gb.convert(m, "batch", batches=[x])
        assert change.entries[0].numbers["residual"] < 1e-4
        torch.testing.assert_close(m.eval()(x), expected, **ROUNDING)

    @pytest.mark.parametrize("to", ["group", "layer", "instance"])
    @pytest.mark.parametrize("parts", ["both", "no bias", "none"])
    def test_equals_a_least_squares_solver_layer_by_layer(self, to, parts):
        m = network()
        for index in (1, 4):
            options = {"both": {}, "no bias": {"bias": False}, "none": {"affine": False}}[parts]
            fresh = nn.BatchNorm2d(8, **options)
            fresh.load_state_dict({k: v for k, v in m[index].state_dict().items() if k in fresh.state_dict()})
            m[index] = fresh
        original = copy.deepcopy(m).double().eval()
        change = gb.convert(m, to, batches=batches())
        groups = {"group": 2, "layer": 1, "instance": 8}[to]
        y = x = torch.cat(batches()).double()
        for start in (0, 3):
            y = original[start + 1](original[start](y))
            z = F.group_norm(original[start](x), groups, eps=m[start + 1].eps)
            ours, former = m[start + 1], original[start + 1]
            fitted = torch.empty_like(z)
            for c in range(8):
                column, target = z[:, c].reshape(-1, 1), y[:, c].reshape(-1, 1)
                if parts == "none":
                    fitted[:, c] = z[:, c]
                    continue
                design = torch.cat([column, torch.ones_like(column)], 1) if parts == "both" else column
                solution = torch.linalg.lstsq(design, target).solution
                fitted[:, c] = (design @ solution).reshape(z[:, c].shape)
                torch.testing.assert_close(ours.weight[c].double(), solution[0, 0], **ROUNDING)
                if parts == "both":
                    torch.testing.assert_close(ours.bias[c].double(), solution[1, 0], **ROUNDING)
            residual = (fitted - y).norm() / (y - y.mean((0, 2, 3), keepdim=True)).norm()
            entry = change.entries[(0, 3).index(start)]
            assert entry.numbers["residual"] == pytest.approx(residual.item(), rel=1e-3)
            kept = z if former.weight is None else z * former.weight.reshape(-1, 1, 1)
            kept = kept if former.bias is None else kept + former.bias.reshape(-1, 1, 1)
            kept = (kept - y).norm() / (y - y.mean((0, 2, 3), keepdim=True)).norm()
            assert entry.numbers["kept"] == pytest.approx(kept.item(), rel=1e-3)
            x, y = torch.relu(fitted), torch.relu(y)
        torch.testing.assert_close(m.eval()(torch.cat(batches())).double(), x, **ROUNDING)

    def test_masked_values_shared_layers_and_an_activation(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = randomize(gb.BatchNorm1d(4, activation="relu"))

            def forward(self, x, mask):
                return self.norm(self.norm(x, mask=mask) * 2 + x, x, mask=mask)

        m = Twice().eval()
        mask = torch.arange(9) < torch.tensor([9, 2, 5, 4])[:, None]
        x = torch.randn(4, 4, 9)
        spoiled = torch.where(mask[:, None], x, 1e6)
        other = copy.deepcopy(m)
        gb.convert(m, "group", groups=2, batches=[{"x": x, "mask": mask}])
        gb.convert(other, "group", groups=2, batches=[{"x": spoiled, "mask": mask}])
        torch.testing.assert_close(m.norm.weight, other.norm.weight, **ROUNDING)
        torch.testing.assert_close(m.norm.bias, other.norm.bias, **ROUNDING)

    def test_a_channel_that_does_not_vary_keeps_its_gamma(self):
        m = nn.Sequential(randomize(gb.GroupNorm(1, 2)))
        weight = m[0].weight.detach().clone()
        gb.convert(m, "batch", batches=[torch.ones(4, 2, 3) * torch.tensor([1.0, 2.0])[:, None]])
        assert torch.equal(m[0].weight, weight)
        assert m[0].bias.isfinite().all()


@functools.cache
def trained():
    """Train a ResNet with BatchNorm on scikit-learn's digits; return it with the test images."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]
    m = ResNet((1, 8, 8), 10, norm_name="batch")
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    epochs = 6
    # A rate that does not fall leaves the end to chance: another processor's rounding ended at 0.887, not at 0.96.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=epochs - 1)
    for _ in range(epochs):
        for part in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(m(x[part]), y[part]).backward()
            optimizer.step()
        schedule.step()
    return m.eval(), x[train], x[test], y[test]


def accuracy(m, x, y):
    with torch.no_grad():
        return (m.eval()(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("to", ["group", "layer"])
def test_a_trained_network_keeps_more_of_its_accuracy_when_fitted(to):
    m, train, test, labels = trained()
    before = accuracy(m, test, labels)
    plain, fitted = copy.deepcopy(m), copy.deepcopy(m)
    gb.convert(plain, to)
    change = gb.convert(fitted, to, batches=train[:512].split(128))
    found = before, accuracy(plain, test, labels), accuracy(fitted, test, labels)
    print(f"{to}: before {found[0]:.3f}, converted {found[1]:.3f}, fitted {found[2]:.3f}")
    print(change)
    assert found[0] > 0.95
    assert found[2] > found[1] + 0.05
    assert all(entry.numbers["residual"] < entry.numbers["kept"] for entry in change.entries)


class TestTransaction:
    @pytest.mark.parametrize("given", [False, True])
    def test_undo_restores_the_whole_model(self, given):
        m = model()
        calls = hooked(m)
        before = whole(m)
        change = gb.convert(m, "group", groups=2, batches=batches() if given else None)
        # GroupNorm has 2 groups already; LayerNorm and RMSNorm normalize the last axes.
        assert sorted(change.left) == ["gn", "ln", "rms"]
        assert change.left["gn"] == "GroupNorm is of 2 groups already"
        assert change.left["ln"] == "LayerNorm normalizes the last axes, and not channels at axis 1"
        m.eval()(images())
        m.train()
        assert calls[-2:] == ["bn1", "ln"]
        change.undo()
        assert whole(m) == before

    @pytest.mark.parametrize("at", ["forward", "becoming"])
    @pytest.mark.parametrize("make", [model, ours])
    def test_an_exception_in_the_middle_leaves_the_model(self, make, at, monkeypatch):
        m = make()
        before = whole(m)
        forwards = []

        def forward(model, batch):
            forwards.append(batch)
            if at == "forward" and len(forwards) == 7:
                raise OSError("in the middle")
            return model(batch)

        original = convert_module._convert_site

        def failing(change, site, to):
            original(change, site, to)
            if at == "becoming" and site.name == "bn2":
                raise OSError("in the middle")

        monkeypatch.setattr(convert_module, "_convert_site", failing)
        with pytest.raises(OSError, match="in the middle"):
            gb.convert(m, "group", groups=2, batches=batches(), forward=forward)
        assert whole(m) == before

    def test_optimizers_keep_their_state(self):
        m = network()
        optimizer = torch.optim.Adam(m.parameters())
        m(images()).square().mean().backward()
        optimizer.step()
        state = {p: s["exp_avg"].clone() for p, s in optimizer.state.items()}
        gb.convert(m, "group", batches=batches(), optimizer=optimizer)
        assert all(torch.equal(optimizer.state[p]["exp_avg"], state[p]) for p in m.parameters())
        m(images()).square().mean().backward()
        optimizer.step()

    def test_an_optimizer_of_another_model_is_an_error(self):
        m = network()
        before = whole(m)
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            gb.convert(m, "group", optimizer=torch.optim.SGD(network().parameters(), lr=0.1))
        assert str(raised.value) == (
            "convert: expected an optimizer that holds 1.weight, got one that does not: it was made from another "
            "model, or for part of this one."
        )
        assert whole(m) == before


class TestRefusals:
    def test_groups_of_one_value(self):
        m = nn.Sequential(nn.Conv2d(3, 4, 6), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4))
        before = whole(m)
        change = gb.convert(m, "instance", batches=[images()])
        reason = "a group would have one value, and the output would be β for any input"
        assert change.left == {"1": reason, "3": reason}
        assert whole(m) == before
        assert gb.convert(m, "instance", where="3").left == {
            "3": "a group of one channel has one value where there are no positions: hand batches"
        }
        assert whole(m) == before

    def test_subclasses_and_channels_elsewhere(self):
        mine = type("Mine", (nn.BatchNorm2d,), {"forward": lambda self, x: x})
        assert gb.convert(mine(4), "group").left == {"": "Mine has a forward of its own, which would be lost"}

    def test_what_batches_do_not_reach_and_what_is_no_batch(self):
        m = nn.ModuleDict({"unused": gb.GroupNorm(1, 4), "single": nn.InstanceNorm2d(3)})
        change = gb.convert(m, "batch", batches=[torch.randn(3, 3, 5)], forward=lambda m, x: m["single"](x))
        assert change.left == {
            "unused": "no batch reached it, whose statistics it would have",
            "single": "its input (3, 3, 5) has not its 3 channels at axis 1",
        }
        change = gb.convert(m, "layer", batches=[torch.randn(2, 3, 5, 5)], forward=lambda m, x: m["single"](x))
        assert change.left == {"unused": "GroupNorm is of 1 group already"}
        assert change.entries[1].what == "InstanceNorm2d is GroupNorm of 1 group, not fitted"  # it has no γ and β

    def test_another_library_s_frozen_one(self):
        m = FrozenBatchNorm2d(4)
        assert gb.convert(m, "group").left == {"": "FrozenBatchNorm2d is another library's: adopt it first"}
        gb.adopt(m)
        assert gb.convert(m, "group", groups=2).changed == [""]
        assert gb.unfreeze(m, statistics=False).changed == [""]
        assert m.weight.requires_grad
        assert set(vars(m)) - {"hidden", "wrong"} == set(vars(gb.GroupNorm(2, 4)))

    @pytest.mark.parametrize(
        ("to", "options", "message"),
        [
            ("switch", {}, "convert: expected to as one of 'batch', 'group', 'layer', 'instance', got 'switch'."),
            (
                "batch",
                {},
                "convert: expected batches where norms become BatchNorms, got None: their running statistics come from "
                "them.",
            ),
            ("layer", {"groups": 2}, "convert: expected groups of at least 1, for to=\"group\", got 2 for to='layer'."),
            (
                "group",
                {"groups": 3},
                "convert: expected groups that divide the channels of every chosen norm, got 3 for 8 of 1.",
            ),
            (
                "group",
                {"batches": []},
                "convert: expected at least one batch, got none: an iterator that is used up gives none.",
            ),
        ],
    )
    def test_errors(self, to, options, message):
        m = network()
        before = whole(m)
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            gb.convert(m, to, **options)
        assert str(raised.value) == message
        assert whole(m) == before


class Named(nn.BatchNorm2d):
    """Another name, and other defaults."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.01)


class OursNamed(gb.BatchNorm2d):
    """A subclass of ours that adds nothing."""


class Doubled(gb.BatchNorm2d):
    def forward(self, input, residual=None, mask=None):
        return 2 * super().forward(input, residual, mask)


@pytest.mark.parametrize("cls", [Named, OursNamed])
def test_a_subclass_that_adds_nothing_is_converted_and_comes_back(cls):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), cls(8))
    eps = model[1].eps
    change = gb.convert(model, "group", groups=4)
    assert change.changed == ["1"]
    assert type(model[1]) is gb.GroupNorm
    assert (model[1].num_groups, model[1].eps) == (4, eps)
    change.undo()
    assert type(model[1]) is cls
    assert gb.set_statistics(model, gb.statistics.Ghost(2)).changed == ["1"]


def test_a_subclass_of_ours_with_a_forward_is_left_alone():
    change = gb.convert(nn.Sequential(Doubled(8)), "group")
    assert change.left == {"0": "Doubled is a subclass of gammabeta's, whose additions would be lost"}
