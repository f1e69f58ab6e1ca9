"""The full text of every error that a user can cause."""

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta import activations
from gammabeta import functional as gf

X = torch.randn(8, 64, 32, 32)
RUNNING = (torch.zeros(64), torch.ones(64))
ACTIVATIONS = ", ".join(activations.ACTIVATIONS[1:])

CASES = {
    "weight of another channel count": (
        lambda: gf.batch_norm(X, *RUNNING, torch.ones(128)),
        ValueError,
        "batch_norm: expected weight of shape (64,), got (128,): 64 is input.shape[1] of input (8, 64, 32, 32).",
    ),
    "running statistics of another channel count": (
        lambda: gf.batch_norm(X, torch.zeros(32), torch.ones(32)),
        ValueError,
        "batch_norm: expected running_mean of shape (64,), got (32,): 64 is input.shape[1] of input (8, 64, 32, 32).",
    ),
    "a layer of another channel count": (
        lambda: gb.BatchNorm2d(32)(X),
        ValueError,
        "batch_norm: expected weight of shape (64,), got (32,): 64 is input.shape[1] of input (8, 64, 32, 32).",
    ),
    "a bias that is not a vector": (
        lambda: gf.group_norm(X, 4, None, torch.ones(64, 1)),
        ValueError,
        "group_norm: expected bias of shape (64,), got (64, 1): 64 is input.shape[1] of input (8, 64, 32, 32).",
    ),
    "no channel axis": (
        lambda: gf.batch_norm(torch.randn(8), None, None, training=True),
        ValueError,
        "batch_norm: expected input of shape (N, C) or (N, C, *positions), got (8,): add the missing axes with "
        "input.unsqueeze(0).",
    ),
    "wrong rank 1d": (
        lambda: gb.BatchNorm1d(64)(X),
        ValueError,
        "BatchNorm1d: expected input of shape (N, C) or (N, C, L), got (8, 64, 32, 32): it has 4 axes.",
    ),
    "wrong rank 2d": (
        lambda: gb.BatchNorm2d(64)(torch.randn(8, 64)),
        ValueError,
        "BatchNorm2d: expected input of shape (N, C, H, W), got (8, 64): it has 2 axes.",
    ),
    "wrong rank 3d": (
        lambda: gb.BatchNorm3d(64)(X),
        ValueError,
        "BatchNorm3d: expected input of shape (N, C, D, H, W), got (8, 64, 32, 32): it has 4 axes.",
    ),
    "wrong rank instance": (
        lambda: gb.InstanceNorm1d(64)(torch.randn(64)),
        ValueError,
        "InstanceNorm1d: expected input of shape (N, C, L) or (C, L), got (64,): it has 1 axis.",
    ),
    "wrong rank instance 2d": (
        lambda: gb.InstanceNorm2d(64)(torch.randn(2, 64)),
        ValueError,
        "InstanceNorm2d: expected input of shape (N, C, H, W) or (C, H, W), got (2, 64): it has 2 axes.",
    ),
    "wrong rank instance 3d": (
        lambda: gb.InstanceNorm3d(64)(torch.randn(2, 64)),
        ValueError,
        "InstanceNorm3d: expected input of shape (N, C, D, H, W) or (C, D, H, W), got (2, 64): it has 2 axes.",
    ),
    "one value per channel": (
        lambda: gb.BatchNorm1d(64)(torch.randn(1, 64)),
        ValueError,
        "batch_norm: expected more than 1 value per channel in training, and in evaluation without running "
        "statistics, got 1 from input (1, 64): the variance of one value is 0 and the output would be the bias "
        "whatever comes in. Use a larger batch (drop_last=True where the loader's last one is 1), eval() with running "
        "statistics, or a norm that needs no batch: LayerNorm, GroupNorm.",
    ),
    "one value per channel of an image": (
        lambda: gf.batch_norm(torch.randn(1, 3, 1, 1), None, None, training=True),
        ValueError,
        "batch_norm: expected more than 1 value per channel in training, and in evaluation without running "
        "statistics, got 1 from input (1, 3, 1, 1): the variance of one value is 0 and the output would be the bias "
        "whatever comes in. Use a larger batch (drop_last=True where the loader's last one is 1), eval() with running "
        "statistics, or a norm that needs no batch: LayerNorm, GroupNorm.",
    ),
    "one position per instance": (
        lambda: gf.instance_norm(torch.randn(4, 3, 1, 1)),
        ValueError,
        "instance_norm: expected more than 1 position per channel and sample, got 1 from input (4, 3, 1, 1): "
        "the variance "
        "of one value is 0 and the output would be the bias whatever comes in. Use LayerNorm or GroupNorm there.",
    ),
    "mask of another shape": (
        lambda: gf.batch_norm(X, *RUNNING, mask=torch.ones(8, 64, dtype=torch.bool)),
        ValueError,
        "batch_norm: expected mask of shape (8, 32, 32) or broadcastable to it, got (8, 64): that is input "
        "(8, 64, 32, 32) without the channel axis.",
    ),
    "mask of a layer norm of another shape": (
        lambda: gf.layer_norm(torch.randn(2, 5, 8), (8,), mask=torch.ones(2, 5, 8, dtype=torch.bool)),
        ValueError,
        "layer_norm: expected mask of shape (2, 5) or broadcastable to it, got (2, 5, 8): that is input (2, 5, 8) "
        "without the normalized axes.",
    ),
    "mask of another dtype": (
        lambda: gf.batch_norm(X, *RUNNING, mask=torch.ones(8, 32, 32)),
        TypeError,
        "batch_norm: expected mask of dtype torch.bool, got torch.float32: True where input is real, mask.bool().",
    ),
    "residual of another shape": (
        lambda: gf.batch_norm(X, *RUNNING, residual=X[:1]),
        ValueError,
        "batch_norm: expected residual of input's shape (8, 64, 32, 32), got (1, 64, 32, 32): it is added element by "
        "element.",
    ),
    "residual that is not floating": (
        lambda: gf.layer_norm(X, (32,), residual=X.long()),
        TypeError,
        "layer_norm: expected residual of a floating point dtype (float64, float32, bfloat16, float16), got "
        "torch.int64: convert it with residual.float().",
    ),
    "residual of a sum": (
        lambda: gf.add_rms_norm(torch.randn(2, 4), torch.randn(4), (4,)),
        ValueError,
        "add_rms_norm: expected residual of input's shape (2, 4), got (4,): it is added element by element.",
    ),
    "unknown activation": (
        lambda: gf.batch_norm(X, *RUNNING, activation="rellu"),
        ValueError,
        f"batch_norm: expected activation None or one of {ACTIVATIONS}, got 'rellu': did you mean 'relu'?",
    ),
    "unknown activation of a layer": (
        lambda: gb.GroupNorm(2, 4, activation="mish"),
        ValueError,
        f"GroupNorm: expected activation None or one of {ACTIVATIONS}, got 'mish': apply any other yourself, after the "
        "norm.",
    ),
    "an activation called none": (
        lambda: gb.LayerNorm(4, activation="none"),
        ValueError,
        f"LayerNorm: expected activation None or one of {ACTIVATIONS}, got 'none': apply any other yourself, after the "
        "norm.",
    ),
    "integers": (
        lambda: gf.group_norm(torch.ones(2, 4, dtype=torch.int64), 2),
        TypeError,
        "group_norm: expected input of a floating point dtype (float64, float32, bfloat16, float16), got torch.int64: "
        "convert it with input.float().",
    ),
    "no running statistics": (
        lambda: gf.batch_norm(X, None, None),
        ValueError,
        "batch_norm: expected running_mean and running_var where the input's own statistics are not used, "
        "got None: pass "
        "them, or have it normalize by the input.",
    ),
    "groups that do not divide": (
        lambda: gf.group_norm(X, 5),
        ValueError,
        "group_norm: expected num_groups that divides the 64 channels of input.shape[1], got 5.",
    ),
    "one value in each group": (
        lambda: gf.group_norm(torch.ones(1, 3, 1), 3),
        ValueError,
        "group_norm: expected more than 1 value per group, got 1 from input (1, 3, 1) in 3 groups: the variance of one "
        "value is 0 and the output would be the bias whatever comes in. Use fewer groups.",
    ),
    "another normalized shape": (
        lambda: gf.layer_norm(torch.randn(2, 5, 8), (5,)),
        ValueError,
        "layer_norm: expected input whose shape ends with normalized_shape (5,), got (2, 5, 8): the last axes are the "
        "normalized ones.",
    ),
    "an empty normalized shape": (
        lambda: gf.rms_norm(torch.randn(2, 5, 8), ()),
        ValueError,
        "rms_norm: expected normalized_shape with at least one size, got (): name the last axes of input.",
    ),
    "weight of another normalized shape": (
        lambda: gf.rms_norm(torch.randn(2, 8), (8,), torch.ones(4)),
        ValueError,
        "rms_norm: expected weight of normalized_shape (8,), got (4,).",
    ),
    "eps of zero in training": (
        lambda: gf.batch_norm(X, None, None, training=True, eps=0.0),
        ValueError,
        "batch_norm: expected eps > 0 in training, got 0.0: it keeps the division by √(σ² + eps) defined.",
    ),
    "negative eps": (
        lambda: gf.layer_norm(X, (32,), eps=-1e-5),
        ValueError,
        "layer_norm: expected eps ≥ 0, got -1e-05: it keeps the division by √(σ² + eps) defined.",
    ),
    "statistics in 8 bits": (
        lambda: gf.batch_norm(X, torch.zeros(64).to(torch.float8_e4m3fn), RUNNING[1]),
        TypeError,
        "batch_norm: expected running_mean of a floating point dtype (float64, float32, bfloat16, float16), got "
        "torch.float8_e4m3fn: convert it with running_mean.float().",
    ),
    "integer statistics": (
        lambda: gf.instance_norm(X, torch.zeros(64).int(), RUNNING[1]),
        TypeError,
        "instance_norm: expected running_mean of a floating point dtype (float64, float32, bfloat16, float16), got "
        "torch.int32: convert it with running_mean.float().",
    ),
    "a weight on another device": (
        lambda: gf.rms_norm(X, (32,), torch.ones(32, device="meta")),
        RuntimeError,
        "rms_norm: Expected all tensors to be on the same device, but found at least two devices, cpu (input) and meta "
        "(weight): move the layer with .to(input.device), or load what was left on the meta device.",
    ),
    "a mask on another device": (
        lambda: gf.batch_norm(X, None, None, training=True, mask=torch.ones(8, 32, 32, device="meta").bool()),
        RuntimeError,
        "batch_norm: Expected all tensors to be on the same device, but found at least two devices, cpu (input) and "
        "meta (mask): move it with mask.to(input.device).",
    ),
    "ghost batches of no sample": (
        lambda: gb.statistics.Ghost(0),
        ValueError,
        "Ghost: expected size of at least 1 sample, got 0.",
    ),
    "renorm that cannot correct": (
        lambda: gb.statistics.Renorm(r_max=0.5),
        ValueError,
        "Renorm: expected r_max ≥ 1 and d_max ≥ 0, got 0.5 and 5.0.",
    ),
    "renorm without running statistics": (
        lambda: gb.BatchNorm2d(64, track_running_stats=False, statistics=gb.statistics.Renorm())(X),
        ValueError,
        "Renorm: expected a layer with running statistics, which the batch's are corrected towards, got "
        "track_running_stats=False: build the layer with them, or use gammabeta.statistics.Batch().",
    ),
    "a ghost batch of one value": (
        lambda: gb.BatchNorm1d(64, statistics=gb.statistics.Ghost(4))(torch.randn(5, 64)),
        ValueError,
        "batch_norm: expected more than 1 value per channel in training, and in evaluation without running "
        "statistics, got 1 from input (1, 64): the variance of one value is 0 and the output would be the bias "
        "whatever comes in. Use a larger batch (drop_last=True where the loader's last one is 1), eval() with running "
        "statistics, or a norm that needs no batch: LayerNorm, GroupNorm.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_full_text(case, route):
    call, kind, text = CASES[case]
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    assert str(error.value) == text


@pytest.mark.parametrize("shape", [(4, 64), (64, 64, 40, 40)], ids=["small", "large"])
@pytest.mark.parametrize("layer", [gb.BatchNorm1d, gb.BatchNorm2d, gb.InstanceNorm2d])
def test_running_statistics_that_require_a_gradient_are_refused_at_every_size(layer, shape, route):
    if (layer is gb.BatchNorm1d) != (len(shape) == 2):
        shape = shape[:2] if layer is gb.BatchNorm1d else (*shape, 1, 1)[:4]
    norm = layer(64, track_running_stats=True).eval()
    norm.running_mean = torch.zeros(64, requires_grad=True)
    with pytest.raises(RuntimeError, match="expected running_mean and running_var that require no gradient"):
        norm(torch.randn(shape))
    with torch.no_grad():
        norm(torch.randn(shape))


@pytest.mark.parametrize("norm", [gb.BatchNorm1d, gb.InstanceNorm1d])
def test_captured_statistics_under_a_transform_are_refused_by_their_own_name(norm, route):
    layer = norm(4, track_running_stats=True)
    asked = r"^running statistics: expected buffers that are arguments of the torch\.func transform, got captured"
    with pytest.raises(RuntimeError, match=asked):
        torch.func.grad(lambda x: layer(x).sum())(torch.randn(3, 4, 5))
    assert layer.running_mean.abs().max() == 0


@pytest.mark.parametrize("shape", [(2, 5, 6), (5, 6)], ids=["batched", "unbatched"])
@pytest.mark.parametrize("settings", [{}, {"affine": True}], ids=["plain", "affine"])
def test_instance_norm_of_another_channel_count_is_as_torch_s(settings, shape, route):
    """torch's layer warns where nothing depends on num_features and raises where something does."""
    x = torch.randn(shape)
    ours, theirs = gb.InstanceNorm1d(3, **settings), nn.InstanceNorm1d(3, **settings)
    if settings:
        for layer in (ours, theirs):
            with pytest.raises(ValueError, match="expected"):
                layer(x)
        return
    with pytest.warns(UserWarning, match=f"input's size at dim={x.ndim - 2} does not match num_features"):
        y = ours(x)
    with pytest.warns(UserWarning, match=f"input's size at dim={x.ndim - 2} does not match num_features"):
        torch.testing.assert_close(y, theirs(x))


def test_an_error_leaves_the_layer_as_it_was(route):
    layer = gb.BatchNorm1d(4, statistics=gb.statistics.Ghost(4))
    layer(torch.randn(8, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for bad in (torch.randn(1, 4), torch.randn(9, 4), torch.randn(8, 3), torch.randn(8, 4, 2, 2)):
        with pytest.raises(ValueError, match="expected"):
            layer(bad)
    with pytest.raises(ValueError, match="expected residual"):
        layer(torch.randn(8, 4), torch.randn(8, 3))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
