"""The state of a layer is that of torch's: names, order, shapes, dtypes, and every way to put values into it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.peers import differences
from tests.peers.close import assert_alike
from tests.peers.modules import MODULES, ModuleSample, module_samples
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap


def description(module: nn.Module) -> list[Any]:
    """All of the state that a program can walk."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [
        [(name, type(t), t.shape, t.dtype, t.device, t.requires_grad, t.stride()) for name, t in named],
        list(module.state_dict()),
        module.state_dict()._metadata,
        sorted(module._non_persistent_buffers_set),
        [(name, value is None) for name, value in (*module._parameters.items(), *module._buffers.items())],
    ]


def step(module: nn.Module, sample: ModuleSample) -> list[Tensor]:
    """The output of a forward and the state after it."""
    y = module(*sample.inputs)
    return [y, *(t for name, t in module.state_dict().items() if not _uncounted(name, sample))]


def _uncounted(name: str, sample: ModuleSample) -> bool:
    return name.endswith("num_batches_tracked") and differences.UNCOUNTED_BATCH.applies(sample)


@pytest.mark.parametrize("name", MODULES)
class TestState:
    def test_described_as_torch_s(self, name: str, route: str) -> None:
        for sample in module_samples(name, torch.float32):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                ours, theirs = sample.ours(dtype=dtype), sample.theirs(dtype=dtype)
                assert description(ours) == description(theirs)
            x = sample.inputs[0].detach()
            ours, theirs = sample.pair()
            ours(x), theirs(x)
            assert description(ours) == description(theirs), sample

    def test_what_is_made_has_torch_s_values(self, name: str) -> None:
        for sample in module_samples(name, torch.float32):
            assert_alike(list(sample.ours().state_dict().values()), list(sample.theirs().state_dict().values()))

    def test_made_on_meta(self, name: str, route: str) -> None:
        """Then materialized in each of the ways that there are, and trained on."""
        for sample in module_samples(name, torch.float32):
            _, trained = sample.pair()
            state = trained.state_dict()
            expected = step(copy.deepcopy(trained), sample)

            def on_meta(build: Any = sample.ours) -> Any:
                with torch.device("meta"):
                    return build()

            emptied = on_meta().to_empty(device="cpu")
            emptied.load_state_dict(state)
            assigned = on_meta()
            assigned.load_state_dict(copy.deepcopy(state), assign=True)
            skipped = torch.nn.utils.skip_init(_constructor(sample), *sample.args, **sample.kwargs)
            skipped.train(sample.training).load_state_dict(state)
            named = on_meta(lambda sample=sample: sample.ours(device="meta")).to_empty(device="cpu")
            named.load_state_dict(state)
            for module in (emptied, assigned, skipped, named):
                assert description(module) == description(trained), sample
                assert_alike(step(module, sample), expected, sample)
                assert_alike(list(module.to("cpu").state_dict().values()), list(module.state_dict().values()))

    def test_made_on_meta_and_reset(self, name: str, route: str) -> None:
        for sample in module_samples(name, torch.float32):
            with torch.device("meta"):
                modules = sample.ours(), sample.theirs()
            steps = []
            for module in modules:
                module.to_empty(device="cpu")
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
                steps.append(step(module, sample))
            assert_alike(steps[0], steps[1], sample)

    def test_state_of_before_batches_were_counted(self, name: str) -> None:
        """torch's BatchNorm takes state_dicts of its first version, which had no num_batches_tracked."""
        for sample in module_samples(name, torch.float32):
            ours, theirs = sample.pair()
            state = theirs.state_dict()
            if state.pop("num_batches_tracked", None) is None:
                continue
            for metadata in (None, {"": {"version": 1}}):
                if metadata is None:
                    del state._metadata
                else:
                    state._metadata = metadata
                for module in (ours, theirs):
                    module.load_state_dict(copy.copy(state))
                assert_alike(list(ours.state_dict().values()), list(theirs.state_dict().values()))

    def test_a_key_too_few_or_too_many(self, name: str) -> None:
        for sample in module_samples(name, torch.float32):
            ours, theirs = sample.pair()
            for change in ("missing", "unexpected", "shape"):
                state = theirs.state_dict()
                if change == "missing" and state:
                    state.popitem(last=False)
                elif change == "unexpected":
                    state["other"] = torch.ones(1)
                elif state:
                    state[next(iter(state))] = torch.ones(77)
                messages = []
                for module in (ours, theirs):
                    try:
                        module.load_state_dict(state)
                        messages.append("")
                    except RuntimeError as error:
                        messages.append(str(error).replace("SyncBatchNorm", "BatchNorm"))
                assert messages[0] == messages[1]

    def test_functional_call(self, name: str, route: str) -> None:
        """With nothing but what a state_dict has; it moves the given statistics, not the module's."""
        for sample in module_samples(name, torch.float32):
            ours, theirs = sample.pair()
            before = copy.deepcopy(ours.state_dict())
            results = []
            for module in (ours, theirs):
                state = {key: 2 * value for key, value in module.state_dict().items()}
                y = functional_call(module, state, sample.inputs, strict=True)
                results.append([y, *(t for key, t in state.items() if not _uncounted(key, sample))])
            assert_alike(results[0], results[1], sample)
            assert_alike(list(ours.state_dict().values()), list(before.values()))


