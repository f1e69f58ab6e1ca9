"""The state of a layer is that of torch's: code that walks, stacks, zips, swaps or builds it finds the same."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import gammabeta as gb

LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], tuple[int, ...]]] = {
    "BatchNorm1d": (gb.BatchNorm1d, nn.BatchNorm1d, (4,), (6, 4, 5)),
    "BatchNorm2d": (gb.BatchNorm2d, nn.BatchNorm2d, (4,), (6, 4, 3, 2)),
    "BatchNorm3d": (gb.BatchNorm3d, nn.BatchNorm3d, (4,), (6, 4, 3, 2, 2)),
    "InstanceNorm1d": (gb.InstanceNorm1d, nn.InstanceNorm1d, (4,), (6, 4, 5)),
    "InstanceNorm2d": (gb.InstanceNorm2d, nn.InstanceNorm2d, (4,), (6, 4, 3, 2)),
    "InstanceNorm3d": (gb.InstanceNorm3d, nn.InstanceNorm3d, (4,), (6, 4, 3, 2, 2)),
    "GroupNorm": (gb.GroupNorm, nn.GroupNorm, (2, 4), (6, 4, 3, 2)),
    "LayerNorm": (gb.LayerNorm, nn.LayerNorm, (4,), (6, 3, 4)),
    "RMSNorm": (gb.RMSNorm, nn.RMSNorm, (4,), (6, 3, 4)),
}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "Batch": [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}, {"momentum": None},
              {"dtype": torch.bfloat16}, {"device": "meta"}],
    "Instance": [{}, {"affine": True}, {"affine": True, "bias": False}, {"track_running_stats": True},
                 {"dtype": torch.float64, "affine": True, "track_running_stats": True}, {"device": "meta"}],
    "Group": [{}, {"affine": False}, {"bias": False}, {"dtype": torch.float16}],
    "Layer": [{}, {"elementwise_affine": False}, {"bias": False}, {"dtype": torch.float16}],
    "RMS": [{}, {"elementwise_affine": False}, {"dtype": torch.bfloat16}],
}  # fmt: skip
CASES = [(name, kind, given) for kind, many in SETTINGS.items() for name in LAYERS if name.startswith(kind)
         for given in many]  # fmt: skip


def described(module: nn.Module) -> dict[str, Any]:
    """Return all that a walk over the module's own tensors sees, in order."""
    of = lambda t: None if t is None else (tuple(t.shape), t.dtype, t.device, t.requires_grad, type(t))  # noqa: E731
    return {
        "parameters": [(name, of(t)) for name, t in module._parameters.items()],
        "buffers": [(name, of(t)) for name, t in module._buffers.items()],
        "not persistent": set(module._non_persistent_buffers_set),
        "state": [(name, of(t)) for name, t in module.state_dict().items()],
        "metadata": dict(module.state_dict()._metadata),
        "modules": list(module._modules),
    }


@pytest.mark.parametrize(("name", "kind", "given"), CASES, ids=lambda c: str(c))
def test_made_adopted_used_and_released(name: str, kind: str, given: dict[str, Any]) -> None:
    ours, torchs, args, shape = LAYERS[name]
    theirs = torchs(*args, **given)
    wanted = described(theirs)
    made = ours(*args, **given)
    assert described(made) == wanted
    model = nn.Sequential(torchs(*args, **given))
    gb.adopt(model)
    assert isinstance(model[0], ours)
    assert described(model[0]) == wanted
    for layer in (made, model[0]):
        if given.get("device") != "meta":
            layer(torch.randn(shape, dtype=given.get("dtype")))
        assert described(layer) == wanted
        assert described(copy.deepcopy(layer)) == wanted
        assert described(pickle.loads(pickle.dumps(layer))) == wanted
    released = nn.Sequential(made)
    gb.release(released)
    assert type(released[0]) is torchs
    assert described(released[0]) == wanted


def finite_and_not(batches: int, spoilt: set[int], features: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(8, features, generator=generator) * 2 + 1 for _ in range(batches)]
    return [x * math.nan if i in spoilt else x for i, x in enumerate(data)]


