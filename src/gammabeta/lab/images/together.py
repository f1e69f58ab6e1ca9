"""Several training runs as one: networks of one shape side by side as groups of one network.

S networks become one whose linear and convolutional layers have S groups and whose norms have S times the channels, so
that every step, a few hundred microseconds of which are Python and dispatch, is taken for all at once. Each member has
its own seed, rate and data; nothing of one reaches another, since groups share nothing and every statistic of a norm is
of one member's values.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.images import training
from gammabeta.lab.images.networks import Block, Dropout, build
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.training import POPULATION, crossing, exact_statistics, places, subset
from gammabeta.lab.norms import ChannelRMSNorm
from gammabeta.lab.sources import load


class GroupedLinear(nn.Module):
    """S linear layers: (n, S·inputs) to (n, S·outputs), weight (S, outputs, inputs)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        members = self.weight.shape[0]
        x_sni = x.reshape(len(x), members, -1).transpose(0, 1)
        y_sno = torch.baddbmm(self.bias[:, None], x_sni, self.weight.transpose(1, 2))
        return y_sno.transpose(0, 1).flatten(1)


class GroupedRMSNorm(nn.Module):
    """S RMSNorms over the channels of (n, S·C) or, at each position, of (n, S·C, H, W); weight (S, C)."""

    def __init__(self, layers: Sequence[gb.RMSNorm]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([cast(Tensor, layer.weight).detach() for layer in layers]))
        self.eps = layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        members, channels = self.weight.shape
        parts = x.unflatten(1, (members, channels)).movedim(2, -1)
        y = gb.functional.rms_norm(parts.contiguous(), [channels], eps=self.eps)
        shaped = self.weight.reshape(1, members, *(1,) * (x.dim() - 2), channels)
        return (y * shaped).movedim(-1, 2).flatten(1, 2)


class UnstackableError(TypeError):
    """A layer of which it is not known that groups of its channels share nothing."""


def _joined(modules: Sequence[nn.Module]) -> nn.Module | None:
    """One module that does what each of them does to its own group of channels; None for one whose children are to
    be joined."""
    first, members = modules[0], len(modules)
    if isinstance(first, nn.Linear):
        return GroupedLinear(cast(Sequence[nn.Linear], modules))
    if isinstance(first, ChannelRMSNorm):
        return GroupedRMSNorm([cast(ChannelRMSNorm, module).norm for module in modules])
    if isinstance(first, gb.RMSNorm):
        return GroupedRMSNorm(cast(Sequence[gb.RMSNorm], modules))
    whole: nn.Module
    if isinstance(first, nn.Conv2d):
        whole = copy.deepcopy(first)
        whole.in_channels, whole.out_channels, whole.groups = (
            members * first.in_channels, members * first.out_channels, members * first.groups
        )  # fmt: skip
    elif isinstance(first, gb.LayerNorm):
        whole = gb.GroupNorm(members, members * math.prod(first.normalized_shape), eps=first.eps)
    elif isinstance(first, nn.GroupNorm):
        whole = copy.deepcopy(first)
        whole.num_groups, whole.num_channels = members * first.num_groups, members * first.num_channels
    elif isinstance(first, nn.modules.batchnorm._NormBase):
        whole = copy.deepcopy(first)
        whole.num_features = members * first.num_features
    elif isinstance(first, nn.ReLU | nn.Tanh | nn.Sigmoid | nn.Identity):
        return first
    elif isinstance(first, Dropout):
        return Dropout(first.rate, [seed for module in cast(Sequence[Dropout], modules) for seed in module.seeds])
    elif isinstance(first, nn.Sequential | Block):
        return None
    else:
        raise UnstackableError(type(first).__name__)
    for kind in ("_parameters", "_buffers"):
        for name, value in getattr(first, kind).items():
            if value is not None and value.dim():
                parts = torch.cat([getattr(module, name).detach() for module in modules])
                getattr(whole, kind)[name] = nn.Parameter(parts) if kind == "_parameters" else parts
    return whole


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One network of the given ones, which are of one architecture: (n, S·channels, …) to (n, S·classes), the first
    member's first."""
    whole = copy.deepcopy(models[0])
    for name, _ in list(models[0].named_children()):
        parts = [model.get_submodule(name) for model in models]
        setattr(whole, name, _joined(parts) or stack(parts))
    return whole


def joinable(settings: Mapping[str, Any]) -> bool:
    """Whether a trial of ``training:train`` can run beside others: the networks that are known to stack."""
    return settings["network"]["kind"] in ("mlp", "resnet") and not settings.get("only_last")


