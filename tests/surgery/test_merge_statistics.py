"""merge_statistics: the statistics of the pooled data, and what cannot be merged is named."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gammabeta as gb


def client(x, correction=1):
    """The state_dict of a model whose norm has the statistics of x."""
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(x.shape[1])).double()
    model[1].running_mean.copy_(x.mean(0))
    model[1].running_var.copy_(x.var(0, correction=correction))
    model[1].num_batches_tracked.fill_(len(x))
    return model.state_dict()


def data(sizes, seed, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, channels, generator=generator, dtype=torch.float64) * (1 + torch.rand(1, generator=generator))
        + 5 * torch.randn(channels, generator=generator)
        for n in sizes
    ]


SIZES = st.lists(st.integers(2, 40), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 1000), told=st.booleans())
def test_they_are_those_of_the_pooled_data(sizes, seed, told):
    parts = data(sizes, seed)
    pooled = torch.cat(parts)
    counts = sizes if told else None  # num_batches_tracked is the same here
    merged = gb.merge_statistics([client(part, correction=0) for part in parts], counts)
    # float64, some ten roundings.
    torch.testing.assert_close(merged["1.running_mean"], pooled.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged["1.running_var"], pooled.var(0, correction=0), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 1000))
def test_variances_divided_by_n_minus_1_are_pooled_to_a_part_in_n(sizes, seed):
    parts = data(sizes, seed)
    merged = gb.merge_statistics([client(part) for part in parts], sizes)["1.running_var"]
    pooled = torch.cat(parts).var(0, correction=1)
    assert ((merged - pooled).abs() <= (1 + 1e-9) * pooled / (min(sizes) - 1)).all()


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 1000), order=st.randoms())
def test_order_and_common_factors_of_the_counts_do_not_matter(sizes, seed, order):
    states = [client(part) for part in data(sizes, seed)]
    merged = gb.merge_statistics(states, sizes)
    mixed = list(zip(states, sizes, strict=True))
    order.shuffle(mixed)
    again = gb.merge_statistics([state for state, _ in mixed], [0.37 * n for _, n in mixed])
    for key, value in merged.items():
        torch.testing.assert_close(again[key], value, rtol=1e-12, atol=1e-12)


def test_the_variance_between_clients_is_kept():
    # Two clients of variance 1 whose means are 10 apart: the pooled variance is 1 + 5².
    states = [client(torch.tensor([[-1.0], [1.0]]) + mean, correction=0) for mean in (0.0, 10.0)]
    assert gb.merge_statistics(states)["1.running_var"].item() == pytest.approx(26)
    average = sum(state["1.running_var"] for state in states) / 2
    assert average.item() == pytest.approx(1)


def network(norm=nn.BatchNorm2d, channels=4):
    return nn.Sequential(nn.Conv2d(3, channels, 1), norm(channels), nn.Sequential(norm(channels), nn.Linear(2, 2)))


def test_only_running_statistics_are_returned_and_the_average_loads():
    models = [network() for _ in range(3)]
    for i, model in enumerate(models):
        for _ in range(i + 1):
            model[2][0](model[1](torch.randn(4, 4, 3, 3) + i))
    states = [model.state_dict() for model in models]
    before = copy.deepcopy(states)
    merged = gb.merge_statistics(states, [10, 20, 30])
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert list(merged) == [f"{norm}.{name}" for norm in ("1", "2.0") for name in names]
    assert merged["1.num_batches_tracked"].dtype == torch.int64
    assert merged["1.num_batches_tracked"].item() == 3
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(state[key], old[key]) for key in old)
    average = {key: sum(state[key] for state in states) / 3 for key in states[0]}
    average.update(merged)
    model = network()
    model.load_state_dict(average)
    assert torch.equal(model[1].running_var, merged["1.running_var"])


def test_what_has_counted_no_batch_does_not_count():
    states = [client(torch.randn(5, 2).double()) for _ in range(2)]
    states[1]["1.num_batches_tracked"].zero_()
    states[1]["1.running_mean"].zero_()
    states[1]["1.running_var"].fill_(1.0)
    merged = gb.merge_statistics(states)
    torch.testing.assert_close(merged["1.running_mean"], states[0]["1.running_mean"])
    states[0]["1.num_batches_tracked"].zero_()  # nobody has counted: equal weights
    equal = gb.merge_statistics(states)["1.running_mean"]
    torch.testing.assert_close(equal, (states[0]["1.running_mean"] + states[1]["1.running_mean"]) / 2)


def test_dtypes_stay_and_norms_without_a_count_are_merged():
    states = [network().bfloat16().state_dict() for _ in range(2)]
    for state in states:
        del state["1.num_batches_tracked"]
    merged = gb.merge_statistics(states)
    assert merged["1.running_mean"].dtype == torch.bfloat16
    assert "1.num_batches_tracked" not in merged
    assert "2.0.num_batches_tracked" in merged


def lost(key):
    state = network().state_dict()
    del state[key]
    return state


def poisoned(value, name):
    state = network().state_dict()
    state[name][1] = value
    return state


def moved(count=0, mean=0.5, dtype=torch.float32):
    state = network().state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.fill_(mean)
        elif key.endswith("num_batches_tracked"):
            value.fill_(count)
    return {key: value if key.endswith("tracked") else value.to(dtype) for key, value in state.items()}


STATE = network().state_dict()
REFUSED = {
    "none": ([], None, "expected at least one state_dict, got none."),
    "one by itself": (STATE, None, "expected a sequence of state_dicts, got a str at 0: load files with torch.load, "
                                   "and hand model.state_dict() of a model."),
    "a model": ([network()], None, "expected a sequence of state_dicts, got a Sequential at 0: load files with "
                                   "torch.load, and hand model.state_dict() of a model."),
    "no statistics": ([network(lambda c: nn.GroupNorm(2, c)).state_dict()], None,
                      "expected state_dicts with running statistics, got none in the first: are the norms GroupNorm or "
                      "LayerNorm? They have none."),
    "a checkpoint": ([{"epoch": 3, "state_dict": STATE}], None,
                     "expected state_dicts with running statistics, got none in the first: hand its 'state_dict'."),
    "keys": ([STATE, lost("2.0.running_mean")], None,
             "expected the same norms in every state_dict, got 2.0.num_batches_tracked in state_dict 0 and not in 1 (3 "
             "such keys): hand checkpoints of one architecture."),
    "a prefix": ([STATE, {f"module.{key}": value for key, value in STATE.items()}], None,
                 "expected the same keys in every state_dict, got 'module.' in those of state_dict 1 and not in those "
                 "of 0: take the state_dict of the wrapped model (model.module, model._orig_mod) in all of them."),
    "another prefix": ([{f"_orig_mod.{key}": value for key, value in STATE.items()}, STATE], None,
                       "expected the same keys in every state_dict, got '_orig_mod.' in those of state_dict 0 and not "
                       "in those of 1: take the state_dict of the wrapped model (model.module, model._orig_mod) in all "
                       "of them."),
    "moved, not counted": ([moved(), moved(3)], None,
                           "expected a num_batches_tracked above 0 with statistics that have moved, got 0 for 1 in "
                           "state_dict 0, so that its weight is unknown: hand counts, which are the weights."),
    "beyond float16": ([moved(3, 200.0, torch.float16), moved(3, -400.0, torch.float16)], None,
                       "expected merged statistics within torch.float16, got 1.running_var of up to 9e+04: cast the "
                       "state_dicts' running statistics to float32 first."),
    "meta": ([{key: value.to("meta") for key, value in STATE.items()}], None,
             "expected statistics with values, got a meta tensor, 1.running_mean in state_dict 0: load the checkpoint "
             "first."),
    "counts by name": ([STATE, STATE], {0: 1, 1: 2},
                       "expected counts as a sequence of numbers in the order of the state_dicts, got {0: 1, 1: 2}: "
                       "hand the number of samples of each, as [120, 80]."),
    "counts in words": ([STATE, STATE], ["3", "4"],
                        "expected counts as a sequence of numbers in the order of the state_dicts, got ['3', '4']: "
                        "hand the number of samples of each, as [120, 80]."),
    "more keys": ([lost("1.running_var"), STATE], None,
                  "expected the same norms in every state_dict, got 1.num_batches_tracked in state_dict 1 and not in 0 "
                  "(3 such keys): hand checkpoints of one architecture."),
    "shapes": ([STATE, network(channels=5).state_dict()], None,
               "expected the same channels in every state_dict, got 1.running_mean of shape (4,) in state_dict 0 and "
               "(5,) in 1: hand checkpoints of one architecture."),
    "too few counts": ([STATE, STATE], [3], "expected a count for each of 2 state_dicts, got 1: hand the number of "
                                            "samples of each, in their order."),
    "negative": ([STATE, STATE], [3, -1], "expected finite counts of at least 0, one of them above, got [3.0, -1.0]: "
                                          "hand the number of samples of each, or None."),
    "all zero": ([STATE, STATE], [0, 0], "expected finite counts of at least 0, one of them above, got [0.0, 0.0]: "
                                         "hand the number of samples of each, or None."),
    "NaN": ([STATE, STATE], [1, float("nan")], "expected finite counts of at least 0, one of them above, got [1.0, "
                                               "nan]: hand the number of samples of each, or None."),
    "not finite": ([STATE, poisoned(float("nan"), "2.0.running_mean")], None,
                   "expected statistics that are finite, with variances of at least 0, got 1 of 4 channels of 2.0 that "
                   "are not in state_dict 1: leave it out, or give it a count of 0."),
    "negative variance": ([poisoned(-1.0, "1.running_var"), STATE], [1, 1],
                          "expected statistics that are finite, with variances of at least 0, got 1 of 4 channels of 1 "
                          "that are not in state_dict 0: leave it out, or give it a count of 0."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_in_a_sentence(case):
    states, counts, text = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as raised:  # the whole text is compared
        gb.merge_statistics(states, counts)
    assert str(raised.value) == f"merge_statistics: {text}"


def test_a_client_that_is_not_finite_may_be_given_a_count_of_0():
    bad = poisoned(float("inf"), "1.running_var")
    merged = gb.merge_statistics([STATE, bad], [5, 0])
    assert torch.equal(merged["1.running_var"], STATE["1.running_var"])


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("counts", [None, [3, 1]])
def test_each_member_of_stacked_states_is_merged_with_its_own_counts(members, counts):
    clients = [[client(part) for part in data([5 + i + 4 * k for k in range(members)], i)] for i in range(2)]
    stacked = [{key: torch.stack([member[key] for member in of]) for key in of[0]} for of in clients]
    merged = gb.merge_statistics(stacked, counts)
    for k in range(members):
        alone = gb.merge_statistics([of[k] for of in clients], counts)
        for key, value in alone.items():
            # float64, in another order.
            torch.testing.assert_close(merged[key][k], value, rtol=1e-14, atol=0)


def test_where_one_state_does_not_count_the_weights_are_equal_or_those_handed():
    states = [client(part) for part in data([5, 9], 0)]
    del states[1]["1.num_batches_tracked"]
    assert list(gb.merge_statistics(states)) == ["1.running_mean", "1.running_var"]
    assert torch.equal(
        gb.merge_statistics(states)["1.running_var"], gb.merge_statistics(states, [1, 1])["1.running_var"]
    )


def test_counts_that_were_averaged_become_integers_and_arrays_of_numpy_are_taken():
    states = [client(part) for part in data([5, 9], 0)]
    arrays = [{key: value.numpy() for key, value in state.items()} for state in states]
    for key, value in gb.merge_statistics(states).items():
        assert torch.equal(gb.merge_statistics(arrays)[key], value)
    states[0]["1.num_batches_tracked"] = torch.tensor(9.5)
    count = gb.merge_statistics(states)["1.num_batches_tracked"]
    assert (count.dtype, int(count)) == (torch.int64, 10)
