"""The networks for sequences and text: a GRU and an LSTM with norms inside the recurrence, and a Transformer.

Their forwards leave leading axes as they are. The layers of several networks can therefore be stacked along a first
axis, and the networks trained side by side (:mod:`gammabeta.lab.sequences.stacked`).
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.introspection.unchanged import modes_kept
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.norms import groups
from gammabeta.lab.task import Kind
from gammabeta.moments import Moments

# each arm's name in settings, and its name in legends and tables
ARMS = {
    "none": "no normalization",
    "padded": "BatchNorm over padding too",
    "masked": "masked BatchNorm",
    "layer": "LayerNorm",
    "rms": "RMSNorm",
    "group": "GroupNorm of each step",
    "dyt": "DyT",
}


USERS = "your model"


def users_own(experiment: Experiment, kind: Kind) -> Mapping[str, Any] | None:
    """Return the user's network as settings identify it, where the experiment has one for this kind of data."""
    user = experiment.user
    return user if user is not None and user.get("of", "images") == kind else None


class DyT(nn.Module):
    """A pointwise function in a norm's place: y = γ·tanh(α·x) + β over the last axis, with a scalar α that is learned.

    Source: Zhu et al. 2025, Transformers without Normalization (2503.10622), section 4; α starts at 0.5.
    """

    def __init__(self, channels: int, start: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([start]))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, torch.tanh(self.alpha * x), self.weight)


class StepGroupNorm(nn.Module):
    """GroupNorm of the channels of each step of (…, C): no statistic covers several steps, so it is causal."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = gb.GroupNorm(groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.reshape(-1, x.shape[-1]))
        return y.view(x.shape)


class Dropout(nn.Module):
    """Dropout with its own random generator: a network that is trained beside others drops the same as on its own.

    Scales in training, by 1/(1 − rate).

    Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float, seed: int) -> None:
        super().__init__()
        self.rate, self.seed = rate, seed
        self.generator: torch.Generator | None = None

    def kept(self, x: Tensor) -> Tensor:
        """Draw the factors of x: 0, or 1/(1 − rate)."""
        self.generator = self.generator or torch.Generator().manual_seed(self.seed)
        return torch.empty_like(x, memory_format=torch.contiguous_format).bernoulli_(
            1 - self.rate, generator=self.generator
        ).div_(1 - self.rate)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept(x) if self.training and self.rate else x


class SequenceNorm(nn.Module):
    """The norm of one arm, on (n, time, C) or on one step's (n, C); the mask (n, time) or (n) is True where x is real.

    ``"masked:8"`` and ``"padded:8"`` are BatchNorm on devices with 8 sequences each. Statistics are of 8 sequences at a
    time. The moving averages are those of the first device, which DistributedDataParallel copies to all.
    """

    def __init__(self, arm: str, channels: int) -> None:
        super().__init__()
        self.arm, _, size = arm.partition(":")
        self.each = int(size or 0)
        layers: dict[str, type[nn.Module]] = {
            "padded": gb.BatchNorm1d, "masked": gb.BatchNorm1d, "layer": gb.LayerNorm, "rms": gb.RMSNorm,
            "group": StepGroupNorm, "dyt": DyT,
        }  # fmt: skip
        if self.arm != "none" and self.arm not in layers:
            raise ValueError(f"SequenceNorm: expected one of {', '.join(ARMS)}, got {arm}")
        self.norm = layers[self.arm](channels) if self.arm != "none" else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.arm not in ("padded", "masked"):
            y: Tensor = self.norm(x)
            return y
        channels_second = x.movedim(-1, 1)
        counted = mask if self.arm == "masked" else None
        if not self.training or not self.each:
            options = {"mask": counted} if counted is not None else {}
            out: Tensor = self.norm(channels_second, **options)
            return out.movedim(1, -1)
        norm = self.norm
        assert isinstance(norm, gb.BatchNorm1d)
        first, *others = channels_second.split(self.each)
        masks = [None] * (1 + len(others)) if counted is None else counted.split(self.each)
        outs = [norm(first, mask=masks[0])]
        for part, of_part in zip(others, masks[1:], strict=True):
            of_device = gb.functional.batch_norm(
                part, None, None, norm.weight, norm.bias, training=True, eps=norm.eps, mask=of_part
            )
            outs.append(of_device)
        return torch.cat(outs).movedim(1, -1)


