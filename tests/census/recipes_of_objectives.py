"""Recipes of training that differ in what is learned: adversaries, pairs, teachers, tasks, sequences."""

from __future__ import annotations

import copy

import torch
from tests.census.recipe import (
    CLASSES,
    SIZE,
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
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import gammabeta as gb


def _generator() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(8, 16 * 4 * 4), nn.Unflatten(1, (16, 4, 4)), nn.BatchNorm2d(16), nn.ReLU()),
        *(
            nn.ConvTranspose2d(16, 16, 4, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        ),
    )


def _critic(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, padding=1), norm, nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(16 * 4 * 4, 1)),
    )


def _adversaries(watch: Watching, critic: nn.Module, together: bool) -> None:
    generator = _generator()
    ours, theirs = (torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in (generator, critic))
    with watch(generator, ours), watch(critic, theirs):
        for x, _ in images():
            fake = generator(torch.randn(SIZE, 8))
            if together:
                real_score, fake_score = critic(torch.cat([x, fake.detach()])).chunk(2)
            else:
                real_score, fake_score = critic(x), critic(fake.detach())
            take_step(theirs, (F.softplus(-real_score) + F.softplus(fake_score)).mean())
            take_step(ours, F.softplus(-critic(fake)).mean())


@recipe
def adversaries_with_instance_norm(watch: Watching) -> None:
    _adversaries(watch, _critic(nn.InstanceNorm2d(16, affine=True)), together=False)


@recipe
def adversaries_with_batch_norm(watch: Watching) -> None:
    """DCGAN: real and generated images go through the critic's BatchNorm apart."""
    _adversaries(watch, _critic(nn.BatchNorm2d(16)), together=False)


@recipe
def gradient_penalty(watch: Watching) -> None:
    generator, critic = _generator(), _critic(nn.GroupNorm(1, 16))
    ours, theirs = (torch.optim.Adam(part.parameters(), lr=1e-4) for part in (generator, critic))
    with watch(generator, ours), watch(critic, theirs):
        for step, (x, _) in enumerate(images()):
            fake = generator(torch.randn(SIZE, 8))
            between = torch.lerp(x, fake.detach(), torch.rand(SIZE, 1, 1, 1)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            take_step(theirs, critic(fake.detach()).mean() - critic(x).mean() + 10 * penalty)
            if step % 5 == 4:
                take_step(ours, -critic(generator(torch.randn(SIZE, 8))).mean())


@recipe
def meta_learning(watch: Watching) -> None:
    """MAML with layers that normalize one sample."""
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer):
        for _ in range(24):
            loss = torch.zeros(())
            for _task in range(3):
                truth, x = torch.randn(4, 1), torch.randn(2, SIZE, 4)
                parameters = dict(model.named_parameters())
                inner = (functional_call(model, parameters, x[0]) - x[0] @ truth).square().mean()
                slopes = torch.autograd.grad(inner, [*parameters.values()], create_graph=True)
                moved = {key: p - 0.01 * slope for (key, p), slope in zip(parameters.items(), slopes, strict=True)}
                loss = loss + (functional_call(model, moved, x[1]) - x[1] @ truth).square().mean()
            take_step(optimizer, loss)


