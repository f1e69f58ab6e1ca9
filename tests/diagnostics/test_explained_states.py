"""`explain_error` on state_dicts of norms that do not load, or cannot be averaged, by torch's own errors."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import gammabeta as gb


def network(*norms):
    return nn.Sequential(nn.Conv2d(3, 4, 1), *norms)


def refused(model, state):
    with pytest.raises(RuntimeError, match="loading state_dict") as raised:
        model.load_state_dict(state)
    return raised.value


def without(state, *leaves):
    return OrderedDict((key, value) for key, value in state.items() if key.rpartition(".")[2] not in leaves)


def only_counts_missing():
    state = copy.copy(network(nn.BatchNorm2d(4)).state_dict())  # with its version, as torch.save keeps it
    del state["1.num_batches_tracked"]
    return network(nn.BatchNorm2d(4)), state


def folded():
    model = network(nn.BatchNorm2d(4)).eval()
    return network(nn.BatchNorm2d(4)), gb.fold(model, torch.randn(2, 3, 5, 5)).model.state_dict()


def of_tensorflow():
    state = network(nn.LayerNorm(5)).state_dict()
    return {key.replace("1.weight", "1.gamma").replace("1.bias", "1.beta"): value for key, value in state.items()}


CASES = {
    "another kind": (
        lambda: (network(nn.BatchNorm2d(4)), network(nn.GroupNorm(2, 4)).state_dict()),
        "1: the model keeps running statistics in 1, and the checkpoint has none: there the norm was of another kind "
        "(GroupNorm, LayerNorm), was built with track_running_stats=False, or was folded into its neighbour. Build the "
        "model as it was when the checkpoint was written. Or load with strict=False, and then measure them: "
        "gammabeta.recalibrate(model, batches).",
    ),
    "two without statistics": (
        lambda: (
            network(nn.BatchNorm2d(4), nn.BatchNorm2d(4)),
            network(*(nn.BatchNorm2d(4, track_running_stats=False) for _ in range(2))).state_dict(),
        ),
        "1: the model keeps running statistics in 1 and 1 more, and",
    ),
    "converted": (
        lambda: (network(nn.GroupNorm(2, 4)), network(nn.BatchNorm2d(4)).state_dict()),
        "1: the checkpoint has running statistics for 1 (a GroupNorm), and the model keeps none there: its norm is of "
        "another kind, has track_running_stats=False, or was folded. Load into the model as it was when the checkpoint "
        "was written, and change it afterwards: gammabeta.convert(model, …), gammabeta.fold(model, inputs).",
    ),
    "instance norm of old": (
        lambda: (
            network(nn.InstanceNorm2d(4)),
            network(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)).state_dict(),
        ),
        "1: the checkpoint has running statistics for 1 (a InstanceNorm2d), and",
    ),
    "folded": (folded, "1: the model keeps running statistics in 1, and the checkpoint has none"),
    "counts": (
        only_counts_missing,
        "1: the checkpoint has no num_batches_tracked for 1: it comes from before torch 0.4.1, or from a converter. "
        "Only momentum=None and the checks read this number. Load with strict=False, which keeps the model's own, or "
        "add it to the state_dict: torch.zeros((), dtype=torch.int64).",
    ),
    "affine in the model": (
        lambda: (network(nn.BatchNorm2d(4)), network(nn.BatchNorm2d(4, affine=False)).state_dict()),
        "1: the model has weight and bias in 1, and the checkpoint does not: there the norm was built without "
        "(affine=False, elementwise_affine=False or bias=False). Build the norm without them, too. Or load with "
        "strict=False: a weight of 1 and a bias of 0, as constructed, compute the same.",
    ),
    "bias in the checkpoint": (
        lambda: (network(nn.LayerNorm(5, bias=False)), network(nn.LayerNorm(5)).state_dict()),
        "1: the checkpoint has bias for 1, and the model does not: its norm was built without (affine=False, "
        "elementwise_affine=False or bias=False). Build it with them. strict=False would drop what was trained.",
    ),
    "sizes": (
        lambda: (network(nn.BatchNorm2d(4)), network(nn.BatchNorm2d(8)).state_dict()),
        "1: 1.weight has shape (8) in the checkpoint and (4) in the model. Build the model with as many channels as "
        "the one that wrote the checkpoint. strict=False does not help: sizes are compared all the same.",
    ),
    "TensorFlow's names": (
        lambda: (network(nn.LayerNorm(5)), of_tensorflow()),
        "1: the checkpoint has gamma and beta for 1, the model's weight and bias under TensorFlow's names. "
        "Rename them: {re.sub(r'\\bgamma$', 'weight', re.sub(r'\\bbeta$', 'bias', key)): value for key, value in "
        "state_dict.items()}.",
    ),
    "the norm itself": (
        lambda: (nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False).state_dict()),
        "the model keeps running statistics in the model, and the checkpoint has none",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_keys_of_norms_that_do_not_fit_are_explained(case):
    build, text = CASES[case]
    model, state = build()
    error = refused(model, state)
    assert str(gb.explain_error(error)).startswith(text)
    assert str(gb.explain_error(error, model)).startswith(text)


@pytest.mark.parametrize("change", [
    lambda state: without(state, "weight"),  # of the convolution, too
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {**state, "head.weight": torch.zeros(3)},
    lambda state: {key: value for key, value in state.items() if not key.startswith("0.")},
])  # fmt: skip
def test_keys_that_are_not_about_norms_are_not_explained(change):
    model = network(nn.BatchNorm2d(4))
    assert gb.explain_error(refused(model, change(model.state_dict())), model) is None


def multiplied(states):
    out = copy.deepcopy(states[0])
    for key in out:
        out[key] *= 0.5


def added(states):
    out = copy.deepcopy(states[0])
    for key, value in states[1].items():
        out[key] += 0.5 * value


def divided(states):
    first = states[0]
    for key in first:
        first[key].div_(len(states))


def stacked(states):
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def moved(states):
    for mine, other in zip(states[0].values(), states[1].values(), strict=True):
        mine.lerp_(other, 0.1)


def moving_average(states):
    for mine, other in zip(states[0].values(), states[1].values(), strict=True):
        mine.mul_(0.9).add_(other, alpha=0.1)


AVERAGES = (multiplied, added, divided, stacked, moved, moving_average)


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_of_state_dicts_by_hand_is_explained(average):
    states = [network(nn.BatchNorm2d(4)).state_dict() for _ in range(2)]
    with pytest.raises((RuntimeError, NotImplementedError), match="Long") as raised:
        average(states)
    assert str(gb.explain_error(raised.value)) == (
        "num_batches_tracked of a BatchNorm is an integer (int64), which cannot take the fractions of an average. "
        "Average only the floating point entries, and take the norms' running statistics from "
        "gammabeta.merge_statistics(state_dicts): averages of variances leave out the variance between the means."
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_of_other_integers_is_not_explained(average):
    with pytest.raises((RuntimeError, NotImplementedError), match="Long") as raised:
        average([{"step": torch.tensor(3)}, {"step": torch.tensor(5)}])
    assert gb.explain_error(raised.value) is None


def test_a_checkpoint_from_before_a_fold_is_explained():
    """The norm is no module of the model any more: its keys are known by the statistics among them."""
    before = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
    folded = gb.fold(before, torch.randn(2, 3, 5, 5)).model
    with pytest.raises(RuntimeError) as caught:
        folded.load_state_dict(before.state_dict())
    told = gb.explain_error(caught.value, folded)
    assert told.why.startswith("the checkpoint has running statistics for 1")
    assert told.fix.endswith("change it afterwards: gammabeta.convert(model, …), gammabeta.fold(model, inputs).")
