"""Recipes of training that differ in how a step is taken: optimizers, precision, memory, what is frozen."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from tests.census.recipe import (
    SIZE,
    STEPS,
    Language,
    Watching,
    adamw,
    cnn,
    images,
    next_word,
    recipe,
    sentences,
    sgd,
    take_step,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import gammabeta as gb


@recipe
def plain_sgd(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))


@recipe
def sgd_with_cosine_and_warm_up(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    scheduler = schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer, 0.01, total_iters=5), schedulers.CosineAnnealingLR(optimizer, STEPS - 5)],
        milestones=[5],
    )
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))
            scheduler.step()


@recipe
def one_cycle(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=STEPS)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))
            scheduler.step()


@recipe
def epochs_with_validation(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for epoch in range(4):
            model.train()
            for x, y in images(6, seed=epoch):
                take_step(optimizer, F.cross_entropy(model(x), y))
            model.eval()
            with torch.no_grad():
                for x, _ in images(2, seed=100):
                    model(x)


@recipe
def evaluation_for_the_rest_of_training(watch: Watching) -> None:
    """`train()` is forgotten after the first validation."""
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for epoch in range(4):
            for x, y in images(6, seed=epoch):
                take_step(optimizer, F.cross_entropy(model(x), y))
            model.eval()
            with torch.no_grad():
                for x, _ in images(2, seed=100):
                    model(x)


@recipe
def one_process_of_many(watch: Watching) -> None:
    """DistributedDataParallel in a group of one."""
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            model = nn.parallel.DistributedDataParallel(cnn())
            optimizer = sgd(model)
            with watch(model, optimizer):
                for x, y in images():
                    take_step(optimizer, F.cross_entropy(model(x), y))
        finally:
            torch.distributed.destroy_process_group()


@recipe
def exponential_average(watch: Watching) -> None:
    model = cnn()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))
            with torch.no_grad():
                for mine, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    if mine.is_floating_point():
                        mine.lerp_(other, 0.1)
                    else:
                        mine.copy_(other)
            average(x)


@recipe
def averaged_model_with_buffers(watch: Watching) -> None:
    model = cnn()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))
            average.update_parameters(model)


@recipe
def stochastic_weight_averaging(watch: Watching) -> None:
    model = cnn()
    average = AveragedModel(model)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for step, (x, y) in enumerate(images()):
            take_step(optimizer, F.cross_entropy(model(x), y))
            if step % 4 == 3:
                average.update_parameters(model)
    update_bn([x for x, _ in images(6)], average)


@recipe
def bfloat16_autocast(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            take_step(optimizer, loss)


@recipe
def gradient_scaler_that_skips_steps(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with watch(model, optimizer):
        for step, (x, y) in enumerate(images()):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if step == 2:
                model[0][0].weight.grad[0, 0, 0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()


@recipe
def accumulation_without_batch_norm(watch: Watching) -> None:
    model = Language()
    optimizer = adamw(model)
    with watch(model, optimizer):
        for x in sentences():
            optimizer.zero_grad()
            for part in x.chunk(4):
                (next_word(model, part) / 4).backward()
            optimizer.step()


@recipe
def accumulation_with_batch_norm(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images(size=SIZE):
            optimizer.zero_grad()
            for part, labels in zip(x.chunk(4), y.chunk(4), strict=True):
                (F.cross_entropy(model(part), labels) / 4).backward()
            optimizer.step()


@recipe
def accumulation_with_our_context(watch: Watching) -> None:
    model = cnn()
    gb.adopt(model)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images(size=4 * SIZE):
            optimizer.zero_grad()
            with gb.accumulate_statistics(model):
                for part, labels in zip(x.chunk(4), y.chunk(4), strict=True):
                    (F.cross_entropy(model(part), labels) / 4).backward()
            optimizer.step()


@recipe
def checkpointing_adopted(watch: Watching) -> None:
    model = cnn()
    gb.adopt(model)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model[1](checkpoint(model[0], x, use_reentrant=False)), y))


@recipe
def checkpointing_of_layer_norms(watch: Watching) -> None:
    model = Language()
    optimizer = adamw(model)
    with watch(model, optimizer):
        for x in sentences():
            y = model.words(x[:, :-1])
            for block in model.blocks:
                y = checkpoint(block, y, use_reentrant=False)
            take_step(optimizer, F.cross_entropy(model.head(model.norm(y)).flatten(0, 1), x[:, 1:].flatten()))


@recipe
def reentrant_checkpointing_of_layer_norms(watch: Watching) -> None:
    model = Language()
    optimizer = adamw(model)
    with watch(model, optimizer):
        for x in sentences():
            y = model.words(x[:, :-1])
            for block in model.blocks:
                y = checkpoint(block, y, use_reentrant=True)
            take_step(optimizer, F.cross_entropy(model.head(model.norm(y)).flatten(0, 1), x[:, 1:].flatten()))


@recipe
def checkpointing_of_torch_s_batch_norms(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model[1](checkpoint(model[0], x, use_reentrant=False)), y))


@recipe
def reentrant_checkpointing_adopted(watch: Watching) -> None:
    model = cnn()
    gb.adopt(model)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            x.requires_grad_()
            take_step(optimizer, F.cross_entropy(model[1](checkpoint(model[0], x, use_reentrant=True)), y))


@recipe
def compiled(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    faster = torch.compile(model, backend="eager")
    with watch(faster, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(faster(x), y))


@recipe
def sharpness_aware(watch: Watching) -> None:
    """SAM with running statistics kept during the second forward, as its authors advise."""
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                moves = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
                for p, move in zip(model.parameters(), moves, strict=True):
                    p += move
            model.zero_grad()
            with gb.frozen_statistics(model):
                F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p -= move
            optimizer.step()


@recipe
def sharpness_aware_that_moves_statistics_twice(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                moves = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
                for p, move in zip(model.parameters(), moves, strict=True):
                    p += move
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p -= move
            optimizer.step()


class Signs(torch.optim.Optimizer):
    """Lion, written by hand."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(group["lr"] * (0.9 * mean + 0.1 * p.grad).sign())
                    mean.lerp_(p.grad, 0.01)


