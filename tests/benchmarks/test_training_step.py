"""Training steps of networks: the forms that are timed, the comparison with float64, the bytes that are kept."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.benchmarks.small import BatchNormAct2d, convolutional, network, with_activations, with_modules
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks import step
from gammabeta.benchmarks.contest import OURS, TORCH
from gammabeta.benchmarks.networks import NETWORKS
from gammabeta.benchmarks.subjects import training_step
from gammabeta.benchmarks.subjects.training_step import BARE, FUSED, RECOMPUTED
from gammabeta.surgery.recompute import is_recomputing

DTYPES = training_step.DTYPES
FLOAT32 = torch.float32


def forms(small):
    theirs = small.seeded()
    return theirs, training_step.forms(small, theirs, small.batches("contiguous")[0])


def classes(model):
    return [type(module) for module in model.modules()]


def test_the_limits_are_those_that_were_set():
    rows = {row.name: row for row in training_step.rows(False)}
    assert len(rows) == 2 * (8 * 2 + 2)
    limits = {name: row.at_most_of_torch for name, row in rows.items() if row.at_most_of_torch != 1}
    assert limits == {
        f"{name}, training step (16, 3, 160, 160) float32 {layout}": limit
        for name, limit in (("mobilenetv2_100", 0.80), ("efficientnet_b0", 0.88), ("resnet50", 0.90))
        for layout in ("contiguous", "channels_last")
    }


def test_norms_with_their_activation_are_adopted_with_it():
    theirs, models = forms(network(with_activations()))
    ours = models[OURS]
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [(isinstance(n, gb.BatchNorm2d), n.activation) for n in norms] == [
        (True, "relu6"), (True, "silu"), (True, None),
    ]  # fmt: skip
    assert BatchNormAct2d in classes(theirs), "the network given stays as it is"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    # There is nothing left to fuse, and one network would be timed twice.
    assert list(models) == [OURS, RECOMPUTED, BARE]


def test_an_activation_that_follows_is_fused_in_its_own_form_only():
    _, models = forms(network(with_modules()))
    assert list(models) == [OURS, FUSED, RECOMPUTED, BARE]
    assert [norm.activation for norm in models[OURS].modules() if isinstance(norm, gb.BatchNorm2d)] == [None]
    for name in (FUSED, RECOMPUTED):
        norms = [m for m in models[name].modules() if isinstance(m, gb.BatchNorm2d | gb.GroupNorm)]
        assert [norm.activation for norm in norms] == ["relu", "silu"]
        assert is_recomputing(models[name]) is (name == RECOMPUTED)


@pytest.mark.parametrize("build", [with_activations, with_modules])
def test_without_norms_their_activations_stay(build):
    theirs = network(build()).seeded()
    acts = [cls for cls in classes(theirs) if cls in (nn.ReLU6, nn.ReLU, nn.SiLU)]
    change = training_step.remove_norms(theirs)
    assert len(change.changed) == (3 if build is with_activations else 2)
    found = classes(theirs)
    assert not [cls for cls in found if issubclass(cls, nn.BatchNorm2d | nn.GroupNorm)]
    assert [cls for cls in found if cls in (nn.ReLU6, nn.ReLU, nn.SiLU)] == acts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("build", [with_activations, with_modules])
def test_every_form_takes_steps_that_train(build, layout, dtype):
    small = network(build())
    theirs = small.seeded()
    field = training_step.field(small, layout, dtype)
    assert {OURS, TORCH, RECOMPUTED, BARE} <= {*field.contestants}
    for contestant in field.contestants.values():
        contestant(0)()
    # The same step by hand, in float32, on the same batch.
    batch = small.batches(layout)[0]
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1e-3, momentum=0.9)
    small.loss(theirs(*batch.inputs), batch.target).backward()
    optimizer.step()
    weights = theirs[0].weight
    stepped = step.steps(small, copy.deepcopy(small.seeded()), layout, dtype)
    model = next(cell.cell_contents for cell in stepped.__closure__ if isinstance(cell.cell_contents, nn.Module))
    before = model[0].weight.detach().clone()
    stepped(0)()
    moved = weights - before
    assert moved.abs().max() > 0
    tolerance = 1e-5 if dtype == FLOAT32 else 0.1  # bfloat16 rounds the forward to 8 bits
    assert (model[0].weight - weights).norm() <= tolerance * moved.norm()


def test_steps_cycle_through_the_batches():
    small, seen = network(), []

    def call(model, inputs):
        seen.append(float(inputs[0].flatten()[0]))
        return model(*inputs)

    contestant = step.steps(replace(small, call=call), small.seeded(), "contiguous", FLOAT32)
    for number in range(5):
        contestant(number)()
    firsts = [float(batch.inputs[0].flatten()[0]) for batch in small.batches("contiguous")]
    assert seen == [*firsts, firsts[0]]


def test_the_comparison_keeps_all_state():
    small = network(with_activations())
    theirs, models = forms(small)
    before = {name: copy.deepcopy(model.state_dict()) for name, model in {TORCH: theirs, **models}.items()}
    step.check_step(small, theirs, {OURS: models[OURS], RECOMPUTED: models[RECOMPUTED]}, small.batches("contiguous")[0],
                    FLOAT32)  # fmt: skip
    for name, model in {TORCH: theirs, **models}.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items()), name
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("spoil", ["activation", "eps", "momentum"])
def test_a_form_that_changes_results_is_not_timed(spoil):
    small = network(with_activations())
    theirs, models = forms(small)
    setattr(models[OURS][1], spoil, {"activation": None, "eps": 1e-2, "momentum": 0.5}[spoil])
    what = "running statistics" if spoil == "momentum" else "outputs"
    text = rf"^the {what} of gammabeta are \S+ from float64's, and torch's \S+: expected the same to rounding, so"
    with pytest.raises(RuntimeError, match=text):
        step.check_step(small, theirs, {OURS: models[OURS]}, small.batches("contiguous")[0], FLOAT32)


def test_a_row_whose_results_differ_says_so(monkeypatch):
    def wrong(*args):
        raise RuntimeError("the outputs of gammabeta are far from float64's")

    monkeypatch.setattr(training_step, "check_step", wrong)
    field = training_step.field(network(), "contiguous", FLOAT32)
    assert (field.contestants, field.refused) == ({}, {OURS: "the outputs of gammabeta are far from float64's"})


def test_bytes_are_those_that_a_forward_keeps():
    small = network(convolutional(lambda: [nn.BatchNorm2d(6), nn.SiLU()]))
    field = training_step.field(small, "contiguous", FLOAT32)
    image = 4 * 7 * 6 * 8 * 8
    statistics = 2 * 4 * 6
    # The norm keeps its input, silu and the linear layer keep theirs; the images are a leaf that is counted too.
    assert field.saved[TORCH] == 4 * image + statistics
    # Our norm keeps its statistics, and a count per channel.
    ours = field.saved[OURS] - 4 * image
    assert 0 < ours < 10 * statistics
    # By one layer: what silu kept is gone. The linear layer's input is made again from what the norm keeps.
    assert field.saved[FUSED] == field.saved[OURS] - image
    assert field.saved[RECOMPUTED] < field.saved[FUSED] - image // 2
    assert field.saved[BARE] == field.saved[TORCH] - statistics - image


def test_a_network_that_overflows_without_its_norms_is_left_out():
    class Loud(nn.Module):
        def forward(self, x):
            return x * 1e12

    # Four times: each norm divides by it again, and without norms it is 1e48.
    field = training_step.field(
        network(convolutional(*4 * [lambda: [Loud(), nn.BatchNorm2d(6)]])), "contiguous", FLOAT32
    )
    assert [*field.contestants] == [TORCH, OURS, RECOMPUTED]
    assert field.refused[BARE] == "its outputs and gradients are not finite"


def test_a_missing_library_is_a_row_that_did_not_run():
    small = replace(network(), library="no_such_library")
    field = training_step.field(small, "contiguous", FLOAT32)
    assert field.refused == {OURS: "it needs no_such_library: pip install no_such_library"}
    assert field.contestants == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_real_row(dtype):
    known = next(n for n in NETWORKS if n.name == "unet")
    fewer = replace(known, draw=lambda generator: known.draw(generator).first(2))
    field = training_step.field(fewer, "channels_last", dtype)
    assert field.refused == {}
    assert list(field.contestants) == [TORCH, OURS, FUSED, RECOMPUTED, BARE]
    for contestant in field.contestants.values():
        contestant(1)()
    assert field.saved[RECOMPUTED] < field.saved[FUSED] < field.saved[OURS]
