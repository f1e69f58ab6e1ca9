"""Hooks and measurements on one watched norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta._torch_private import disable_current_modes, local_part, transforms_active
from gammabeta.diagnostics.record import Norm
from gammabeta.introspection.held import buffer_of, parameter_of
from gammabeta.introspection.sampled import Sampled, mean_distance, sample
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.moments import squared_distance
from gammabeta.monitoring.watched import Watched, WatchedNorm
from gammabeta.running_statistics import recomputing
from gammabeta.statistics import Ghost, Synced

# At most this many forwards of one norm are measured in a step.
_FORWARDS = 8


class Hook:
    """A hook that does not travel with the model: in a copy or a pickle it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        if self._call is not None:
            self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> Any:
        return Hook, ()


@dataclass
class Progress:
    """Progress of a watched training: the watch moves it, the probes read it.

    Attributes:
        measuring: whether this step is measured.
        forwards: forwards of the model so far, in training and with gradients.
        paused: whether the watch itself runs the model, which counts for nothing.
        guiding: whether this forward's inputs require gradients, as those of a generator's loss through the model.
    """

    measuring: bool = True
    forwards: int = 0
    paused: bool = False
    guiding: bool = False


class Probe:
    """Counts and measurements of one norm.

    Args:
        norm: the norm.
        watched: where its record is kept.
        progress: the training's progress.

    Attributes:
        norm: the norm.
        record: what is known of it.
        place: how many of its calls the current forward of the model has made.
    """

    def __init__(self, norm: Norm, watched: Watched, progress: Progress) -> None:
        self.norm = norm
        self.record = watched.norms.setdefault(norm.name, WatchedNorm(norm.name))
        self.place = 0
        self._watched = watched
        self._progress = progress
        self._epoch = -1
        self._batches: list[tuple[int, int, Sampled]] = []  # forward of the model, place in it, batch
        self._aside: list[Sampled] = []  # batches of forwards with gradients off
        self._before: tuple[Tensor, Tensor] | None = None
        self._tracked = norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None
        self._step = 0
        self._calls = 0
        self._moved = False
        self._modes: set[bool] = set()  # of the forwards with gradients in this step: in training mode or not
        self._version = self._versions()
        self._kept = self._values()
        self._rewrites: Tensor | None = None  # on the device

    def trained(self) -> Tensor | None:
        """Return γ or β, whichever trains; None if neither does."""
        assert self.norm.module is not None
        leaves = (p for p in self.norm.module.parameters(recurse=False) if p.requires_grad and p.is_leaf)
        return next(leaves, None)

    def count_backward(self, parameter: Tensor) -> None:
        """Count a backward pass; a hook on `trained()`."""
        assert self.record.backwards is not None
        self.record.backwards += 1

    def count_call(self, module: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count a forward of the norm and, in a measured step, keep what its input says; a forward hook."""
        if torch.compiler.is_compiling() or self._progress.paused:
            return
        if torch.is_grad_enabled() and not recomputing():
            self._modes.add(module.training)
        if not module.training:
            return
        record, self._calls = self.record, self._calls + 1
        moves = self._moves(module)
        if recomputing():
            record.recomputed += 1
            record.moved_again += moves and not isinstance(module, _BatchNorm)
            return
        if not torch.is_grad_enabled():
            record.without_gradient += moves
            if moves and self._progress.measuring and len(self._aside) < _FORWARDS:
                sampled = _sample_of(args, kwargs)
                self._aside += [] if sampled is None else [sampled]
            return
        record.calls += 1
        if record.backwards is not None and record.backwards != self._epoch:
            self._epoch = record.backwards
            record.parts += 1
            record.guiding += self._progress.guiding
        if self.norm.kind != "batch":
            return
        if self._watched.first is None and moves:
            self._watched.first = record.name
        place, self.place = self.place, self.place + 1
        if not self._progress.measuring or len(self._batches) >= _FORWARDS:
            return
        sampled = _sample_of(args, kwargs)
        if sampled is not None:
            self._batches.append((self._progress.forwards, place, sampled))
            record.samples = sampled.samples

    def _moves(self, module: Any) -> bool:
        """Whether a forward in training moves the running statistics."""
        return (
            self.norm.tracks
            and bool(getattr(module, "track_running_stats", False))
            and not getattr(module, "holds_statistics", False)
        )

    def end_step(self) -> set[bool]:
        """End a step, and return the modes in which its forwards with gradients ran."""
        modes, self._modes = self._modes, set()
        if True in modes:
            self.record.evaluation_steps = 0
        elif modes:
            self.record.evaluation_steps += 1
        return modes

    def note_steps(self) -> None:
        """Note whether γ or β were written to."""
        self.record.stepped = self.record.stepped or self._versions() != self._version
        self.record.rewrites = 0 if self._rewrites is None else int(self._rewrites)

    def _versions(self) -> list[int]:
        assert self.norm.module is not None
        return [p._version for p in self.norm.module._parameters.values() if p is not None]

    def _values(self) -> list[Tensor]:
        """Return copies of γ and β while no backward has reached them."""
        if self.record.backwards:
            return []
        assert self.norm.module is not None
        held = [p for p in self.norm.module._parameters.values() if p is not None and not p.is_meta]
        return [_local(p).clone() for p in held]

    def _count_rewrite(self) -> None:
        """Count a change of γ or β by their values: an assignment to `data` leaves the version counter as it is."""
        before, self._kept = self._kept, self._values()
        pairs = [(a, b) for a, b in zip(before, self._kept, strict=False) if (a.shape, a.device) == (b.shape, b.device)]
        if pairs:
            changed = torch.stack([(a != b).any() for a, b in pairs]).any().long()
            self._rewrites = changed if self._rewrites is None else self._rewrites.to(changed.device) + changed

    def synchronized(self) -> bool:
        """Whether the norm shares its batch statistics with other processes."""
        return isinstance(self.norm.module, nn.SyncBatchNorm) or isinstance(
            getattr(self.norm.module, "statistics", None), Synced
        )

    def moved_unseen(self) -> bool:
        """Whether the running statistics moved although no hook saw a call, as in a compiled model."""
        return self._moved and self._calls == 0

    def measure(self, step: int) -> list[tuple[str, Tensor]]:
        """Measure the norm at the end of a step.

        Returns:
            Names (those of `QUANTITIES`) and values, scalars on the norm's device.
        """
        module: Any = self.norm.module
        self._count_rewrite()
        found: list[tuple[str, Tensor]] = []
        batches, self._batches = self._batches, []
        aside, self._aside = self._aside, []
        for name in ("weight", "bias"):
            parameter = parameter_of(module, name)
            if parameter is not None and parameter.grad is not None:
                found.append((f"{name}_grad", _local(parameter.grad).norm(dtype=torch.float32)))
        weight = parameter_of(module, "weight")
        dead = _local(weight) == 0 if weight is not None else None
        last = batches[-1][2] if batches else None
        if last is not None:
            still = last.var < (self.norm.eps or 0.0)
            dead = still if dead is None else dead | still
            found.append(("effective", last.effective() * self._batches_shared(module, last.samples)))
            found += self._domains(batches)
            found += _farthest([mean_distance(last, other) for other in aside], "aside", "aside_apart")
        if dead is not None:
            found.append(("dead", dead.sum()))
        return found + self._running(step, last)

    def _running(self, step: int, last: Sampled | None) -> list[tuple[str, Tensor]]:
        """Measure the running statistics: beside the last batch, and beside those of the step measured before."""
        module: Any = self.norm.module
        found: list[tuple[str, Tensor]] = []
        mean, var = buffer_of(module, "running_mean"), buffer_of(module, "running_var")
        if mean is None or var is None or not (self.norm.tracks or self.norm.frozen):
            return found
        mean, var = mean.float(), var.float()
        eps = self.norm.eps or 0.0
        found += [("mean", mean.square().mean().sqrt()), ("std", var.mean().sqrt())]
        if last is not None:
            found.append(("gap", distance(last.mean, last.var, mean, var, eps)))
        if not self.norm.tracks:
            return found
        if self._before is not None:
            found.append(("drift", distance(mean, var, *self._before, eps)))
        self._before = mean.clone(), var.clone()
        count = buffer_of(module, "num_batches_tracked")
        if count is not None and self._tracked is not None:
            since = step + 1 - self._step
            updates = (count - self._tracked).double() / since
            if self._calls == 0:
                self._moved = bool(updates > 0)
            found.append(("updates", updates))
            self._tracked, self._step = count.clone(), step + 1
        return found

    def _batches_shared(self, module: Any, samples: int) -> float:
        """Return how many batches of this size the statistics come from: a fraction for `Ghost`."""
        source = getattr(module, "statistics", None)
        if isinstance(source, Ghost):
            return min(1.0, source.size / max(1, samples))
        peers = getattr(source, "peers", None)
        if callable(peers):
            found = peers()
            return 1.0 if found is None else float(found.size)
        if isinstance(module, nn.SyncBatchNorm) and torch.distributed.is_initialized():
            return float(torch.distributed.get_world_size(module.process_group))
        return 1.0

    def _domains(self, batches: list[tuple[int, int, Sampled]]) -> list[tuple[str, Tensor]]:
        """Compare the same call in successive forwards of the step; return the pair that differs most."""
        pairs = []
        by_place: dict[int, Sampled] = {}
        forwards = {forward for forward, _, _ in batches}
        for _, place, sampled in batches:
            place = place if len(forwards) > 1 else 0  # called outside the model: one after another
            before = by_place.get(place)
            if before is not None and self._progress.forwards != 0 and len(forwards) == 1:
                continue  # several places of one forward
            if before is not None and min(before.samples, sampled.samples) > 1:
                pairs.append(mean_distance(before, sampled))
            by_place[place] = sampled
        return _farthest(pairs, "domains", "apart")


def _farthest(distances: list[Tensor], *names: str) -> list[tuple[str, Tensor]]:
    """Return the largest of some results of `mean_distance`, by name; nothing if there are none."""
    if not distances:
        return []
    every = torch.stack(distances)
    return list(zip(names, every[every[:, 0].nan_to_num(-1).argmax()], strict=True))


def _sample_of(args: Any, kwargs: Any) -> Sampled | None:
    """Measure a norm's input; None where it cannot be: it is masked, no tensor, or within a transform."""
    if kwargs.get("mask") is not None or not args or not isinstance(args[0], Tensor) or transforms_active():
        return None
    with torch.no_grad(), disable_current_modes(), torch.autocast(args[0].device.type, enabled=False):
        return sample(args[0].detach())


def distance(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor, eps: float) -> Tensor:
    """Return √(Δμ²/σ'² + ln²(σ/σ')), root mean square over channels, in the other's standard deviations σ'.

    ε is added to both variances.
    """
    return squared_distance(other_mean, other_var + eps, mean, var + eps).mean().sqrt()


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor."""
    return local_part(tensor).detach()