# A step with fewer sequences that have not ended has no statistics of its own.
LEAST_ALIVE = 32


@contextlib.contextmanager
def exact_statistics(model: nn.Module, x_ntf: Tensor, mask_nt: Tensor) -> Iterator[None]:
    """Evaluate with every BatchNorm's statistics computed from these sequences under the present weights, call by call.

    On exit, mode and statistics are restored. A norm inside a recurrence has its own statistics at every step, as it
    has in training. One moving average over all steps would fit none of them: the state starts at 0 and grows. A step
    needs LEAST_ALIVE sequences that have not ended (or as many as the first step has, if fewer). The steps after the
    last such step take its statistics.

    Source: Cooijmans et al. 2017, section 3 (1603.09025), which keeps separate statistics for each step.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, SequenceNorm) and isinstance(module.norm, nn.modules.batchnorm._BatchNorm)
    ]
    before = [{name: buffer.clone() for name, buffer in norm.norm.named_buffers()} for norm in norms]
    taken: dict[SequenceNorm, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}
    most: dict[SequenceNorm, int] = {}
    calls: Counter[SequenceNorm] = Counter()

    def put(norm: SequenceNorm, statistics: tuple[Tensor, Tensor]) -> None:
        for name, value in zip(("running_mean", "running_var"), statistics, strict=True):
            norm.norm.get_buffer(name).copy_(value)

    def take(norm: SequenceNorm, inputs: tuple[Tensor, Tensor | None]) -> None:
        x, mask = inputs
        counted = mask.unsqueeze(-1) if norm.arm == "masked" and mask is not None else None
        moments = Moments.of(x, range(x.dim() - 1), counted)
        count = int(moments.count.max())
        if count >= min(LEAST_ALIVE, most.setdefault(norm, count)):
            taken[norm].append((moments.mean, moments.var()))
        put(norm, taken[norm][-1])

    def give(norm: SequenceNorm, inputs: tuple[Tensor, Tensor | None]) -> None:
        put(norm, taken[norm][min(calls[norm], len(taken[norm]) - 1)])
        calls[norm] += 1

    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            if norms:
                model(x_ntf, mask_nt)
            for hook in hooks:
                hook.remove()
            hooks = [norm.register_forward_pre_hook(give) for norm in norms]
            hooks.append(model.register_forward_pre_hook(lambda *_: calls.clear()))
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                norm.norm.get_buffer(name).copy_(buffer)


class Recurrent(nn.Module):
    """A GRU over (n, time, features), and a linear classifier of its state at each sequence's last step.

    The contributions of the input and of the state are normalized separately before they are added: the first over the
    whole sequence, the second step by step, inside the recurrence.

    Source: Cho et al. 2014; Cooijmans et al. 2017, Recurrent Batch Normalization (1603.09025), with statistics shared
    over the steps; Ba et al. 2016, eq. 4 (1607.06450).
    """

    def __init__(self, features: int, classes: int, arm: str, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.inputs = nn.Linear(features, 3 * width)
        self.states = nn.Linear(width, 3 * width)
        self.input_norm = SequenceNorm(arm, 3 * width)
        self.state_norm = SequenceNorm(arm, 3 * width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x_ntf: Tensor, mask_nt: Tensor) -> Tensor:
        gates_new = [2 * self.width, self.width]
        from_input = self.input_norm(self.inputs(x_ntf), mask_nt).split(gates_new, dim=-1)
        state = x_ntf.new_zeros(*x_ntf.shape[:-2], self.width)
        states = []
        # unbind: the gradient of a step taken by its index would be as large as that of the whole sequence
        for i_gates, i_new, alive in zip(*(part.unbind(-2) for part in from_input), mask_nt.unbind(-1), strict=True):
            s_gates, s_new = self.state_norm(self.states(state), alive).split(gates_new, dim=-1)
            reset, update = torch.sigmoid(i_gates + s_gates).chunk(2, dim=-1)
            new = torch.tanh(torch.addcmul(i_new, reset, s_new))
            state = torch.lerp(new, state, update)
            states.append(state)
        scores: Tensor = self.classifier(_last(states, mask_nt))
        return scores


class LSTM(nn.Module):
    """An LSTM over (n, time, features), and a linear classifier of its state at each sequence's last step.

    The contributions of the input and of the state are normalized as in :class:`Recurrent`; the cell is normalized
    before its tanh. The forget gate's bias starts at 1 (Jozefowicz et al. 2015).

    Source: Hochreiter & Schmidhuber 1997; Cooijmans et al. 2017, eq. 6 to 8 (1603.09025), with statistics shared over
    the steps; Ba et al. 2016, eq. 20 to 22 (1607.06450).
    """

    def __init__(self, features: int, classes: int, arm: str, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.inputs = nn.Linear(features, 4 * width)
        self.states = nn.Linear(width, 4 * width)
        self.forgetting = nn.Parameter(torch.ones(width))
        self.input_norm, self.state_norm = SequenceNorm(arm, 4 * width), SequenceNorm(arm, 4 * width)
        self.cell_norm = SequenceNorm(arm, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x_ntf: Tensor, mask_nt: Tensor) -> Tensor:
        from_input = self.input_norm(self.inputs(x_ntf), mask_nt).unbind(-2)
        state = cell = x_ntf.new_zeros(*x_ntf.shape[:-2], self.width)
        states = []
        for of_step, alive in zip(from_input, mask_nt.unbind(-1), strict=True):
            gates = of_step + self.state_norm(self.states(state), alive)
            forget, take, out, new = gates.chunk(4, dim=-1)
            kept = torch.sigmoid(forget + self.forgetting) * cell
            cell = torch.addcmul(kept, torch.sigmoid(take), torch.tanh(new))
            state = torch.sigmoid(out) * torch.tanh(self.cell_norm(cell, alive))
            states.append(state)
        scores: Tensor = self.classifier(_last(states, mask_nt))
        return scores


def _last(states: list[Tensor], mask_nt: Tensor) -> Tensor:
    """Return each sequence's state (n, width) at its last real step."""
    last = (mask_nt.sum(dim=-1) - 1)[..., None, None]
    return torch.stack(states, dim=-2).take_along_dim(last, dim=-2).squeeze(-2)


