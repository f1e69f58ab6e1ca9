"""A momentum that looks like TensorFlow's.

What it does: Finds layers with running statistics whose momentum is 0.5 or more, or 0.

Why it matters: torch's momentum is the share of the new batch: new = (1 − momentum)·old + momentum·batch. In
TensorFlow, Keras, Flax and Caffe it is the share of the old. A copied 0.9 or 0.99 makes the running statistics those of
the last one or two batches: evaluation jumps from epoch to epoch (vision#8250). 0 leaves them at 0 and 1 for ever.

Example: `nn.BatchNorm2d(8, momentum=0.99)`.

Use instead: One minus it, `momentum=0.01`, and `gammabeta.recalibrate` for statistics that were collected with the old
one.

Evidence: tests/diagnostics/rules/test_tensorflow_momentum.py: over batches of 16, the running mean's error is 0.99 of a
batch's own at momentum 0.99, and 0.07 of it at 0.01: √(m/(2 − m)), as derived. tests/diagnostics/test_false_alarms.py
finds it in four of a thousand real models, as transformers builds them: MobileNetV1 (0.9997), MobileNetV2 (0.997),
EfficientNet and Align (0.99).

Limits: A momentum of 0 that lasts for one forward, as implementations of sharpness-aware minimization set it, is left
out: the module has the true one in another attribute whose name contains "momentum" (`backup_momentum`), or the watch
saw the statistics move. A large momentum can be intended, for statistics of the last batches only, and so can 0, for
statistics that stay (`gammabeta.freeze` says so more clearly).
"""

from collections.abc import Iterator
from functools import partial

from torch import nn

from gammabeta.diagnostics.findings import Fix
from gammabeta.diagnostics.fixes import First, is_still, recalibration
from gammabeta.diagnostics.record import Norm, Record
from gammabeta.diagnostics.rule import Example, Match
from gammabeta.surgery.change import Change, transaction
from gammabeta.surgery.recalibrate import why_not_recalibrated

severity = "warning"
sees = "S"


def check(record: Record) -> Iterator[Match]:
    for norm in record.norms:
        # track_running_stats may be switched off for the moment.
        moves = norm.tracks or (norm.kind == "batch" and norm.has_statistics and not norm.frozen and not is_still(norm))
        if not moves or norm.momentum is None or 0 < norm.momentum < 0.5:
            continue
        momentum = float(norm.momentum)
        if momentum == 0 and _is_paused(record, norm):
            continue
        if momentum == 0:
            more = "never move from 0 and 1" if norm.has_initial_statistics else "do not move"
            message = f"momentum 0: the running statistics {more}"
        elif momentum == 1:
            message = "momentum 1: the running statistics are those of the last batch only"
        else:
            message = (
                f"momentum {momentum:g}: {momentum:.4g} of the running statistics {_come(norm)} from the last batch; "
                f"in TensorFlow's convention that would be torch's {1 - momentum:.2g}"
            )
        yield Match(norm.name, message, {"momentum": momentum}, _fix(record, norm, momentum))


def _is_paused(record: Record, norm: Norm) -> bool:
    """Whether the momentum is 0 only for the moment, as for the second forward of sharpness-aware minimization.

    Then the module keeps the true one in another attribute, or the watch has seen the statistics move.
    """
    kept = (value for key, value in vars(norm.module or nn.Module()).items() if "momentum" in key and key != "momentum")
    if any(isinstance(value, int | float) and value > 0 for value in kept):
        return True
    watched = record.watched.norms.get(norm.name) if record.watched is not None else None
    return watched is not None and any(drift > 0 for drift in watched.history.known("drift"))


def _come(norm: Norm) -> str:
    return "come" if norm.tracks else "would come"


def _fix(record: Record, norm: Norm, momentum: float) -> Fix:
    if momentum == 0:
        return Fix("momentum=0.1; to keep the statistics unchanged, gammabeta.freeze(model)")
    if not 0.5 < momentum < 1:
        return Fix("momentum=0.1, torch's default")
    new = round(1 - momentum, 12)
    apply = partial(_set, norm, new)
    stale = norm.module is not None and not norm.has_initial_statistics and not is_still(norm)
    if stale and record.loader is not None and why_not_recalibrated(norm.module) is None:  # type: ignore[arg-type]
        return recalibration(record, norm, first=First(f"momentum={new:g}", apply))
    left = "; gammabeta.recalibrate(model, batches) is left" if stale else ""
    return Fix(f"momentum={new:g}, then gammabeta.recalibrate(model, batches)", partial(_set, norm, new, left))


def _set(norm: Norm, momentum: float, left: str = "") -> Change:
    assert norm.module is not None
    with transaction("set momentum") as change:
        change.set_attribute(norm.module, "momentum", momentum, norm.name)
        change.note(norm.name, f"momentum {momentum:g} in place of {norm.momentum:g}{left}")
    return change


def flagged() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99))
    return Example(model, where=("1",))


def clean() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.01))
    return Example(model)