def _constructor(sample: ModuleSample) -> Any:
    """A class for skip_init, which asks the constructor for its device argument."""
    cls = type(sample.ours())
    if sample.name != "SyncBatchNorm":
        return cls

    class Synced(cls):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, device: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, device=device, **kwargs, statistics=sample.ours().statistics)

    return Synced


@pytest.mark.parametrize("name", MODULES)
class TestEnsembles:
    """Several models as one by vmap over their stacked state, as torch.func's tutorials train them."""

    def test_a_training_step_equals_those_of_the_members(self, name: str, route: str) -> None:
        for sample in module_samples(name, torch.float32):
            (x,) = sample.inputs
            if x.numel() == 0:
                continue
            layers = [sample.theirs() for _ in range(3)]
            for i, layer in enumerate(layers):
                for t in layer.state_dict().values():
                    t.copy_(torch.rand(t.shape) + 0.5 if t.is_floating_point() else torch.tensor(i + 1))
            ours = [sample.ours() for _ in layers]
            for module, layer in zip(ours, layers, strict=True):
                module.load_state_dict(layer.state_dict())
            inputs, directions = torch.stack([x, 2 * x + 1, -x]), torch.randn(3, *x.shape)
            parameters, buffers = stack_module_state(ours)
            base = copy.deepcopy(ours[0]).to("meta")

            def loss(parameters: Any, buffers: Any, x: Tensor, direction: Tensor, base: Any = base) -> Any:
                y = functional_call(base, (parameters, buffers), (x,), strict=True)
                return (y * direction).sum(), y

            gradients, y = vmap(grad(loss, has_aux=True))(parameters, buffers, inputs, directions)
            for i, layer in enumerate(layers):
                expected = layer(inputs[i])
                assert_alike(y[i], expected, sample)
                if list(layer.parameters()):
                    wanted = torch.autograd.grad((expected * directions[i]).sum(), list(layer.parameters()))
                    assert_alike([gradients[key][i] for key, _ in layer.named_parameters()], list(wanted), scale=10)
                assert_alike([buffers[key][i] for key, _ in layer.named_buffers()], list(layer.buffers()), sample)

    def test_state_dicts_stacked_by_hand(self, name: str, route: str) -> None:
        for sample in module_samples(name, torch.float32, modes=(False,)):
            modules = [sample.pair()[0] for _ in range(2)]
            for parameter in modules[1].parameters():
                parameter.data.mul_(2)
            states = [module.state_dict() for module in modules]
            stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
            if not stacked:
                continue
            (x,) = sample.inputs
            y = vmap(lambda state, module=modules[0], x=x: functional_call(module, state, (x,), strict=True))(stacked)
            assert_alike(list(y), [module(x) for module in modules], sample)
