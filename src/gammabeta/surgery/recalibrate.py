"""Recalibration: population statistics in place of the moving average."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from gammabeta.introspection.batches import MOST, length_of
from gammabeta.introspection.eagerly import eagerly
from gammabeta.introspection.forward import Forward, forward_batch, unwrapped
from gammabeta.introspection.norms import is_batch_norm, is_frozen_batch_norm
from gammabeta.introspection.unchanged import modes_kept
from gammabeta.introspection.where import Where, select
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.running_statistics import forget_skipped
from gammabeta.statistics import Batch, Running
from gammabeta.surgery.adopt import adopt_module
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.population import Estimate, Population, estimates
from gammabeta.surgery.ranks import Ranks

# The fewest batches that show a progress bar, and the batches between two checks of the standard errors.
_LONG, _BETWEEN_LOOKS = 20, 4
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Of batches without a length, a fix takes no more than leave these standard errors: half of what the moving average of
# batches of 32 has with the usual momentum.
_ENOUGH = 0.02
# In place of an ε of 0.
_TINY = 1e-36


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    where: Where = None,
    group: Any = None,
    forward: Forward | None = None,
    standard_error: float | None = None,
) -> Change:
    """Set the running statistics to those of all batches together: exact merged moments, each batch by its count.

    One pass over the batches takes the moments of each chosen layer's inputs. They are merged by Chan's formula in
    float64; the variance is divided by n − 1. A channel that is not finite in a batch is left out of that batch.

    During the pass the chosen layers normalize by their batch on this process, whatever their source of statistics. So
    the inputs of later layers depend on no running statistic. Everything else is in evaluation mode, with dropout
    off. Frozen layers (`Running`) are left alone. Afterwards modes, sources and classes are restored, and
    num_batches_tracked is the number of batches.

    Batches without a length, as of a generator or an IterableDataset, may never end. Without `standard_error` the first
    1000 of them are taken, and the `Change` says so.

    Args:
        model: any module. The pass runs without DistributedDataParallel, and runs compiled modules uncompiled.
        batches: each as the model takes it: a tensor, a tuple or list of positional arguments, a mapping of keyword
            arguments, or (input, target) ("Batches" in docs/conventions.md).
        where: which BatchNorms: a glob on their names, a list, or a predicate `(name, module) -> bool`.
        group: the process group whose ranks' batches are merged; `dist.group.WORLD` for all. Every rank in it must call
            this. Ranks may have different numbers of batches, at least one each. None is only this process.
        forward: `forward(model, batch)`, for batches that go through the model in another way.
        standard_error: stop as soon as every layer's standard errors are at most this: that of the mean, in standard
            deviations, and that of the variance, relative; root mean squares over channels. None takes all batches, or
            the first 1000 of batches without a length.

    Returns:
        The `Change`. Its numbers, by layer:

        - `samples`; `batches` where the first 1000 were taken.
        - `mean_error` and `var_error`, the standard errors above. They take samples as independent, positions not.
        - `before` and `after`, √(Δμ²/σ² + ln²(σ'/σ)), root mean square over channels: the distance between the running
          statistics and the moments of this rank's first batch in evaluation mode. `after` is not 0 but the sampling
          error of one batch.

    Raises:
        ValueError: there are no batches, fewer than two samples for a layer, or too few batches for `standard_error`
            (the message says how many are needed); or `where` chooses nothing. The model is as before.
        TypeError: a batch is none of the above.
        RuntimeError: another rank of the group failed.

    Source: Wu & Johnson 2021 (2105.07576), section 3, with exact merging; Chan, Golub & LeVeque 1983, eq. 2.1.
    """
    if standard_error is not None and not standard_error > 0:
        raise ValueError(f"recalibrate: expected standard_error above 0 or None, got {standard_error}.")
    return _run(model, batches, where, _Way(group, forward, standard_error))


def recalibrate_what_can_be(
    model: nn.Module, batches: Iterable[Any], *, where: Where, forward: Forward | None = None
) -> Change:
    """Recalibrate like `recalibrate`, but leave a layer that too few samples reach instead of raising for all.

    Of batches without a length it takes at most 1000, and no more than bring every standard error down to 0.02.
    """
    return _run(model, batches, where, _Way(forward=forward, each=True))


@dataclass(frozen=True)
class _Way:
    """How a recalibration runs: arguments of `recalibrate`, and whether each layer may be left on its own."""

    group: Any = None
    forward: Forward | None = None
    standard_error: float | None = None
    each: bool = False


def _run(model: nn.Module, batches: Iterable[Any], where: Where, way: _Way) -> Change:
    inner = unwrapped(model)
    with transaction("recalibrate") as change:
        layers: dict[str, Any] = {}
        for name, module in select(model, where, is_batch_norm, operation="recalibrate", kind="BatchNorms"):
            reason = why_not_recalibrated(module)
            if reason is None:
                layers[name] = module
            else:
                change.leave(name, reason)
        if not layers:
            return change
        ranks = Ranks(
            "recalibrate", way.group, next(iter(layers.values())).running_mean.device, alone=way.group is None
        )
        recalibration = _Recalibration(inner, layers, way, ranks)
        with torch.no_grad(), eagerly():
            found = recalibration.measure(batches)
            for name, estimate in found.items():
                if estimate.samples >= recalibration.fewest and bool((estimate.moments.count > 1).any()):
                    _write(change, layers[name], estimate, recalibration.taken)
            after = recalibration.distances_after()
        for name, estimate in found.items():
            if not estimate.samples:
                change.leave(name, "no batch reached it")
            elif estimate.samples < recalibration.fewest:
                change.leave(name, "a single sample reached it, which has no variance: hand more batches")
            elif not bool((estimate.moments.count > 1).any()):
                change.leave(name, "no channel was finite in any batch")
            else:
                distances = (recalibration.before.get(name), after.get(name))
                _note(change, name, estimate, distances, recalibration.first)
    return change


def _note(
    change: Change, name: str, estimate: Estimate, distances: tuple[float | None, float | None], first: int | None
) -> None:
    """Note what was measured: the errors of the new statistics, and whether they are nearer to the first batch."""
    mean_error, var_error = estimate.relative_errors()
    numbers = {"samples": estimate.samples, "mean_error": mean_error, "var_error": var_error}
    before, after = distances
    what = "recalibrated"
    kept = int((estimate.moments.count < 2).sum())
    if kept:
        what += f" but for {kept} channel{' that was' if kept == 1 else 's that were'} never finite"
    if before is not None and after is not None:
        numbers |= {"before": before, "after": after}
        if after > before:
            what += ", yet farther from the first batch than before"
    if first is not None:
        numbers["batches"] = first
    change.note(name, what + of_the_first(numbers), **numbers)


def of_the_first(numbers: Mapping[str, float]) -> str:
    """Say that statistics are of the first batches only, from the numbers of a layer's entry; "" if they are not."""
    return f", on the first {numbers['batches']:g} batches: they have no length" if "batches" in numbers else ""


def why_not_recalibrated(module: nn.Module) -> str | None:
    """Return why a norm cannot be recalibrated; None where it can."""
    if not is_batch_norm(module):
        return f"{type(module).__name__} is none of torch's or gammabeta's BatchNorms"
    if is_frozen_batch_norm(module):
        return f"{type(module).__name__} is frozen by its class"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted: recalibrate before torch.jit.script"
    if isinstance(module, LazyModuleMixin):
        return "it has not been initialized: run a batch through the model first"
    if module._buffers.get("running_mean") is None or module._buffers.get("running_var") is None:
        return "it has no running statistics"
    if isinstance(module, _BatchNorm) and module.statistics == Running():
        return "it is frozen: unfreeze it first"
    return None


class _Recalibration:
    """The forwards of a recalibration, in step with the other ranks."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Any], way: _Way, ranks: Ranks) -> None:
        self._model, self._layers, self._ranks, self._bound = model, layers, ranks, way.standard_error
        self._run = forward_batch("recalibrate", way.forward)
        self._each = way.each
        self.fewest = 2 if way.each else 1
        self._channels = {name: layer.running_mean.shape[0] for name, layer in layers.items()}
        self._first: Any = None
        self.before: dict[str, float] = {}
        self.taken = 0
        self.first: int | None = None  # the number of batches, where there may be more that were not taken

    def measure(self, batches: Iterable[Any]) -> dict[str, Estimate]:
        """Return the layers' estimates from the batches of all ranks."""
        populations = self._populations()
        failure: Exception | None = None
        own = 0
        waiting: Iterator[Any] = iter(())
        length = length_of(batches)
        bound = _ENOUGH if self._each and length is None else self._bound
        try:
            # The first batch on its own: its distance from the statistics before the recalibration.
            rest = iter(batches)
            self._first = next(rest, None)
            if self._first is not None:
                self.before = self._distances()
                waiting = _with_progress(itertools.chain([self._first], rest), length, self._ranks.rank)
        except Exception as error:
            failure = error
        with measuring(self._model, self._layers, populations, by_batch=True):
            while True:
                taken = 0
                try:
                    if failure is None:
                        for batch in itertools.islice(waiting, (length or MOST) if bound is None else _BETWEEN_LOOKS):
                            self._run(self._model, batch)
                            taken += 1
                except Exception as error:
                    failure = error
                own += taken
                more = bound is not None and taken == _BETWEEN_LOOKS and not (self._each and own >= MOST)
                told = self._ranks.agree(failure, own, more)
                self.taken = sum(batches_taken for batches_taken, _ in told)
                self._check_some(told)
                found = estimates(populations, self._channels, self._ranks)
                largest = self._largest(found)[1]
                settled = bound is not None and largest <= bound
                hopeless = self.taken >= MOST and not math.isfinite(
                    largest
                )  # none is reached, or one without variance and ε
                if settled or hopeless or not any(rank_has_more for _, rank_has_more in told):
                    break
        if length is None and self._bound is None and (own == MOST or (settled and taken == _BETWEEN_LOOKS)):
            self.first = own
        if isinstance(waiting, Generator):
            waiting.close()  # removes the progress bar
        self._check_enough(found)
        return found

    def distances_after(self) -> dict[str, float]:
        failure, after = None, {}
        try:
            after = self._distances()
        except Exception as error:
            failure = error
        self._ranks.agree(failure)
        return after

    def _populations(self) -> dict[str, Population]:
        return {name: Population(layer.eps) for name, layer in self._layers.items()}

    def _distances(self) -> dict[str, float]:
        """Return the distance of each layer's input from its running statistics in evaluation, on the first batch."""
        populations = self._populations()
        with measuring(self._model, self._layers, populations, by_batch=False):
            self._run(self._model, self._first)
        alone = Ranks("recalibrate", None, self._ranks.device, alone=True)
        return {
            name: estimate.distance(self._layers[name].running_mean, self._layers[name].running_var)
            for name, estimate in estimates(populations, self._channels, alone).items()
            if estimate.samples
        }

    def _largest(self, found: Mapping[str, Estimate]) -> tuple[str, float]:
        """Return the layer with the largest standard error, and the error."""
        errors = {name: max(e.relative_errors()) for name, e in found.items() if e.samples > 1}
        name = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name], default="")
        return name, errors.get(name, math.inf)

    def _check_some(self, told: list[list[int]]) -> None:
        empty = [rank for rank, (batches_taken, _) in enumerate(told) if batches_taken == 0]
        if empty:
            whom = "" if len(told) == 1 else f" on {', '.join(f'rank {rank}' for rank in empty)}"
            raise ValueError(
                f"recalibrate: expected at least one batch, got none{whom}: an iterator that is used up gives none."
            )

    def _check_enough(self, found: Mapping[str, Estimate]) -> None:
        if not any(estimate.samples for estimate in found.values()):
            raise ValueError(
                f"recalibrate: expected forwards that reach the chosen BatchNorms, got {self.taken} batches that reach "
                f"none of {', '.join(list(found)[:3])}: hand batches of what the model takes, or forward=."
            )
        for name, estimate in found.items():
            if estimate.samples == 1 and not self._each:
                raise ValueError(f"recalibrate: expected at least 2 samples for {name}, got 1: hand more batches.")
        worst, error = self._largest(found)
        if self._bound is not None and error > self._bound:
            raise ValueError(
                f"recalibrate: expected batches until every standard error is at most {self._bound:g}, got "
                f"{self.taken} of them with {error:.3g} left at {worst}: about {math.ceil((error / self._bound) ** 2)} "
                "times as many are needed. Hand more, or a larger standard_error."
            )


