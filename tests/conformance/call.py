"""One call of a public operation, with all that it takes, and its results: what the oracle and gammabeta share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tests.routes import device
from torch import Tensor

import gammabeta as gb

CHANNEL_OPS = ("batch_norm", "instance_norm", "group_norm")
SAMPLE_OPS = ("layer_norm", "rms_norm")
ADD_OPS = ("add_layer_norm", "add_rms_norm")
OPS = CHANNEL_OPS + SAMPLE_OPS + ADD_OPS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu")
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}

DIFFERENTIABLE = ("input", "weight", "bias", "residual")
RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Call:
    """An operation, its tensors by argument name, its settings, and the gradient of the loss by each of its outputs."""

    op: str
    tensors: dict[str, Tensor | None]
    settings: dict[str, Any] = field(default_factory=dict)
    gradients: tuple[Tensor, ...] = ()

    @property
    def input(self) -> Tensor:
        x = self.tensors["input"]
        assert x is not None
        return x

    def tensor(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    def setting(self, name: str) -> Any:
        """A setting as the operation's signature in torch.nn.functional has it."""
        defaults = {
            "training": False, "use_input_stats": True, "momentum": 0.1, "eps": None if "rms" in self.op else 1e-5,
            "activation": None, "activation_slope": 0.01, "normalized_shape": None, "num_groups": None,
        }  # fmt: skip
        return self.settings.get(name, defaults[name])

    @property
    def running(self) -> bool:
        """Whether it normalizes by running statistics instead of by its input's own."""
        if self.op == "batch_norm":
            return not self.setting("training")
        return self.op == "instance_norm" and not self.setting("use_input_stats")

    def with_tensors(self, **tensors: Tensor | None) -> Call:
        return replace(self, tensors={**self.tensors, **tensors})

    def with_settings(self, **settings: Any) -> Call:
        return replace(self, settings={**self.settings, **settings})


def result_names(call: Call) -> tuple[str, ...]:
    """Of all results: the outputs, a gradient for each tensor that has one, the running statistics that were given."""
    outputs = ("output", "total") if call.op in ADD_OPS else ("output",)
    gradients = tuple(f"grad {name}" for name in DIFFERENTIABLE if call.tensor(name) is not None)
    return outputs + gradients + tuple(name for name in RUNNING if call.tensor(name) is not None)


def run(call: Call, differentiated: tuple[str, ...] = DIFFERENTIABLE) -> dict[str, Tensor]:
    """gammabeta's results. What is given is left as it was: running statistics are cloned first."""
    tensors: dict[str, Tensor | None] = {}
    for name, tensor in call.tensors.items():
        tensor = None if tensor is None else tensor.to(device())
        if tensor is None or name == "mask":
            tensors[name] = tensor
        elif name in RUNNING:
            tensors[name] = tensor.clone()
        else:
            tensors[name] = tensor.detach().requires_grad_(name in differentiated)
    outputs = getattr(gb.functional, call.op)(**tensors, **call.settings)
    there = replace(call, gradients=tuple(g.to(device()) for g in call.gradients))
    results = collect(there, outputs if isinstance(outputs, tuple) else (outputs,), tensors)
    return {name: result.cpu() for name, result in results.items()}


