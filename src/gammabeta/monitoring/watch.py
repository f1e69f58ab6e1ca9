"""The questions of the check, asked while a model trains."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.findings import Diagnosis
from gammabeta.diagnostics.record import Norm, record_model
from gammabeta.introspection.forward import unwrapped
from gammabeta.introspection.observe import tensors_in
from gammabeta.introspection.sampled import InputOrder, Sampled, apart, sample
from gammabeta.layers.batch_norm import _BatchNorm
from gammabeta.monitoring.health import write_health
from gammabeta.monitoring.rank_records import Told
from gammabeta.monitoring.watched import Watched, WatchedNorm
from gammabeta.running_statistics import recomputing
from gammabeta.statistics import Ghost, Synced

Log = Callable[[str, float, int], Any]
# Of one norm so many forwards are measured in a step.
_FORWARDS = 8


class watch:  # noqa: N801 - a context, used as a function
    """Records what the norms of a model do while it trains, and finds what is wrong with it.

    Every forward is counted; at every `every`-th step, and at steps 1, 2, 4, 8, … before, numbers are taken: how far
    running statistics move and how far the batch's are from them, gradients of γ and β, dead channels, the effective
    number of values. What is kept is bounded. Leaving the context takes all hooks off; the record stays.

    Args:
        model: any module; wrapped by DistributedDataParallel too.
        optimizer: whose steps are counted; the first of a list. Without one each forward in training with gradients is
            a step.
        log: called with name, value, step at each measured step: `SummaryWriter.add_scalar`, or any function.
        every: steps between measured ones.

    Raises:
        TypeError, ValueError: another model, optimizer or interval.

    Example:
        with gammabeta.watch(model, optimizer, log=writer.add_scalar) as watch:
            for x, y in loader:
                ...
        print(watch.diagnosis())
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        log: Log | None = None,
        every: int = 20,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"watch: expected model as a torch.nn.Module, got a {type(model).__qualname__}.")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"watch: expected every as a number of steps, 1 or more, got {every!r}.")
        several = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
        for one in several:
            if one is not None and not callable(getattr(one, "register_step_post_hook", None)):
                raise TypeError(
                    f"watch: expected optimizer as a torch.optim.Optimizer or a list of them, got a "
                    f"{type(one).__qualname__}."
                )
        self.model = unwrapped(getattr(model, "_orig_mod", model))
        self.model = unwrapped(getattr(self.model, "_orig_mod", self.model))
        self.every = every
        self.watched = Watched(every)
        self._optimizers = tuple(one for one in several if one is not None)
        self._log = log
        self._handles: list[Any] = []
        self._probes: list[_Probe] = []
        self._order = InputOrder()
        self._forward = 0
        self._told: Told | None = None
        self._led = False
        self.measuring = True

    def __enter__(self) -> watch:
        if self._handles:
            raise RuntimeError("watch: expected to be entered once at a time, got that it is watching already.")
        self._probes = [_Probe(self, norm) for norm in record_model(self.model).norms]
        tracked = {p.norm.name: p.norm.module for p in self._probes if p.norm.tracks and p.norm.has_statistics}
        shared = [p.norm.name for p in self._probes if p.synchronized()]
        self._told = Told({n: m for n, m in tracked.items() if m is not None}, shared)
        self._written = -1
        me = weakref.ref(self)
        for probe in self._probes:
            assert probe.norm.module is not None
            self._handles.append(probe.norm.module.register_forward_hook(_Hook(probe.called), with_kwargs=True))
            weight = probe.trained()
            if weight is not None:
                probe.record.backwards = 0
                self._handles.append(weight.register_post_accumulate_grad_hook(_Hook(probe.went_back)))
        self._handles.append(self.model.register_forward_pre_hook(_Hook(self._entered), with_kwargs=True, prepend=True))
        if self._optimizers:

            def stepped(*_: Any) -> None:
                owner = me()
                if owner is not None:
                    owner.step()

            self._handles.append(self._optimizers[0].register_step_post_hook(stepped))
        return self

    def __exit__(self, *_: object) -> None:
        self._listen()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def step(self) -> None:
        """Ends a step; the optimizer's own step does so by itself."""
        watched = self.watched
        if self.measuring:
            with torch.no_grad():
                self._measure()
        watched.steps += 1
        step = watched.steps
        self.measuring = step % self.every == 0 or (step < self.every and step & (step - 1) == 0)

    def begin(self, inputs: Any) -> None:
        """Begins a forward on these inputs, for a trainer that doesn't go through the model's own; once for each.

        From then on the model's own forwards begin nothing.
        """
        self._led = False
        self._entered(self.model, tuple(tensors_in(inputs)), {})
        self._led = True

    def diagnosis(
        self, *, select: str | Sequence[str] | None = None, ignore: str | Sequence[str] | None = None
    ) -> Diagnosis:
        """What the rules find in what was recorded so far: those that see W, and with the optimizer and model theirs.

        Args:
            select, ignore: which rules, as `check` takes them.

        Returns:
            The `Diagnosis`.
        """
        if self._handles:
            self._listen()
        record = record_model(self.model, optimizers=self._optimizers, watched=self.watched)
        return diagnose(record, select=select, ignore=ignore)

    def report(self, path: Path | str) -> Path:
        """Writes findings and curves as one HTML page that opens offline.

        Args:
            path: the file.

        Returns:
            The path.
        """
        return write_health(self.watched, self.diagnosis(), path)

    def _entered(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if (
            self._led
            or self._led
            or torch.compiler.is_compiling()
            or not module.training
            or recomputing()
            or not torch.is_grad_enabled()
        ):
            return
        if not self._optimizers and self._forward:
            self.step()
        self._forward += 1
        # Before the forward, and behind DistributedDataParallel's broadcast of buffers: what ranks begin with.
        if self.measuring and self._told is not None and self._written != self.watched.steps:
            self._written = self.watched.steps
            self._told.write(self._written, {probe.norm.name: probe.record.calls for probe in self._probes})
        for probe in self._probes:
            probe.place = 0
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if x is not None and not torch._C._are_functorch_transforms_active():
            with torch.no_grad(), _disable_current_modes():
                self._order.add(x.detach())

    def _listen(self) -> None:
        said = None if self._told is None else self._told.read()
        if said is not None:
            self.watched.rank, self.watched.rank_step, self.watched.ranks = said

    def _measure(self) -> None:
        """One transfer from the device for all numbers of a step."""
        step = self.watched.steps
        numbers: list[Tensor] = []
        labels: list[tuple[_Probe | None, str]] = []
        for probe in self._probes:
            for name, value in probe.measure(step):
                labels.append((probe, name))
                numbers.append(value.detach().double())
        order = self._order.measure()
        if order is not None:
            for name, value in zip(("order", "apart"), order, strict=True):
                labels.append((None, name))
                numbers.append(value.double())
        if not numbers:
            return
        device = numbers[0].device
        values = torch.stack([number.to(device) for number in numbers]).tolist()
        rows: dict[_Probe | None, dict[str, float]] = {}
        for (which, name), number in zip(labels, values, strict=True):
            rows.setdefault(which, {})[name] = number
        for which, row in rows.items():
            record = self.watched.inputs if which is None else which.record.history
            record.add(step, row)
            if self._log is not None:
                for name, number in row.items():
                    if number == number:
                        self._log(f"{'input' if which is None else which.record.name}/{name}", number, step)
        self.watched.unseen = tuple(p.record.name for p in self._probes if p.moved_unseen())


class _Hook:
    """A hook that a copy or a pickle of the model does not take along: there it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        if self._call is not None:
            self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook()

    def __reduce__(self) -> Any:
        return _Hook, ()


class _Probe:
    """What is looked at of one norm."""

    def __init__(self, owner: watch, norm: Norm) -> None:
        self._owner = weakref.proxy(owner)
        self.norm = norm
        self.record = owner.watched.norms.setdefault(norm.name, WatchedNorm(norm.name))
        self.place = 0
        self._epoch = -1
        self._batches: list[tuple[int, int, Sampled]] = []
        self._before: tuple[Tensor, Tensor] | None = None
        self._tracked = norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None
        self._step = 0
        self._all = 0
        self._moved = False

    def trained(self) -> Tensor | None:
        """γ or β, if it trains."""
        assert self.norm.module is not None
        leaves = (p for p in self.norm.module.parameters(recurse=False) if p.requires_grad and p.is_leaf)
        return next(leaves, None)

    def went_back(self, parameter: Tensor) -> None:
        assert self.record.backwards is not None
        self.record.backwards += 1

    def called(self, module: Any, args: Any, kwargs: Any, out: Any) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        record, self._all = self.record, self._all + 1
        moves = self._moves(module)
        if recomputing():
            record.recomputed += 1
            record.moved_again += moves and not isinstance(module, _BatchNorm)
            return
        if not torch.is_grad_enabled():
            record.without_gradient += moves
            return
        record.calls += 1
        if record.backwards is not None and record.backwards != self._epoch:
            self._epoch = record.backwards
            record.parts += 1
        if self.norm.kind != "batch":
            return
        watched = self._owner.watched
        if watched.first is None and moves:
            watched.first = record.name
        place, self.place = self.place, self.place + 1
        if not self._owner.measuring or len(self._batches) >= _FORWARDS or kwargs.get("mask") is not None:
            return
        if not args or not isinstance(args[0], Tensor) or torch._C._are_functorch_transforms_active():
            return
        with torch.no_grad(), _disable_current_modes(), torch.autocast(args[0].device.type, enabled=False):
            sampled = sample(args[0].detach())
        if sampled is not None:
            self._batches.append((self._owner._forward, place, sampled))
            record.samples = sampled.samples

    def _moves(self, module: Any) -> bool:
        return (
            self.norm.tracks
            and bool(getattr(module, "track_running_stats", False))
            and not getattr(module, "holds_statistics", False)
        )

    def synchronized(self) -> bool:
        """Whether it shares its batch statistics with other processes."""
        return isinstance(self.norm.module, nn.SyncBatchNorm) or isinstance(
            getattr(self.norm.module, "statistics", None), Synced
        )

    def moved_unseen(self) -> bool:
        return self._moved and self._all == 0

    def measure(self, step: int) -> list[tuple[str, Tensor]]:
        """Names and values, scalars on the device."""
        module: Any = self.norm.module
        found: list[tuple[str, Tensor]] = []
        batches, self._batches = self._batches, []
        for name in ("weight", "bias"):
            parameter = module._parameters.get(name)
            if parameter is not None and parameter.grad is not None:
                found.append((f"{name}_grad", _local(parameter.grad).norm(dtype=torch.float32)))
        weight = module._parameters.get("weight")
        dead = _local(weight) == 0 if weight is not None else None
        mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
        last = batches[-1][2] if batches else None
        if last is not None:
            still = last.var < (self.norm.eps or 0.0)
            dead = still if dead is None else dead | still
            found.append(("effective", last.effective() * self._share(module, last.samples)))
            found += self._domains(batches)
        if dead is not None:
            found.append(("dead", dead.sum()))
        if self.norm.tracks and mean is not None and var is not None:
            mean, var = mean.float(), var.float()
            eps = self.norm.eps or 0.0
            found += [("mean", mean.square().mean().sqrt()), ("std", var.mean().sqrt())]
            if last is not None:
                found.append(("gap", distance(last.mean, last.var, mean, var, eps)))
            if self._before is not None:
                found.append(("drift", distance(mean, var, *self._before, eps)))
            self._before = mean.clone(), var.clone()
            count = module._buffers.get("num_batches_tracked")
            if count is not None and self._tracked is not None:
                since = step + 1 - self._step
                updates = (count - self._tracked).double() / since
                if self._all == 0:
                    self._moved = bool(updates > 0)
                found.append(("updates", updates))
                self._tracked, self._step = count.clone(), step + 1
        return found

    def _share(self, module: Any, samples: int) -> float:
        """Of how many such batches the statistics are."""
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
        """The same call in successive forwards of the step, the pair that is farthest apart."""
        pairs = []
        by_place: dict[int, Sampled] = {}
        forwards = {forward for forward, _, _ in batches}
        for _, place, sampled in batches:
            place = place if len(forwards) > 1 else 0  # called outside of the model: one after another
            before = by_place.get(place)
            if before is not None and self._owner._forward != 0 and len(forwards) == 1:
                continue  # several places of one forward
            if before is not None and min(before.samples, sampled.samples) > 1:
                pairs.append(apart(before, sampled))
            by_place[place] = sampled
        if not pairs:
            return []
        every = torch.stack(pairs)
        farthest = every[every[:, 0].nan_to_num(-1).argmax()]
        return [("domains", farthest[0]), ("apart", farthest[1])]


def distance(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor, eps: float) -> Tensor:
    """√(Δμ²/σ² + ln²(σ'/σ)), root mean square over channels, in the other's standard deviations."""
    var, other_var = var + eps, other_var + eps
    squared = (mean - other_mean).square() / other_var + (0.5 * torch.log(var / other_var)).square()
    return squared.mean().sqrt()


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    part = getattr(tensor, "_local_tensor", tensor)
    return part.detach()
