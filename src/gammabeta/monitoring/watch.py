"""The check's questions, asked while a model trains."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta._torch_private import disable_current_modes, transforms_active
from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.description import count_of
from gammabeta.diagnostics.findings import Diagnosis
from gammabeta.diagnostics.optimizer_groups import stepping
from gammabeta.diagnostics.optimizer_wrappers import optimizer_inside
from gammabeta.diagnostics.record import record_model
from gammabeta.introspection.forward import unwrapped
from gammabeta.introspection.hooks import hook_after, hook_before
from gammabeta.introspection.observe import tensors_in
from gammabeta.introspection.sampled import InputOrder
from gammabeta.monitoring.divergence import FiniteWatch
from gammabeta.monitoring.health import write_health
from gammabeta.monitoring.probe import Hook, Probe, Progress
from gammabeta.monitoring.rank_records import RankRecords
from gammabeta.monitoring.watched import QUANTITIES, Watched
from gammabeta.monitoring.witness import Witness
from gammabeta.pages.notebook import table
from gammabeta.running_statistics import recomputing

Log = Callable[[str, float, int], Any]


class watch:  # noqa: N801 - a context, used as a function
    """A context that records what a model's norms do while it trains, and diagnoses them.

    Every forward is counted. Every `every`-th step is measured, and before it steps 1, 2, 4, 8, …: how far running
    statistics move, how far the batch's statistics are from them, gradients of γ and β, dead channels, and the
    effective number of values. The first outputs or parameters that are not finite are noted with their step and, where
    it can be seen, their module. The record has a bounded size. Leaving the context removes all hooks; the record
    stays.

    Args:
        model: any module, also one wrapped by DistributedDataParallel.
        optimizer: the optimizer whose steps are counted; of a list, the first. Where it wraps another, as accelerate's
            does and implementations of SAM do, the steps of the other are. Without an optimizer, each forward in
            training with gradients is a step.
        log: called with name, value and step at each measured step: `SummaryWriter.add_scalar`, or any function.
        every: steps between measured ones.

    Attributes:
        on_measured: called with all values of a measured step by name, and the step; None calls nothing.

    Raises:
        TypeError: the model is no module, or an optimizer is no optimizer.
        ValueError: `every` is not a positive integer.

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
        given = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
        several = tuple(optimizer_inside(one) for one in given if one is not None)
        if None in several:
            wrong = next(one for one in given if one is not None and optimizer_inside(one) is None)
            raise TypeError(
                f"watch: expected optimizer as a torch.optim.Optimizer or a list of them, got a "
                f"{type(wrong).__qualname__}."
            )
        self.model = unwrapped(getattr(model, "_orig_mod", model))
        self.model = unwrapped(getattr(self.model, "_orig_mod", self.model))
        self.every = every
        self.watched = Watched(every, model=type(self.model).__qualname__)
        self._optimizers = several
        self._log = log
        self.on_measured: Callable[[dict[str, float], int], Any] | None = None
        self._handles: list[Any] = []
        self._probes: list[Probe] = []
        self._order = InputOrder()
        self._witness = Witness()
        self._progress = Progress()
        self._finite = FiniteWatch(self.model, self.watched, self._progress, self._optimizers)
        self._ranks: RankRecords | None = None
        self._written = -1
        self._modes: set[bool] = set()  # of the forwards with gradients in this step: in training mode or not
        self._led = False  # by a trainer that calls `begin`

    @property
    def measuring(self) -> bool:
        """Whether the current step is measured."""
        return self._progress.measuring

    def __enter__(self) -> watch:
        if self._handles:
            raise RuntimeError("watch: expected a watch that is not running, got one that already is: leave it first.")
        try:
            self._hook()
        except BaseException:
            self._unhook()
            raise
        return self

    def _hook(self) -> None:
        """Begin a record of each norm, and register all hooks."""
        self._probes = [Probe(norm, self.watched, self._progress) for norm in record_model(self.model).norms]
        tracked = {p.norm.name: p.norm.module for p in self._probes if p.norm.tracks and p.norm.has_statistics}
        shared = [p.norm.name for p in self._probes if p.synchronized()]
        self._ranks = RankRecords({n: m for n, m in tracked.items() if m is not None}, shared)
        self._written = -1
        self._finite.begin()
        for probe in self._probes:
            assert probe.norm.module is not None
            self._handles.append(hook_after(probe.norm.module, Hook(probe.count_call), with_kwargs=True))
            weight = probe.trained()
            if weight is not None:
                probe.record.backwards = 0
                self._handles.append(weight.register_post_accumulate_grad_hook(Hook(probe.count_backward)))
        self._handles.append(hook_before(self.model, Hook(self._begin_forward), with_kwargs=True, prepend=True))
        self._handles.append(hook_after(self.model, Hook(self._finite.after_forward), with_kwargs=True))
        if self._optimizers:
            me = weakref.ref(self)

            def stepped(*_: Any) -> None:
                owner = me()
                if owner is not None:
                    owner.step()

            self._handles.append(stepping(self._optimizers[0]).register_step_post_hook(stepped))

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __exit__(self, *_: object) -> None:
        self._read_ranks()
        for probe in self._probes:
            probe.note_steps()
        self._unhook()

    def step(self) -> None:
        """End a step; a watched optimizer's step does so on its own."""
        if self._progress.measuring:
            with torch.no_grad():
                self._measure()
        self._finite.end_step()
        self._count_modes()
        self.watched.steps += 1
        step = self.watched.steps
        self._progress.measuring = step % self.every == 0 or (step < self.every and step & (step - 1) == 0)

    def _count_modes(self) -> None:
        """Count the step by the modes in which its forwards with gradients ran."""
        modes, self._modes = self._modes, set()
        for probe in self._probes:
            # A trainer may bypass the model's own forward.
            modes |= {mode or self.model.training for mode in probe.end_step()}
        if not modes and self._optimizers:
            modes = {self.model.training}  # no hook sees the forwards of a compiled model
        watched = self.watched
        if True in modes:
            watched.training_steps += 1
        elif modes:
            watched.evaluation_steps += 1
            if (watched.training_steps and not watched.evaluation_after_training) or watched.first_evaluation is None:
                watched.first_evaluation = watched.steps
            watched.evaluation_after_training += watched.training_steps > 0

    def begin(self, inputs: Any) -> None:
        """Begin a forward on these inputs, for a trainer that bypasses the model's own forward; call it once for each.

        From then on the model's own forwards are not counted as beginnings.
        """
        self._led = False
        self._begin_forward(self.model, tuple(tensors_in(inputs)), {})
        self._led = True

    def diagnosis(
        self, *, select: str | Sequence[str] | None = None, ignore: str | Sequence[str] | None = None
    ) -> Diagnosis:
        """Run the rules over what was recorded so far: those that see W, the model or the optimizer.

        Args:
            select, ignore: which rules, as for `check`.

        Returns:
            The `Diagnosis`.
        """
        if self._handles:
            self._read_ranks()
            for probe in self._probes:
                probe.note_steps()
        record = record_model(self.model, optimizers=self._optimizers, watched=self.watched)
        return diagnose(record, select=select, ignore=ignore)

    def report(self, path: Path | str) -> Path:
        """Write findings and curves as one HTML page that opens offline.

        Args:
            path: the file.

        Returns:
            The path.
        """
        return write_health(self.watched, self.diagnosis(), path)

    def _repr_html_(self) -> str:
        norms = list(self.watched.norms.values())
        names = [name for name in QUANTITIES if any(norm.history.known(name) for norm in norms)]
        rows = []
        for norm in norms:
            known = [norm.history.known(name) for name in names]
            rows.append((norm.name, str(norm.calls), *(f"{values[-1]:.3g}" if values else "" for values in known)))
        title = f"watch: {count_of(self.watched.steps, 'step')}, {count_of(len(norms), 'norm')}"
        return table(title, ("norm", "calls", *names), rows, (f"{name}: {QUANTITIES[name]}" for name in names))

    def _begin_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Begin a forward of the model; a forward pre-hook."""
        if self._led or self._progress.paused or torch.compiler.is_compiling():
            return
        if recomputing() or not torch.is_grad_enabled():
            return
        self._modes.add(module.training)
        if not module.training:
            return
        if not self._optimizers and self._progress.forwards:
            self.step()
        self._progress.forwards += 1
        self._progress.guiding = any(tensor.requires_grad for tensor in tensors_in((args, kwargs)))
        # Before the forward and after DistributedDataParallel's broadcast of buffers: what the ranks begin with.
        if self._progress.measuring and self._ranks is not None and self._written != self.watched.steps:
            self._written = self.watched.steps
            self._ranks.write(self._written, {probe.norm.name: probe.record.calls for probe in self._probes})
        for probe in self._probes:
            probe.place = 0
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if transforms_active():
            return
        with torch.no_grad(), disable_current_modes():
            if x is not None:
                self._order.add(x.detach())
            if self._progress.measuring:
                self._witness.add(self.model)

    def _read_ranks(self) -> None:
        comparison = None if self._ranks is None else self._ranks.read()
        if comparison is not None:
            self.watched.rank, self.watched.rank_step, self.watched.ranks = comparison

    def _measure(self) -> None:
        """Measure all norms and the input's order, with one transfer from the device for all numbers of a step."""
        step = self.watched.steps
        numbers: list[Tensor] = []
        labels: list[tuple[Probe | None, str]] = []
        for probe in self._probes:
            for name, value in probe.measure(step):
                labels.append((probe, name))
                numbers.append(value.detach().double())
        order = self._order.measure()
        if order is not None:
            for name, value in zip(("order", "apart"), order, strict=True):
                labels.append((None, name))
                numbers.append(value.double())
        changed = self._witness.measure()
        if changed is not None:
            labels.append((None, "changed"))
            numbers.append(changed.double())
        if not numbers:
            return
        device = numbers[0].device
        values = torch.stack([number.to(device) for number in numbers]).tolist()
        rows: dict[Probe | None, dict[str, float]] = {}
        for (which, name), number in zip(labels, values, strict=True):
            rows.setdefault(which, {})[name] = number
        told: dict[str, float] = {}
        for which, row in rows.items():
            history = self.watched.inputs if which is None else which.record.history
            history.add(step, row)
            of = "input" if which is None else which.record.name
            told |= {f"{of}/{name}": number for name, number in row.items() if not math.isnan(number)}
        if self._log is not None:
            for name, number in told.items():
                self._log(name, number, step)
        if self.on_measured is not None:
            self.on_measured(told, step)
        self.watched.unseen = tuple(probe.record.name for probe in self._probes if probe.moved_unseen())
