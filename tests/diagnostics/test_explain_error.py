"""`explain_error` on the errors that torch itself raises."""

import copy
import traceback
import warnings

import pytest
import torch
import torch.ao.quantization
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental import optimization
from torch.nn.parallel import DistributedDataParallel

import gammabeta as gb


class Network(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.block = nn.Sequential(nn.Identity(), norm)

    def forward(self, x):
        return self.block(x)


def caught(norm, x):
    network = Network(norm)
    with pytest.raises((ValueError, RuntimeError)) as raised:
        network(x)
    return raised.value, network


CASES = {
    "one value": (
        nn.BatchNorm1d(4),
        torch.randn(1, 4),
        "block.1: the BatchNorm1d in training got an input of shape (1, 4): one value per channel, whose variance is "
        "0; the smallest batch it accepts is 2. Drop the last, smaller batch (drop_last=True in the DataLoader), call "
        "model.eval() if nothing is trained, or use GroupNorm or LayerNorm after the pooling.",
    ),
    "one value a group": (
        nn.GroupNorm(4, 4),
        torch.randn(1, 4),
        "block.1: the GroupNorm got an input of shape (1, 4): one value in each group of a sample, so the output would "
        "be β. Use fewer groups than 4, or another norm in its place.",
    ),
    "one position": (
        nn.InstanceNorm2d(4),
        torch.randn(2, 4, 1, 1),
        "block.1: the InstanceNorm2d got an input of shape (2, 4, 1, 1): one position per channel of a sample, so "
        "the output would be β. Remove the norm after pooling to 1×1, or use GroupNorm or LayerNorm there.",
    ),
    "channels": (
        nn.BatchNorm2d(4),
        torch.randn(2, 5, 3, 3),
        "block.1: the BatchNorm2d has 4 channels and got an input of shape (2, 5, 3, 3), which has 5 on axis 1. Build "
        "it with 5 channels, or give it an input with 4.",
    ),
    "channels on another axis": (
        nn.BatchNorm2d(4).eval(),
        torch.randn(2, 3, 3, 4),
        "block.1: the BatchNorm2d has 4 channels and got an input of shape (2, 3, 3, 4), which has 3 on axis 1 and 4 "
        "on axis 3: the channels are on another axis. Move them: x.movedim(3, 1).",
    ),
    "dimensions": (
        nn.BatchNorm2d(4),
        torch.randn(2, 4),
        "block.1: the BatchNorm2d got an input of shape (2, 4): expected 4D input (got 2D input). For such an input "
        "use BatchNorm1d.",
    ),
    "dtypes": (
        nn.BatchNorm2d(4).bfloat16(),
        torch.randn(2, 4, 2, 2),
        "block.1: the BatchNorm2d holds bfloat16 and got float32, a mixture that torch's kernel does not accept. Run "
        "the model under torch.autocast, cast the input to the model's dtype, or gammabeta.adopt(model): its layers "
        "accept any mixture and keep their statistics in float32.",
    ),
    "dtypes of LayerNorm": (
        nn.LayerNorm(4).half(),
        torch.randn(2, 4),
        "block.1: the LayerNorm holds float16 and got float32, a mixture that torch's kernel does not accept. Run "
        "the model under torch.autocast, cast the input to the model's dtype, or gammabeta.adopt(model): its layers "
        "accept any mixture and keep their statistics in float32.",
    ),
    "groups": (
        nn.GroupNorm(2, 4),
        torch.randn(2, 5),
        "block.1: the GroupNorm has 4 channels in 2 groups and got an input of shape (2, 5). Channels belong on axis "
        "1, in the number that it was built with.",
    ),
    "normalized shape": (
        nn.LayerNorm(4),
        torch.randn(2, 4, 3),
        "block.1: the LayerNorm normalizes the last axes, of shape (4,), and got an input of shape (2, 4, 3). The "
        "channels are on axis 1: use x.movedim(1, -1) before it and back after it, or GroupNorm(1, channels).",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_torch_s_error_is_explained_with_module_cause_and_remedy(case):
    norm, x, text = CASES[case]
    error, network = caught(norm, x)
    assert str(gb.explain_error(error)) == text
    assert str(gb.explain_error(error, nn.Sequential(network))) == text.replace("block.1", "0.block.1", 1)


def test_synchronized_batch_norm_on_a_cpu_is_explained(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        error, _ = caught(nn.SyncBatchNorm(4), torch.randn(2, 4))
    finally:
        dist.destroy_process_group()
    assert str(gb.explain_error(error)) == (
        "block.1: the SyncBatchNorm synchronizes its statistics only on accelerators; its input is on cpu. Call "
        "gammabeta.adopt(model) and gammabeta.set_statistics(model, gammabeta.statistics.Synced()), which works over "
        "gloo too; in one process adopt is enough."
    )


def test_the_context_adds_the_explanation_and_keeps_the_type():
    network = Network(nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="more than 1 value per channel") as raised, gb.explained_errors():
        network(torch.randn(1, 4))
    assert "gammabeta: block.1: the BatchNorm1d in training" in "".join(traceback.format_exception(raised.value))


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError) as raised, gb.explained_errors():
        nn.Linear(3, 4)(torch.randn(2, 5))
    assert gb.explain_error(raised.value) is None
    assert "gammabeta" not in "".join(traceback.format_exception_only(raised.value))


def convolved(norm=nn.BatchNorm2d):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4) if norm is not nn.GroupNorm else norm(2, 4), nn.ReLU()).eval()
    gb.adopt(model)
    return model


def quantized(model):
    model = torch.ao.quantization.QuantWrapper(model)
    model.qconfig = torch.ao.quantization.get_default_qconfig()
    torch.ao.quantization.prepare(model, inplace=True)
    model(torch.randn(2, 3, 5, 5))
    torch.ao.quantization.convert(model, inplace=True)
    return model(torch.randn(2, 3, 5, 5))


def expanded(model):
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    torch.manual_seed(0)
    return call_for_per_sample_grads(model)(torch.randn(2, 3, 5, 5))


def jit_script(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


# Tools that accept only torch's classes, each as its users call it, and their names in explanations.
TOOLS = {
    "fx": (torch.fx.symbolic_trace, "torch.fx"),
    "fx fusion": (optimization.fuse, "torch.fx"),
    "script": (jit_script, "torch.jit.script"),
    "fuse_modules": (
        lambda m: torch.ao.quantization.fuse_modules(m, ["0", "1", "2"]), "torch.ao's fuse_modules",
    ),
    "fuse_modules_qat": (
        lambda m: torch.ao.quantization.fuse_modules_qat(m.train(), ["0", "1"]), "torch.ao's fuse_modules",
    ),
    "quantized": (quantized, "torch.ao's quantization"),
}  # fmt: skip


# torch.ao fuses only BatchNorms, and torch.fx can trace norms that call torch.nn.functional on its proxies.
MET = [
    *((tool, nn.BatchNorm2d) for tool in TOOLS),
    *((tool, nn.GroupNorm) for tool in ("script", "quantized")),
    *((tool, nn.InstanceNorm2d) for tool in ("fx", "script", "quantized")),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
class TestToolsThatTakeTorchsClassesOnly:
    @pytest.mark.parametrize(("tool", "norm"), MET)
    def test_the_way_out_is_named(self, tool, norm):
        use, called = TOOLS[tool]
        model = convolved(norm)
        with pytest.raises(Exception) as raised:  # noqa: PT011  (each tool has a type of its own)
            use(model)
        explanation = gb.explain_error(raised.value, model)
        assert explanation is not None, raised.value
        assert explanation.where == "1"
        assert explanation.why == f"the {norm.__name__} is gammabeta's, but {called} accepts only torch's own classes."
        assert explanation.fix == (
            "Call it within `with gammabeta.release(model):`, where the norms are torch's; after it they are "
            "gammabeta's again. Norms with features that torch's lack (an activation, another source of statistics) "
            "are not released: print the `Change`."
        )

    @pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "quantized"])
    def test_the_way_out_works(self, tool):
        model, x = convolved(), torch.randn(2, 3, 5, 5)
        expected = model(x)
        with gb.release(model):
            made = TOOLS[tool][0](model)
        assert type(model[1]) is gb.BatchNorm2d
        torch.testing.assert_close(made.eval()(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-6, atol=1e-6)

    def test_classes_that_handle_torch_s_functions_themselves_are_not_met(self):
        """torch.fx's proxies and ExpandedWeight work with norms that have no running statistics and no additions."""
        ours = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.LayerNorm(5), nn.RMSNorm(5))
        theirs = copy.deepcopy(ours)
        gb.adopt(ours)
        x = torch.randn(2, 3, 5, 5)
        traced = torch.fx.symbolic_trace(ours)
        called = {node.target for node in traced.graph.nodes if node.op == "call_function"}
        assert called == {F.group_norm, F.layer_norm, F.rms_norm}
        torch.testing.assert_close(traced(x), theirs(x))
        for model in (ours[:3], theirs[:3]):
            expanded(model).square().sum().backward()
        for mine, other in zip(ours[:3].parameters(), theirs[:3].parameters(), strict=True):
            torch.testing.assert_close(mine.grad_sample, other.grad_sample)

    def test_the_note_names_the_layer(self):
        model = convolved()
        with pytest.raises(torch.fx.proxy.TraceError) as raised, gb.explained_errors(model):
            torch.fx.symbolic_trace(model)
        text = "".join(traceback.format_exception(raised.value))
        assert "gammabeta: 1: the BatchNorm2d is gammabeta's, but torch.fx accepts" in text

    def test_a_model_that_cannot_be_traced_for_another_reason_is_not_explained(self):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = gb.LayerNorm(3)

            def forward(self, x):
                return self.norm(x) if x.sum() > 0 else x

        with pytest.raises(torch.fx.proxy.TraceError) as raised:
            torch.fx.symbolic_trace(Branching())
        assert gb.explain_error(raised.value) is None


def test_data_parallel_that_refuses_sync_batch_norm_is_explained(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4))
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="GPU") as raised:
            DistributedDataParallel(model)
        assert str(gb.explain_error(raised.value)) == (
            "DistributedDataParallel refuses torch's SyncBatchNorm on a CPU, whose forward in training raises there. "
            "Call gammabeta.adopt(model) first: its BatchNorms synchronize their statistics over gloo too."
        )
        gb.adopt(model)
        assert DistributedDataParallel(model)(torch.randn(5, 3)).shape == (5, 4)
    finally:
        dist.destroy_process_group()