class _Descent:
    """SGD on all members' parameters in one flat tensor, each member at its own rate."""

    def __init__(self, model: nn.Module, rates: Sequence[float], decay: float) -> None:
        parameters = list(model.parameters())
        self.flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.gradient = torch.zeros_like(self.flat)
        per_member = torch.tensor(rates, dtype=self.flat.dtype)
        steps, decays = [], []
        decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d | GroupedLinear)}
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            steps.append(per_member.repeat_interleave(parameter.numel() // len(rates)))
            decays.append(torch.full((parameter.numel(),), decay if id(parameter) in decayed else 0.0))
            parameter.data = self.flat[start:end].view(parameter.shape)
            parameter.grad = self.gradient[start:end].view(parameter.shape)
            start = end
        self.steps = torch.cat(steps)
        self.decays = torch.cat(decays) if decay else None

    def step(self, factor: float) -> None:
        if self.decays is not None:
            self.gradient.addcmul_(self.flat, self.decays)
        self.flat.addcmul_(self.gradient, self.steps, value=-factor)
        self.gradient.zero_()


def train(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of ``training:train`` for trials that differ in ``rate`` and ``seed`` alone, to rounding; one by one
    where their networks hold a layer that does not stack.
    """
    shared = {"target": None, "every": 5, "report": "validation", "images": None, "label_noise": 0.0, "curve": 0}
    common = {**shared, "decay": 0.0, "schedule": "constant", "order": "shuffled", **several[0]}
    seeds, rates = [s["seed"] for s in several], [s["rate"] for s in several]
    members, batch, steps = len(several), common["batch_size"], common["steps"]
    data = load(common["task"])
    try:
        model = stack([build(data, common["network"], common["norm"], seed) for seed in seeds]).train()
    except UnstackableError:
        return [training.train(**settings) for settings in several]
    own = [
        data.train if common["images"] is None
        else subset(data.train, common["images"], data.classes, common["label_noise"], seed)
        for seed in seeds
    ]  # fmt: skip
    # What each member sees at each step: (steps, batch, members) places in its own images.
    order = torch.stack(
        [places(part, batch, steps, seed, common["order"]) for part, seed in zip(own, seeds, strict=True)], dim=2
    )
    labels = torch.stack([part.y_n[order[:, :, m]] for m, part in enumerate(own)], dim=2)
    images = torch.stack([part.x_nchw for part in own], dim=1) if common["images"] is not None else None
    descent = _Descent(model, rates, common["decay"])
    population = torch.cat([part.x_nchw[:POPULATION] for part in own], dim=1)
    each = torch.arange(members)

    def scores_of(split_x: Tensor | None, stacked: Tensor | None) -> Tensor:
        x = stacked if stacked is not None else cast(Tensor, split_x).repeat(1, members, 1, 1)
        return torch.cat([model(part) for part in x.split(512)]).unflatten(1, (members, -1))

    def judged(split: Split, stacked: Tensor | None = None, labels_nm: Tensor | None = None) -> list[Any]:
        """(error, loss) of each member, as ``error_and_loss`` has them."""
        with torch.no_grad():
            scores = scores_of(split.x_nchw, stacked)
        y = split.y_n[:, None].expand(-1, members) if labels_nm is None else labels_nm
        finite = torch.isfinite(scores).all(dim=2).all(dim=0)
        wrong = (scores.argmax(dim=2) != y).float().mean(dim=0)
        losses = functional.cross_entropy(scores.movedim(2, 1), y, reduction="none").mean(dim=0)
        return [(float(wrong[m]), float(losses[m])) if finite[m] else (1.0, None) for m in range(members)]

    split: Split = getattr(data, common["report"])
    mine = torch.cat([part.x_nchw for part in own], dim=1) if images is not None else None
    mine_y = torch.stack([part.y_n for part in own], dim=1) if images is not None else None
    accuracies: list[list[tuple[int, float]]] = [[] for _ in several]
    curves: list[list[Any]] = [[] for _ in several]
    diverged: list[int | None] = [None] * members
    results: list[dict[str, Any] | None] = [None] * members
    target, every, curve = common["target"], common["every"], common["curve"]

    def finish(which: Sequence[int]) -> None:
        """The results of these members as the network is now."""
        model.eval()
        moving = judged(split)
        with exact_statistics(model, population):
            exact = judged(split)
            fitted = judged(split, mine, mine_y) if mine is not None else (
                judged(data.train) if common["report"] == "train" else [(None, None)] * members
            )  # fmt: skip
        model.train()
        for m in which:
            looks, lost = accuracies[m], diverged[m] is not None
            reached = None
            if target is not None and not lost and len(looks) > 1 and looks[-1][1] >= target:
                reached = crossing(looks[-2], looks[-1], target)
            results[m] = {
                "steps": reached,
                "accuracy": looks,
                "error": 1.0 if lost else exact[m][0],
                "loss": None if lost else exact[m][1],
                "moving_error": 1.0 if lost else moving[m][0],
                "train_loss": None if lost else fitted[m][1],
                "curve": curves[m],
                "diverged": diverged[m],
            }

    def look(step: int) -> None:
        open_members = [m for m in range(members) if results[m] is None]
        wants_target = target is not None and (step % every == 0 or step == steps)
        if curve and step % curve == 0:
            with exact_statistics(model, population):
                train_losses = judged(data.train, mine, mine_y)
                losses = judged(split)
            for m in open_members:
                curves[m].append((step, train_losses[m][1], losses[m][1]))
        if wants_target:
            with exact_statistics(model, population):
                found = judged(data.validation)
            for m in open_members:
                accuracies[m].append((step, 1.0 - found[m][0]))
            done = [m for m in open_members if step > 0 and accuracies[m][-1][1] >= target]
            if done:
                finish(done)

    look(0)
    for step in range(1, steps + 1):
        factor = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)) if common["schedule"] == "cosine" else 1.0
        index = order[step - 1]
        x = (data.train.x_nchw[index] if images is None else images[index, each]).flatten(1, 2)
        scores = model(x).unflatten(1, (members, -1))
        losses = functional.cross_entropy(scores.movedim(2, 1), labels[step - 1], reduction="none").mean(dim=0)
        losses.sum().backward()
        descent.step(factor)
        lost = [
            m
            for m, finite in enumerate(torch.isfinite(losses.detach()).tolist())
            if not finite and diverged[m] is None and results[m] is None
        ]
        for m in lost:
            diverged[m] = step
        if lost:
            finish(lost)
        look(step)
        if all(result is not None for result in results):
            break
    finish([m for m in range(members) if results[m] is None])
    return cast(list[dict[str, Any]], results)
