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
    "one value without running statistics": (
        nn.BatchNorm1d(4, track_running_stats=False).eval(),
        torch.randn(1, 4),
        "block.1: the BatchNorm1d has no running statistics and takes the batch's in evaluation too, and got an input "
        "of shape (1, 4): one value per channel, whose variance is 0; the smallest batch it accepts is 2. Make it with "
        "track_running_stats=True and train it, or use GroupNorm or LayerNorm in its place.",
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


class PathTracer(torch.fx.Tracer):
    """As torchvision's `create_feature_extractor` traces: with a tracer of its own that follows the modules."""

    def call_module(self, module, forward, args, kwargs):
        self.path = self.path_of_module(module)
        return super().call_module(module, forward, args, kwargs)


class Formula(nn.Module):
    """A norm of another library."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


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

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, nn.SyncBatchNorm, Formula])
    def test_torch_fx_s_own_error_names_the_way_out(self, norm):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4))
        gb.adopt(model)
        with pytest.raises(torch.fx.proxy.TraceError) as raised:
            torch.fx.GraphModule(model, PathTracer().trace(model))
        called = "BatchNorm" if norm is nn.SyncBatchNorm else norm.__name__
        assert str(raised.value) == (
            f"{called}: expected a tensor, got a proxy of torch.fx, which can trace torch's own norms only. Call it "
            "within `with gammabeta.release(model):`, where the norms are torch's; after it they are gammabeta's again."
        )
        with gb.release(model):
            traced = torch.fx.GraphModule(model, PathTracer().trace(model)).eval()
        x = torch.randn(2, 3, 5, 4)
        if norm is not nn.SyncBatchNorm:  # torch's raises on a CPU
            torch.testing.assert_close(traced(x), model.eval()(x))

    @pytest.mark.parametrize(
        "norm",
        [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4), Formula(4)],
    )
    def test_torch_jit_script_s_own_error_names_the_way_out(self, norm):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
        gb.adopt(model)
        layers = list(model)
        with pytest.raises(RuntimeError) as raised:
            jit_script(model)
        assert str(raised.value) == (
            f"torch.jit.script: expected layers that TorchScript can compile, got gammabeta's {type(norm).__name__}. "
            "Call it within `with gammabeta.release(model):`, where the norms are torch's; after it they are "
            "gammabeta's again. torch.export and torch.jit.trace take the model as it is."
        )
        assert list(model) == layers
        assert gb.explain_error(raised.value, model).where == "1"
        with gb.release(model):
            scripted = jit_script(model)
        x = torch.randn(2, 3, 5, 4)
        torch.testing.assert_close(scripted.eval()(x), model.eval()(x))

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


def batches():
    return torch.randn(3, 4, 5, 5)


def vmapped(model):
    return torch.vmap(lambda x: model(x[None]))(batches())


def per_sample_gradients(model):
    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x[None],)).sum()

    return torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), batches())


TRANSFORMS = {
    "vmap": vmapped,
    "per-sample gradients": per_sample_gradients,
    "grad": lambda model: torch.func.grad(lambda x: model(x).sum())(batches()),
    "jacrev": lambda model: torch.func.jacrev(model)(batches()),
    "jacfwd": lambda model: torch.func.jacfwd(model)(batches()),
}


@pytest.mark.parametrize("adopted", [False, True], ids=["torch", "ours"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_over_running_statistics_is_explained(transform, adopted):
    norm = nn.BatchNorm2d(4)
    model = Network(norm)
    if adopted:
        gb.adopt(model)
    with pytest.raises(RuntimeError) as raised:
        TRANSFORMS[transform](model)
    explanation = gb.explain_error(raised.value)
    assert explanation is not None, raised.value
    assert explanation.where in ("block.1", "")
    assert explanation.why.endswith(
        "in training moves its running statistics in place, and a transform of torch.func (vmap, grad, jacrev) cannot "
        "write to tensors that are not its arguments."
    )
    assert explanation.fix == (
        "To use the running statistics as they are, call model.eval(). To normalize by the batch and leave them, run "
        "it within `with gammabeta.frozen_statistics(model):`. To move them under grad, hand the buffers to the "
        "function as arguments, and to the model by torch.func.functional_call(model, (parameters, buffers), inputs). "
        "Under vmap over samples each sample is a batch of its own: "
        'gammabeta.convert(model, "group") gives norms that do not read other samples.'
    )


@pytest.mark.parametrize("adopted", [False, True], ids=["torch", "ours"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_ways_out_of_a_transform_work(transform, adopted):
    model = Network(nn.BatchNorm2d(4))
    if adopted:
        gb.adopt(model)
    with gb.frozen_statistics(model):
        TRANSFORMS[transform](model)
    TRANSFORMS[transform](model.eval())
    model.train()

    def loss(x, buffers):
        return torch.func.functional_call(model, buffers, (x,)).sum(), buffers

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _, moved = torch.func.grad(loss, has_aux=True)(batches(), buffers)
    assert moved["block.1.num_batches_tracked"] == 1
    gb.convert(model, "group")
    TRANSFORMS[transform](model)


@pytest.mark.parametrize("build", [nn.GroupNorm, gb.GroupNorm])
def test_groups_that_do_not_divide_the_channels_are_told_by_their_numbers(build):
    with pytest.raises(ValueError, match="divisible") as raised:
        build(32, 72)
    assert str(gb.explain_error(raised.value)) == (
        "72 channels cannot be divided into 32 groups of equal size. Use 24 groups, the largest divisor of 72 up to "
        "32, or another number of channels."
    )


def test_functions_without_a_module_are_explained_without_invented_numbers():
    x = torch.randn(2, 6, 3)
    cases = (
        (lambda: F.group_norm(x, 4), "6 channels cannot be divided into 4 groups of equal size."),
        (
            lambda: F.group_norm(x, 2, torch.ones(4)),
            "the norm holds a weight of 4 channels and got an input, which has",
        ),
        (lambda: F.layer_norm(x, (4,)), "the norm normalizes the last axes, of shape (4,), and got an input."),
        (
            lambda: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
            "the norm has 4 channels and got an input, which has 6 on axis 1.",
        ),
    )
    for call, text in cases:
        with pytest.raises((ValueError, RuntimeError)) as raised:
            call()
        explained = str(gb.explain_error(raised.value))
        assert explained.startswith(text)
        assert "None" not in explained


def test_a_message_from_a_log_is_explained_by_the_model():
    """An exception that was pickled has no traceback."""
    model = convolved()
    for tool, (use, called) in TOOLS.items():
        if tool.startswith("quantized"):
            continue
        with pytest.raises(Exception) as raised:  # noqa: PT011  (each tool has a type of its own)
            use(convolved())
        bare = RuntimeError(str(raised.value))
        assert f"but {called} accepts only" in str(gb.explain_error(bare, model))
        assert gb.explain_error(bare, nn.Sequential(nn.Conv2d(3, 4, 1))) is None
