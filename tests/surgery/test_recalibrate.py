"""recalibrate: against float64 over the whole set, modes during the pass, standard errors, and the early stop."""

import io
import math
import sys

import pytest
import torch
from tests.surgery.models import images, model, ours, randomize, whole
from torch import nn

import gammabeta as gb
from gammabeta.statistics import Ghost
from gammabeta.surgery import recalibrate as recalibrate_module

SIZES = (8, 5, 12, 3)
NAMES = ["bn1", "block.1", "bn2"]


def batches(sizes=SIZES):
    return [images(count, seed) for seed, count in enumerate(sizes)]


def by_hand(m, batches):
    """Return mean and variance (by n − 1) of every BatchNorm's inputs over the whole set, in float64.

    The BatchNorms normalize by each batch, the rest is in evaluation.
    """
    m = model_like(m).double().eval()
    layers = {n: m for n, m in m.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    kept = {n: [] for n in layers}

    def hook(layer, args, name):
        kept[name].append(args[0].movedim(1, -1).reshape(-1, layer.num_features))

    for name, layer in layers.items():
        layer.train()
        layer.register_forward_pre_hook(lambda layer, args, name=name: hook(layer, args, name))
    with torch.no_grad():
        for batch in batches:
            m(batch.double())
    return {n: (torch.cat(rows).mean(0), torch.cat(rows).var(0)) for n, rows in kept.items()}


def model_like(m):
    twin = model()
    twin.load_state_dict(m.state_dict())
    return twin


@pytest.mark.parametrize("make", [model, ours])
class TestPopulation:
    def test_equals_a_float64_computation_over_the_whole_set(self, make):
        m = make()
        expected = by_hand(m, batches())
        change = gb.recalibrate(m, iter(batches()))
        assert change.changed == NAMES
        for name in NAMES:
            layer = m.get_submodule(name)
            mean, var = expected[name]
            # The layers before round in float32; the first norm has none before it.
            bound = 1e-6 if name == "bn1" else 1e-5
            assert ((layer.running_mean - mean).abs() / var.sqrt()).max() < bound
            assert (layer.running_var / var - 1).abs().max() < bound
            assert layer.num_batches_tracked == len(SIZES)

    def test_in_float64_it_is_exact(self, make):
        m = make().double()
        expected = by_hand(m, batches())
        gb.recalibrate(m, [b.double() for b in batches()])
        for name in NAMES:
            layer = m.get_submodule(name)
            # Sums of some hundred values in another order.
            torch.testing.assert_close(layer.running_mean, expected[name][0], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(layer.running_var, expected[name][1], rtol=1e-10, atol=1e-10)

    def test_a_large_mean_loses_no_variance(self, make):
        m = nn.Sequential(nn.BatchNorm2d(3))
        if make is ours:
            gb.adopt(m)
        data = [b.double() + 1e6 for b in batches()]
        m.double()
        gb.recalibrate(m, data)
        expected = torch.cat(data).var((0, 2, 3))
        torch.testing.assert_close(m[0].running_var, expected, rtol=1e-8, atol=0)  # 1e-16·(1e6)²/4

    def test_undo_restores_the_whole_model(self, make):
        m = make().train()
        m.block.eval()
        before = whole(m)
        change = gb.recalibrate(m, batches())
        assert not m.block.training
        assert m.drop.training
        change.undo()
        assert whole(m) == before

    def test_only_the_statistics_change(self, make):
        m = make()
        optimizer = torch.optim.Adam(m.parameters())
        before = whole(m)
        gb.recalibrate(m, batches(), where="bn1")
        after = whole(m)
        assert {name for name in before if before[name] != after[name]} == {"bn1"}
        assert before["bn1"][4] == after["bn1"][4]
        assert [id(p) for p in m.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]]

    @pytest.mark.parametrize("at", ["first forward", "second forward", "last forward", "writing"])
    def test_an_exception_in_the_middle_leaves_the_model(self, make, at, monkeypatch):
        m = make()
        before = whole(m)
        forwards = []

        def forward(model, batch):
            forwards.append(batch)
            out = model(batch)
            # One forward before, four in the pass, one after.
            if len(forwards) == {"first forward": 1, "second forward": 3, "last forward": 6}.get(at):
                raise OSError("in the middle")
            return out

        if at == "writing":
            original = recalibrate_module._write

            def failing(change, layer, *rest):
                original(change, layer, *rest)
                if layer is m.shared:
                    raise OSError("in the middle")

            monkeypatch.setattr(recalibrate_module, "_write", failing)
        with pytest.raises(OSError, match="in the middle"):
            gb.recalibrate(m, batches(), forward=forward)
        assert whole(m) == before


def test_dropout_is_off_and_the_norms_not_chosen_are_in_evaluation():
    m = ours().train()
    seen = []
    m.drop.register_forward_hook(lambda layer, args, out: seen.append(torch.equal(args[0], out)))
    m.bn2.register_forward_pre_hook(lambda layer, args: seen.append(not layer.training))
    gb.recalibrate(m, batches(), where="block.*")
    assert seen == [True] * 12


def test_the_source_of_a_layer_does_not_matter():
    plain, ghost = ours(), ours()
    gb.set_statistics(ghost, Ghost(2))
    for m in (plain, ghost):
        gb.recalibrate(m, batches())
    for name in NAMES:
        assert torch.equal(plain.get_submodule(name).running_var, ghost.get_submodule(name).running_var)
    assert ghost.bn1.statistics == Ghost(2)


def test_evaluation_afterwards_is_near_that_of_the_batch():
    m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    change = gb.recalibrate(randomize(m), batches((64, 64)))
    for entry in change.entries:
        # Random statistics before. Afterwards the sampling error of 64 of 128 images with 4 × 4 positions or more.
        assert entry.numbers["before"] > 0.5
        assert entry.numbers["after"] < 0.1
        assert entry.numbers["samples"] == 128
    assert change.changed == ["1", "4"]


def test_a_layer_that_is_called_twice_has_the_moments_of_both():
    change = gb.recalibrate(ours(), batches())
    assert [entry.numbers["samples"] for entry in change.entries] == [28, 56, 28]


def test_standard_errors_are_those_of_repeated_samples():
    """Positions that are copies of each other count once, because the error is taken over samples."""

    def data(seed, count=200):
        x = torch.randn(count, 3, 1, generator=torch.Generator().manual_seed(seed))
        return (x.exp() + 5).repeat(1, 1, 16)

    found, errors = [], []
    for seed in range(200):
        m = nn.BatchNorm1d(3)
        (entry,) = gb.recalibrate(m, data(seed).split(50)).entries
        found.append(torch.stack((m.running_mean, m.running_var)))
        errors.append([entry.numbers["mean_error"], entry.numbers["var_error"]])
    true = data(999, 100_000)[..., 0]
    mean_spread = torch.stack(found)[:, 0].std(0) / true.std(0)
    # 200 repetitions estimate a deviation to 5 %. The lognormal's fourth moment gives the variance's heavy tails.
    errors = torch.tensor(errors).square().mean(0).sqrt()
    assert errors[0] == pytest.approx(mean_spread.square().mean().sqrt().item(), rel=0.15)
    # The error relative to the sample's own variance is compared with the spread of its logarithm.
    log_spread = torch.stack(found)[:, 1].log().std(0)
    assert errors[1] == pytest.approx(log_spread.square().mean().sqrt().item(), rel=0.35)


def test_it_stops_as_soon_as_the_standard_errors_are_small():
    m = nn.BatchNorm2d(3)
    drawn = []

    def endless():
        for seed in range(10_000):
            drawn.append(seed)
            yield images(16, seed)

    change = gb.recalibrate(m, endless(), standard_error=0.02)
    assert 4 <= len(drawn) < 200
    numbers = change.entries[0].numbers
    assert max(numbers["mean_error"], numbers["var_error"]) <= 0.02
    assert numbers["samples"] == 16 * m.num_batches_tracked.item()


def test_a_channel_that_is_not_finite_is_left_out():
    m = nn.BatchNorm2d(3)
    m.running_mean.fill_(0.25)
    data = batches()
    data[1][0, 1, 0, 0] = math.nan
    for batch in data:
        batch[0, 2] = math.inf
    change = gb.recalibrate(m, data)
    good = torch.cat([data[0], *data[2:]])[:, 1]
    torch.testing.assert_close(m.running_mean[1], good.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m.running_var[1], good.var(), rtol=1e-5, atol=0)
    assert m.running_mean[2] == 0.25
    assert change.entries[0].what == "recalibrated but for 1 channel that was never finite"


def test_masked_positions_do_not_count():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = gb.BatchNorm1d(4)

        def forward(self, x, mask):
            return self.norm(x, mask=mask)

    m, x = Masked(), torch.randn(6, 4, 9)
    mask = torch.arange(9) < torch.tensor([9, 2, 5, 1, 7, 3])[:, None]
    gb.recalibrate(m, [{"x": x[:2], "mask": mask[:2]}, {"x": x[2:], "mask": mask[2:]}])
    rows = x.movedim(1, -1)[mask]
    torch.testing.assert_close(m.norm.running_mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m.norm.running_var, rows.var(0), rtol=1e-5, atol=0)


def test_compiled_models_run_uncompiled_meanwhile():
    torch._dynamo.reset()
    m, plain = ours(), ours()
    compiled = torch.compile(m, backend="aot_eager")
    compiled.eval()(images())
    m.train()
    gb.recalibrate(compiled, batches())
    gb.recalibrate(plain, batches())
    for name in NAMES:
        assert torch.equal(m.get_submodule(name).running_var, plain.get_submodule(name).running_var)
    torch._dynamo.reset()


def test_what_is_being_accumulated_is_not_disturbed():
    m, twin = gb.BatchNorm2d(3), gb.BatchNorm2d(3)
    with gb.accumulate_statistics(m):
        m(batches()[0])
        gb.recalibrate(m, batches())
    gb.recalibrate(twin, batches())
    twin(batches()[0])
    torch.testing.assert_close(
        m.running_var, twin.running_var, rtol=1e-6, atol=0
    )  # the same update, computed another way


def test_layers_compiled_in_place_are_measured_too():
    torch._dynamo.reset()
    m, plain = ours(), ours()
    m.bn1.compile(backend="aot_eager", fullgraph=True)
    m.block.compile(backend="aot_eager")
    m(images())
    m.load_state_dict(plain.state_dict())
    gb.recalibrate(m, batches())
    gb.recalibrate(plain, batches())
    for name in NAMES:
        assert torch.equal(m.get_submodule(name).running_var, plain.get_submodule(name).running_var)
    torch._dynamo.reset()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("count", "shown"), [(25, True), (5, False)])
