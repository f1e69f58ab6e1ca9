"""The claims on sequences and text (sequences, layernorm_in_transformers), their networks and their data."""

import dataclasses

import numpy as np
import pytest
import torch

import gammabeta as gb
from gammabeta.lab.claims import sequences
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.sequences import networks as sequence_networks
from gammabeta.lab.sequences.arrays import sequence_task
from gammabeta.lab.sequences.networks import ARMS, SequenceNorm, Transformer, build_sequence_network
from gammabeta.lab.sources import load_sequences, load_text, source
from gammabeta.lab.task import TaskError
from gammabeta.lab.text import characters as text
from gammabeta.lab.text import training as text_training
from gammabeta.lab.text.networks import decoder
from gammabeta.lab.trials.store import Store

STROKES = source("strokes")
NETWORKS = ("GRU", "LSTM", "Transformer, pre-norm", "Transformer, post-norm")


@pytest.fixture(scope="module")
def strokes():
    return load_sequences(STROKES)


@pytest.fixture
def other_data(tmp_path):
    store = Store(tmp_path)
    yield Experiment({"sequences": STROKES, "text": source("text")}, store, quick=True, jobs=1)
    store.close()


# --- data ---


def test_strokes_vary_in_length_and_are_zero_from_there_on(strokes):
    for part in (strokes.train, strokes.validation, strokes.test):
        lengths = part.lengths_n
        assert 3 <= int(lengths.min()) <= 8
        assert 36 <= int(lengths.max()) <= 48
        mask = gb.lengths_to_mask(lengths, part.x_ntf.shape[1])
        assert float(part.x_ntf[~mask].abs().max()) == 0.0
        assert (torch.bincount(part.y_n, minlength=10) > 0.05 * len(part)).all()
    real = strokes.train.x_ntf[gb.lengths_to_mask(strokes.train.lengths_n, strokes.train.x_ntf.shape[1])]
    # standardized wherever there is ink: the first and last row of pixels vary too
    assert float(real.mean(dim=0).abs().max()) < 1e-4
    assert float((real.std(dim=0) - 1).abs().max()) < 1e-2


def test_no_row_of_digits_is_in_two_parts(strokes):
    first = {tuple(row[:5].flatten().tolist()) for row in strokes.train.x_ntf}
    shared = sum(tuple(row[:5].flatten().tolist()) in first for row in strokes.test.x_ntf)
    assert shared == 0


def test_text_is_cut_in_three_and_can_be_read_back(tmp_path):
    task = load_text(source("text"))
    assert 90 < len(task.vocabulary) <= text.CHARACTERS + 1
    words = "".join(task.vocabulary[index] for index in task.train_n[:4000].tolist())
    assert "assert" in words
    sizes = [len(part) for part in (task.train_n, task.validation_n, task.test_n)]
    assert sizes[0] / sum(sizes) == pytest.approx(0.9, abs=1e-3)
    own = tmp_path / "own.txt"
    own.write_text("ab\N{SNOWMAN} " * 4000, encoding="utf-8")
    small = load_text(source(f"text:{own}"))
    assert set(small.vocabulary) == {"a", "b", "\N{SNOWMAN}", " ", text.REPLACEMENT}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "own: expected a text of 10,000 characters or more, got 5."),
        (
            b"\xff\xfd\n" * 9000,
            "own.txt: expected a text in UTF-8, got other bytes at 0 (line 1): convert it to UTF-8, or name another "
            "file if it is no text.",
        ),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(TaskError) as refused:
        text.load(str(tmp_path / "own.txt"))
    assert str(refused.value) == message


def test_every_replicate_draws_its_own_split(strokes):
    first, same, second = (load_sequences({**STROKES, "split": split}) for split in (1, 1, 2))
    assert torch.equal(first.test.x_ntf, same.test.x_ntf)
    for part in ("train", "validation", "test"):
        own, other = (getattr(task, part) for task in (first, second))
        assert len(own) == len(other) == len(getattr(strokes, part))
        assert not torch.equal(own.y_n, other.y_n)
    real = second.train.x_ntf[gb.lengths_to_mask(second.train.lengths_n, second.train.x_ntf.shape[1])]
    assert float(real.mean(dim=0).abs().max()) < 1e-4