class LowRank(nn.Module):
    """A frozen linear layer beside a product of two small matrices that trains."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@recipe
def low_rank_adaptation(watch: Watching) -> None:
    model = Language(nn.RMSNorm)
    model.requires_grad_(False)
    for block in model.blocks:
        block.inner[0], block.inner[2] = LowRank(block.inner[0]), LowRank(block.inner[2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    with watch(model, optimizer):
        for x in sentences():
            take_step(optimizer, next_word(model, x))


@recipe
def mixup(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            share, order = float(torch.distributions.Beta(0.4, 0.4).sample()), torch.randperm(SIZE)
            z = model(share * x + (1 - share) * x[order])
            take_step(optimizer, share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, y[order]))


@recipe
def cutmix_with_smoothed_labels(watch: Watching) -> None:
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            order = torch.randperm(SIZE)
            x[:, :, 2:6, 2:6] = x[order][:, :, 2:6, 2:6]
            z = model(x)
            loss = 0.75 * F.cross_entropy(z, y, label_smoothing=0.1) + 0.25 * F.cross_entropy(z, y[order])
            take_step(optimizer, loss)


@recipe
def distillation(watch: Watching) -> None:
    teacher, model = cnn().eval(), cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            with torch.no_grad():
                target = teacher(x).softmax(1)
            z = model(x)
            take_step(optimizer, F.cross_entropy(z, y) + F.kl_div(z.log_softmax(1), target, reduction="batchmean"))


def _two_views(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.3 * torch.randn_like(x), x.flip(3) + 0.3 * torch.randn_like(x)


def _agree(a: Tensor, b: Tensor) -> Tensor:
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.2
    return F.cross_entropy(logits, torch.arange(len(a)))


@recipe
def contrastive_in_one_forward(watch: Watching) -> None:
    """SimCLR: both views in one batch."""
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, _ in images():
            a, b = model(torch.cat(_two_views(x))).chunk(2)
            take_step(optimizer, _agree(a, b))


@recipe
def contrastive_with_momentum(watch: Watching) -> None:
    """MoCo: the second network is an average of the first, and trains no weights."""
    model = cnn()
    keys = copy.deepcopy(model).requires_grad_(False)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, _ in images():
            first, second = _two_views(x)
            with torch.no_grad():
                for p, q in zip(keys.parameters(), model.parameters(), strict=True):
                    p.lerp_(q, 0.05)
                target = keys(second)
            take_step(optimizer, _agree(model(first), target))


class Averaging(nn.Module):
    """A network and its average in one module, whose outputs are the one's on the first view and the other's on both.

    The weights are assigned to `data`, as published code does.
    """

    def __init__(self, predictor: nn.Module, share: float) -> None:
        super().__init__()
        self.encoder_q, self.predictor, self.share = cnn(), predictor, share
        self.encoder_k = copy.deepcopy(self.encoder_q)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for k, q in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
                k.data = k.data * (1 - self.share) + q.data * self.share
            keys = self.encoder_k(second)
        return self.predictor(self.encoder_q(first)), keys


@recipe
def contrastive_with_momentum_in_one_module(watch: Watching) -> None:
    """MoCo as published: both encoders in one module, and no gradients for the keys'."""
    model = Averaging(nn.Identity(), 0.001)
    model.encoder_k.requires_grad_(False)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, _ in images():
            take_step(optimizer, _agree(*model(*_two_views(x))))


@recipe
def own_latent_in_one_module(watch: Watching) -> None:
    """BYOL in one module, of which the optimizer has the online network alone."""
    model = Averaging(nn.Sequential(nn.Linear(CLASSES, 16), nn.ReLU(), nn.Linear(16, CLASSES)), 0.004)
    optimizer = sgd(nn.ModuleList([model.encoder_q, model.predictor]))
    with watch(model, optimizer):
        for x, _ in images():
            found, goal = model(*_two_views(x))
            take_step(optimizer, (1 - F.cosine_similarity(found, goal)).mean())


@recipe
def own_latent_with_all_parameters(watch: Watching) -> None:
    """As before, with everything in the optimizer, which leaves parameters without a gradient as they are."""
    model = Averaging(nn.Sequential(nn.Linear(CLASSES, 16), nn.ReLU(), nn.Linear(16, CLASSES)), 0.004)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, _ in images():
            found, goal = model(*_two_views(x))
            take_step(optimizer, (1 - F.cosine_similarity(found, goal)).mean())