class Collects(Protocol):
    """What takes the inputs of a layer."""

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """Take an input, (N, C, *positions), and its mask."""


@contextmanager
def measuring(
    model: nn.Module, layers: Mapping[str, Any], populations: Mapping[str, Collects], *, by_batch: bool
) -> Iterator[None]:
    """Put the model in evaluation mode and add every input of the layers to their populations.

    With `by_batch` the layers normalize by the batch, and update copies of their running statistics. On leaving,
    everything is restored.

    Args:
        model: any module.
        layers: BatchNorms of the model, by name.
        populations: by the same names, what takes each input, (N, C, *positions), with the mask the layer was given.
        by_batch: whether the layers normalize by the batch.
    """
    with modes_kept(model), transaction("recalibrate") as temporary:
        for module in model.modules():
            module.training = False
        for name, layer in layers.items():
            if by_batch:
                if type(layer) is nn.SyncBatchNorm:
                    adopt_module(temporary, name, layer)
                if isinstance(layer, _BatchNorm):
                    temporary.set_attribute(layer, "statistics", Batch(), name)
                    temporary.set_attribute(layer, "gathered", None, name)  # of `accumulate_statistics`
                layer.training = True
                if not layer.eps > 0:
                    # torch's layers refuse it in training; no variance of float32 notices this one.
                    temporary.set_attribute(layer, "eps", _TINY, name)
                for key in _BUFFERS:
                    buffer = layer._buffers.get(key)
                    if buffer is not None:
                        temporary.set_buffer(layer, key, buffer.clone())
            handle = layer.register_forward_pre_hook(_adding_to(populations[name]), with_kwargs=True)
            temporary.on_undo(handle.remove)
        try:
            yield
        finally:
            temporary.roll_back()


