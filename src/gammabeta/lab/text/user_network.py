"""The user's model for text: in place of the study's decoder.

``--model`` names a function ``build(vocabulary, context, norm) -> nn.Module``. ``vocabulary`` is the number of
characters, ``context`` the largest number of them that the model is given. ``norm(channels)`` makes the arm's
normalization layer for (n, time, channels).

The model is called as ``model(tokens)``: tokens (n, time) int64, from 0 to ``vocabulary`` − 1, time up to ``context``.
It returns scores (n, time, vocabulary) of each next token, for any n, and is causal: the scores at a position depend on
no later token. It draws its weights with torch, numpy or random, and has parameters to train; frozen ones among them
stay frozen. BatchNorm looks ahead in training, as in every network; in evaluation it does not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab import user_model
from gammabeta.lab.sequences.networks import SequenceNorm
from gammabeta.lab.task import TaskError
from gammabeta.lab.text.task import TextTask
from gammabeta.lab.user_model import Contract


class TextNorm(SequenceNorm):
    """The norm of one arm, called without a mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask)


def contract(task: TextTask, context: int) -> Contract:
    """Return the contract of a user's function for this text."""
    vocabulary = len(task.vocabulary)

    def tokens(size: int) -> Tensor:
        return task.train_n[: size * (context + 1)].view(size, context + 1)

    return Contract(
        {"vocabulary": vocabulary, "context": context},
        TextNorm,
        None,
        lambda size: (tokens(size)[:, :-1],),
        lambda size: (size, context, vocabulary),
        lambda scores, size: functional.cross_entropy(scores.flatten(0, 1), tokens(size)[:, 1:].flatten()),
    )


def user_network(target: str, task: TextTask, context: int) -> dict[str, Any]:
    """Rehearse the user's model with LayerNorm, and return what identifies it in a trial's settings.

    Raises:
        TaskError: the contract is not kept, or the model cannot be trained, or looks ahead; the message says where.
    """
    found = user_model.user_network(target, contract(task, context), "layer")
    check_causal(target, build(target, task, "layer", 0, context), task, context)
    return {**found, "of": "text"}


@torch.no_grad()
def check_causal(target: str, model: Callable[[Tensor], Tensor], task: TextTask, context: int) -> None:
    """Check that in evaluation no score depends on a later token.

    Raises:
        TaskError: one does, so that the model would predict what it is given.
    """
    assert isinstance(model, nn.Module)
    tokens = task.train_n[:context][None].clone()
    half = context // 2
    changed = tokens.clone()
    changed[:, half:] = (changed[:, half:] + 1) % len(task.vocabulary)
    model.eval()
    before, after = (model(each)[:, :half] for each in (tokens, changed))
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        first = int((before - after).abs().amax(dim=(0, 2)).gt(1e-5).nonzero()[0])
        raise TaskError(
            f"--model {target}: expected scores that depend on no later character, got others at position {first} when "
            f"the characters from position {half} on changed: mask attention, as is_causal=True does."
        )


def build(target: str, task: TextTask, arm: str, seed: int, context: int) -> nn.Module:
    """Build the user's model with the arm's norms, in training mode, initialized by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        return user_model.build(target, contract(task, context), arm, seed)
