"""Networks for sequences and text side by side: member by member what each is one by one."""

import pytest
import torch
from tests.threads import one_thread

from gammabeta.lab.sequences import together as sequences_together
from gammabeta.lab.sequences.networks import ARMS, build_sequence_network
from gammabeta.lab.sequences.stacked import AdamW, put_back, stack, stackable
from gammabeta.lab.sequences.training import classified
from gammabeta.lab.sources import load_text, source
from gammabeta.lab.text import together as text_together
from gammabeta.lab.text.networks import PLACEMENTS, decoder
from gammabeta.lab.text.training import CLIP, DECAY, Run, decayed, language_model, losses_of
from gammabeta.lab.trials.trial import Trial, bundles

STROKES, TEXT = source("strokes"), source("text")
NETWORKS = ("GRU", "LSTM", "Transformer, pre-norm", "Transformer, post-norm")
SHAPE = {"width": 16, "layers": 2, "context": 12, "batch": 4}


@pytest.fixture(autouse=True)
def as_a_trial():
    with one_thread():
        yield


def close(member, alone):
    for name, value in alone.items():
        assert member[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    ("network", "arm"),
    [(network, arm) for network in NETWORKS for arm in ARMS if network in NETWORKS[:3] or arm == "padded"],
)
def test_sequence_networks_side_by_side_learn_what_each_learns_alone(network, arm):
    """In float64: where a bias has no gradient because a norm follows, Adam divides rounding by rounding."""
    generator = torch.Generator().manual_seed(0)
    models, alone = ([build_sequence_network(network, 3, 4, arm, 12, seed).double() for seed in (1, 2)] for _ in "ab")
    whole = stack(models).train()
    rates = (2.0**-7, 2.0**-5)
    together = AdamW(whole, rates)
    optimizers = [torch.optim.Adam(m.train().parameters(), rate) for m, rate in zip(alone, rates, strict=True)]
    for _ in range(3):
        x = torch.randn(2, 6, 5, 3, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, 6, (2, 6), generator=generator)
        lengths[:, 0] = torch.tensor([5, 4])  # the second member's batch is shorter
        lengths[1].clamp_(max=4)
        mask = torch.arange(5) < lengths[..., None]
        y = torch.randint(4, (2, 6), generator=generator)
        scores = whole(x, mask)
        losses = torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none").view(2, 6)
        together.step(losses.mean(1), 0.5)
        for place, (model, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            longest = int(lengths[place].max())
            optimizer.param_groups[0]["lr"] = 0.5 * rates[place]
            optimizer.zero_grad()
            own = model(x[place, :, :longest], mask[place, :, :longest])
            torch.nn.functional.cross_entropy(own, y[place]).backward()
            optimizer.step()
            torch.testing.assert_close(scores[place], own, rtol=1e-6, atol=1e-7)
    put_back(whole, models)
    for member, model in zip(models, alone, strict=True):
        for (name, one), (_, other) in zip(member.state_dict().items(), model.state_dict().items(), strict=True):
            if "num_batches" not in name:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("arm", ARMS)
def test_decoders_side_by_side_learn_what_each_learns_alone(arm, placement):
    if placement == "pre, qk" and arm in ("padded", "masked"):
        pytest.skip("BatchNorm has no heads")
    generator = torch.Generator().manual_seed(0)
    shape = (8, 2, 6)
    models, alone = ([decoder(11, arm, placement, shape, seed, 0.2).double() for seed in (1, 2)] for _ in "ab")
    whole = stack(models).train()
    rates = (2.0**-6, 2.0**-4)
    together = AdamW(whole, rates, DECAY, CLIP)
    optimizers = [torch.optim.AdamW(decayed(m.train()), rate) for m, rate in zip(alone, rates, strict=True)]
    # the first member's gradient is clipped, the second one's is not
    scale = torch.tensor([40.0, 1e-2], dtype=torch.float64)
    for _ in range(3):
        tokens = torch.randint(11, (2, 5, 7), generator=generator)
        together.step(scale * losses_of(whole, tokens).mean(1), 1.0)
        for place, (model, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            optimizer.zero_grad()
            (scale[place] * losses_of(model, tokens[place]).mean()).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            assert (norm > CLIP) == (place == 0)
            optimizer.step()
    put_back(whole, models)
    for member, model in zip(models, alone, strict=True):
        for (name, one), (_, other) in zip(member.named_parameters(), model.named_parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("network", ["GRU", "Transformer, pre-norm"])
def test_trials_on_sequences_run_as_one(network):
    base = {"network": network, "arm": "layer", "steps": 4, "batch_size": 8}
    settings = [
        {**base, "task": {**STROKES, "split": split}, "rate": rate, "seed": split, "report": "test"}
        for split, rate in ((1, 2.0**-7), (2, 2.0**-5))
    ]
    trials = [Trial("gammabeta.lab.sequences.training:classified", each) for each in settings]
    assert bundles(trials) == [trials]
    for member, one in zip(sequences_together.classified(settings), [classified(**s) for s in settings], strict=True):
        assert member["wrong"] is one["wrong"] is None  # other test sequences in each split
        for part, whole in ((member["validation"], one["validation"]), (member, one)):
            close(part, {name: whole[name] for name in ("error", "loss", "moving_error", "moving_loss")})


def test_trials_on_text_run_as_one_and_one_that_diverges_leaves_the_others_alone():
    base = {**SHAPE, "arm": "none", "steps": 8, "warm_up": 0.0}
    settings = [
        {**base, "task": {**TEXT, "split": split}, "rate": rate, "seed": split, "report": "test"}
        for split, rate in ((1, 2.0**-7), (2, 2.0**60), (3, 2.0**-5))
    ]
    trials = [Trial("gammabeta.lab.text.training:language_model", each) for each in settings]
    assert bundles(trials) == [trials]
    members, alone = text_together.language_model(settings), [language_model(**each) for each in settings]
    assert [one["diverged"] for one in members] == [one["diverged"] for one in alone] == [None, True, None]
    assert members[1]["loss"] == 10.0
    for member, one in zip(members, alone, strict=True):
        close(member, {"loss": one["loss"], "windows": one["windows"]})
        close(member["validation"], one["validation"])


def test_what_does_not_stack_or_gains_nothing_runs_alone():
    assert not stackable("masked:8")
    assert not sequences_together.joinable({"network": {"kind": "user"}, "arm": "layer"})
    assert not sequences_together.joinable({"network": "GRU", "arm": "masked:8"})
    assert text_together.joinable({**SHAPE, "arm": "layer"})
    assert not text_together.joinable({**SHAPE, "width": 128, "context": 64, "batch": 16, "arm": "layer"})
    assert not text_together.joinable({**SHAPE, "arm": "layer", "user": {"kind": "user"}})


def test_the_learning_rate_warms_up_and_falls_to_zero():
    run = Run(task=TEXT, arm="layer", rate=1.0, steps=40, seed=1, report="test", **SHAPE)
    factors = [run.rate_factor(step) for step in range(1, 41)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] < 0.01


def test_weights_of_linear_layers_alone_decay():
    data = load_text(TEXT)
    model = decoder(len(data.vocabulary), "layer", "pre", (8, 1, 6), 0)
    shrinking, others = decayed(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in shrinking["params"]} == {
        f"blocks.0.{layer}.weight" for layer in ("projections", "out", "up", "down")
    } | {"classifier.weight"}
    assert "embedding.weight" in {names[id(p)] for p in others["params"]}
    assert (shrinking["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
