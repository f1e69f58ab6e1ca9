"""The control: a normalization that does nothing, in BatchNorm's place, gives no supported claim about training,
and no contradicted one.

Where a claim compares BatchNorm with another norm, that one does nothing either: otherwise a difference would be real.
Claims are made small, so that all of them over several sets of seeds take a minute. GAMMABETA_CONTROL=1 takes the
quick study's sizes, which needs a quarter of an hour.
"""

import os

import pytest
from tests.lab.claims.idle import put_idle
from tests.lab.claims.made_up_rates import independence
from tests.threads import one_thread

from gammabeta.lab import race
from gammabeta.lab.claims import (
    CLAIMS,
    affine_only,
    bn_placement,
    covariate_shift,
    few_shot,
    fine_tuning,
    gradient_flow,
    group_norm_needs_no_sync,
    hyperparameters,
    init_families,
    learned_affine,
    noise_regularizes,
    online_stream,
    optimization_first,
    pointwise,
    replaces_dropout,
    sequences,
    sharpness,
    skip_init,
    small_batch,
    smoother_landscape,
    test_time_statistics,
    train_eval_mismatch,
    weight_decay,
)
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import adaptation, init_together, transfer
from gammabeta.lab.sequences import training as sequence_training
from gammabeta.lab.sources import source
from gammabeta.lab.text import deep, rates
from gammabeta.lab.text import training as text_training
from gammabeta.lab.trials.store import Store

WHOLE = os.environ.get("GAMMABETA_CONTROL") == "1"
SEEDS = (0, 1, 2)

# The others measure identities, what a layer does without training, or costs.
NOT_ABOUT_TRAINING = {
    "unit_distribution",
    "axes",
    "sync_equals_large_batch",
    "batch_noise",
    "moving_average",
    "sync_cost",
}
# Claims that say what such a norm must show to be false, and why; for all others "contradicted" is an error too.
RIGHTLY_CONTRADICTED = {
    "weight_decay": "a norm that does nothing does not cancel the scale of the weights, and the identity is part of it",
}
# Claims of many arms, each with learning rates of its own: in small, three replicates have to do.
DEAR = ("noise_regularizes", "optimization_first")
TRAINING = [claim for claim in CLAIMS if claim.name not in NOT_ABOUT_TRAINING]


@pytest.fixture(autouse=True)
def as_a_trial():
    transfer.pretrained.cache_clear()  # its key has only the arm's name
    with one_thread():
        yield
    transfer.pretrained.cache_clear()


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """Give an experiment on the embedded tasks in this process, where every norm does nothing."""
    put_idle(monkeypatch)
    sources = {kind: source(name) for kind, name in (("images", "digits"), ("sequences", "strokes"), ("text", "text"))}
    store = Store(tmp_path)
    yield Experiment(sources, store, quick=True, jobs=1)
    store.close()


def made_small(monkeypatch):
    """Use narrow networks, few steps and small grids: enough to show a difference between the arms."""

    def mlp_alone(experiment):
        return [experiment.mlp(3, width=24)]

    def shorter(module, name, steps):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda **given: whole(**{**given, "steps": min(given["steps"], steps)}))

    monkeypatch.setattr(Experiment, "convolutional", property(lambda self: self.mlp(2, width=24)))
    whole = Experiment.train
    monkeypatch.setattr(
        Experiment, "train", lambda self, **given: whole(self, **{**given, "steps": min(given["steps"], 80)})
    )
    for module in (race, covariate_shift, smoother_landscape):
        monkeypatch.setattr(module, "networks", mlp_alone)
    for module in (bn_placement, hyperparameters, optimization_first, sharpness):
        monkeypatch.setattr(module, "networks", mlp_alone)
    for module in (bn_placement, hyperparameters, learned_affine, sharpness, skip_init):
        monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(skip_init, "forms", lambda experiment: [(2, False)])
    monkeypatch.setattr(covariate_shift, "LIMIT", 30)
    monkeypatch.setattr(gradient_flow, "STEPS", 1)
    families = {name: init_together.FAMILIES[name] for name in ("He", "N(0, 0.01)")}
    monkeypatch.setattr(init_families, "FAMILIES", families)
    monkeypatch.setattr(init_families, "networks", lambda experiment: [experiment.mlp(3, width=24)])
    for module in (init_families, group_norm_needs_no_sync, test_time_statistics):
        monkeypatch.setattr(module, "EPOCHS", 3)
    monkeypatch.setattr(group_norm_needs_no_sync, "_independence", independence)
    for name, value in (("FEW_EPISODES", 2), ("SHOTS", (5,)), ("STEPS", 10), ("COARSE", (-3,))):
        monkeypatch.setattr(few_shot, name, value)
    monkeypatch.setattr(
        online_stream, "regimes", lambda experiment: [online_stream.Regime(experiment.mlp(2, width=24), 8, "runs")]
    )
    monkeypatch.setattr(noise_regularizes, "IMAGES", 100)
    monkeypatch.setattr(
        small_batch,
        "plans",
        lambda experiment: [small_batch.Plan(experiment.mlp(2, width=24), ("batch", "group"), (4,), 64)],
    )
    monkeypatch.setattr(train_eval_mismatch, "WAYS", {"usual": (0.1, 2)})
    monkeypatch.setattr(replaces_dropout, "QUICK", (64, 10))
    monkeypatch.setattr(transfer, "EPOCHS", 5)
    monkeypatch.setattr(adaptation, "COARSE", (-6, -4))
    for module, ways in ((fine_tuning, {"rotated": 2, "classes": 8}), (affine_only, {"classes": 8})):
        monkeypatch.setattr(
            module,
            "cells",
            lambda experiment, ways=ways: [
                adaptation.Cell(experiment.mlp(2, width=24), target, 4, size, 160) for target, size in ways.items()
            ],
        )
    monkeypatch.setattr(weight_decay, "DECAYS", (0.01,))
    shorter(weight_decay, "decayed", 40)
    monkeypatch.setattr(sequence_training, "RATES", (-7,))
    monkeypatch.setattr(text_training, "RATES", (-7,))
    monkeypatch.setattr(rates, "RATES", (-7, -5))
    for module in (text_training, pointwise):
        monkeypatch.setattr(module, "steps_of", lambda experiment: 20)
    monkeypatch.setattr(deep, "steps_of", lambda experiment: 20)
    monkeypatch.setattr(text_training, "HELD", 32)
    monkeypatch.setattr(sequence_training, "steps_of", lambda experiment: 20)
    monkeypatch.setattr(sequence_training, "networks_of", lambda experiment: ["Transformer, pre-norm"])
    monkeypatch.setattr(sequences, "networks_of", lambda experiment: ["Transformer, pre-norm"])
    monkeypatch.setattr(sequence_training, "POPULATION", 64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claim", TRAINING, ids=lambda claim: claim.name)
def test_a_norm_that_does_nothing_supports_no_claim(claim, seed, idle, monkeypatch):
    # There are no values per statistic to count.
    monkeypatch.setattr(small_batch, "values_per_image", lambda experiment, network: 1)
    if not WHOLE:
        made_small(monkeypatch)
        idle.seed_count = 3 if claim.name in DEAR else None
    idle.seed = seed
    outcome = claim.measure(idle)
    print(outcome.verdict, outcome.sentence)
    excluded = {"supported", "mixed", "contradicted", "reported", "does not apply"}
    if claim.name in RIGHTLY_CONTRADICTED:
        excluded.remove("contradicted")
    assert outcome.verdict not in excluded, outcome.sentence