@recipe
def an_optimizer_by_hand(watch: Watching) -> None:
    model = Language()
    optimizer = Signs(gb.parameter_groups(model, 0.1), lr=1e-3)
    with watch(model, optimizer):
        for x in sentences():
            take_step(optimizer, next_word(model, x))


@recipe
def clipped_gradients(watch: Watching) -> None:
    model = Language(nn.RMSNorm)
    optimizer = adamw(model)
    with watch(model, optimizer):
        for x in sentences():
            optimizer.zero_grad()
            next_word(model, x).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


@recipe
def language_model_with_warm_up(watch: Watching) -> None:
    model = Language()
    optimizer = adamw(model)
    scheduler = schedulers.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    with watch(model, optimizer):
        for x in sentences():
            take_step(optimizer, next_word(model, x))
            scheduler.step()


@recipe
def learning_rate_by_layer(watch: Watching) -> None:
    model = Language()
    groups = []
    for depth, part in enumerate((model.words, *model.blocks, model.norm, model.head)):
        groups += [{**group, "lr": 1e-3 * 0.8 ** (4 - depth)} for group in gb.parameter_groups(part, 0.05)]
    optimizer = torch.optim.AdamW(groups)
    with watch(model, optimizer):
        for x in sentences():
            take_step(optimizer, next_word(model, x))


def _pretrained() -> nn.Sequential:
    model = cnn()
    optimizer = sgd(model)
    for x, y in images(60):
        take_step(optimizer, F.cross_entropy(model(x), y))
    model[1].reset_parameters()
    return model


def _tune(watch: Watching, model: nn.Sequential, optimizer: torch.optim.Optimizer, after_train: Any = None) -> None:
    with watch(model, optimizer):
        model.train()
        if after_train is not None:
            after_train()
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))


@recipe
def backbone_frozen_by_eval(watch: Watching) -> None:
    model = _pretrained()
    model[0].requires_grad_(False)
    _tune(watch, model, sgd(model[1]), model[0].eval)


@recipe
def backbone_frozen_by_us(watch: Watching) -> None:
    model = _pretrained()
    model[0].requires_grad_(False)
    gb.freeze(model[0])
    _tune(watch, model, sgd(model[1]))


@recipe
def backbone_frozen_as_lightning_does(watch: Watching) -> None:
    model = _pretrained()
    for module in model[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    model[0].requires_grad_(False)
    _tune(watch, model, sgd(model[1]), model[0].eval)


@recipe
def backbone_frozen_by_gradients_alone(watch: Watching) -> None:
    model = _pretrained()
    model[0].requires_grad_(False)
    _tune(watch, model, sgd(model[1]))


@recipe
def backbone_in_no_optimizer(watch: Watching) -> None:
    model = _pretrained()
    _tune(watch, model, sgd(model[1]))


@recipe
def linear_probe(watch: Watching) -> None:
    model = _pretrained()
    model[0].requires_grad_(False)
    optimizer = sgd(model[1])
    with watch(model, optimizer):
        model[0].eval()
        for x, y in images():
            with torch.no_grad():
                features = model[0](x)
            take_step(optimizer, F.cross_entropy(model[1](features), y))


@recipe
def fine_tuning_whole(watch: Watching) -> None:
    model = _pretrained()
    _tune(watch, model, sgd(model, lr=0.005))
