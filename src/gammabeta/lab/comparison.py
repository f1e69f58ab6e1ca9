"""Norms side by side on one network: what each reaches, how much they differ, and what each costs."""

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import CONTINUOUS, Precision
from gammabeta.lab.outcome import Axis, Criterion, Effect, Picture, Table, bars
from gammabeta.lab.paired import differences
from gammabeta.lab.task import Kind
from gammabeta.surgery import kept_bytes as surgery
from gammabeta.surgery.kept_bytes import KeptBytes

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Scale:
    """What arms are judged by; lower is better.

    For a difference within ``margin`` nobody would change the normalization; ``least`` says the margin in words.
    """

    name: str
    unit: str
    unit_of_differences: str
    points: str
    margin: tuple[float, float]
    least: str
    digits: int

    def say(self, value: float) -> str:
        return f"{self.name} {value:.{self.digits}f} {self.unit}"


ERROR = Scale("test error", "%", "percentage points", "points", (-1.0, 1.0), "1 point", 1)
LOSS = Scale("test loss", "nats per character", "nats per character", "nats", (-0.03, 0.03), "0.03 nats", 3)


# Of which population intervals speak, by whether all replicates share the test set.
WHOM = {
    True: "training again, on other images of the same kind as the test set's",
    False: "training again on other data of the same kind, split anew",
}


@dataclass(frozen=True)
class Compared:
    """One arm of a comparison.

    Attributes:
        norm: the arm's name in settings.
        name: what a reader knows it by.
        rate: the learning rate that most replicates chose.
        values: one per replicate, on the comparison's scale, evaluated as deployed: with moving averages.
        timings: seconds per training step, one per replicate of those that are timed. Where the arm's statistics
            are synchronized, the modelled exchange is in them.
        saved: bytes that one forward pass keeps for the backward pass; `side_by_side` makes them at least 1, so that
            ratios are finite.
        recomputed: the bytes that it keeps after `gammabeta.recompute`; None where that was not looked at.
        recalibrated: the values with exact statistics in place of the moving averages; empty where there are none.
        gain: the usual arm's value minus this one's; None for the usual arm itself. The intervals of all gains hold
            together with 95 %.
        headroom: how many learning rates on the factor-2 grid give a result within the margin of the best; None where
            that was not looked at.
        fragile: whether a result at twice the arm's learning rate is not finite.
        recalibration: the value with moving averages minus that with exact statistics; None where there are none.
    """

    norm: str
    name: str
    rate: float
    values: tuple[float, ...]
    timings: tuple[float, ...]
    saved: int
    recalibrated: tuple[float, ...] = ()
    recomputed: int | None = None
    headroom: int | None = None
    fragile: bool = False
    gain: Effect | None = None
    recalibration: Effect | None = None

    @property
    def value(self) -> float:
        return mean(self.values)

    @property
    def seconds(self) -> float:
        """Seconds per training step, the median of the timings."""
        return median(self.timings)


@dataclass(frozen=True)
class Comparison:
    """The comparison of the norms on one network, on which a recommendation rests.

    Attributes:
        arms: the first one is the usual norm of such a network. The others are in order of preference where they are
            equally good.
        learned: whether any arm trained well enough for differences to mean something.
        own: whether the network is the user's.
        rates_by: what learning rates were tuned by, where arms are judged by something else.
        trained: for how long, in words.
        left_out: the names of norms that a whole study compares, and a quick one does not.
        whom: the population that intervals speak of.
        communication: what synchronizing statistics costs over the link, in words; empty with one device.
    """

    kind: Kind
    data: str
    network: str
    batch_size: int
    devices: int
    steps: int
    scale: Scale
    learned: bool
    arms: tuple[Compared, ...]
    own: bool = False
    rates_by: str = ""
    trained: str = ""
    left_out: tuple[str, ...] = ()
    whom: str = ""
    communication: str = ""

    @property
    def usual(self) -> Compared:
        return self.arms[0]

    @property
    def where(self) -> str:
        each = f" on each of {self.devices} devices" if self.devices > 1 else " on one device"
        return f"{self.network} on {self.data} with batches of {self.batch_size}{each}"

    def picture(self) -> Picture:
        effects = [arm.gain for arm in self.arms if arm.gain is not None]
        return bars(
            f"{self.scale.name.capitalize()} of {self.usual.name} minus that of each norm",
            f"{self.where}. Above 0: better than {self.usual.name}. Intervals over {len(self.usual.values)} "
            "replicates, which hold for all norms together with 95 %.",
            "norm",
            Axis(f"difference of {self.scale.name}", self.scale.unit_of_differences),
            effects,
        )

    def table(self) -> Table:
        exact = any(arm.recalibrated for arm in self.arms)
        recomputed = any(arm.recomputed is not None for arm in self.arms)
        room = any(arm.headroom is not None for arm in self.arms)
        rows = [
            [
                arm.name,
                arm.rate,
                arm.value,
                min(arm.values),
                max(arm.values),
                *([mean(arm.recalibrated) if arm.recalibrated else None] if exact else []),
                arm.seconds / self.usual.seconds,
                arm.saved / self.usual.saved,
                *([arm.recomputed and arm.recomputed / self.usual.saved] if recomputed else []),
                *([arm.headroom] if room else []),
            ]
            for arm in sorted(self.arms, key=lambda arm: arm.value)
        ]
        columns = ["norm", "learning rate", f"{self.scale.name}, {self.scale.unit}", "lowest", "highest"]
        columns += ["with exact statistics"] if exact else []
        columns += ["time per step", "memory for the backward pass"]
        columns += ["memory after gb.recompute"] if recomputed else []
        columns += ["usable learning rates"] if room else []
        return Table(f"Norms side by side; time and memory relative to {self.usual.name}", columns, rows)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison's own part of ``results.json``."""
        named = ("kind", "data", "network", "batch_size", "devices", "steps", "trained", "whom", "communication")
        return {
            **{name: getattr(self, name) for name in named},
            "picture": asdict(self.picture()),
            "table": asdict(self.table()),
        }


