"""SGD on networks that exist already: one, or several stacked into one, each at its own learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.together import GroupedLinear
from gammabeta.lab.images.training import Judged, Training


class Descent:
    """SGD on the parameters that require gradients.

    Each parameter stays a tensor of its own, so that a deep copy of model and descent goes on where they stopped. The
    one flat tensor of `gammabeta.lab.images.together` is faster, and a deep copy would not share it with the model.

    Args:
        model: one network, or S of them as :func:`gammabeta.lab.images.together.stack` makes it.
        rates: (S,) the members' learning rates.
        steps: the length of the schedule.
        recipe: momentum, decay, warm-up and schedule, as :class:`gammabeta.lab.images.training.Training` has them.
    """

    def __init__(
        self, model: nn.Module, rates: Sequence[float], steps: int, recipe: Mapping[str, Any] = RECIPE
    ) -> None:
        self.training = Training(network={}, norm="", rate=1.0, batch_size=1, steps=steps, seed=0, **recipe)
        decayed = {
            id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | GroupedLinear)
        }
        self.parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weights = {index for index, parameter in enumerate(self.parameters) if id(parameter) in decayed}
        self.velocity = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.rates = [_along(parameter, rates) for parameter in self.parameters]
        self.taken = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take one step by the gradients that were accumulated, and clear them."""
        self.taken += 1
        factor = self.training.rate_factor(self.taken)
        for index, (parameter, velocity, rates) in enumerate(
            zip(self.parameters, self.velocity, self.rates, strict=True)
        ):
            velocity.mul_(self.training.momentum)
            if parameter.grad is not None:
                velocity.add_(parameter.grad)
            if self.training.decay and index in self.weights:
                velocity.add_(parameter, alpha=self.training.decay)
            parameter.addcmul_(velocity, rates, value=-factor)
            parameter.grad = None


def _along(parameter: Tensor, rates: Sequence[float]) -> Tensor:
    """Return the members' rates in a shape that multiplies a parameter, whose first axis holds the members."""
    if len(rates) == 1:
        return torch.tensor(rates[0])
    per_member = torch.tensor(rates).repeat_interleave(parameter.shape[0] // len(rates))
    return per_member.reshape(-1, *(1,) * (parameter.dim() - 1))


def epochs(images: int, size: int, steps: int, seed: int) -> Tensor:
    """Draw places (steps, size) from consecutive shuffled epochs; a batch may be larger than the set of images."""
    generator = torch.Generator().manual_seed(seed)
    count = -(-size * steps // images)
    row = torch.cat([torch.randperm(images, generator=generator) for _ in range(count)])
    return row[: size * steps].reshape(steps, size)


def together(parts: Sequence[Tensor]) -> Tensor:
    """Put the members' images (n, channels, …) side by side in the channels; shorter parts repeat their first image."""
    longest = max(map(len, parts))
    padded = [torch.cat([part, part[:1].expand(longest - len(part), *part.shape[1:])]) for part in parts]
    return torch.cat(padded, dim=1)


def losses(model: nn.Module, images: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Return the members' mean cross entropies (S,) on one batch of each."""
    scores = model(torch.cat(list(images), dim=1)).unflatten(1, (len(images), -1))
    by_sample = functional.cross_entropy(scores.movedim(2, 1), torch.stack(list(labels), dim=1), reduction="none")
    return by_sample.mean(dim=0)


def descend(model: nn.Module, own: Sequence[Split], orders: Sequence[Tensor], rates: Sequence[float]) -> list[bool]:
    """Train the members in place; return of each whether its loss stayed finite.

    Args:
        own: the members' training images.
        orders: what each member sees: (steps, batch) places in its own images, the same number of steps for all.
        rates: their learning rates.
    """
    steps = len(orders[0])
    descent = Descent(model, rates, steps)
    finite = torch.ones(len(own), dtype=torch.bool)
    model.train()
    for step in range(steps):
        index = [order[step] for order in orders]
        each = losses(
            model,
            [split.x_nchw[at] for split, at in zip(own, index, strict=True)],
            [split.y_n[at] for split, at in zip(own, index, strict=True)],
        )
        finite &= torch.isfinite(each.detach())
        if not bool(finite.any()):
            break
        each.sum().backward()
        descent.step()
    return finite.tolist()


@torch.no_grad()
def judged(model: nn.Module, splits: Sequence[Split]) -> list[Judged]:
    """Return each member's answers on its own split."""
    x = together([split.x_nchw for split in splits])
    scores = torch.cat([model(part) for part in x.split(512)]).unflatten(1, (len(splits), -1))
    return [Judged.of(scores[: len(split), member], split.y_n) for member, split in enumerate(splits)]
