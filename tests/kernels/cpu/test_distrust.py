"""Ops check everything: they refuse an argument in words or return the reference's result, and write nothing else.

Arguments are derived from every op's schema: valid ones, of which some are damaged. Every implementation of the op gets
them. With `make sanitize` this runs under AddressSanitizer, where reading beyond a tensor ends the process.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.conformance.test_schemas import arguments as arguments_in
from tests.kernels.cpu.damage import (
    AGREED,
    REFUSED,
    TAKEN,
    WRONG_NUMBERS,
    Argument,
    Damage,
    Guarded,
    arguments_of,
    damages,
    random_damage,
)
from tests.routes import tensor_ops
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import gammabeta.ops
from gammabeta.kernels.cuda import register as cuda
from gammabeta.proof.interpreter import INTERPRETED

NAMES = tensor_ops()
LAUNCHED = [name for name in NAMES if name in gammabeta.ops.DEFAULTS]

REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError)
"""The errors that count as a refusal. Their text is asserted where our own check raises them."""


def op(name: str) -> Any:
    return getattr(torch.ops.gammabeta, name).default


def default(name: str) -> Callable[..., Any]:
    """Return the default implementations, which run on tensors of any device."""
    kernel = torch.library.get_kernel(op(name), "PrivateUse1")
    return lambda *args: kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args)


def by_fake(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with FakeTensorMode() as mode:
            return op(name)(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))

    return run


@pytest.fixture(autouse=True)
def _launches_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what is registered for CUDA take CPU tensors for CUDA tensors."""
    monkeypatch.setattr(cuda, "serves", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    if INTERPRETED:
        from gammabeta.proof.interpreter import set_up

        set_up()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of complex values that lose a part, of prototypes
        yield


def implementations(name: str) -> dict[str, Callable[..., Any]]:
    found = {"native": op(name), "default": default(name)}
    if name in LAUNCHED:
        found["launcher"] = cuda.launching(name)
    return found


def flat(results: Any) -> list[Tensor]:
    return [] if results is None else [results] if isinstance(results, Tensor) else list(results)


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone(memory_format=torch.contiguous_format) if isinstance(a, Tensor) else a for a in args)


def run_guarded(
    run: Callable[..., Any], schema: list[Argument], args: tuple[Any, ...], about: str
) -> list[Tensor] | Exception:
    """Return results and what was written, or the refusal. Everything else is unchanged, around the tensors too."""
    guarded = {i: Guarded(a) for i, a in enumerate(args) if isinstance(a, Tensor)}
    given = [guarded[i].tensor if i in guarded else a for i, a in enumerate(args)]
    try:
        results = flat(run(*given))
    except REFUSALS as error:
        for i, one in guarded.items():
            one.assert_untouched(f"{about}: refused, and {schema[i].name}")
        return error
    for i, one in guarded.items():
        one.assert_untouched(f"{about}: {schema[i].name}", written=schema[i].written)
    return results + [given[i] for i in guarded if schema[i].written]


def assert_same(got: list[Tensor], wanted: list[Tensor], about: str) -> None:
    assert len(got) == len(wanted), about
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.device == b.device, f"{about}: result {i} is on {a.device}, not {b.device}"
        assert a.shape == b.shape, f"{about}: result {i} is of shape {tuple(a.shape)}, not {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"{about}: result {i} is of {a.dtype}, not {b.dtype}"
        if a.is_meta:
            continue
        if not a.dtype.is_floating_point:
            assert torch.equal(a, b), f"{about}: result {i}"
            continue
        finite = b[b.isfinite()].double().abs()
        size = float(finite.max()) if finite.numel() else 0.0
        precision = max(8 * torch.finfo(a.dtype).eps, 1e-5)
        torch.testing.assert_close(
            a.double(), b.double(), rtol=precision, atol=precision * max(size, 1e-3), equal_nan=True,
            msg=lambda text, i=i: f"{about}: result {i}: {text}",
        )  # fmt: skip


def assert_in_words(error: Exception, name: str, about: str) -> None:
    """Check the words: ours, or those of torch's dispatcher, but never a position in the source."""
    text = str(error)
    assert not any(path in text for path in (".cpp", ".h:", ".h,", "/src/")), f"{about}: {text}"
    ours = text.startswith((f"gammabeta::{name}: expected ", "Expected all tensors to be on the same device"))
    of_dispatcher = f"gammabeta::{name}() Expected a value of type" in text or "Could not run" in text
    assert ours or of_dispatcher, f"{about}: {type(error).__name__}: {text}"