@dataclass(frozen=True)
class Placement:
    """Where the norms of a Transformer's block stand.

    Attributes:
        order: ``"pre"``: x + f(norm(x)). ``"post"``: norm(x + f(x)). ``"peri"``: x + norm(f(norm(x))).
        qk: whether queries and keys are normalized too, head by head.

    Source: Vaswani et al. 2017 (post); Xiong et al. 2020, 2002.04745 (pre); Kim et al. 2025, 2502.02732 (peri);
    Henry et al. 2020, 2010.04245 (queries and keys).
    """

    order: str = "pre"
    qk: bool = False


class Block(nn.Module):
    """Self-attention and a two-layer MLP, each with a skip connection; ``placement`` says where the norms are.

    Dropout follows each of the two, before its skip connection (Vaswani et al. 2017, section 5.4).
    """

    def __init__(
        self, width: int, heads: int, arm: str, placement: Placement, dropout: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.order, self.qk = heads, placement.order, placement.qk
        self.projections = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = SequenceNorm(arm, width), SequenceNorm(arm, width)
        if self.order == "peri":
            self.after1, self.after2 = SequenceNorm(arm, width), SequenceNorm(arm, width)
        if self.qk:
            self.of_queries, self.of_keys = SequenceNorm(arm, width // heads), SequenceNorm(arm, width // heads)
        self.drop1, self.drop2 = Dropout(dropout, 2 * seed), Dropout(dropout, 2 * seed + 1)

    def attention(self, x: Tensor, mask_nt: Tensor | None) -> Tensor:
        parts = self.projections(x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.unbind(-3)
        if self.qk:
            queries, keys = self.of_queries(queries, None), self.of_keys(keys, None)
        # (n or members·n, heads, time, width of a head)
        query, key, value = (part.flatten(0, -4).transpose(1, 2) for part in (queries, keys, values))
        seen = None if mask_nt is None else mask_nt.flatten(0, -2)[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=seen is None)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return out

    def forward(self, x: Tensor, mask_nt: Tensor | None) -> Tensor:
        if self.order == "post":
            x = self.norm1(x + self.drop1(self.attention(x, mask_nt)), mask_nt)
            out: Tensor = self.norm2(x + self.drop2(self._perceptron(x)), mask_nt)
            return out
        attended = self.attention(self.norm1(x, mask_nt), mask_nt)
        x = x + self.drop1(self.after1(attended, mask_nt) if self.order == "peri" else attended)
        thought = self._perceptron(self.norm2(x, mask_nt))
        y: Tensor = x + self.drop2(self.after2(thought, mask_nt) if self.order == "peri" else thought)
        return y

    def _perceptron(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(functional.relu(self.up(x)))
        return out


class Transformer(nn.Module):
    """A Transformer: an encoder, or with ``features`` 0 a causal decoder.

    The encoder takes (n, time, features); a linear layer classifies the mean of its output over real steps. The decoder
    takes tokens (n, time) and scores each next token. A norm ends the stack of blocks, except in post-norm.
    """

    def __init__(
        self, features: int, classes: int, arm: str, *, width: int = 32, layers: int = 2,
        placement: Placement = Placement(), longest: int = 64, dropout: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal = features == 0
        self.embedding: nn.Module = nn.Embedding(classes, width) if self.causal else nn.Linear(features, width)
        self.positions = nn.Parameter(torch.randn(longest, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(
            [Block(width, 4, arm, placement, dropout, 1000 * seed + index) for index in range(layers)]
        )
        self.norm = SequenceNorm("none" if placement.order == "post" else arm, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask_nt: Tensor | None = None) -> Tensor:
        h = self.embedding(x)
        # (time, width), or (members, 1, time, width)
        h = h + self.positions[..., : h.shape[-2], :]
        for block in self.blocks:
            h = block(h, None if self.causal else mask_nt)
        h = self.norm(h, mask_nt)
        if not self.causal:
            assert mask_nt is not None
            real = mask_nt.unsqueeze(-1).to(h.dtype)
            h = (h * real).sum(dim=-2) / real.sum(dim=-2)
        scores: Tensor = self.classifier(h)
        return scores


def networks_of(experiment: Experiment) -> list[str]:
    """Name the networks of an experiment: the user's, or the study's; a quick one leaves out LSTM and post-norm."""
    if users_own(experiment, "sequences") is not None:
        return [USERS]
    more = [] if experiment.quick else ["LSTM", "Transformer, post-norm"]
    return ["GRU", "Transformer, pre-norm", *more]


def build_sequence_network(kind: str, features: int, classes: int, arm: str, longest: int, seed: int) -> nn.Module:
    """Build one of the networks that :func:`networks_of` names, initialized by ``seed``."""
    torch.manual_seed(seed)
    if kind in ("GRU", "LSTM"):
        return {"GRU": Recurrent, "LSTM": LSTM}[kind](features, classes, arm)
    placement = Placement("pre" if kind == "Transformer, pre-norm" else "post")
    return Transformer(features, classes, arm, placement=placement, longest=longest)
