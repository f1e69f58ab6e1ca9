"""The networks for sequences and text: a GRU with norms inside its recurrence, and a Transformer."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.introspection.unchanged import modes_kept
from gammabeta.lab.experiment import Experiment
from gammabeta.moments import Moments

# each arm's name in settings, and its name in legends and tables
ARMS = {
    "none": "no normalization",
    "padded": "BatchNorm over padding too",
    "masked": "masked BatchNorm",
    "layer": "LayerNorm",
    "rms": "RMSNorm",
}


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
            "padded": gb.BatchNorm1d, "masked": gb.BatchNorm1d, "layer": gb.LayerNorm, "rms": gb.RMSNorm
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
        from_input = self.input_norm(self.inputs(x_ntf), mask_nt).split(gates_new, dim=2)
        state = x_ntf.new_zeros(len(x_ntf), self.width)
        states = []
        # unbind: the gradient of a step taken by its index would be as large as that of the whole sequence
        for i_gates, i_new, alive in zip(*(part.unbind(1) for part in from_input), mask_nt.unbind(1), strict=True):
            s_gates, s_new = self.state_norm(self.states(state), alive).split(gates_new, dim=1)
            reset, update = torch.sigmoid(i_gates + s_gates).chunk(2, dim=1)
            new = torch.tanh(torch.addcmul(i_new, reset, s_new))
            state = torch.lerp(new, state, update)
            states.append(state)
        last = mask_nt.sum(dim=1) - 1
        scores: Tensor = self.classifier(torch.stack(states, dim=1)[torch.arange(len(x_ntf)), last])
        return scores


class Block(nn.Module):
    """Self-attention and a two-layer MLP, each with a skip connection; norms before (pre) or after (post) them.

    Source: Vaswani et al. 2017; Xiong et al. 2020 (2002.04745) for pre-norm.
    """

    def __init__(self, width: int, heads: int, arm: str, *, pre: bool) -> None:
        super().__init__()
        self.heads, self.pre = heads, pre
        self.projections = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = SequenceNorm(arm, width), SequenceNorm(arm, width)

    def attention(self, x: Tensor, mask_nt: Tensor | None) -> Tensor:
        queries, keys, values = self.projections(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if mask_nt is None else mask_nt[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, is_causal=seen is None)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, mask_nt: Tensor | None) -> Tensor:
        if self.pre:
            x = x + self.attention(self.norm1(x, mask_nt), mask_nt)
            return x + self._perceptron(self.norm2(x, mask_nt))
        x = self.norm1(x + self.attention(x, mask_nt), mask_nt)
        out: Tensor = self.norm2(x + self._perceptron(x), mask_nt)
        return out

    def _perceptron(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(functional.relu(self.up(x)))
        return out


class Transformer(nn.Module):
    """A Transformer: an encoder, or with ``features`` 0 a causal decoder.

    The encoder takes (n, time, features); a linear layer classifies the mean of its output over real steps. The decoder
    takes tokens (n, time) and scores each next token.
    """

    def __init__(
        self, features: int, classes: int, arm: str, *, width: int = 32, layers: int = 2, pre: bool = True,
        longest: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal = features == 0
        self.embedding: nn.Module = nn.Embedding(classes, width) if self.causal else nn.Linear(features, width)
        self.positions = nn.Parameter(torch.randn(longest, width) / math.sqrt(width))
        self.blocks = nn.ModuleList([Block(width, 4, arm, pre=pre) for _ in range(layers)])
        self.norm = SequenceNorm(arm if pre else "none", width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask_nt: Tensor | None = None) -> Tensor:
        h = self.embedding(x) + self.positions[: x.shape[1]]
        for block in self.blocks:
            h = block(h, None if self.causal else mask_nt)
        h = self.norm(h, mask_nt)
        if not self.causal:
            assert mask_nt is not None
            real = mask_nt.unsqueeze(2).to(h.dtype)
            h = (h * real).sum(dim=1) / real.sum(dim=1)
        scores: Tensor = self.classifier(h)
        return scores


def networks_of(experiment: Experiment) -> list[str]:
    """Name the networks of an experiment; a quick one leaves out post-norm."""
    return ["GRU", "Transformer, pre-norm"] + ([] if experiment.quick else ["Transformer, post-norm"])


def build_sequence_network(kind: str, features: int, classes: int, arm: str, longest: int, seed: int) -> nn.Module:
    """Build one of the networks that :func:`networks_of` names, initialized by ``seed``."""
    torch.manual_seed(seed)
    if kind == "GRU":
        return Recurrent(features, classes, arm)
    return Transformer(features, classes, arm, pre=kind == "Transformer, pre-norm", longest=longest)