@recipe
def own_latent(watch: Watching) -> None:
    """BYOL: each view predicts the average network's output on the other, with a BatchNorm in the predictor."""
    model = cnn()
    predictor = nn.Sequential(nn.Linear(CLASSES, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
    both, target = nn.ModuleList([model, predictor]), copy.deepcopy(model).requires_grad_(False)
    optimizer = sgd(both)
    with watch(both, optimizer):
        for x, _ in images():
            views = _two_views(x)
            with torch.no_grad():
                goals = [target(view) for view in views]
            found = [predictor(model(view)) for view in views]
            loss = sum((1 - F.cosine_similarity(a, b)).mean() for a, b in zip(found, reversed(goals), strict=True))
            take_step(optimizer, loss)
            with torch.no_grad():
                for p, q in zip(target.parameters(), model.parameters(), strict=True):
                    p.lerp_(q, 0.05)


@recipe
def labels_for_some(watch: Watching) -> None:
    """FixMatch: samples with and without labels in one batch."""
    model = cnn()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            strong = x[8:] + 0.5 * torch.randn_like(x[8:])
            labelled, weak, changed = model(torch.cat([x[:8], x[8:], strong])).split([8, SIZE - 8, SIZE - 8])
            share, guess = weak.detach().softmax(1).max(1)
            loss = (F.cross_entropy(changed, guess, reduction="none") * (share > 0.8)).mean()
            take_step(optimizer, F.cross_entropy(labelled, y[:8]) + loss)


class Tagger(nn.Module):
    """A recurrent network over sentences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(20, 16), nn.LSTM(16, 16, batch_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.words(x), lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.rnn(packed)
        return self.head(self.norm(last[0]))


@recipe
def packed_sequences(watch: Watching) -> None:
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer):
        for x in sentences():
            lengths = torch.randint(2, 11, (SIZE,))
            take_step(optimizer, F.cross_entropy(model(x, lengths), x[:, 0] % 2))


@recipe
def diffusion(watch: Watching) -> None:
    """A network that finds the noise in images, with GroupNorms."""
    model = nn.Sequential(
        *(nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1)),
    )
    optimizer = adamw(model)
    with watch(model, optimizer):
        for x, _ in images():
            time, noise = torch.rand(SIZE, 1, 1, 1), torch.randn_like(x)
            mixed = (1 - time).sqrt() * x + time.sqrt() * noise
            found = model(torch.cat([mixed, time.expand(SIZE, 1, 8, 8)], 1))
            take_step(optimizer, F.mse_loss(found, noise))


@recipe
def several_tasks(watch: Watching) -> None:
    model = cnn()
    other = nn.Linear(16, 1)
    both = nn.ModuleList([model, other])
    optimizer = sgd(both)
    with watch(both, optimizer):
        for x, y in images():
            features = model[0](x)
            loss = F.cross_entropy(model[1](features), y) + 0.1 * F.mse_loss(other(features)[:, 0], y.float())
            take_step(optimizer, loss)


@recipe
def actor_and_critic(watch: Watching) -> None:
    """Reinforcement learning, with LayerNorms: one network acts without gradients, and learns from what happened."""
    body = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Tanh())
    model = nn.ModuleDict({"body": body, "policy": nn.Linear(16, 2), "value": nn.Linear(16, 1)})
    optimizer = adamw(model)
    with watch(model, optimizer):
        for _ in range(24):
            state = torch.randn(SIZE, 4)
            with torch.no_grad():
                action = torch.distributions.Categorical(logits=model["policy"](body(state))).sample()
            reward = (action == (state[:, 0] > 0)).float()
            features = body(state)
            gain = reward - model["value"](features)[:, 0]
            chosen = model["policy"](features).log_softmax(1)[torch.arange(SIZE), action]
            take_step(optimizer, gain.square().mean() - (gain.detach() * chosen).mean())


@recipe
def segmentation(watch: Watching) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.ConvTranspose2d(16, 16, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1)),
    )
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, _ in images():
            take_step(optimizer, F.cross_entropy(model(x), (x.mean(1) > 0).long()))


@recipe
def ghost_batches(watch: Watching) -> None:
    model = cnn()
    gb.set_statistics(model, gb.statistics.Ghost(16))
    optimizer = sgd(model)
    with watch(model, optimizer):
        for x, y in images():
            take_step(optimizer, F.cross_entropy(model(x), y))


@recipe
def renormalized_small_batches(watch: Watching) -> None:
    model = cnn()
    gb.set_statistics(model, gb.statistics.Renorm())
    optimizer = sgd(model, lr=0.02)
    with watch(model, optimizer):
        for x, y in images(size=8):
            take_step(optimizer, F.cross_entropy(model(x), y))
