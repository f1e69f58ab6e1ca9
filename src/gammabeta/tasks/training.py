"""One training run: plain SGD without momentum, a fixed rate, batches that depend on the seed alone."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.moments import Moments
from gammabeta.tasks.networks import build
from gammabeta.tasks.sources import load
from gammabeta.tasks.task import Split, Task
from gammabeta.trial import versioned

# Statistics for evaluation come from this many training images, in one batch.
POPULATION = 256


@contextlib.contextmanager
def exact_statistics(model: nn.Module, x_nchw: Tensor) -> Iterator[None]:
    """In evaluation mode with every BatchNorm's statistics those of ``x_nchw`` under the present weights, instead of
    the moving average, which lags behind them; on leaving, mode and statistics are as they were.

    One pass is enough: each layer takes its statistics from its input just before it normalizes by them.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    training = model.training

    def take(layer: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        moments = Moments.of(x, [axis for axis in range(x.dim()) if axis != 1])
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(moments.mean.reshape(-1))
        layer.running_var.copy_(moments.var().reshape(-1))

    hooks = [layer.register_forward_pre_hook(take) for layer in layers]
    model.eval()
    try:
        with torch.no_grad():
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
        model.train(training)


def batches(split: Split, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches of ``size``: each epoch a new order, without its incomplete last batch; decided by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(split) // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(split), generator=generator)
        place = step % per_epoch * size
        index = order[place : place + size]
        yield split.x_nchw[index], split.y_n[index]


@torch.no_grad()
def scores_of(model: nn.Module, split: Split) -> Tensor:
    return torch.cat([model(part) for part in split.x_nchw.split(512)])


def error_and_loss(model: nn.Module, split: Split) -> tuple[float, float | None]:
    """Share of wrong answers and mean cross entropy; a network whose scores are not finite is wrong everywhere."""
    scores = scores_of(model, split)
    if not bool(torch.isfinite(scores).all()):
        return 1.0, None
    wrong = (scores.argmax(dim=1) != split.y_n).float().mean()
    return float(wrong), float(functional.cross_entropy(scores, split.y_n))


@versioned(1)
def train(
    *,
    task: Mapping[str, Any],
    network: Mapping[str, Any],
    norm: str,
    rate: float,
    batch_size: int,
    steps: int,
    seed: int,
    target: float | None = None,
    every: int = 5,
    report: str = "validation",
) -> dict[str, Any]:
    """Train one network.

    Args:
        task, network: as :func:`gammabeta.tasks.task.load` and :func:`gammabeta.tasks.networks.build` take them.
        norm: the arm.
        rate: the learning rate of SGD, without momentum or decay.
        steps: the limit.
        seed: of the initialization and of the batches; arms of one seed share both.
        target: stop at this validation accuracy, looked at after ``every`` steps with exact statistics.
        report: the split that the final error is taken from: ``"validation"`` while tuning, ``"test"`` after it.

    Returns:
        ``steps``: at which the target was reached, interpolated between the two looks around it; None where it was not.
        ``accuracy``: (step, validation accuracy) at each look. ``error``, ``loss``: at the end, with exact statistics;
        ``moving_error``: the error with the moving averages. ``diverged``: the step at which the loss was not finite.
        ``timing``: processor seconds a step, evaluation left out.
    """
    data = load(task)
    model = build(data, network, norm, seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, foreach=True)
    population_nchw = data.train.x_nchw[:POPULATION]
    looks: list[tuple[int, float]] = []
    reached: float | None = None
    diverged: int | None = None
    spent = 0.0
    step = 0

    def look() -> float:
        with exact_statistics(model, population_nchw):
            return 1.0 - error_and_loss(model, data.validation)[0]

    if target is not None:
        looks.append((0, look()))
    for step, (x_nchw, y_n) in enumerate(batches(data.train, batch_size, steps, seed), start=1):
        start = time.process_time()
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x_nchw), y_n)
        loss.backward()
        optimizer.step()
        spent += time.process_time() - start
        if not torch.isfinite(loss):
            diverged = step
            break
        if target is not None and (step % every == 0 or step == steps):
            looks.append((step, look()))
            if looks[-1][1] >= target:
                reached = crossing(looks[-2], looks[-1], target)
                break
    split: Split = getattr(data, report)
    error, final_loss, moving_error = 1.0, None, 1.0
    if diverged is None:
        model.eval()
        moving_error, _ = error_and_loss(model, split)
        with exact_statistics(model, population_nchw):
            error, final_loss = error_and_loss(model, split)
    return {
        "steps": reached,
        "accuracy": looks,
        "error": error,
        "loss": final_loss,
        "moving_error": moving_error,
        "diverged": diverged,
        "timing": {"seconds_per_step": spent / max(step, 1)},
    }


def crossing(before: tuple[int, float], after: tuple[int, float], target: float) -> float:
    """The step at which accuracy passed ``target``, on the line between two looks (step, accuracy)."""
    if before[1] >= target:
        return float(before[0]) or 1.0
    return before[0] + (after[0] - before[0]) * (target - before[1]) / (after[1] - before[1])


@versioned(1)
def linear(*, task: Mapping[str, Any]) -> dict[str, Any]:
    """A linear classifier's accuracy on the validation split: what every network's target is set by.

    Multinomial logistic regression on the standardized pixels, scikit-learn's default L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    data = load(task)
    model = LogisticRegression(max_iter=300)
    model.fit(data.train.x_nchw.flatten(1).numpy(), data.train.y_n.numpy())
    accuracy = model.score(data.validation.x_nchw.flatten(1).numpy(), data.validation.y_n.numpy())
    return {"accuracy": float(accuracy), "chance": chance(data)}


def chance(task: Task) -> float:
    """The accuracy of always answering the most frequent class."""
    return float(torch.bincount(task.validation.y_n, minlength=task.classes).max()) / len(task.validation)