def test_arrays_keep_their_test_sequences_and_draw_the_rest_anew():
    rng = np.random.default_rng(0)
    arrays = {
        name: values
        for part, n in (("train", 60), ("test", 40))
        for name, values in (
            (f"x_{part}", rng.normal(size=(n, 6, 2))),
            (f"y_{part}", np.arange(n) % 3),
            (f"lengths_{part}", rng.integers(2, 7, n)),
        )
    }
    task = sequence_task(arrays, name="own", description="own", where="own")
    drawn = [task.redraw(split) for split in (1, 2)]
    assert task.keeps_test
    for one in drawn:
        assert torch.equal(one.test.y_n, task.test.y_n)
        assert torch.bincount(one.validation.y_n).tolist() == [4, 4, 4]
    assert not torch.equal(drawn[0].validation.lengths_n, drawn[1].validation.lengths_n)


def test_the_validation_part_of_a_text_moves_and_the_test_part_stays():
    whole = load_text(source("text"))
    tokens = torch.cat([whole.train_n, whole.validation_n])
    for split in (1, 2, 3):
        task = load_text({**source("text"), "split": split})
        start = task.joint
        assert torch.equal(task.test_n, whole.test_n)
        assert torch.equal(task.validation_n, tokens[start : start + len(task.validation_n)])
        assert torch.equal(task.train_n, torch.cat([tokens[:start], tokens[start + len(task.validation_n) :]]))
    assert whole.joint is None


def test_no_window_crosses_the_gap_of_the_validation_part():
    tokens = torch.cat([torch.zeros(20), torch.ones(15)]).long()
    task = dataclasses.replace(load_text(source("text")), train_n=tokens, joint=20)
    drawn = text_training.windows(task, 4000, 5, torch.Generator().manual_seed(0))
    assert (drawn == drawn[:, :1]).all()
    starts = text_training.windows(
        dataclasses.replace(task, train_n=torch.arange(35)), 4000, 5, torch.Generator().manual_seed(0)
    )[:, 0]
    assert sorted(starts.unique().tolist()) == [*range(15), *range(20, 30)]
    few = text_training.windows(task, 100, 5, torch.Generator().manual_seed(0), limit=18)
    assert (few == 0).all()


def test_a_text_of_a_million_characters_has_a_larger_network():
    small = load_text(source("text"))
    large = dataclasses.replace(small, train_n=small.train_n.repeat(3)[:950_000])
    widths = [text_training.shape_for(task, quick=quick)["width"] for task in (small, large) for quick in (True, False)]
    assert widths == [16, 48, 16, 128]


# --- networks ---


def test_dyt_is_a_scaled_tanh():
    layer = sequence_networks.DyT(3)
    with torch.no_grad():
        layer.alpha.fill_(0.7), layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0])), layer.bias.fill_(0.5)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), layer.weight * torch.tanh(0.7 * x) + 0.5)


def test_group_norm_of_a_step_takes_no_other_step():
    layer = SequenceNorm("group", 16)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(layer(x, None)[:, 3], layer(x[:, 3], None))
    grouped = x.unflatten(-1, (4, 4))
    expected = torch.nn.functional.layer_norm(grouped, [4]).flatten(-2)
    torch.testing.assert_close(layer(x, None), expected)


@pytest.mark.parametrize(("placement", "norms"), [("pre", 5), ("post", 4), ("peri", 9), ("pre, qk", 9)])
def test_a_placement_says_how_many_norms_there_are(placement, norms):
    model = decoder(11, "layer", placement, (8, 2, 6), 0)
    assert sum(isinstance(module, gb.LayerNorm) for module in model.modules()) == norms


def test_dropout_drops_in_training_and_keeps_the_mean():
    drop = sequence_networks.Dropout(0.25, seed=1)
    x = torch.ones(200, 100)
    out = drop(x)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("arm", ARMS)
def test_appended_padding_moves_only_batchnorm_over_padding(network, arm):
    moves = sequences.moved(task=STROKES, network=network, arm=arm, seed=1)
    assert moves["evaluation"] < 1e-12
    assert (moves["training"] > 1e-3) == (arm == "padded")


