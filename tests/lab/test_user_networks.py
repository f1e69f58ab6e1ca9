"""The user's model for sequences and text: its contract, what identifies it, and trials that train it."""

import re

import pytest

from gammabeta.lab.sequences.training import classified
from gammabeta.lab.sources import source
from gammabeta.lab.task import TaskError
from gammabeta.lab.text.training import language_model
from gammabeta.lab.user_networks import identify, kind_of_model

STROKES, TEXT = source("strokes"), source("text")
MODELS = """
import torch
from torch import nn


class Mean(nn.Module):
    def __init__(self, features, classes, norm):
        super().__init__()
        self.inputs, self.norm, self.out = nn.Linear(features, 8), norm(8), nn.Linear(8, classes)

    def forward(self, x, mask):
        real = mask.unsqueeze(-1).float()
        return self.out((torch.relu(self.norm(self.inputs(x), mask)) * real).sum(1) / real.sum(1))


class Recurrent(nn.Module):
    def __init__(self, vocabulary, norm, ahead):
        super().__init__()
        self.embedding, self.gru = nn.Embedding(vocabulary, 8), nn.GRU(8, 8, batch_first=True)
        self.norm, self.out, self.ahead = norm(8), nn.Linear(8, vocabulary), ahead

    def forward(self, tokens):
        h = self.embedding(tokens)
        h = h + h.mean(1, keepdim=True) if self.ahead else h
        return self.out(self.norm(self.gru(h)[0]))


def classifier(features, classes, norm):
    return Mean(features, classes, norm)


def decoder(vocabulary, context, norm):
    return Recurrent(vocabulary, norm, ahead=False)


def ahead(vocabulary, context, norm):
    return Recurrent(vocabulary, norm, ahead=True)


def without_norm(features, classes):
    return nn.Linear(features, classes)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


def test_a_model_belongs_to_the_only_kind_of_data_or_to_images():
    assert kind_of_model({"text": TEXT}) == "text"
    assert kind_of_model({"images": source("digits"), "text": TEXT}) == "images"


def test_a_model_of_sequences_is_rehearsed_and_trained(file):
    user = identify(f"{file}:classifier", {"sequences": STROKES}, quick=True)
    assert (user["kind"], user["of"]) == ("user", "sequences")
    settings = {"task": STROKES, "network": user, "rate": 2.0**-5, "steps": 2, "seed": 1, "report": "validation"}
    losses = {arm: classified(**settings, arm=arm)["loss"] for arm in ("masked", "layer", "none")}
    assert len(set(losses.values())) == 3


def test_a_model_of_text_is_rehearsed_and_trained(file):
    user = identify(f"{file}:decoder", {"text": TEXT}, quick=True)
    assert (user["kind"], user["of"]) == ("user", "text")
    shape = {"width": 16, "layers": 2, "context": 32, "batch": 4}
    settings = {"task": TEXT, "user": user, "rate": 2.0**-5, "steps": 2, "seed": 1, "report": "validation", **shape}
    losses = {arm: language_model(**settings, arm=arm)["loss"] for arm in ("padded", "layer", "none")}
    assert len(set(losses.values())) == 3


def test_a_model_of_text_that_looks_ahead_is_refused(file):
    message = (
        f"--model {file}:ahead: expected scores that depend on no later character, got others at position 0 when the "
        "characters from position 16 on changed: mask attention, as is_causal=True does."
    )
    with pytest.raises(TaskError, match=f"^{re.escape(message)}$"):
        identify(f"{file}:ahead", {"text": TEXT}, quick=True)


def test_a_model_of_sequences_takes_norm(file):
    message = (
        f"--model {file}:without_norm: expected a function build(features, classes, norm), got "
        "without_norm(features, classes)."
    )
    with pytest.raises(TaskError, match=f"^{re.escape(message)}$"):
        identify(f"{file}:without_norm", {"sequences": STROKES}, quick=True)
