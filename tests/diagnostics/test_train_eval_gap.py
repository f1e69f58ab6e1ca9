"""`train_eval_gap`: the numbers against their definition, the first layer, the table, the plot, and refusals."""

import copy
import math

import pytest
import torch
from torch import nn

import gammabeta as gb


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
    )  # fmt: skip
    for _ in range(2):  # the second norm gets the first one's output
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        gb.recalibrate(model, batches(32, seed=1))
    return model.eval()


def batches(count, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 10, 10, generator=generator) + shift for _ in range(count)]


def test_data_as_in_training_is_within_sampling_error():
    gap = gb.train_eval_gap(network(), batches(8))
    assert gap.first is None
    assert [layer.name for layer in gap.layers] == ["1", "4"]
    assert [layer.samples for layer in gap.layers] == [128, 128]
    assert str(gap).endswith("none of 2 layers beyond 4 standard errors")


def test_the_numbers_are_those_of_the_definition():
    model, data = network(), batches(8, shift=0.5)
    gap = gb.train_eval_gap(model, data).layers[0].gap
    x = model[0](torch.cat(data)).detach().double()
    norm = model[1]
    mean, var = norm.running_mean.double(), norm.running_var.double()
    shift = (x.mean((0, 2, 3)) - mean) / var.sqrt()
    ratio = torch.log(x.var((0, 2, 3), correction=1) / var)
    assert gap.mean_shift == pytest.approx(float(shift.square().mean().sqrt()), rel=1e-9)
    assert gap.log_variance_ratio == pytest.approx(float(ratio.square().mean().sqrt()), rel=1e-9)
    # The spread of sample means decides, since positions of one image are alike.
    means = x.mean((2, 3))
    error = (means.var(0) / len(means) / x.var((0, 2, 3))).mean().sqrt()
    assert gap.mean_error == pytest.approx(float(error), rel=0.1)


def test_the_first_layer_in_the_order_of_the_data_is_named():
    model = network()
    model[4].running_mean.add_(3)
    gap = gb.train_eval_gap(model, batches(8))
    assert gap.first.name == "4"
    assert "1 of 2 layers (*) beyond 4 standard errors, the first being 4" in str(gap)
    model[1].running_var.mul_(9)
    gap = gb.train_eval_gap(model, batches(8))
    assert gap.first.name == "1"
    assert gap.layers[0].gap.log_variance_ratio == pytest.approx(math.log(9), abs=0.1)


def test_many_batches_are_one_large_one():
    model, data = network(), batches(8, shift=0.3)
    many, one = gb.train_eval_gap(model, data), gb.train_eval_gap(model, [torch.cat(data)])
    for a, b in zip(many.layers, one.layers, strict=True):
        assert a.gap.mean_shift == pytest.approx(b.gap.mean_shift, rel=1e-6)
        assert a.gap.log_variance_ratio == pytest.approx(b.gap.log_variance_ratio, rel=1e-6)
        assert a.gap.mean_error == pytest.approx(b.gap.mean_error, rel=0.2)


def test_loaders_of_pairs_and_of_mappings_are_taken():
    model, data = network(), batches(2)
    pairs = gb.train_eval_gap(model, [(x, torch.zeros(16)) for x in data])
    assert pairs == gb.train_eval_gap(model, data)
    assert pairs == gb.train_eval_gap(model, [{"input": x} for x in data])


def test_the_model_stays_as_it_was():
    model = network().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gb.train_eval_gap(model, batches(2))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_single_samples_and_layers_that_are_not_called_are_said():
    model = network()
    model.add_module("spare", nn.Identity())
    model.spare.norm = nn.BatchNorm2d(4)
    gap = gb.train_eval_gap(model, [batches(1)[0][:1]])
    assert [layer.why for layer in gap.layers] == [
        "batches of one sample do not tell the sampling error",
        "batches of one sample do not tell the sampling error",
        "not called",
    ]


def test_the_plot_has_both_gaps_beside_their_bounds():
    pytest.importorskip("plotly")
    gap = gb.train_eval_gap(network(), batches(4))
    figure = gap.plot()
    assert [trace.name for trace in figure.data] == [
        "mean shift",
        "mean shift: 4 standard errors",
        "log variance ratio",
        "log variance ratio: 4 standard errors",
    ]
    assert list(figure.data[0].y) == [layer.gap.mean_shift for layer in gap.layers]
    assert list(figure.data[3].y) == [4 * layer.gap.variance_error for layer in gap.layers]


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (
            nn.Linear(2, 2),
            [torch.randn(4, 2)],
            ValueError,
            "train_eval_gap: expected a model with BatchNorms that have running statistics, got none.",
        ),
        (
            nn.BatchNorm1d(2),
            [],
            ValueError,
            "train_eval_gap: expected batches, got none: is the loader a generator that was used up?",
        ),
        (
            nn.BatchNorm1d(2),
            ["text"],
            TypeError,
            "train_eval_gap: expected batches as the model takes them (a tensor, a tuple or list of positional "
            "arguments, or a mapping of keyword arguments), got str: say how it goes through the model by "
            "forward=lambda model, batch: ….",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(model, data, error, message):
    with pytest.raises(error) as caught:
        gb.train_eval_gap(model, data)
    assert str(caught.value) == message