def _adding_to(population: Collects) -> Callable[[nn.Module, Any, Any], None]:
    def look(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        population.add(args[0] if args else kwargs["input"], kwargs.get("mask"))

    return look


def _write(change: Change, layer: nn.Module, estimate: Estimate, taken: int) -> None:
    known = estimate.moments.count > 1
    for key, value in (("running_mean", estimate.moments.mean), ("running_var", estimate.moments.var(correction=1))):
        before = layer._buffers[key]
        assert before is not None
        change.overwrite(layer, key, torch.where(known, value, before.to(value.device, value.dtype)))
    tracked = layer._buffers.get("num_batches_tracked")
    if tracked is not None:
        change.overwrite(layer, "num_batches_tracked", torch.full_like(tracked, taken))
    change.on_undo(forget_skipped(layer._buffers["running_mean"]))


def _with_progress(waiting: Iterator[Any], total: int | None, rank: int) -> Iterator[Any]:
    """Show a progress bar for many batches, on the first rank and on a terminal."""
    if rank or not sys.stderr.isatty() or (total is not None and total < _LONG):
        return waiting
    try:  # here, because importing gammabeta loads only torch; rich comes with the extra cli
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return waiting

    return iter(track(waiting, "recalibrate", total, console=Console(stderr=True), transient=True))
