"""When and where a watched training stops being finite."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gammabeta._torch_private import transforms_active
from gammabeta.diagnostics.outputs import (
    Place,
    first_not_finite,
    holds_minus_infinity,
    is_finite,
    not_below_infinity,
    spoiled,
)
from gammabeta.introspection.forward import copied
from gammabeta.introspection.observe import tensors_in
from gammabeta.introspection.unchanged import unchanged
from gammabeta.monitoring.parameter_sizes import ParameterSizes
from gammabeta.monitoring.probe import Progress
from gammabeta.monitoring.watched import Divergence, Watched
from gammabeta.running_statistics import recomputing


class FiniteWatch:
    """Looks at a model's outputs after each forward, and at its parameters in measured steps.

    On a CPU each forward is looked at when it ends. On other devices that would make the host wait, so a scalar on the
    device keeps the first step that was not finite, and is read in measured steps.

    Args:
        model: the model.
        watched: where the divergence is kept.
        progress: the training's progress.
        optimizers: the optimizers that train the model.
    """

    def __init__(
        self, model: nn.Module, watched: Watched, progress: Progress, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        self._model, self._watched, self._progress = model, watched, progress
        self._sizes = ParameterSizes(model, optimizers)
        self._last_finite: int | None = None
        self._below = False  # whether the last outputs seen held −∞, which masks hold on purpose
        self._first: Tensor | None = None  # on the device: the first step that was not finite, or −1

    def begin(self) -> None:
        """Look at the parameters before the first step."""
        self._sizes.begin(self._watched.steps)

    def end_step(self) -> None:
        """Note the learning rate of a step and, if it is measured, look at the parameters."""
        self._sizes.note_rate(self._watched.steps)
        if self._progress.measuring:
            with torch.no_grad():
                self._measure()

    def after_forward(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """Look at the outputs of a forward with gradients; a forward hook of the model."""
        if (
            self._progress.paused
            or torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or recomputing()
            or transforms_active()
        ):
            return
        with torch.no_grad():
            flags = [flag for tensor in tensors_in(out) if (flag := not_below_infinity(tensor)) is not None]
            if not flags:
                return
            if all(flag.device.type == "cpu" for flag in flags) or self._progress.measuring:
                self._note(args, kwargs, out, bad=any(bool(flag) for flag in flags))
            elif self._watched.divergence is None:
                bad = torch.stack([flag.to(flags[0].device) for flag in flags]).any()
                if self._first is None or self._first.device != bad.device:
                    self._first = torch.full((), -1, device=bad.device)
                step = torch.full_like(self._first, self._watched.steps)
                self._first = torch.where((self._first < 0) & bad, step, self._first)

    def _measure(self) -> None:
        """Look at what was gathered on the device and at the parameters, at the end of a measured step."""
        first = -1 if self._first is None else int(self._first)
        if self._watched.divergence is not None:
            return
        bad, total = self._bad_parameters()
        if first >= 0:
            self._diverged(self._on_device(first, bad, total))
        elif bad:
            self._diverged(self._by_update(self._watched.steps, bad, total, ended=True))
        else:
            self._sizes.look(self._watched.steps)

    def _note(self, args: Any, kwargs: Any, out: Any, *, bad: bool) -> None:
        found = self._watched.divergence
        if found is not None:
            found.forwards += 1
            found.bad += bad
            found.recovered = not bad
        elif not bad:
            before, self._below = self._below, holds_minus_infinity(out)
            names, total = self._bad_parameters() if self._below and not before else ([], 0)
            if names:  # −∞ is no mask's, but comes from the parameters
                self._below = before
                self._diverged(self._by_update(self._watched.steps, names, total))
            else:
                self._last_finite = self._watched.steps
        else:
            self._diverged(self._locate(args, kwargs))
            assert self._watched.divergence is not None
            self._watched.divergence.forwards = self._watched.divergence.bad = 1

    def _diverged(self, found: Divergence) -> None:
        found.last_finite, found.below = self._last_finite, self._below
        self._watched.divergence = found

    def _locate(self, args: Any, kwargs: Any) -> Divergence:
        """Find out where the forward that has just ended stopped being finite."""
        step = self._watched.steps
        if self._first is not None and int(self._first) >= 0:
            return self._on_device(int(self._first), *self._bad_parameters())
        if not is_finite((args, kwargs)):
            return Divergence(step, "inputs")
        bad, total = self._bad_parameters()
        if bad:
            return self._by_update(step, bad, total)
        exploded = self._sizes.exploded(step - 1)
        if exploded is not None:
            return Divergence(step, "explosion", exploded.where, 0, total, explosion=exploded)
        # A forward more would be a collective more, which the other processes do not make.
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        place = None if several else self._run_again(args, kwargs)
        if place is None:
            return Divergence(step, "forward", None, 0, total)
        return Divergence(step, "forward", place.module, 0, total, between=place.between)

    def _on_device(self, step: int, bad: list[str], total: int) -> Divergence:
        """Describe outputs that were not finite in a step that the device noted, as far as the parameters tell now."""
        exploded = self._sizes.overflowed(bad, max(0, step - 1))
        cause = "unknown" if exploded is None else "explosion"
        return Divergence(step, cause, None, len(bad), total, explosion=exploded)

    def _run_again(self, args: Any, kwargs: Any) -> Place | None:
        """Run the model once more, and return where its outputs stop being finite; None if it raises.

        The backward of the forward that has just ended may need the buffers as they are: the model gets copies.
        """
        buffers = [(module, dict(module._buffers)) for module in self._model.modules()]
        self._progress.paused = True
        try:
            for module, own in buffers:
                module._buffers.update({k: None if b is None else b.detach().clone() for k, b in own.items()})
            with contextlib.suppress(Exception), unchanged(self._model):
                positional, named = copied((tuple(args), dict(kwargs)))
                return first_not_finite(self._model, lambda: self._model(*positional, **named))
        finally:
            for module, own in buffers:
                module._buffers.update(own)
            self._progress.paused = False
        return None

    def _by_update(self, step: int, bad: list[str], total: int, *, ended: bool = False) -> Divergence:
        """Describe parameters that an update left not finite: that of the last step whose outputs were seen to be.

        A gradient passes from the end to the beginning: of the parameters that it spoiled, the last tells where.

        Args:
            step: the step at which they were seen.
            bad, total: the names of these parameters, and the number of all.
            ended: whether that was at the step's end.
        """
        updated = step if ended else max(0, step - 1)  # the last step whose update has been
        if self._last_finite is not None and self._last_finite >= updated:
            updated, earliest = self._last_finite, None
        else:
            first = self._sizes.looked + 1 if self._last_finite is None else self._last_finite
            earliest = first if first < updated else None
        exploded = self._sizes.overflowed(bad, updated)
        where = None if len(bad) == total else bad[-1].rpartition(".")[0]
        return Divergence(
            updated, "update" if exploded is None else "explosion", where, len(bad), total, earliest=earliest,
            explosion=exploded,
        )  # fmt: skip

    def _bad_parameters(self) -> tuple[list[str], int]:
        """Return the names of the parameters that are not finite, and the number of all that can be looked at."""
        flags = {name: flag for name, p in self._model.named_parameters() if (flag := spoiled(name, p)) is not None}
        if not flags:
            return [], 0
        device = next(iter(flags.values())).device
        values = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
        return [name for name, value in zip(flags, values, strict=True) if value], len(flags)