def check(name: str, args: tuple[Any, ...], owed: int, about: str) -> None:
    """Assert what every implementation must do."""
    schema = arguments_of(op(name))
    of_tensors = [a for a in args if isinstance(a, Tensor)]
    meta = any(a.is_meta for a in of_tensors)
    on_meta_alone = all(a.is_meta for a in of_tensors)
    outcomes = {}
    for who, run in implementations(name).items():
        if who == "launcher" and (args[0] is None or on_meta_alone or (owed != REFUSED and not INTERPRETED)):
            continue  # the dispatcher never passes these; kernels run only in the interpreter
        outcomes[who] = run_guarded(run, schema, args, f"{name} by {who}, {about}")
    refused = {who: isinstance(outcome, Exception) for who, outcome in outcomes.items()}
    if owed != AGREED:
        wanted = owed == REFUSED
        assert all(r == wanted for r in refused.values()), f"{name}, {about}: {outcomes}"
    assert len(set(refused.values())) == 1, f"{name}, {about}: {outcomes}"
    for who, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            assert_in_words(outcome, name, f"{name} by {who}, {about}")
    if not refused["native"]:
        # The same numbers, each tensor in its own memory.
        reference = run_guarded(default(name), schema, copied(args), about)
        assert not isinstance(reference, Exception), f"{name}, {about}: {reference}"
        for who, outcome in outcomes.items():
            assert_same(outcome, reference, f"{name} by {who}, {about}")  # type: ignore[arg-type]
    if "freed" in about or meta:
        return  # fakes do not check memory, and mixed devices have their own test
    native = outcomes["native"]
    for who, run in (("meta", on_meta(name)), ("fake", by_fake(name))):
        if isinstance(native, Exception):
            assert isinstance(tried(run, args), Exception), f"{name} by {who}, {about}: no error"
            continue
        faked = flat(run(*args))
        for i, (fake, real) in enumerate(zip(faked, native, strict=False)):
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype), f"{name} by {who}, {about}: result {i}"


