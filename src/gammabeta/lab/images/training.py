"""Training runs on images: SGD, with batches that depend only on the seed."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.introspection.unchanged import modes_kept
from gammabeta.lab.answers import packed
from gammabeta.lab.images.augmentation import crop_and_flip
from gammabeta.lab.images.networks import build
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.sequences.task import SequenceTask
from gammabeta.lab.sources import load
from gammabeta.lab.trials.trial import versioned
from gammabeta.moments import Moments

# Statistics for evaluation come from this many training images, in one batch.
POPULATION = 256


@contextlib.contextmanager
def exact_statistics(model: nn.Module, x_nchw: Tensor) -> Iterator[None]:
    """Evaluate with every BatchNorm's statistics computed from ``x_nchw`` under the present weights.

    They replace the moving averages, which lag behind the weights. On exit, mode and statistics are restored. One pass
    is enough: each layer takes its statistics from its input just before it normalizes by them.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]

    def take(layer: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        moments = Moments.of(x, [axis for axis in range(x.dim()) if axis != 1])
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(moments.mean.reshape(-1))
        layer.running_var.copy_(moments.var().reshape(-1))

    hooks = [layer.register_forward_pre_hook(take) for layer in layers]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            if layers:
                model(x_nchw)
            for hook in hooks:
                hook.remove()
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, buffers in zip(layers, before, strict=True):
            for name, buffer in buffers.items():
                getattr(layer, name).copy_(buffer)


def places(split: Split, size: int, steps: int, seed: int) -> Tensor:
    """Draw which samples each batch holds: (steps, size), decided by ``seed``.

    Each epoch has a new order, without its incomplete last batch.
    """
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(split) // size
    epochs = -(-steps // per_epoch)
    orders = [torch.randperm(len(split), generator=generator)[: per_epoch * size] for _ in range(epochs)]
    return torch.cat(orders).reshape(-1, size)[:steps]


def batches(split: Split, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` batches of ``size``, drawn by :func:`places`."""
    for index in places(split, size, steps, seed):
        yield split.x_nchw[index], split.y_n[index]


@torch.no_grad()
def scores_of(model: nn.Module, split: Split) -> Tensor:
    return torch.cat([model(part) for part in split.x_nchw.split(512)])


@dataclass(frozen=True)
class Judged:
    """A network's answers on one split: ``wrong`` (n,), and the mean cross entropy.

    Where any score is not finite, all answers are wrong and the loss is None.
    """

    wrong: Tensor
    loss: float | None

    @property
    def error(self) -> float:
        """The share of wrong answers."""
        return float(self.wrong.float().mean())

    @classmethod
    def of(cls, scores: Tensor, y_n: Tensor) -> "Judged":
        """Judge scores (n, classes) against labels (n,)."""
        if not bool(torch.isfinite(scores).all()):
            return cls(torch.ones_like(y_n, dtype=torch.bool), None)
        return cls(scores.argmax(dim=1) != y_n, float(functional.cross_entropy(scores, y_n)))


def judge(model: nn.Module, split: Split) -> Judged:
    return Judged.of(scores_of(model, split), split.y_n)


def error_and_loss(model: nn.Module, split: Split) -> tuple[float, float | None]:
    """Return the share of wrong answers and the mean cross entropy, as :class:`Judged` has them."""
    judged = judge(model, split)
    return judged.error, judged.loss


def subset(split: Split, count: int, classes: int, label_noise: float, seed: int) -> Split:
    """Draw ``count`` images by ``seed``; the share ``label_noise`` of them gets the label of another class."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(split), generator=generator)[:count]
    y_n = split.y_n[index].clone()
    wrong = torch.randperm(len(index), generator=generator)[: round(label_noise * len(index))]
    y_n[wrong] = (y_n[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
    return Split(split.x_nchw[index], y_n)


@dataclass
class Fitted:
    """A network after training, and the step at which its loss was not finite; None if it was always finite."""

    model: nn.Module
    diverged: int | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one network is trained, by SGD. What people train with is `gammabeta.lab.images.recipe.RECIPE`.

    Attributes:
        network: as :func:`gammabeta.lab.images.networks.build` takes it.
        norm: the arm.
        rate: the learning rate.
        steps: the number of batches.
        seed: decides the initialization and the batches.
        decay: weight decay of linear and convolutional layers (L2, in the gradient); never of γ, β and biases.
        momentum: m of v ← m·v + g, θ ← θ − η·v, as in torch.
        warm_up: the share of the steps in which the learning rate rises linearly (Goyal et al. 2017).
        schedule: ``"constant"``, or ``"cosine"``: after the warm-up the learning rate falls to 0 as half a cosine
            (Loshchilov & Hutter 2017).
        only_last: whether only the last layer is trained.
        augment: whether every batch's images are cropped and flipped (`gammabeta.lab.images.augmentation`).
    """

    network: Mapping[str, Any]
    norm: str
    rate: float
    batch_size: int
    steps: int
    seed: int
    decay: float = 0.0
    momentum: float = 0.0
    warm_up: float = 0.0
    schedule: str = "constant"
    only_last: bool = False
    augment: bool = False

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step; steps count from 1."""
        rising = round(self.warm_up * self.steps)
        if step <= rising:
            return step / rising
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - 1 - rising) / (self.steps - rising)))


def fit(
    data: Task,
    train: Split,
    training: Training,
    look: Callable[[int, nn.Module], bool] = lambda step, model: False,
) -> Fitted:
    """Train one network on ``train``.

    ``look`` is called with the step and the model before the first step and after each; training stops when it returns
    True, after ``training.steps``, or when the loss is not finite.
    """
    model = build(data, training.network, training.norm, training.seed)
    if training.only_last:
        for parameter in list(model.parameters())[:-2]:
            parameter.requires_grad_(False)
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            decayed = name == "weight" and isinstance(module, nn.Linear | nn.Conv2d)
            (weights if decayed else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": training.decay}, {"params": others}]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]], training.rate, momentum=training.momentum, foreach=True
    )
    fitted = Fitted(model)
    if look(0, model):
        return fitted
    drawn = batches(train, training.batch_size, training.steps, training.seed)
    changes = torch.Generator().manual_seed(training.seed)
    for step, (x_nchw, y_n) in enumerate(drawn, start=1):
        if training.augment:
            x_nchw = crop_and_flip(x_nchw, changes)
        for group in optimizer.param_groups:
            group["lr"] = training.rate * training.rate_factor(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x_nchw), y_n)
        loss.backward()
        optimizer.step()
        if not torch.isfinite(loss):
            fitted.diverged = step
            break
        if look(step, model):
            break
    return fitted


@dataclass(frozen=True, kw_only=True)
class Run(Training):
    """The settings of one trial of :func:`train`.

    Attributes:
        task: as :func:`gammabeta.lab.sources.load` takes it.
        target: stop at this validation accuracy, looked at after ``every`` steps with exact statistics.
        report: the split that the final error is taken from: ``"validation"`` while tuning, ``"test"`` after it.
        images: train on this many images, drawn by ``seed``; None for all.
        label_noise: the share of the training labels that are wrong.
        curve: look at the losses after each of that many steps; 0 for never.
    """

    task: Mapping[str, Any]
    target: float | None = None
    every: int = 5
    report: str = "validation"
    images: int | None = None
    label_noise: float = 0.0
    curve: int = 0

    def own(self, data: Task) -> Split:
        """Return the images that the network is trained on."""
        if self.images is None:
            return data.train
        return subset(data.train, self.images, data.classes, self.label_noise, self.seed)

    def reached(self, looks: Sequence[tuple[int, float]]) -> float | None:
        """Return the step at which the target was reached, interpolated between the last two looks, or None."""
        if self.target is None or len(looks) < 2 or looks[-1][1] < self.target:
            return None
        return crossing(looks[-2], looks[-1], self.target)


@versioned(5, together="gammabeta.lab.images.together")
def train(**settings: Any) -> dict[str, Any]:
    """Train one network.

    Args:
        settings: the fields of :class:`Run`. Arms of one seed share initialization, batches and subset.

    Returns:
        A dict with:

        - ``steps``: the step at which the target was reached, interpolated between the two looks around it, or None.
        - ``accuracy``: (step, validation accuracy) at each look.
        - ``error``, ``loss``: at the end, with exact statistics.
        - ``moving_error``, ``moving_loss``: with the moving averages.
        - ``validation``: these four on the validation split, where ``report`` is ``"test"``; otherwise None.
        - ``wrong``, ``moving_wrong``: which test images were answered wrongly, as
          :func:`gammabeta.lab.answers.packed` writes them, where all splits share the test images; otherwise None.
        - ``train_loss``: on the training images with their labels as trained, with exact statistics; None unless
          ``images`` is given or ``report`` is ``"train"``.
        - ``curve``: (step, train_loss, loss) at each look of the curve.
        - ``diverged``: the step at which the loss was not finite, or None.
    """
    run = Run(**settings)
    data = load(run.task)
    own = run.own(data)
    population_nchw = own.x_nchw[:POPULATION]
    split: Split = getattr(data, run.report)
    looks: list[tuple[int, float]] = []
    losses: list[tuple[int, float | None, float | None]] = []

    def look(step: int, model: nn.Module) -> bool:
        if run.curve and step % run.curve == 0:
            with exact_statistics(model, population_nchw):
                losses.append((step, error_and_loss(model, own)[1], error_and_loss(model, split)[1]))
        if run.target is None or (step % run.every and step != run.steps):
            return False
        with exact_statistics(model, population_nchw):
            looks.append((step, 1.0 - error_and_loss(model, data.validation)[0]))
        return step > 0 and looks[-1][1] >= run.target

    fitted = fit(data, own, run, look)
    train_loss = None
    wanted = [split, data.validation] if run.report == "test" else [split]
    if fitted.diverged is None:
        model = fitted.model.eval()
        moving = [judge(model, part) for part in wanted]
        with exact_statistics(model, population_nchw):
            exact = [judge(model, part) for part in wanted]
            if run.images is not None or run.report == "train":
                _, train_loss = error_and_loss(model, own)
    else:
        exact = moving = [lost(part) for part in wanted]
    return {
        "steps": run.reached(looks) if fitted.diverged is None else None,
        "accuracy": looks,
        **reported(data, run, exact, moving),
        "train_loss": train_loss,
        "curve": losses,
        "diverged": fitted.diverged,
    }


def lost(split: Split) -> Judged:
    """Return the answers of a network whose loss was not finite in training."""
    return Judged(torch.ones(len(split), dtype=torch.bool), None)


def reported(data: Task, run: "Run", exact: Sequence[Judged], moving: Sequence[Judged]) -> dict[str, Any]:
    """Return errors and losses as :func:`train` does.

    Args:
        exact, moving: with exact statistics and with moving averages, on the reported split and, where that is the test
            split, on the validation split.
    """
    each = [
        {"error": one.error, "loss": one.loss, "moving_error": other.error, "moving_loss": other.loss}
        for one, other in zip(exact, moving, strict=True)
    ]
    shared = run.report == "test" and data.keeps_test
    return {
        **each[0],
        "validation": each[1] if len(each) > 1 else None,
        "wrong": packed(exact[0].wrong) if shared else None,
        "moving_wrong": packed(moving[0].wrong) if shared else None,
    }


def crossing(before: tuple[int, float], after: tuple[int, float], target: float) -> float:
    """Return the step at which accuracy passed ``target``, interpolated between two looks (step, accuracy)."""
    if before[1] >= target:
        return float(before[0]) or 1.0
    return before[0] + (after[0] - before[0]) * (target - before[1]) / (after[1] - before[1])


FEWEST_STEPS, ENOUGH_SECONDS = 15, 10
"""Steps of a large network are timed for ten seconds, and never fewer than fifteen."""


@versioned(2)
def step_time(
    *, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, batch_size: int, seed: int, steps: int = 60
) -> dict[str, Any]:
    """Time up to ``steps`` training steps without evaluation; ``timing`` holds the median seconds per step."""
    data = load(task)
    model = build(data, network, norm, seed)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, foreach=True)
    taken: list[float] = []
    for x_nchw, y_n in batches(data.train, batch_size, steps, seed):
        start = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(x_nchw), y_n).backward()
        optimizer.step()
        taken.append(time.perf_counter() - start)
        if len(taken) >= FEWEST_STEPS and sum(taken) >= ENOUGH_SECONDS:
            break
    return {"steps": len(taken), "timing": {"seconds_per_step": sorted(taken)[len(taken) // 2]}}


@versioned(1)
def linear(*, task: Mapping[str, Any]) -> dict[str, Any]:
    """Train a linear classifier; its validation accuracy sets every network's target.

    It is multinomial logistic regression on the standardized pixels with scikit-learn's default L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    data = load(task)
    model = LogisticRegression(max_iter=300)
    model.fit(data.train.x_nchw.flatten(1).numpy(), data.train.y_n.numpy())
    accuracy = model.score(data.validation.x_nchw.flatten(1).numpy(), data.validation.y_n.numpy())
    return {"accuracy": float(accuracy), "chance": chance(data)}


def average_gradients(model: nn.Module) -> None:
    """Replace every parameter's gradient by its mean over processes, with one collective."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.reshape(gradient.shape))


def chance(task: Task | SequenceTask) -> float:
    """Return the accuracy of always answering the most frequent class."""
    return float(torch.bincount(task.validation.y_n, minlength=task.classes).max()) / len(task.validation)
