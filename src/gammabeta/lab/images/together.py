"""Several training runs as one: networks of one shape side by side as groups of one network.

S networks become one, whose linear and convolutional layers have S groups and whose norms have S times the channels.
Each step then runs once for all members, which saves a few hundred microseconds of Python and dispatch per member and
step. Each member has its own seed, learning rate and data. Members do not affect each other: groups share nothing, and
every statistic of a norm is computed from one member's values.
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
from gammabeta.lab.images.residual import Multiplier, Offset, ResidualBlock
from gammabeta.lab.images.task import Split, Task
from gammabeta.lab.images.training import POPULATION, Run, exact_statistics, places
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
    """A layer whose groups of channels are not known to be independent."""


def _joined(modules: Sequence[nn.Module]) -> nn.Module | None:
    """Join modules into one that does to each group of channels what each of them does.

    Returns:
        The module; None where the modules' children have to be joined instead.
    """
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
    elif isinstance(first, Multiplier | Offset):
        whole = copy.deepcopy(first)
    elif isinstance(first, nn.Sequential | Block | ResidualBlock):
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
    """Stack networks of one architecture into one: (n, S·channels, …) to (n, S·classes), the first member first."""
    whole = copy.deepcopy(models[0])
    for name, _ in list(models[0].named_children()):
        parts = [model.get_submodule(name) for model in models]
        setattr(whole, name, _joined(parts) or stack(parts))
    return whole


def joinable(settings: Mapping[str, Any]) -> bool:
    """Whether a trial of ``training:train`` can run together with others: its network is known to stack."""
    return settings["network"]["kind"] in ("mlp", "resnet", "mobilenet", "residual") and not settings.get("only_last")


class _Descent:
    """SGD on all members' parameters in one flat tensor, each member at its own learning rate."""

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