def load_by_copy(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    resumed = gb.BatchNorm1d(layer.num_features, momentum=layer.momentum)
    resumed.load_state_dict(layer.state_dict())
    return resumed


def load_over_another_run(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    """Load into a layer whose own counts belong to other statistics."""
    resumed = gb.BatchNorm1d(layer.num_features, momentum=layer.momentum)
    spoilt = torch.randn(8, layer.num_features)
    spoilt[0, 1] = math.nan
    for _ in range(3):
        resumed(spoilt)
    resumed.load_state_dict(layer.state_dict())
    return resumed


def load_assigned(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    with torch.device("meta"):
        resumed = gb.BatchNorm1d(layer.num_features, momentum=layer.momentum)
    resumed.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    return resumed


def load_emptied(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    with torch.device("meta"):
        resumed = gb.BatchNorm1d(layer.num_features, momentum=layer.momentum)
    resumed.to_empty(device="cpu").load_state_dict(layer.state_dict())
    return resumed


def skip_init(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    resumed = nn.utils.skip_init(gb.BatchNorm1d, layer.num_features, momentum=layer.momentum)
    resumed.load_state_dict(layer.state_dict())
    return resumed


def by_file(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def zipped_by_position(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    """Copy buffers as hand-written averages of weights do."""
    resumed = gb.BatchNorm1d(layer.num_features, momentum=layer.momentum)
    with torch.no_grad():
        for mine, other in zip(resumed.buffers(), layer.buffers(), strict=True):
            mine.copy_(other)
        for mine, other in zip(resumed.parameters(), layer.parameters(), strict=True):
            mine.copy_(other)
    return resumed


def averaged(layer: gb.BatchNorm1d) -> gb.BatchNorm1d:
    mean = AveragedModel(gb.BatchNorm1d(layer.num_features, momentum=layer.momentum), use_buffers=True)
    mean.update_parameters(layer)
    return mean.module


WAYS = [load_by_copy, load_over_another_run, load_assigned, load_emptied, skip_init, by_file, zipped_by_position,
        averaged, copy.deepcopy]  # fmt: skip


@pytest.mark.parametrize("resume", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("at", [1, 3, 4])
@pytest.mark.parametrize("spoilt", [set(), {0}, {2}, {0, 1, 4}, {3, 4, 5}], ids=str)
def test_a_resumed_run_equals_the_uninterrupted_one(
    spoilt: set[int], at: int, resume: Callable[[gb.BatchNorm1d], gb.BatchNorm1d], route: str
) -> None:
    """Bit for bit, momentum=None, with batches none of whose channels are finite; and what counted is the average."""
    batches = finite_and_not(7, spoilt)
    whole, first = gb.BatchNorm1d(4, momentum=None), gb.BatchNorm1d(4, momentum=None)
    for x in batches:
        whole(x)
    for x in batches[:at]:
        first(x)
    second = resume(first)
    assert second is not first
    for x in batches[at:]:
        second(x)
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, second.get_buffer(name)), name
    counted = [x for i, x in enumerate(batches) if i not in spoilt]
    assert whole.num_batches_tracked == len(counted)
    torch.testing.assert_close(whole.running_mean, torch.stack([x.mean(0) for x in counted]).mean(0))
    torch.testing.assert_close(whole.running_var, torch.stack([x.var(0) for x in counted]).mean(0))


def test_counts_go_along_when_the_layer_moves_and_not_when_it_is_loaded(route: str) -> None:
    x = torch.randn(8, 3)
    x[0, 1] = math.nan
    layer = gb.BatchNorm1d(3, momentum=None)
    layer(x)
    assert layer.skipped_updates.tolist() == [0, 1, 0]
    for moved in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).double(),
                  copy.deepcopy(layer).half(), by_file(layer)):  # fmt: skip
        assert moved.skipped_updates.tolist() == [0, 1, 0]
        moved(torch.full((4, 3), 2.0, dtype=torch.float64) + torch.randn(4, 3))
        assert moved.running_mean[1] == pytest.approx(2, abs=2)  # not a half of it: the first batch did not count
        assert moved.skipped_updates.tolist() == [0, 1, 0]
    assert layer.skipped_updates.tolist() == [0, 1, 0]
    assert load_by_copy(layer).skipped_updates.tolist() == [0, 0, 0]
    layer.load_state_dict(gb.BatchNorm1d(3).state_dict())
    assert layer.skipped_updates.tolist() == [0, 0, 0]


def test_what_a_lost_count_costs_is_as_written_down(route: str) -> None:
    """After a load, a channel that one of two batches skipped counts as if both had moved it."""
    x, y, z = torch.randn(8, 2), torch.randn(8, 2), torch.randn(8, 2)
    y[3, 1] = math.inf
    layer = gb.BatchNorm1d(2, momentum=None)
    layer(x)
    layer(y)
    resumed = load_by_copy(layer)
    resumed(z)
    layer(z)
    torch.testing.assert_close(layer.running_mean[1], (x[:, 1].mean() + z[:, 1].mean()) / 2)
    torch.testing.assert_close(resumed.running_mean[1], x[:, 1].mean() * 2 / 3 + z[:, 1].mean() / 3)
    torch.testing.assert_close(layer.running_mean[0], resumed.running_mean[0])


class TestAsTorch:
    """Assert that the same calls on our layer and torch's give the same, batch after batch."""

    @staticmethod
    def pair(**given: Any) -> tuple[gb.BatchNorm2d, nn.BatchNorm2d]:
        return gb.BatchNorm2d(4, **given), nn.BatchNorm2d(4, **given)

    @staticmethod
    def same(ours: nn.Module, theirs: nn.Module) -> None:
        for (name, mine), (other_name, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert name == other_name
            assert mine.dtype == other.dtype
            torch.testing.assert_close(mine, other, msg=lambda m, n=name: f"{n}: {m}")

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_built_on_meta_and_assigned(self, momentum: float | None, route: str) -> None:
        trained = nn.BatchNorm2d(4, momentum=momentum)
        trained(torch.randn(5, 4, 3, 3) + 1)
        layers = []
        for cls in (gb.BatchNorm2d, nn.BatchNorm2d):
            with torch.device("meta"):
                layer = cls(4, momentum=momentum)
            layer.load_state_dict(copy.deepcopy(trained.state_dict()), assign=True)
            layers.append(layer)
        for _ in range(3):
            x = torch.randn(5, 4, 3, 3) * 2 + 3
            for layer in layers:
                layer(x)
        assert layers[0].num_batches_tracked == 4
        self.same(*layers)
        assert layers[0].to("cpu") is layers[0]
        layers[0].running_mean = layers[0].running_mean.clone()  # whose counts are made while compiling
        compiled = torch.compile(layers[0], fullgraph=True, backend="aot_eager")
        compiled(x)
        layers[1](x)
        self.same(*layers)

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_first_called_in_inference_mode(self, momentum: float | None, route: str) -> None:
        ours, theirs = self.pair(momentum=momentum)
        for layer in (ours, theirs):
            layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
            with torch.inference_mode():
                layer(torch.ones(3, 4, 2, 2) + torch.arange(2.0))
            layer(torch.ones(3, 4, 2, 2) - torch.arange(2.0))
        self.same(ours, theirs)

    def test_a_count_that_was_left_on_meta(self, route: str) -> None:
        """An assigned checkpoint without num_batches_tracked: torch's layer moves its statistics all the same."""
        x = torch.randn(5, 4, 3, 3) * 2 + 3
        layers = []
        for cls in (gb.BatchNorm2d, nn.BatchNorm2d):
            with torch.device("meta"):
                layer = cls(4)
            state = nn.BatchNorm2d(4).state_dict()
            del state["num_batches_tracked"]
            layer.load_state_dict(state, strict=False, assign=True)
            layer(x)
            assert layer.num_batches_tracked.is_meta
            layers.append(layer)
        assert layers[0].skipped_updates.tolist() == [0] * 4
        torch._dynamo.reset()
        torch.compile(layers[0], fullgraph=True, backend="aot_eager")(x + 1)
        layers[1](x + 1)
        assert layers[0].running_mean.abs().max() > 0
        torch.testing.assert_close(layers[0].running_mean, layers[1].running_mean)
        torch.testing.assert_close(layers[0].running_var, layers[1].running_var)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
                                       torch.int32, torch.int16, torch.uint8])  # fmt: skip
    @pytest.mark.parametrize("shape", [(), (1,)])
    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_counts_of_any_width(
        self, dtype: torch.dtype, shape: tuple[int, ...], momentum: float | None, route: str
    ) -> None:
        ours, theirs = self.pair(momentum=momentum)
        for layer in (ours, theirs):
            layer.num_batches_tracked = torch.full(shape, 3, dtype=dtype)
        for i in range(3):
            x = torch.randn(5, 4, 3, 3) + 3 + i
            ours(x)
            theirs(x)
        assert ours.num_batches_tracked.tolist() == torch.full(shape, 6).tolist()
        self.same(ours, theirs)

    def test_an_average_of_state_dicts(self, route: str) -> None:
        """Federated averaging makes the count a fraction."""
        ours, theirs = self.pair(momentum=None)
        for layer in (ours, theirs):
            layer.num_batches_tracked = torch.tensor(2.5)
            layer(torch.arange(60.0).reshape(3, 4, 5, 1))
        self.same(ours, theirs)
        assert ours.num_batches_tracked == 3.5

    def test_without_a_count_momentum_none_moves_nothing(self, route: str) -> None:
        ours, theirs = self.pair(momentum=None)
        for layer in (ours, theirs):
            layer.num_batches_tracked = None
            layer(torch.randn(5, 4, 3, 3) + 3)
        self.same(ours, theirs)
        assert ours.running_mean.abs().max() == 0

    @pytest.mark.parametrize("channels", [1, 9, 4096])
    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("value", [1.0, math.nan])
    def test_grown_and_shrunk_in_place(self, channels: int, momentum: float | None, value: float, route: str) -> None:
        """Replace tensors or their data, as growing networks and structured pruning do."""
        for by_data in (False, True):
            ours, theirs = self.pair(momentum=momentum)
            x = torch.randn(4, 4, 2, 2)
            for layer in (ours, theirs):
                layer(x)
                for name, of in (("weight", torch.ones), ("bias", torch.zeros)):
                    if by_data:
                        getattr(layer, name).data = of(channels)
                    else:
                        setattr(layer, name, nn.Parameter(of(channels)))
                for name, of in (("running_mean", torch.zeros), ("running_var", torch.ones)):
                    if by_data:
                        getattr(layer, name).data = of(channels)
                    else:
                        setattr(layer, name, of(channels))
                layer.num_features = channels
            grown = torch.randn(4, channels, 2, 2) * value
            y = ours(grown)
            if value == 1.0:
                torch.testing.assert_close(y, theirs(grown))
                self.same(ours, theirs)
                assert ours.skipped_updates.tolist() == [0] * channels
            else:
                assert ours.running_mean.tolist() == [0] * channels
                assert ours.skipped_updates.tolist() == [1] * channels

    def test_functional_call_strict(self, route: str) -> None:
        ours, theirs = self.pair(momentum=None)
        x = torch.randn(5, 4, 3, 3)
        states = [{k: v.clone() for k, v in layer.state_dict().items()} for layer in (ours, theirs)]
        for _ in range(2):
            mine, other = (
                functional_call(layer, state, (x,), strict=True)
                for layer, state in zip((ours, theirs), states, strict=True)
            )
            torch.testing.assert_close(mine, other)
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            torch.testing.assert_close(value, states[1][name])
        assert ours.num_batches_tracked == 0

    def test_functional_call_keeps_the_counts_of_each_state_apart(self, route: str) -> None:
        layer = gb.BatchNorm1d(2, momentum=None)
        spoilt = torch.tensor([[1.0, math.nan], [3.0, 0.0]])
        layer(spoilt)
        state = {k: v.clone() for k, v in gb.BatchNorm1d(2).state_dict().items()}
        functional_call(layer, state, (torch.tensor([[1.0, 4.0], [3.0, 6.0]]),))
        assert layer.skipped_updates.tolist() == [0, 1]
        layer(torch.tensor([[5.0, 7.0], [5.0, 9.0]]))
        assert layer.running_mean.tolist() == [3.5, 8.0]

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_stacked_models_under_vmap(self, momentum: float | None) -> None:
        x = torch.randn(3, 5, 4, 2, 2)
        results = []
        for cls in (gb.BatchNorm2d, nn.BatchNorm2d):
            models = [nn.Sequential(cls(4, momentum=momentum)) for _ in range(3)]
            parameters, buffers = stack_module_state(models)
            by_hand = {k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()}
            base = copy.deepcopy(models[0])
            outputs = []
            for state in ({**parameters, **buffers}, by_hand):
                if momentum is None and cls is nn.BatchNorm2d:  # torch's asks for the count's value
                    outputs += [torch.stack([m(x[i]) for i, m in enumerate(map(copy.deepcopy, models))])]
                    continue
                outputs.append(vmap(lambda s, x, base=base: functional_call(base, s, (x,)))(state, x))
                assert state["0.num_batches_tracked"].tolist() == [1, 1, 1]
            for i, model in enumerate(models):
                model(x[i])
                if not (momentum is None and cls is nn.BatchNorm2d):
                    torch.testing.assert_close(by_hand["0.running_mean"][i], model[0].running_mean)
            results.append((outputs, [m[0].running_mean for m in models]))
        for mine, other in zip(*(outputs for outputs, _ in results), strict=True):
            torch.testing.assert_close(mine, other)
        torch.testing.assert_close(*(torch.stack(means) for _, means in results))

    def test_averaged_models_made_before_and_after_adopt(self) -> None:
        x = torch.randn(6, 4, 3, 3)
        for adopt_first in (False, True):
            nets, means = [], []
            for ours in (True, False):
                torch.manual_seed(0)
                net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
                if ours and adopt_first:
                    gb.adopt(net)
                mean = AveragedModel(net, use_buffers=True)
                if ours and not adopt_first:
                    gb.adopt(net)
                for _ in range(2):
                    net(x)
                    mean.update_parameters(net)
                update_bn([x, x + 1], mean)
                nets.append(net)
                means.append(mean)
            self.same(*nets)
            self.same(*means)

    def test_zipped_buffers_of_a_foreign_model(self) -> None:
        ours = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        theirs = copy.deepcopy(ours)
        gb.adopt(ours)
        x = torch.randn(6, 4, 3, 3)
        theirs(x)
        for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(other)
        self.same(ours, theirs)
        gb.release(ours)
        ours.load_state_dict(dict(theirs.named_buffers()) | dict(theirs.named_parameters()), strict=True)


def test_from_pretrained(tmp_path: Any) -> None:
    """transformers builds on the meta device and assigns; a BatchNorm's statistics then move as torch's do."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2, layer_type="basic"
    )
    trained = transformers.ResNetForImageClassification(config)
    trained.train()(torch.randn(4, 3, 32, 32) + 1)
    trained.save_pretrained(tmp_path)
    models = [transformers.ResNetForImageClassification.from_pretrained(tmp_path) for _ in range(2)]
    gb.adopt(models[0])
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()
    for _ in range(3):
        x = torch.randn(4, 3, 32, 32) + 3
        for model in models:
            model(x)
    for (name, mine), other in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["tensor hook", "compiled in a tensor hook", "parameter hook", "module hook"])
def test_a_forward_on_new_data_inside_a_backward_moves_the_statistics(kind: str) -> None:
    layers = gb.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(8, 3) + 2
    for layer in layers:
        first = nn.Linear(3, 3)

        def on_new_data(*_: Any, layer: nn.Module = layer) -> None:
            layer(x)

        y = first(torch.randn(4, 3))
        if "compiled" in kind:
            torch._dynamo.reset()
            layer.compile(backend="aot_eager")
        if "tensor hook" in kind:
            y.register_hook(on_new_data)
        elif kind == "parameter hook":
            first.weight.register_post_accumulate_grad_hook(on_new_data)
        else:
            first.register_full_backward_hook(on_new_data)
            y = first(torch.randn(4, 3, requires_grad=True))
        y.sum().backward()
    assert layers[0].num_batches_tracked == 1
    torch.testing.assert_close(layers[0].running_mean, layers[1].running_mean)
    torch.testing.assert_close(layers[0].running_var, layers[1].running_var)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("between", ["load_state_dict", "reset_running_stats", "nothing"])
def test_a_recomputation_moves_nothing_that_its_forward_held(between: str, reentrant: bool) -> None:
    """So do fresh statistics: never having moved says nothing about a forward that is recomputed."""
    net = nn.Sequential(nn.Linear(4, 4), gb.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    net.load_state_dict(net.state_dict())
    with gb.frozen_statistics(net):
        y = checkpoint(net, torch.randn(8, 4, requires_grad=True), use_reentrant=reentrant)
    if between == "load_state_dict":
        net.load_state_dict(copy.deepcopy(net.state_dict()))
    elif between == "reset_running_stats":
        net[1].reset_running_stats()
    y.sum().backward()
    assert net[1].num_batches_tracked == 0
    assert net[1].running_mean.abs().max() == 0


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_compiled_ensemble_trains(momentum: float | None) -> None:
    x = torch.randn(3, 8, 4)
    models = [gb.BatchNorm1d(4, momentum=momentum) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def forward(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(parameters, buffers, x)

    y = torch.compile(forward, backend="aot_eager")(parameters, buffers, x)
    torch.testing.assert_close(y, torch.stack([m(x[i]) for i, m in enumerate(models)]))
    torch.testing.assert_close(buffers["running_mean"], torch.stack([m.running_mean for m in models]))


@pytest.mark.parametrize("how", ["plain attribute", "parametrized"])
def test_a_count_that_is_no_buffer(how: str) -> None:
    ours, theirs = gb.BatchNorm1d(4), nn.BatchNorm1d(4)
    x = torch.randn(8, 4) + 1
    for layer in (ours, theirs):
        if how == "plain attribute":
            del layer.num_batches_tracked
            layer.num_batches_tracked = torch.tensor(0)
        else:
            nn.utils.parametrize.register_parametrization(layer, "num_batches_tracked", nn.Identity())
        layer(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert ours.num_batches_tracked == theirs.num_batches_tracked
