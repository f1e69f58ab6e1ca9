"""The conformance checks can fail: each of these mistakes, put into the reference or beside it, is rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gammabeta.aten
import gammabeta.functional
from gammabeta import autograd, reference
from gammabeta.moments import Moments
from gammabeta.proof.call import RUNNING, Call, run
from gammabeta.proof.check import assert_close, assert_conforms
from gammabeta.proof.oracle import expected
from gammabeta.proof.random_call import random_call

Patch = pytest.MonkeyPatch
by_the_reference = pytest.mark.parametrize("route", ["reference"], indirect=True)


def replace(patch: Patch, owner: Any, name: str, changed: Callable[..., Any]) -> None:
    """Replace a function; `changed` gets the original as its first argument."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: changed(original, *args, **kwargs))


def divides_by_n_minus_1(patch: Patch) -> None:
    def moments_of(original: Any, *args: Any) -> Moments:
        m = original(*args)
        return Moments(m.count, m.mean, m.m2 * m.count / (m.count - 1))

    def sample_moments(original: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        mean, var, count = original(*args)
        return mean, var * count / (count - 1), count

    replace(patch, reference, "channel_moments", moments_of)
    replace(patch, reference, "sample_moments", sample_moments)


def adds_eps_after_the_root(patch: Patch) -> None:
    def standardize(original: Any, x: Tensor, mean: Tensor, var: Tensor, mask: Tensor | None, eps: float) -> Tensor:
        return original(x, mean, (var.sqrt() + eps).square(), mask, 0.0)

    replace(patch, reference, "_standardize", standardize)


def takes_the_variance_in_one_pass(patch: Patch) -> None:
    def of(cls: Any, x: Tensor, axes: Any, mask: Tensor | None = None) -> Moments:
        n = torch.tensor(x.numel() // x.sum(axes).numel())
        mean = x.float().sum(axes) / n
        m2 = x.float().square().sum(axes) - n * mean.square()
        return Moments(n.expand(mean.shape), mean, m2.clamp(min=0))

    patch.setattr(Moments, "of", classmethod(of))


def keeps_statistics_in_the_dtype_of_x(patch: Patch) -> None:
    def of(original: Any, x: Tensor, *args: Any) -> Moments:
        m = original(x, *args)
        return Moments(m.count, m.mean.to(x.dtype).float(), m.m2.to(x.dtype).float())

    patch.setattr(Moments, "of", staticmethod(lambda *args, original=Moments.of: of(original, *args)))


def rounds_the_terms_of_sums(patch: Patch) -> None:
    def backward(original: Any, g_y: Tensor, *args: Any) -> Tensor:
        return original(g_y, *args).to(torch.bfloat16).float()

    replace(patch, reference, "_backward_of_finish", backward)


def drops_the_weight(patch: Patch) -> None:
    replace(patch, reference, "_scale_and_shift", lambda original, xhat, gamma, beta: original(xhat, None, beta))


def drops_the_bias(patch: Patch) -> None:
    replace(patch, reference, "_scale_and_shift", lambda original, xhat, gamma, beta: original(xhat, gamma, None))


def drops_the_residual(patch: Patch) -> None:
    replace(patch, reference, "_add", lambda original, z, residual, mask: z)


def drops_the_gradient_of_the_residual(patch: Patch) -> None:
    def of_residual(original: Any, *args: Any) -> Tensor | None:
        gradient = original(*args)
        return None if gradient is None else torch.zeros_like(gradient)

    replace(patch, autograd, "_of_residual", of_residual)


def adds_the_residual_after_the_activation(patch: Patch) -> None:
    def finish(
        original: Any, z: Tensor, residual: Tensor, mask: Any, activation: str, slope: float, dtype: torch.dtype
    ) -> Tensor:
        return original(z, None, mask, activation, slope, dtype) + residual

    replace(patch, reference, "_finish", finish)


def forgets_the_mean_in_the_backward(patch: Patch) -> None:
    def backward(original: Any, *args: Any, **kwargs: Any) -> Tensor:
        arguments = [*args, *kwargs.values()]
        return original(*arguments[:-1], False)  # the last one is `center`

    replace(patch, reference, "_backward_of_standardize", backward)


def forgets_the_variance_in_the_backward(patch: Patch) -> None:
    def backward(original: Any, g_xhat: Tensor, xhat: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(g_xhat, torch.zeros_like(xhat), *args, **kwargs)

    replace(patch, reference, "_backward_of_standardize", backward)


def takes_statistics_for_constants_in_the_backward(patch: Patch) -> None:
    def backward(
        original: Any, g_xhat: Tensor, xhat: Tensor, rstd: Tensor, reduction: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        return original(g_xhat, xhat, rstd, None, *args, **kwargs)

    replace(patch, reference, "_backward_of_standardize", backward)


def forgets_the_derivative_of_the_activation(patch: Patch) -> None:
    replace(patch, reference, "derivative", lambda original, z, *args: torch.ones_like(z))


def takes_gelu_by_tanh(patch: Patch) -> None:
    patch.setattr(reference, "activate", lambda z, *args: torch.nn.functional.gelu(z, approximate="tanh"))


def ignores_the_slope(patch: Patch) -> None:
    replace(patch, reference, "activate", lambda original, z, activation, slope: original(z, activation, 0.01))


def counts_what_is_masked_out(patch: Patch) -> None:
    def of(original: Any, x: Tensor, axes: Any, mask: Tensor | None = None) -> Moments:
        return original(x if mask is None else torch.where(mask, x, 0.0), axes, None)

    patch.setattr(Moments, "of", staticmethod(lambda *args, original=Moments.of: of(original, *args)))


def divides_by_all_where_masked(patch: Patch) -> None:
    def backward(
        original: Any, g: Tensor, xhat: Tensor, rstd: Tensor, reduction: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        every = torch.full_like(reduction.counted, xhat.numel() // reduction.counted.numel())
        return original(g, xhat, rstd, reduction._replace(counted=every), *args, **kwargs)

    replace(patch, reference, "_backward_of_standardize", backward)


def leaves_the_output_where_masked(patch: Patch) -> None:
    def finish(original: Any, z: Tensor, residual: Any, mask: Any, *args: Any) -> Tensor:
        return original(z, residual, None, *args)

    replace(patch, reference, "_finish", finish)


def moves_by_the_variance_over_n(patch: Patch) -> None:
    def update(original: Any, self: Any, mean: Tensor, var: Tensor, count: Any = None) -> None:
        original(self, mean, var if count is not None else var * (59 / 60))

    replace(patch, gammabeta.functional.RunningStatistics, "update", update)


def turns_momentum_around(patch: Patch) -> None:
    def update(original: Any, self: Any, mean: Tensor, var: Tensor, count: Any = None) -> None:
        self.momentum = 1 - self.momentum
        original(self, mean, var, count)

    replace(patch, gammabeta.functional.RunningStatistics, "update", update)


def centers_rms_norm(patch: Patch) -> None:
    replace(patch, reference, "sample_moments", lambda original, x, mask, center: original(x, mask, True))


def rounds_eps_to_float16(patch: Patch) -> None:
    def standardize(original: Any, x: Tensor, mean: Tensor, var: Tensor, mask: Tensor | None, eps: float) -> Tensor:
        return original(x, mean, var, mask, torch.tensor(eps, dtype=torch.float16).item())

    replace(patch, reference, "_standardize", standardize)


MASK = torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) < 0.7
TRAINING: dict[str, Any] = {"training": True}
CASES: list[tuple[Callable[[Patch], None], str, dict[str, Any], tuple[torch.dtype, ...]]] = [
    *(
        (mistake, op, {**mode, **finish}, (torch.float32, torch.bfloat16))
        for op, mode in (("batch_norm", TRAINING), ("group_norm", {}), ("instance_norm", {}), ("layer_norm", {}))
        for mistake, finish in (
            (divides_by_n_minus_1, {}),
            (drops_the_weight, {}),
            (drops_the_bias, {}),
            (drops_the_residual, {"residual": True}),
            (drops_the_gradient_of_the_residual, {"residual": True}),
            (adds_the_residual_after_the_activation, {"residual": True, "activation": "relu"}),
            (forgets_the_mean_in_the_backward, {}),
            (forgets_the_variance_in_the_backward, {}),
            (takes_statistics_for_constants_in_the_backward, {}),
            (forgets_the_derivative_of_the_activation, {"activation": "silu"}),
            (leaves_the_output_where_masked, {"mask": MASK}),
        )
    ),
    *(
        (mistake, "rms_norm", finish, (torch.float32, torch.bfloat16))
        for mistake, finish in (
            (centers_rms_norm, {}),
            (forgets_the_variance_in_the_backward, {}),
            (drops_the_weight, {}),
            (drops_the_gradient_of_the_residual, {"residual": True}),
        )
    ),
    *(
        (mistake, op, {"mask": MASK, **mode}, (torch.float32, torch.bfloat16))
        for op, mode in (("batch_norm", TRAINING), ("group_norm", {}), ("instance_norm", {}))
        for mistake in (counts_what_is_masked_out, divides_by_all_where_masked)
    ),
    *(
        (mistake, op, mode, (torch.float64, torch.float32, torch.bfloat16))
        for op, mode in (("batch_norm", TRAINING), ("instance_norm", {}))
        for mistake in (moves_by_the_variance_over_n, turns_momentum_around)
    ),
    (adds_eps_after_the_root, "batch_norm", {**TRAINING, "eps": 1e-3}, (torch.float64, torch.float32)),
    (rounds_eps_to_float16, "layer_norm", {}, (torch.float64,)),
    (takes_the_variance_in_one_pass, "batch_norm", {**TRAINING, "mean": 300.0}, (torch.float32,)),
    (takes_the_variance_in_one_pass, "layer_norm", {"mean": 300.0}, (torch.float32,)),
    (keeps_statistics_in_the_dtype_of_x, "batch_norm", TRAINING, (torch.bfloat16, torch.float16)),
    (keeps_statistics_in_the_dtype_of_x, "group_norm", {}, (torch.bfloat16, torch.float16)),
    (rounds_the_terms_of_sums, "layer_norm", {"activation": "silu"}, (torch.bfloat16,)),
    (takes_gelu_by_tanh, "batch_norm", {"activation": "gelu"}, (torch.float64, torch.float32)),
    (
        ignores_the_slope,
        "batch_norm",
        {"activation": "leaky_relu", "activation_slope": 0.2},
        (torch.float32, torch.bfloat16),
    ),
]


def a_call(op: str, settings: dict[str, Any], dtype: torch.dtype) -> Call:
    given = {}
    if dtype.itemsize == 2:  # so that their own rounding does not hide anything
        given = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.float32)
    shape = (5, 12, 6) if op in ("layer_norm", "rms_norm") else (5, 6, 12)
    return random_call(op, shape, dtype, dtypes=given, **settings)


@by_the_reference
@pytest.mark.parametrize(
    ("mistake", "op", "settings", "dtypes"), CASES, ids=[f"{mistake.__name__}-{op}" for mistake, op, *_ in CASES]
)
def test_is_rejected(
    mistake: Callable[[Patch], None],
    op: str,
    settings: dict[str, Any],
    dtypes: tuple[torch.dtype, ...],
    route: str,
    monkeypatch: Patch,
) -> None:
    calls = [a_call(op, settings, dtype) for dtype in dtypes]
    for call in calls:
        assert_conforms(call, route)
    mistake(monkeypatch)
    for call in calls:
        with pytest.raises(AssertionError, match="elements off"):
            assert_conforms(call, route)


@by_the_reference
def test_moving_statistics_that_are_not_finite_is_rejected(route: str, monkeypatch: Patch) -> None:
    call = random_call("batch_norm", (5, 6, 12), **TRAINING)
    x = call.input.clone()
    x[0, 2] = torch.inf
    call = call.with_tensors(input=x)

    def update(self: Any, mean: Tensor, var: Tensor, count: Any = None) -> None:
        self.mean.lerp_(mean, self.momentum)
        self.var.lerp_(var, self.momentum)

    monkeypatch.setattr(gammabeta.functional.RunningStatistics, "update", update)
    wanted, got = ({name: r for name, r in f(call).items() if name in RUNNING} for f in (expected, run))
    with pytest.raises(AssertionError, match=r"running_mean .* elements off"):
        assert_close(call, got, wanted, "ops")


@pytest.mark.parametrize("route", ["chosen"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composing_in_the_wrong_order_is_rejected(dtype: torch.dtype, route: str, monkeypatch: Patch) -> None:
    # LayerNorm: what torch's op computes on a CPU.
    call = a_call("layer_norm", {"residual": True, "activation": "relu"}, dtype)
    monkeypatch.setattr(gammabeta.aten.Finish, "left_to_torch", lambda self, x: True)
    assert_conforms(call, route)

    def composed(self: Any, y: Tensor, dtype: torch.dtype) -> Tensor:
        return (torch.relu(y) + self.residual).to(dtype)

    monkeypatch.setattr(gammabeta.aten.Finish, "composed", composed)
    with pytest.raises(AssertionError, match="elements off"):
        assert_conforms(call, route)