class _Members:
    """The members of one stacked network in training: their data, their looks and their results."""

    def __init__(self, model: nn.Module, data: Task, runs: Sequence[Run]) -> None:
        self.model, self.data, self.runs = model, data, runs
        first, own = runs[0], [run.own(data) for run in runs]
        # What each member sees at each step: (steps, batch, members) places in its own images.
        self.order = torch.stack(
            [
                places(part, first.batch_size, first.steps, run.seed, first.order)
                for part, run in zip(own, runs, strict=True)
            ],
            dim=2,
        )
        self.labels = torch.stack([part.y_n[self.order[:, :, m]] for m, part in enumerate(own)], dim=2)
        self.population = torch.cat([part.x_nchw[:POPULATION] for part in own], dim=1)
        # (images, members, channels, …) and (images, members), where each member has images of its own
        self.own_x = torch.stack([part.x_nchw for part in own], dim=1) if first.images is not None else None
        self.own_y = torch.stack([part.y_n for part in own], dim=1) if first.images is not None else None
        self.reported: Split = getattr(data, first.report)
        self.accuracies: list[list[tuple[int, float]]] = [[] for _ in runs]
        self.curves: list[list[Any]] = [[] for _ in runs]
        self.diverged: list[int | None] = [None for _ in runs]
        self.results: list[dict[str, Any] | None] = [None for _ in runs]

    def open(self) -> list[int]:
        """Return the members that have no result yet."""
        return [m for m, result in enumerate(self.results) if result is None]

    def losses(self, step: int) -> Tensor:
        """Return the members' losses (members,) on their batches of a step; steps count from 1."""
        index = self.order[step - 1]
        each = torch.arange(len(self.runs))
        x = (self.data.train.x_nchw[index] if self.own_x is None else self.own_x[index, each]).flatten(1, 2)
        scores = self.model(x).unflatten(1, (len(self.runs), -1))
        by_sample = functional.cross_entropy(scores.movedim(2, 1), self.labels[step - 1], reduction="none")
        return by_sample.mean(dim=0)

    def judge(self, split: Split) -> list[tuple[float, float | None]]:
        """Return each member's (error, loss) on one split, as ``error_and_loss`` does."""
        members = len(self.runs)
        return self._judge(split.x_nchw.repeat(1, members, 1, 1), split.y_n[:, None].expand(-1, members))

    def judge_fit(self) -> list[tuple[float, float | None]]:
        """Return each member's (error, loss) on the images that it is trained on."""
        if self.own_x is None or self.own_y is None:
            return self.judge(self.data.train)
        return self._judge(self.own_x.flatten(1, 2), self.own_y)

    @torch.no_grad()
    def _judge(self, x: Tensor, y_nm: Tensor) -> list[tuple[float, float | None]]:
        members = len(self.runs)
        scores = torch.cat([self.model(part) for part in x.split(512)]).unflatten(1, (members, -1))
        finite = torch.isfinite(scores).all(dim=2).all(dim=0)
        wrong = (scores.argmax(dim=2) != y_nm).float().mean(dim=0)
        losses = functional.cross_entropy(scores.movedim(2, 1), y_nm, reduction="none").mean(dim=0)
        return [(float(wrong[m]), float(losses[m])) if finite[m] else (1.0, None) for m in range(members)]

    def look(self, step: int) -> None:
        """Record losses and accuracies where they are due, and finish the members that reached the target."""
        run = self.runs[0]
        if run.curve and step % run.curve == 0:
            with exact_statistics(self.model, self.population):
                train_losses, losses = self.judge_fit(), self.judge(self.reported)
            for m in self.open():
                self.curves[m].append((step, train_losses[m][1], losses[m][1]))
        if run.target is None or (step % run.every and step != run.steps):
            return
        with exact_statistics(self.model, self.population):
            found = self.judge(self.data.validation)
        for m in self.open():
            self.accuracies[m].append((step, 1.0 - found[m][0]))
        self.finish([m for m in self.open() if step > 0 and self.accuracies[m][-1][1] >= run.target])

    def drop_diverged(self, step: int, losses: Tensor) -> None:
        """Finish the members whose loss is not finite."""
        finite = torch.isfinite(losses).tolist()
        lost = [m for m in self.open() if not finite[m]]
        for m in lost:
            self.diverged[m] = step
        self.finish(lost)

    def finish(self, which: Sequence[int]) -> None:
        """Fill in the results of these members, from the network in its present state."""
        if not which:
            return
        run = self.runs[0]
        self.model.eval()
        moving = self.judge(self.reported)
        with exact_statistics(self.model, self.population):
            exact = self.judge(self.reported)
            wants_fit = run.images is not None or run.report == "train"
            fitted = self.judge_fit() if wants_fit else [(1.0, None) for _ in self.runs]
        self.model.train()
        for m in which:
            looks, lost = self.accuracies[m], self.diverged[m] is not None
            self.results[m] = {
                "steps": None if lost else run.reached(looks),
                "accuracy": looks,
                "error": 1.0 if lost else exact[m][0],
                "loss": None if lost else exact[m][1],
                "moving_error": 1.0 if lost else moving[m][0],
                "train_loss": None if lost else fitted[m][1],
                "curve": self.curves[m],
                "diverged": self.diverged[m],
            }


def train(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``training:train`` that differ only in ``rate`` and ``seed``; the results are equal to rounding.

    Where their networks hold a layer that does not stack, they run one by one.
    """
    runs = [Run(**settings) for settings in several]
    first = runs[0]
    data = load(first.task)
    try:
        model = stack([build(data, first.network, first.norm, run.seed) for run in runs]).train()
    except UnstackableError:
        return [training.train(**settings) for settings in several]
    members = _Members(model, data, runs)
    descent = _Descent(model, [run.rate for run in runs], first.decay)
    members.look(0)
    for step in range(1, first.steps + 1):
        losses = members.losses(step)
        losses.sum().backward()
        descent.step(first.rate_factor(step))
        members.drop_diverged(step, losses.detach())
        members.look(step)
        if not members.open():
            break
    members.finish(members.open())
    return cast(list[dict[str, Any]], members.results)
