"""`watch` as a callback for Lightning's and transformers' trainers; each library is imported on request only."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gammabeta.diagnostics.findings import Diagnosis
from gammabeta.monitoring.watch import watch

Log = Callable[[str, float, int], Any]

_PRINTERS = ("PrinterCallback", "ProgressCallback")


class _Watching:
    """Base of both callbacks: a watch while training runs, its diagnosis, and its page after the end."""

    watch: watch | None = None

    def __init__(self, log: Log | None, every: int, report: Path | str | None) -> None:
        super().__init__()
        self._log, self._every, self._report = log, every, report

    @property
    def diagnosis(self) -> Diagnosis:
        """The findings so far.

        Raises:
            RuntimeError: training has not begun.
        """
        if self.watch is None:
            raise RuntimeError(
                "diagnosis: expected training to have begun, but it has not: pass this callback to a trainer and start "
                "training."
            )
        return self.watch.diagnosis()

    def _begin(self, model: Any, optimizers: list[Any], tell: Callable[[dict[str, float]], None]) -> None:
        """Watch a training; `tell` gets the values of each measured step, at the end of the optimizer's step."""
        self._end(report=False)
        self.watch = watch(model, optimizers, every=self._every)
        self.watch.on_measured = lambda values, step: tell(values)
        self.watch.__enter__()

    def _call(self, values: dict[str, float], step: int) -> None:
        """Call the user's `log` for each value."""
        assert self._log is not None
        for name, value in values.items():
            self._log(name, value, step)

    def _end(self, *, report: bool) -> None:
        if self.watch is None:
            return
        self.watch.__exit__()
        if not report or self._report is None:
            return
        try:
            self.watch.report(self._report)
        except OSError as error:  # at the end of training, whose result must not be lost for a page
            warnings.warn(
                f"report: {self._report} could not be written: {error}. The callback's watch has all of it: "
                "callback.watch.report(path) writes it, callback.diagnosis has the findings.",
                stacklevel=2,
            )


def lightning_callback(*, every: int = 20, report: Path | str | None = None, log: Log | None = None) -> Any:
    """Build a Lightning callback that watches the training: `Trainer(callbacks=[lightning_callback()])`.

    Measurements go to the trainer's loggers under the names that `watch` gives them, all of a step in one call, at the
    trainer's `global_step`, which a resumed training continues. A batch begins at Lightning's
    `on_train_batch_start`, so `training_step` need not go through the module's forward. Modules compiled in
    `configure_model` or earlier are watched as they are: hooks are registered before the first step.

    Args:
        every: steps between measured ones.
        report: where the health page is written when training has ended; None writes none.
        log: called with name, value and the trainer's step, in place of the trainer's loggers.

    Returns:
        The callback, with attributes `watch` and `diagnosis`.

    Raises:
        ImportError: neither lightning nor pytorch_lightning is installed.
    """
    base = _base(("lightning.pytorch", "pytorch_lightning"), "Callback", "lightning_callback", "lightning")

    class LightningWatch(_Watching, base):  # type: ignore[misc, valid-type]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            def tell(values: dict[str, float]) -> None:
                # The step that is ending is not yet counted, here as in the rows that Lightning itself logs.
                step = int(trainer.global_step)
                if self._log is not None:
                    self._call(values, step)
                    return
                for logger in trainer.loggers:
                    logger.log_metrics(dict(values), step=step)

            self._begin(pl_module, list(trainer.optimizers), tell)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if self.watch is not None:
                self.watch.begin(batch)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self._end(report=trainer.is_global_zero)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self._end(report=False)

    return LightningWatch(log, every, report)


def transformers_callback(
    trainer: Any = None, *, every: int = 20, report: Path | str | None = None, log: Log | None = None
) -> Any:
    """Build a transformers `TrainerCallback` that watches the training.

    Use it as `trainer.add_callback(transformers_callback(trainer))`. The values of a measured step are then one dict
    for `trainer.log`, at `state.global_step`: they reach TensorBoard, W&B and whatever else `report_to` names, and
    `state.log_history`, but are not printed. As `Trainer(..., callbacks=[transformers_callback()])` the callback does
    not know its trainer, and they are entered in `state.log_history` only.

    Args:
        trainer: the trainer.
        every: steps between measured ones.
        report: where the health page is written when training has ended; None writes none.
        log: called with name, value and the number of the trainer's steps before, in place of `trainer.log`:
            `SummaryWriter.add_scalar`, or any function.

    Returns:
        The callback, with attributes `watch` and `diagnosis`. Its `close()` removes the hooks after a training that
        raised: transformers has no event for that.

    Raises:
        ImportError: transformers is not installed.
    """
    base = _base(("transformers",), "TrainerCallback", "transformers_callback", "transformers")

    class TransformersWatch(_Watching, base):  # type: ignore[misc, valid-type]
        measured: dict[str, float] | None = None  # of the step that is ending, until it is counted

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def tell(values: dict[str, float]) -> None:
                if self._log is not None:
                    self._call(values, int(state.global_step))
                else:
                    self.measured = values

            optimizer = kwargs.get("optimizer")
            self._begin(kwargs["model"], [] if optimizer is None else [optimizer], tell)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            values, self.measured = self.measured, None
            if values is None:
                return
            if trainer is None:
                state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})
                return
            due = control.should_log  # `trainer.log` takes what it logs for what is due at this step
            with _unprinted(trainer):
                trainer.log(dict(values))
            control.should_log = due

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._end(report=state.is_world_process_zero)

        def close(self) -> None:
            self._end(report=False)

    return TransformersWatch(log, every, report)


@contextmanager
def _unprinted(trainer: Any) -> Iterator[None]:
    """Take the callbacks that print every log out of the trainer: a model of 50 norms has some 600 values."""
    printers = tuple(_base(("transformers.trainer_callback",), name, "", "") for name in _PRINTERS)
    handler = trainer.callback_handler
    every = handler.callbacks
    handler.callbacks = [one for one in every if not isinstance(one, printers)]
    try:
        yield
    finally:
        handler.callbacks = every


def _base(modules: tuple[str, ...], name: str, caller: str, package: str) -> type:
    """Return the class of that name from the first of the modules that is installed."""
    for module in modules:
        try:
            found: type = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
                raise
        else:
            return found
    raise ImportError(f"{caller}: expected {package} to be installed, but it is not: pip install {package}.")
