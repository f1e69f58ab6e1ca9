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
from gammabeta.lab.images.training import POPULATION, Judged, Run, exact_statistics, lost, places, reported
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
    stacks = settings["network"]["kind"] in ("mlp", "resnet", "mobilenet", "residual")
    return stacks and not settings.get("only_last") and not settings.get("augment")


class _Descent:
    """SGD on all members' parameters in one flat tensor, each member at its own learning rate."""

    def __init__(self, model: nn.Module, rates: Sequence[float], decay: float, momentum: float = 0.0) -> None:
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
        self.momentum = momentum
        self.velocity = torch.zeros_like(self.flat) if momentum else self.gradient

    def step(self, factor: float) -> None:
        if self.decays is not None:
            self.gradient.addcmul_(self.flat, self.decays)
        if self.momentum:
            self.velocity.mul_(self.momentum).add_(self.gradient)
        self.flat.addcmul_(self.velocity, self.steps, value=-factor)
        self.gradient.zero_()


class _Members:
    """The members of one stacked network in training: their data, their looks and their results."""

    def __init__(self, model: nn.Module, data: Sequence[Task], runs: Sequence[Run]) -> None:
        self.model, self.data, self.runs = model, data, runs
        first, own = runs[0], [run.own(task) for run, task in zip(runs, data, strict=True)]
        # What each member sees at each step: (steps, batch, members) places in its own images.
        self.order = torch.stack(
            [places(part, first.batch_size, first.steps, run.seed) for part, run in zip(own, runs, strict=True)],
            dim=2,
        )
        self.labels = torch.stack([part.y_n[self.order[:, :, m]] for m, part in enumerate(own)], dim=2)
        self.population = torch.cat([part.x_nchw[:POPULATION] for part in own], dim=1)
        self.own = _Side(own)
        self.validation = _Side([task.validation for task in data])
        self.reported = _Side([getattr(task, first.report) for task in data])
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
        x = (self.own.x[index] if self.own.shared else self.own.x[index, each]).flatten(1, 2)
        scores = self.model(x).unflatten(1, (len(self.runs), -1))
        by_sample = functional.cross_entropy(scores.movedim(2, 1), self.labels[step - 1], reduction="none")
        return by_sample.mean(dim=0)

    @torch.no_grad()
    def judge(self, side: "_Side") -> list[Judged]:
        """Return each member's answers on its own split, as ``judge`` of training does."""
        members = len(self.runs)
        scores = torch.cat([self.model(side.together(part, members)) for part in side.x.split(512)])
        each = scores.unflatten(1, (members, -1))
        return [Judged.of(each[:, m], side.of(m).y_n) for m in range(members)]

    def look(self, step: int) -> None:
        """Record losses and accuracies where they are due, and finish the members that reached the target."""
        run = self.runs[0]
        if run.curve and step % run.curve == 0:
            with exact_statistics(self.model, self.population):
                fitted, found = self.judge(self.own), self.judge(self.reported)
            for m in self.open():
                self.curves[m].append((step, fitted[m].loss, found[m].loss))
        if run.target is None or (step % run.every and step != run.steps):
            return
        with exact_statistics(self.model, self.population):
            validated = self.judge(self.validation)
        for m in self.open():
            self.accuracies[m].append((step, 1.0 - validated[m].error))
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
        wanted = [self.reported, self.validation] if run.report == "test" else [self.reported]
        self.model.eval()
        moving = [self.judge(side) for side in wanted]
        with exact_statistics(self.model, self.population):
            exact = [self.judge(side) for side in wanted]
            fitted = self.judge(self.own) if run.images is not None or run.report == "train" else None
        self.model.train()
        for m in which:
            looks, is_lost = self.accuracies[m], self.diverged[m] is not None
            none = [lost(side.of(m)) for side in wanted]
            of_exact, of_moving = (none if is_lost else [judged[m] for judged in each] for each in (exact, moving))
            self.results[m] = {
                "steps": None if is_lost else run.reached(looks),
                "accuracy": looks,
                **reported(self.data[m], run, of_exact, of_moving),
                "train_loss": None if is_lost or fitted is None else fitted[m].loss,
                "curve": self.curves[m],
                "diverged": self.diverged[m],
            }


class _Side:
    """One split of every member: the same images for all of them, or each member's own.

    Attributes:
        x: (n, channels, …) where they are shared; otherwise (n, members, channels, …).
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self.shared = all(split is splits[0] for split in splits)
        self.x = splits[0].x_nchw if self.shared else torch.stack([split.x_nchw for split in splits], dim=1)

    def of(self, member: int) -> Split:
        return self.splits[member]

    def together(self, part: Tensor, members: int) -> Tensor:
        """Lay the members' images side by side as channels."""
        return part.repeat(1, members, 1, 1) if self.shared else part.flatten(1, 2)


def train(several: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run trials of ``training:train`` that differ only in ``rate``, ``seed`` and the split of the task.

    Results are those of single runs, to rounding. Where networks hold a layer that does not stack, they run one by one.
    """
    runs = [Run(**settings) for settings in several]
    first = runs[0]
    data = [load(run.task) for run in runs]
    try:
        model = stack(
            [build(task, first.network, first.norm, run.seed) for run, task in zip(runs, data, strict=True)]
        ).train()
    except UnstackableError:
        return [training.train(**settings) for settings in several]
    members = _Members(model, data, runs)
    descent = _Descent(model, [run.rate for run in runs], first.decay, first.momentum)
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