def tried(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return run(*args)
    except Exception as error:  # also one of the fake mode itself, which refuses sparse tensors, for example
        return error


def on_meta(name: str) -> Callable[..., Any]:
    def of(a: Tensor) -> Tensor:
        if a.layout != torch.strided:
            return a.to("meta")
        return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta")

    return lambda *args: op(name)(*(of(a) if isinstance(a, Tensor) else a for a in args))


def arguments(name: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Return valid arguments, with the right counts: where all values count, kernels use x's shape."""
    given = []
    for args in arguments_in(name, dtype):
        if name == "sample_norm_backward":
            x, groups, count = args[1], args[4], args[11]
            args = (*args[:11], torch.full_like(count, x.numel() // count.numel()), *args[12:])
            assert count.shape[1] == groups
        given.append(args)
    return given


def tensors_of(name: str, args: tuple[Any, ...]) -> list[int]:
    return [i for i, a in enumerate(arguments_of(op(name))) if a.tensor and isinstance(args[i], Tensor)]


def owed_for(name: str, args: tuple[Any, ...], at: int, one: Damage) -> int:
    """x may have another shape where no other argument has x's shape, and may be on meta together with all others."""
    schema = arguments_of(op(name))
    names = [schema[i].name for i in tensors_of(name, args)]
    if one.name == "on meta" and len(names) == 1:
        return AGREED
    if name == "update_running_statistics_" and schema[at].name == "num_batches_tracked" and one.of_dtype:
        return AGREED  # it counts what it finds
    free = schema[at].name == "x" and not {"residual", "g_y", "g_total"} & set(names)
    return AGREED if one.of_shape and free else one.owed


@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_is_wrong(name: str) -> None:
    torch.manual_seed(0)
    schema = arguments_of(op(name))
    for number, args in enumerate(arguments(name, torch.float32)):
        for at in tensors_of(name, args):
            for one in damages(schema[at], args[at]):
                damaged = one.to(args[at])
                if damaged is None:
                    continue
                changed = (*args[:at], None if isinstance(damaged, str) else damaged, *args[at + 1 :])
                owed = owed_for(name, args, at, one)
                check(name, changed, owed, f"arguments {number}, {schema[at].name} {one.name}")


@pytest.mark.parametrize("name", NAMES)
def test_several_tensors_are_wrong(name: str) -> None:
    """Two or three damages at once, in any dtype, chosen at random."""
    rng = random.Random(name)
    torch.manual_seed(0)
    schema = arguments_of(op(name))
    for turn in range(60):
        dtype = rng.choice((torch.float64, torch.float32, torch.bfloat16, torch.float16))
        args = list(rng.choice(arguments(name, dtype)))
        of_tensors = tensors_of(name, tuple(args))
        owed, about = TAKEN, [f"turn {turn}, {dtype}"]
        for at in rng.sample(of_tensors, min(len(of_tensors), rng.choice((2, 3)))):
            chosen = random_damage(rng, schema[at], args[at])
            if chosen is None:
                continue
            what, owes, damaged = chosen
            args[at] = None if isinstance(damaged, str) else damaged
            owed = max(owed, owes)
            about.append(f"{schema[at].name} {what}")
        # Two with the same mistake may fit each other.
        check(name, tuple(args), AGREED if owed == REFUSED else owed, ", ".join(about))


@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_wrong(name: str) -> None:
    schema = arguments_of(op(name))
    for number, args in enumerate(arguments(name, torch.float32)):
        for at, argument in enumerate(schema):
            for wrong in WRONG_NUMBERS.get(argument.name, ()):
                changed = (*args[:at], wrong, *args[at + 1 :])
                check(name, changed, REFUSED, f"arguments {number}, {argument.name} {str(wrong)[:20]!r}")


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_is_on_another_device(name: str, device: str) -> None:
    """Mixed devices are refused in words like torch's, with real and with fake tensors, as compilers use."""
    for args in arguments(name, torch.float32):
        of_tensors = tensors_of(name, args)
        for at in of_tensors:
            if len(of_tensors) == 1:
                continue
            moved = list(args)
            for i in of_tensors:
                away = (i == at) == (device == "meta")
                moved[i] = args[i].to("meta") if away else args[i].clone()
            guarded = {i: Guarded(moved[i]) for i in of_tensors if not moved[i].is_meta}
            for i, one in guarded.items():
                moved[i] = one.tensor
            for run in (op(name), default(name), by_fake(name)):
                with pytest.raises(RuntimeError, match=r"^Expected all tensors to be on the same device") as caught:
                    run(*moved)
                assert "cpu" in str(caught.value)
                assert "meta" in str(caught.value)
                assert name in str(caught.value)
            for one in guarded.values():
                one.assert_untouched(name)


SHAPES = [
    (0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0), (0, 4), (3, 0), (0, 0, 0), (3, 4, 0, 2), (0, 4, 5, 2), (2, 0, 3, 2),
    (1, 1), (1, 1, 1), (1, 4, 1),
]  # fmt: skip


def of_shape(name: str, shape: tuple[int, ...], *, last: bool) -> tuple[Any, ...] | None:
    """Return all arguments of an op for x of that shape, over channels or over the last axis; None where impossible."""
    c = shape[1]
    sample = "sample" in name
    if (last and not sample) or (not last and name.startswith("add")):
        return None
    sample_axes = len(shape) - 1 if last else 1
    parameters = shape[sample_axes : sample_axes + 1]
    places = (*shape[:sample_axes], *shape[sample_axes + 1 :])
    groups = 1 if last else 2 if c % 2 == 0 else 1
    samples = int(torch.Size(shape[:sample_axes]).numel())
    statistics = (samples, groups) if sample else (c,)
    values_of_each = torch.Size(shape).numel() // max(torch.Size(statistics).numel(), 1)
    numbers = {
        "eps": 1e-5, "activation": "silu", "slope": 0.1, "center": True, "groups": groups, "momentum": 0.1,
        "sample_axes": sample_axes, "channel_axes": 1,
    }  # fmt: skip
    values: list[Any] = []
    for argument in arguments_of(op(name)):
        match argument.name:
            case "x" | "g_y" | "residual" | "total" | "g_total":
                values.append(torch.randn(shape))
            case "weight" | "bias":
                values.append(torch.randn(parameters))
            case "mask":
                values.append(torch.ones(places, dtype=torch.bool))
            case "count":
                values.append(torch.full(statistics, values_of_each))
            case other if argument.tensor:
                values.append(torch.rand(statistics) + 0.5)
            case other:
                values.append(numbers[other])
    return tuple(values)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LAUNCHED)
def test_empty_and_single_values(name: str, last: bool) -> None:
    """Empty and single: no samples, no channels, no positions, one value. All are right as long as everything fits."""
    torch.manual_seed(0)
    ran = 0
    for shape in SHAPES:
        args = of_shape(name, shape, last=last)
        if args is not None:
            check(name, args, TAKEN, f"x {shape}")
            ran += 1
    assert ran or last or name.startswith("add")


def test_every_op_with_a_tensor_has_its_check() -> None:
    """An op without a check fails here. Those of the running statistics are checked in their own module."""
    for name in NAMES:
        args = arguments(name, torch.float32)[0]
        at = tensors_of(name, args)[0]
        wrong = (*args[:at], args[at].to(torch.complex64), *args[at + 1 :])
        for who, run in itertools.chain(implementations(name).items(), (("meta", on_meta(name)),)):
            said = str(tried(run, wrong))
            assert re.match(f"gammabeta::{name}: expected .* of dtype .*, got complex64", said), f"{who}: {said}"


def test_an_op_with_an_unknown_tensor_cannot_be_declared() -> None:
    from gammabeta.op_checks import OpCheck

    with pytest.raises(KeyError, match="surprise"):
        OpCheck("an_op(Tensor x, Tensor surprise) -> Tensor")


def test_the_words_are_the_same_in_both_languages() -> None:
    """The C++ kernels and the default implementations report a wrong argument in the same words."""
    compared = 0
    for name in LAUNCHED:
        schema = arguments_of(op(name))
        args = arguments(name, torch.float32)[0]
        for at in tensors_of(name, args):
            for one in damages(schema[at], args[at]):
                damaged = one.to(args[at])
                if damaged is None or isinstance(damaged, str) or owed_for(name, args, at, one) != REFUSED:
                    continue
                changed = (*args[:at], damaged, *args[at + 1 :])
                said = []
                for run in (op(name), default(name)):
                    with pytest.raises(REFUSALS) as caught:
                        run(*changed)
                    said.append(str(caught.value))
                assert said[0] == said[1]
                compared += 1
    assert compared > 500


def traced(mode: FakeTensorMode, t: Tensor) -> Tensor:
    """Trace with every size as its own symbol."""
    dynamic: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * t.ndim)
    fake = mode.from_tensor(t, symbolic_context=dynamic)
    assert not any(type(size) is int for size in fake.shape)
    return fake


def test_traced_sizes_that_are_the_same_symbols_cost_no_guard() -> None:
    """Checks add no guards: each would be another graph, for some other size."""
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    x = traced(mode, torch.randn(6, 8, 10))
    with mode:
        n, c, s = x.shape
        weight, mask = x.new_ones(c), x.new_ones((n, s), dtype=torch.bool)
        finish = 1e-5, "silu", 0.0
        ops = torch.ops.gammabeta
        y, *statistics = ops.channel_norm_forward(x, weight, weight, x, mask, *finish)
        ops.channel_norm_backward(y, x, weight, weight, x, mask, *statistics, *finish)
        rows, row = x.new_ones((n, c), dtype=torch.bool), x.new_ones(s)
        y, *statistics = ops.sample_norm_forward(x, 2, 1, 1, row, row, x, rows, *finish, True)
        ops.sample_norm_backward(y, x, 2, 1, 1, row, row, x, rows, *statistics, *finish, True)
        y, total, *statistics = ops.add_sample_norm_forward(x, y, 1, row, None, 1e-5, False)
        ops.add_sample_norm_backward(y, y, total, 1, row, None, *statistics, 1e-5, False)
    assert not shapes.guards


def test_traced_sizes_of_other_symbols_are_compared() -> None:
    shapes = ShapeEnv()
    forward = torch.ops.gammabeta.channel_norm_forward
    mode = FakeTensorMode(shape_env=shapes)
    x, weight, other = (traced(mode, t) for t in (torch.randn(6, 8, 10), torch.ones(8), torch.ones(9)))
    with mode:
        with pytest.raises(RuntimeError, match=r"^gammabeta::channel_norm_forward: expected weight of shape"):
            forward(x, other, None, None, None, 1e-5, "none", 0.0)
        forward(x, weight, None, None, None, 1e-5, "none", 0.0)
    assert any("Eq" in str(guard.expr) for guard in shapes.guards)


def test_a_kernel_of_the_cpu_that_is_called_past_the_dispatcher() -> None:
    name = "channel_norm_forward"
    kernel, keys = torch.library.get_kernel(op(name), "CPU"), torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    x, rest = torch.randn(3, 4), (None, None, None, 1e-5, "none", 0.0)
    for bad, words in (
        (x.to("meta"), "expected x on cpu, got meta"),
        (x.to_sparse(), "expected x of layout strided, got sparse_coo"),
        (torch.nested.nested_tensor([x, x[:2]]), "expected x that is a plain tensor"),
    ):
        with pytest.raises(RuntimeError, match=f"^gammabeta::{name}: {words}"):
            kernel.call_boxed(keys, bad, None, *rest)
    with pytest.raises(RuntimeError, match=r"at least two devices, cpu and meta! .argument weight of gammabeta::"):
        kernel.call_boxed(keys, x, torch.ones(4, device="meta"), *rest)