def collect(
    call: Call, outputs: tuple[Tensor, ...], tensors: Mapping[str, Tensor | None], *, unused: bool = False
) -> dict[str, Tensor]:
    """The results by name, from outputs that hang on `tensors`; with `unused` not on all of them."""
    leaves = {name: t for name in DIFFERENTIABLE if (t := tensors.get(name)) is not None and t.requires_grad}
    of = [(y, g) for y, g in zip(outputs, call.gradients, strict=True) if y.requires_grad]
    gradients: tuple[Tensor, ...] = ()
    if leaves:
        gradients = torch.autograd.grad(
            [y for y, _ in of], tuple(leaves.values()), [g for _, g in of], materialize_grads=unused
        )
    results = dict(zip(("output", "total"), outputs, strict=False))
    results |= {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    results |= {name: tensor for name in RUNNING if (tensor := tensors.get(name)) is not None}
    return {name: result.detach() for name, result in results.items()}


def result_dtypes(call: Call) -> dict[str, torch.dtype]:
    """The dtype that every result has to have: outputs as x and residual promote, the others as what they belong to."""
    x, residual = call.input, call.tensor("residual")
    promoted = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    dtypes = {"output": promoted, "total": promoted}
    for name in result_names(call):
        if name not in dtypes:
            tensor = call.tensor(name.removeprefix("grad "))
            assert tensor is not None
            dtypes[name] = tensor.dtype
    return dtypes


def random_call(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    normalized: int = 1,
    groups: int | None = None,
    weight: bool = True,
    bias: bool = True,
    running: bool = True,
    residual: bool = False,
    mask: Tensor | None = None,
    mean: float = 0.5,
    std: float = 1.5,
    scale: float = 1.0,
    dtypes: Mapping[str, torch.dtype] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
    seed: int = 0,
    **settings: Any,
) -> Call:
    """A call with random values everywhere: no weight is 1, no bias 0, no running statistic untouched.

    Args:
        normalized: the number of normalized axes of the sample norms.
        groups: of group_norm; the largest of 3, 2, 1 that divides where None.
        scale: of the weight, which is ±scale·(0.5 to 1.5).
        mean, std: x is mean·(1 ± a tenth by channel) + std·(0.5 to 1.5 by channel)·N(0, 1).
        dtypes: of single tensors, by name, where they are not `dtype`.
        layout: what brings a dense tensor of x's shape into another layout.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(shape)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def cast(name: str, values: Tensor) -> Tensor:
        return values.to((dtypes or {}).get(name, dtype))

    channel_op = op in CHANNEL_OPS
    parameters = (shape[1],) if channel_op else shape[len(shape) - normalized :]
    varied = (1, shape[1], *(1,) * (len(shape) - 2)) if channel_op else shape[len(shape) - normalized :]
    x = mean * (1 + 0.1 * normal(*varied)) + std * (0.5 + uniform(*varied)) * normal(*shape)
    tensors: dict[str, Tensor | None] = {"input": layout(cast("input", x))}
    if weight:
        sign = torch.where(uniform(*parameters) < 0.25, -1.0, 1.0)
        tensors["weight"] = cast("weight", scale * sign * (0.5 + uniform(*parameters)))
    if bias and "rms" not in op:
        tensors["bias"] = cast("bias", normal(*parameters))
    if op in ("batch_norm", "instance_norm"):
        tensors["running_mean"] = cast("running_mean", normal(shape[1])) if running else None
        tensors["running_var"] = cast("running_var", 0.5 + uniform(shape[1])) if running else None
    if op == "group_norm":
        settings["num_groups"] = groups or next(g for g in (3, 2, 1) if shape[1] % g == 0)
    elif not channel_op:
        settings["normalized_shape"] = parameters
    if residual or op in ADD_OPS:
        tensors["residual"] = layout(cast("residual", normal(*shape)))
    if mask is not None:
        tensors["mask"] = mask
    call = Call(op, tensors, settings)
    output = result_dtypes(call)["output"]
    count = 2 if op in ADD_OPS else 1
    gradients = tuple(layout(normal(*shape).to(output)) for _ in range(count))
    return away_from_kinks(replace(call, gradients=gradients))


def away_from_kinks(call: Call) -> Call:
    """The call with a gradient that is zero where the activation's input is within rounding of a kink.

    There one side's derivative is as right as the other's, and rounding decides which one an implementation takes.
    """
    kinks = KINKS.get(call.setting("activation") or "")
    if not kinks:
        return call
    from tests.conformance.magnitudes import magnitudes
    from tests.conformance.oracle import expected

    linear = call.with_settings(activation=None)
    z, size = expected(linear)["output"], magnitudes(linear)["output"]
    arithmetic = torch.float64 if call.input.dtype == torch.float64 else torch.float32
    rounding = 16 * torch.finfo(arithmetic).eps * size.arithmetic + 4 * torch.finfo(call.input.dtype).eps * size.inside
    near = torch.zeros_like(z, dtype=torch.bool)
    for kink in kinks:
        near |= (z - kink).abs() < rounding
    gradient = call.gradients[0].masked_fill(near & (call.tensor("mask") is None or z != 0), 0.0)
    assert gradient.numel() == 0 or (gradient != 0).double().mean() > 0.4, "the test would check no gradient"
    return replace(call, gradients=(gradient,))


def masked_elements(call: Call) -> Tensor | None:
    """The mask expanded to x's shape."""
    mask, x = call.tensor("mask"), call.input
    if mask is None:
        return None
    if call.op in CHANNEL_OPS:
        positions = torch.broadcast_to(mask, (x.shape[0], *x.shape[2:]))
        return positions.unsqueeze(1).expand(x.shape)
    k = len(call.setting("normalized_shape"))
    samples = torch.broadcast_to(mask, x.shape[: x.ndim - k])
    return samples.reshape(*samples.shape, *(1,) * k).expand(x.shape)
