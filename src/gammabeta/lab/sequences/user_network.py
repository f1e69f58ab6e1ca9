"""The user's model for sequences: in place of the study's recurrent networks and Transformers.

``--model`` names a function ``build(features, classes, norm) -> nn.Module``. ``features`` is the number of values of
each step. ``norm(channels)`` makes the arm's normalization layer. It is called as ``layer(x, mask)`` on (n, time,
channels) with the mask (n, time), or on one step's (n, channels) with the mask (n,). It returns x's shape.

The model is called as ``model(x, mask)``: x (n, time, features) float32, the mask (n, time) boolean, True where a step
is real; x is 0 elsewhere. It returns scores (n, classes), for any n and any time. It leaves its inputs as they are,
draws its weights with torch, numpy or random, and has parameters to train; frozen ones among them stay frozen.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab import user_model
from gammabeta.lab.sequences.networks import SequenceNorm
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.user_model import Contract


def contract(task: SequenceTask) -> Contract:
    """Return the contract of a user's function for these sequences."""

    def inputs(size: int) -> tuple[Tensor, ...]:
        lengths = task.train.lengths_n[:size]
        longest = int(lengths.max())
        return task.train.x_ntf[:size, :longest], gb.lengths_to_mask(lengths, longest)

    return Contract(
        {"features": task.features, "classes": task.classes},
        SequenceNorm,
        None,
        inputs,
        lambda size: (size, task.classes),
        lambda scores, size: functional.cross_entropy(scores, task.train.y_n[:size]),
    )


def user_network(target: str, task: SequenceTask) -> dict[str, Any]:
    """Rehearse the user's model with LayerNorm, and return what identifies it in a trial's settings.

    Raises:
        TaskError: the contract is not kept, or the model cannot be trained; the message says where.
    """
    return {**user_model.user_network(target, contract(task), "layer"), "of": "sequences"}


def build(target: str, task: SequenceTask, arm: str, seed: int) -> nn.Module:
    """Build the user's model with the arm's norms, in training mode, initialized by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        return user_model.build(target, contract(task), arm, seed)