def test_a_decoder_does_not_look_ahead_in_evaluation_and_batchnorm_does_in_training():
    tokens = torch.randint(20, (4, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 7) % 20
    for arm in ("none", "padded", "layer", "rms", "group", "dyt"):
        torch.manual_seed(1)
        model = Transformer(0, 20, arm, longest=12)
        for training in (False, True):
            model.train(training)
            with torch.no_grad():
                difference = float((model(tokens) - model(changed))[:, :8].abs().max())
            assert (difference > 1e-3) == (training and arm == "padded"), (arm, training)


def test_masked_batchnorm_takes_its_statistics_from_what_is_real():
    layer = SequenceNorm("masked", 3).train()
    x = torch.randn(5, 7, 3)
    mask = gb.lengths_to_mask(torch.tensor([7, 3, 1, 5, 2]), 7)
    y = layer(x, mask).detach()
    assert float(y[mask].mean(dim=0).abs().max()) < 1e-5
    assert float(y[mask].var(dim=0, correction=0).sub(1).abs().max()) < 1e-3
    with pytest.raises(
        ValueError, match=r"^SequenceNorm: expected one of none, padded, masked, layer, rms, group, dyt, got batch$"
    ):
        SequenceNorm("batch", 3)


def test_a_seed_decides_a_network():
    one, same, other = (build_sequence_network("GRU", 8, 10, "layer", 96, seed) for seed in (1, 1, 2))
    assert torch.equal(one.states.weight, same.states.weight)
    assert not torch.equal(one.states.weight, other.states.weight)


# --- claims ---


def test_the_language_model_learns_from_its_characters():
    settings = {"task": source("text"), "arm": "layer", "rate": 2.0**-7, "seed": 1, "report": "validation"}
    shape = {"width": 16, "layers": 1, "context": 16, "batch": 8}
    found = text_training.language_model(**{**settings, "rate": 2.0**-5}, **shape, steps=150)
    assert found["loss"] < 3.2  # the characters' frequencies alone give 3.25
    assert [step for step, _ in found["course"]] == [100, 150]
    assert found["validation"] is found["windows"] is None


# --- statistics of every step ---


@pytest.mark.parametrize("arm", ["padded", "masked"])
def test_exact_statistics_are_each_steps_own_and_leave_no_trace(arm):
    torch.manual_seed(0)
    model = sequence_networks.Recurrent(3, 4, arm, width=8).double()
    x_ntf = torch.randn(64, 5, 3, dtype=torch.float64)
    # 40 sequences of 5 steps and 24 of 4: at every step at least 32 count
    mask_nt = gb.lengths_to_mask(torch.tensor([5] * 40 + [4] * 24), 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        in_training = model.train()(x_ntf, mask_nt)
        model.load_state_dict(before)
        with sequence_networks.exact_statistics(model, x_ntf, mask_nt):
            assert not model.training
            # the statistics of every call are those that training takes from the same batch
            torch.testing.assert_close(model(x_ntf, mask_nt), in_training, rtol=0, atol=1e-12)
            # and they do not depend on the other sequences of the batch
            torch.testing.assert_close(model(x_ntf[:3], mask_nt[:3]), in_training[:3], rtol=0, atol=1e-12)
        assert model.training
        moving = model.eval()(x_ntf, mask_nt)
    assert (moving - in_training).abs().max() > 1e-3
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_steps_at_which_few_are_alive_take_the_last_statistics_of_many():
    torch.manual_seed(0)
    model = sequence_networks.Recurrent(3, 4, "masked", width=8).double().train()
    x_ntf = torch.randn(64, 6, 3, dtype=torch.float64)
    mask_nt = gb.lengths_to_mask(torch.tensor([6] + [4] * 63), 6)
    seen = []
    with sequence_networks.exact_statistics(model, x_ntf, mask_nt):
        model.state_norm.norm.register_forward_hook(lambda layer, *_: seen.append(layer.running_var.clone()))
        model(x_ntf, mask_nt)
    # a single sequence has variance 0: steps 5 and 6 take step 4's
    assert torch.equal(seen[4], seen[3])
    assert torch.equal(seen[5], seen[3])
    assert not torch.equal(seen[3], seen[2])
    assert torch.isfinite(torch.stack(seen)).all()