def test_a_long_loader_shows_its_progress_on_a_terminal(count, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    gb.recalibrate(nn.BatchNorm2d(3), batches((4,) * count))
    assert ("recalibrate" in sys.stderr.getvalue()) == shown


def test_sync_batch_norm_and_subclasses_are_measured_too():
    class Doubling(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    m = nn.Sequential(nn.SyncBatchNorm(3), Doubling(3), nn.BatchNorm2d(3))
    twin = nn.Sequential(nn.BatchNorm2d(3), Doubling(3), nn.BatchNorm2d(3))
    # On a CPU torch's SyncBatchNorm runs in evaluation, but raises in training.
    for one in (m, twin):
        gb.recalibrate(one, batches())
    assert type(m[0]) is nn.SyncBatchNorm
    for a, b in zip(m.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_what_is_left_alone():
    m = nn.ModuleDict({"bare": nn.BatchNorm2d(3, track_running_stats=False), "unused": nn.BatchNorm2d(3)})
    m["used"], m["frozen"] = nn.BatchNorm2d(3), gb.BatchNorm2d(3, statistics=gb.statistics.Running())
    change = gb.recalibrate(m, batches(), forward=lambda m, x: m["used"](x))
    assert change.left == {
        "bare": "it has no running statistics",
        "frozen": "it is frozen: unfreeze it first",
        "unused": "no batch reached it",
    }
    assert change.changed == ["used"]


class TestErrors:
    @pytest.mark.parametrize(
        ("data", "options", "message"),
        [
            (
                [],
                {},
                "recalibrate: expected at least one batch, got none: an iterator that is used up gives none.",
            ),
            (
                [images(1)],
                {"where": "bn1"},
                "recalibrate: expected at least 2 samples for bn1, got 1: hand more batches.",
            ),
            (
                batches(),
                {"forward": lambda m, x: m.stem(x)},
                "recalibrate: expected forwards that reach the chosen BatchNorms, got 4 batches that reach none of "
                "bn1, block.1, bn2: hand batches of what the model takes, or forward=.",
            ),
            (
                batches(),
                {"standard_error": 0.0},
                "recalibrate: expected standard_error above 0 or None, got 0.0.",
            ),
        ],
    )
    def test_too_few_batches_leave_the_model(self, data, options, message):
        m = ours()
        before = whole(m)
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            gb.recalibrate(m, data, **options)
        assert str(raised.value) == message
        assert whole(m) == before

    def test_a_standard_error_out_of_reach_says_how_many_batches_it_takes(self):
        m = randomize(nn.BatchNorm2d(3))
        before = whole(m)
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            gb.recalibrate(m, batches(), standard_error=0.005)
        text = str(raised.value)
        assert text.startswith(
            "recalibrate: expected batches until every standard error is at most 0.005, got 4 of them with 0.0"
        )
        assert text.endswith("times as many are needed. Hand more, or a larger standard_error.")
        times = int(text.split("about ")[1].split()[0])
        # 28 images of 36 independent positions: √(2/1008) for the variance of a normal distribution.
        assert times == pytest.approx((math.sqrt(2 / 1008) / 0.005) ** 2, rel=0.4)
        assert whole(m) == before

    def test_batches_that_say_not_how_they_go_through(self):
        with pytest.raises(TypeError) as raised:
            gb.recalibrate(ours(), ["text"])
        assert str(raised.value) == (
            "recalibrate: expected batches as the model takes them (a tensor, a tuple or list of positional arguments, "
            "or a mapping of keyword arguments), got str: say how it goes through the model by "
            "forward=lambda model, batch: …."
        )

    def test_a_group_without_torch_distributed(self):
        with pytest.raises(RuntimeError) as raised:
            gb.recalibrate(ours(), batches(), group=object())
        assert str(raised.value) == (
            "recalibrate: expected torch.distributed to be initialized, got that it is not: call "
            "torch.distributed.init_process_group first."
        )
