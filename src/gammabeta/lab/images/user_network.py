"""The user's model for images: in place of the small ResNet.

``--model`` names one of two functions:

- ``build(input_shape, classes, norm) -> nn.Module``: ``input_shape`` is (channels, height, width); ``norm(channels)``
  returns the arm's normalization layer for (N, C, H, W), ``norm(channels, 0)`` the one for (N, C).
- ``build(input_shape, classes) -> nn.Module`` with BatchNorms, torch's or gammabeta's: the study replaces each by the
  arm's norm (:func:`gammabeta.lab.images.arms.put`).

Either model maps images (n, channels, height, width) float32, of any n, to scores (n, classes). It leaves its input as
it is, draws its weights with torch, numpy or random, and has parameters to train; frozen ones among them stay frozen.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gammabeta.lab import user_model
from gammabeta.lab.images.arms import ArmError, batch_norms, put
from gammabeta.lab.images.task import Task
from gammabeta.lab.norms import NORMS, named, norm
from gammabeta.lab.task import TaskError
from gammabeta.lab.user_model import Contract


def contract(task: Task) -> Contract:
    """Return the contract of a user's function for these images."""

    def put_arm(target: str, model: nn.Module, arm: str) -> None:
        _put(target, task, model, arm)

    return Contract(
        {"input_shape": task.shape, "classes": task.classes},
        norm,
        put_arm,
        lambda size: (task.train.x_nchw[:size],),
        lambda size: (size, task.classes),
        lambda scores, size: functional.cross_entropy(scores, task.train.y_n[:size]),
    )


def user_network(target: str, task: Task) -> dict[str, str]:
    """Rehearse the user's model with BatchNorm, and return what identifies it in a trial's settings.

    Raises:
        TaskError: the contract is not kept, or the model cannot be trained; the message says where.
    """
    return user_model.user_network(target, contract(task), "batch")


def build(target: str, task: Task, arm: str, seed: int) -> nn.Module:
    """Build the user's model with the arm's norms, in training mode.

    Raises:
        TaskError: a BatchNorm of the user's model cannot be replaced by the arm's norm.
    """
    return user_model.build(target, contract(task), arm, seed)


def impossible_arms(network: Mapping[str, Any], task: Task) -> dict[str, str]:
    """Return the arms that a user's model cannot have on this task, each with the reason.

    Each arm is rehearsed on one batch of 8. An example is InstanceNorm where the model has reduced images to 1 × 1,
    which leaves one value per channel and sample. The study's own networks can have all arms.
    """
    reasons: dict[str, str] = {}
    if network["kind"] != "user":
        return reasons
    target = network["model"]
    for arm in NORMS:
        with torch.random.fork_rng(devices=[]):
            try:
                user_model.try_once(target, build(target, task, arm, 0), contract(task))
            except (TaskError, ValueError) as error:
                reasons[arm] = str(error)
    return reasons


def _put(target: str, task: Task, model: nn.Module, arm: str) -> None:
    """Replace each BatchNorm of the user's model by the arm's norm."""
    if not batch_norms(model):
        raise TaskError(
            f"--model {target}: expected a model with BatchNorm layers (nn.BatchNorm1d, 2d, 3d or gammabeta's) from "
            f"build({task.shape}, {task.classes}), got {type(model).__name__} without one: put one where the model "
            "normalizes, or write build(input_shape, classes, norm) and put norm(channels) there."
        )
    try:
        put(model, arm)
    except ArmError as error:
        raise TaskError(f"--model {target}: {named(arm)} cannot stand in place of {error}.") from error
