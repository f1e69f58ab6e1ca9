"""Explanations of what torch says where a norm was given what it cannot take; each by torch's own message."""

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta as gb


def explained(call, model=None):
    with pytest.raises(Exception) as caught:  # noqa: PT011, whatever torch raises
        call()
    return str(gb.explain_error(caught.value, model))


FLOAT = (
    "normalizes floating point numbers. Convert the input before the model: x.float(), for images usually x.float() / "
    "255; complex numbers as two real ones, torch.view_as_real(x)."
)
META = (
    "is on the meta device: its γ, β or statistics have no values. Load the checkpoint with "
    "load_state_dict(state_dict, assign=True), buffers included. Without one call model.to_empty(device=…), then "
    "reset_parameters() of every layer: to_empty leaves values of any size, in running statistics too."
)
RECURRENT = (
    "takes a tensor and got a tuple. A recurrent layer or an attention returns a tuple: give the norm its first item, "
    "x, _ = layer(x)."
)
CALLS = {
    "a tuple": (lambda: (nn.Sequential(nn.LSTM(4, 8), nn.LayerNorm(8)), torch.randn(2, 3, 4)),
                f"1: the LayerNorm {RECURRENT}"),
    "a tuple for the batch's": (lambda: (nn.Sequential(nn.GRU(4, 8), nn.BatchNorm1d(8)), torch.randn(2, 3, 4)),
                                f"1: the BatchNorm1d {RECURRENT}"),
    "packed": (lambda: (nn.Sequential(nn.LayerNorm(4)), nn.utils.rnn.pack_sequence([torch.randn(3, 4)])),
               "0: the LayerNorm takes a tensor and got a PackedSequence. Norm what it holds, "
               "packed._replace(data=norm(packed.data)), which has no padding; or unpack it with "
               "torch.nn.utils.rnn.pad_packed_sequence."),
    "an array": (lambda: (nn.Sequential(nn.GroupNorm(2, 4)), numpy.zeros((2, 4, 3))),
                 "0: the GroupNorm takes a tensor and got a NumPy array. Convert it: torch.from_numpy(x)."),
    "integers": (lambda: (nn.Sequential(nn.LayerNorm(4)), torch.ones(3, 4, dtype=torch.uint8)),
                 f"0: the LayerNorm got uint8, and {FLOAT}"),
    "integers for the batch's": (
        lambda: (nn.Sequential(nn.BatchNorm1d(4)), torch.ones(3, 4, dtype=torch.int64)),
        "0: the BatchNorm1d got Long, and torch has no kernel for norms of it. Convert the input before the model: "
        "x.float(), for images usually x.float() / 255."),
    "complex": (lambda: (nn.Sequential(nn.BatchNorm1d(4)), torch.ones(3, 4, dtype=torch.complex64)),
                "0: the BatchNorm1d got ComplexFloat, and torch has no kernel for norms of it. Norm real and imaginary "
                "parts as channels, torch.view_as_real(x), or write the norm for complex numbers."),
    "a model without values": (lambda: (nn.Sequential(nn.LayerNorm(4)).to("meta"), torch.randn(3, 4)),
                               f"0: the LayerNorm {META}"),
    "an input without values": (
        lambda: (nn.Sequential(nn.BatchNorm1d(4)), torch.randn(3, 4, device="meta")),
        "0: the BatchNorm1d got an input on the meta device, which has a shape and no values, and holds values. Give "
        "the model an input with values, or put the model on the meta device too."),
    "other channels": (
        lambda: (nn.Sequential(nn.InstanceNorm2d(8, affine=True)), torch.randn(2, 16, 4, 4)),
        "0: the InstanceNorm2d has 8 channels and got an input of shape (2, 16, 4, 4), which has 16 on axis 1. Build "
        "it with 16 channels, or give it an input with 8."),
    "no positions": (
        lambda: (nn.Sequential(nn.InstanceNorm2d(8)), torch.randn(2, 8)),
        "0: the InstanceNorm2d got an input of shape (2, 8): expected 3D or 4D input (got 2D input). Each channel of a "
        "sample needs positions; for (N, C) use LayerNorm or BatchNorm1d."),
    "another InstanceNorm": (
        lambda: (nn.Sequential(nn.InstanceNorm1d(8)), torch.randn(2, 8, 4, 4)),
        "0: the InstanceNorm1d got an input of shape (2, 8, 4, 4): expected 2D or 3D input (got 4D input). For such an "
        "input use InstanceNorm2d."),
    "no batch axis": (
        lambda: (nn.Sequential(nn.BatchNorm2d(8)), torch.randn(8, 4, 4)),
        "0: the BatchNorm2d got an input of shape (8, 4, 4): expected 4D input (got 3D input). The first axis has as "
        "many entries as the norm has channels: the batch axis is missing. Add it: x.unsqueeze(0)."),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_what_a_norm_cannot_take_is_explained(case):
    build, text = CALLS[case]
    model, x = build()
    assert explained(lambda: model(x)) == text


FUNCTIONS = {
    "the norm normalizes by running statistics in evaluation, and has none. Hand running_mean and running_var to "
    "batch_norm, or training=True for the batch's. A layer with track_running_stats=False does the latter in both "
    "modes.": lambda: F.batch_norm(torch.randn(2, 3), None, None, training=False),
    "the norm needs γ and β of the normalized shape, and got weight of shape (4) for (3). They have the sizes of the "
    "last axes, in their order.": lambda: F.layer_norm(torch.randn(2, 3), (3,), torch.ones(4)),
}


@pytest.mark.parametrize("text", FUNCTIONS)
def test_functions_are_explained_too(text):
    assert explained(FUNCTIONS[text]) == text


def test_two_devices_are_explained_where_the_message_names_a_norm():
    """A CPU has one device: the messages are those of CUDA."""
    on = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (when "
    weight = f"{on}checking argument for argument weight in method wrapper_CUDA__native_layer_norm)"
    told = gb.explain_error(RuntimeError(weight))
    assert str(told) == (
        "a norm and its input are on different devices. Move the whole model, model.to(x.device), before the optimizer "
        "is built: .to() moves buffers too, but no tensors in plain attributes, and no layer that the model holds in a "
        "list."
    )
    assert (
        gb.explain_error(RuntimeError(f"{on}checking argument for argument mat1 in method wrapper_CUDA_addmm)")) is None
    )

    class Elsewhere(nn.LayerNorm):
        def forward(self, input):
            raise RuntimeError(weight)

    told = explained(lambda: nn.Sequential(nn.Linear(4, 4), Elsewhere(4))(torch.randn(2, 4)))
    assert told.startswith("1: the Elsewhere is on cpu and got an input on cpu. Move the whole model")


def test_statistics_that_were_written_to_before_the_backward_are_explained():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()

    def step():
        loss = model(torch.randn(5, 4)).sum()
        with torch.no_grad():
            model[1].running_mean.copy_(torch.ones(8))  # as DistributedDataParallel does before the next forward
        loss.backward()

    assert explained(step, model) == (
        "a vector of 8 values that a forward kept for its backward was written to before that: the model has "
        "BatchNorms of so many channels, and their running statistics are written to by forwards in training, loads of "
        "a state_dict and averages. Call backward before the next of these, or run the extra forward within "
        "`with gammabeta.frozen_statistics(model):`."
    )
    other = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    assert explained(step, other) == "None"


def test_distributed_data_parallel_writes_to_statistics(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
        message = (
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            "[torch.cuda.FloatTensor [8]] is at version 3; expected version 2 instead."
        )
        assert str(gb.explain_error(RuntimeError(message), model)) == (
            "a vector of 8 values that a forward kept for its backward was written to before that: the model has "
            "BatchNorms of so many channels, and their running statistics are written to by each forward, in which "
            "DistributedDataParallel copies them from the first process. Call the model once on both batches, "
            "torch.cat, before the backward. Or DistributedDataParallel(model, broadcast_buffers=False), and "
            "gammabeta.reconcile(model) before evaluation; or gammabeta.adopt(model) and "
            "gammabeta.set_statistics(model, gammabeta.statistics.Synced()), whose statistics are alike anyway."
        )
    finally:
        torch.distributed.destroy_process_group()


def test_statistics_made_under_inference_mode_are_explained_and_clones_work():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    with torch.inference_mode():
        model[1].running_mean = torch.zeros(8)
    x = torch.randn(5, 4)
    assert explained(lambda: model(x)) == (
        "1: the BatchNorm1d holds running_mean made under torch.inference_mode(), where autograd cannot use or write "
        "to them later. Build, load and recalibrate under torch.no_grad() instead, or replace each: "
        "norm.running_mean = norm.running_mean.clone()."
    )
    model[1].running_mean = model[1].running_mean.clone()
    model(x).sum().backward()


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)).to("meta")(torch.randn(2, 4)),
        lambda: nn.Linear(4, 8)(numpy.zeros((2, 4))),
        lambda: torch.ones(2, dtype=torch.int64).softmax(0),
        lambda: nn.Sequential(nn.LayerNorm(4), nn.LSTM(4, 3), nn.Linear(3, 1))(torch.randn(2, 4)),
    ],
)
def test_other_layers_errors_are_not_taken_for_a_norm_s(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    assert gb.explain_error(caught.value) is None