def side_by_side(
    arms: Sequence[Compared],
    scale: Scale,
    precision: Precision = CONTINUOUS,
    *,
    precisions: Mapping[str, tuple[Precision, Precision]] | None = None,
    confidence: float = 0.95,
) -> tuple[Compared, ...]:
    """Return the arms with their gains, paired by replicate, over the first arm, which is the usual one.

    A norm is chosen from k others, the largest of k noisy gains. Each gain has therefore an interval of 1 − α/k
    (Bonferroni), whatever the arms' spreads and correlations.

    Args:
        precision: how finely the arms' values could be read.
        precisions: by norm, that of its gain and that of its recalibration, where they differ from ``precision``.
        confidence: 1 − α of all gains together; above 95 % where replicates are looked at again.
    """
    given = precisions or {}
    usual, *others = (replace(arm, saved=max(1, arm.saved)) for arm in arms)
    criterion = Criterion(unit=scale.unit_of_differences, margin=scale.margin, direction="above")
    together = 1 - (1 - confidence) / max(1, len(others))

    def gain(arm: Compared) -> Effect:
        own = given[arm.norm][0] if arm.norm in given else precision
        return criterion.effect(arm.name, differences(usual.values, arm.values), own, confidence=together)

    def recalibration(arm: Compared) -> Effect | None:
        if not arm.recalibrated:
            return None
        own = given[arm.norm][1] if arm.norm in given else precision
        return criterion.effect(f"{arm.name}, recalibrated", differences(arm.values, arm.recalibrated), own)

    first, *rest = (replace(arm, recalibration=recalibration(arm)) for arm in (usual, *others))
    return (first, *(replace(arm, gain=gain(arm)) for arm in rest))


def compare(kind: Kind, experiment: Experiment, batch_size: int | None, devices: int) -> list[Comparison]:
    """Compare the norms on one kind of data: each of its networks with every norm.

    Args:
        kind: one of ``experiment.sources``; the work is done by ``compare`` of that folder's ``comparison``.
        batch_size: on one device; None for the default.
    """
    found: list[Comparison] = importlib.import_module(f"gammabeta.lab.{kind}.comparison").compare(
        experiment, batch_size, devices
    )
    return found


def kept_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> KeptBytes:
    """Return the bytes that computing the loss keeps for the backward pass, as it is and with `gammabeta.recompute`."""
    return surgery.kept_bytes(model, None, lambda model, batch: loss())


def seconds_per_step(
    models: Mapping[str, nn.Module], loss: Callable[[nn.Module, Batch], Tensor], batches: Iterable[Batch]
) -> dict[str, float]:
    """Time training steps by Adam, one model after the other on each batch.

    Returns:
        Seconds per step by model: medians over all batches after the first three.
    """
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-4, fused=True) for name, model in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for batch in batches:
        for name, model in models.items():
            start = time.perf_counter()
            optimizers[name].zero_grad()
            loss(model, batch).backward()
            optimizers[name].step()
            taken[name].append(time.perf_counter() - start)
    return {name: median(values[3:]) for name, values in taken.items()}
