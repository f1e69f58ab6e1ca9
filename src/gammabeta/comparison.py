"""Norms side by side on the user's network, at the user's batch size and number of devices.

Over d devices with b images each, BatchNorm of each device's own batch is ghost BatchNorm of b images in a batch of
b·d, and synced BatchNorm is BatchNorm of the whole batch (the claim sync_equals_large_batch): so what many devices
would learn is trained here on one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gammabeta.experiment import Experiment
from gammabeta.outcome import Axis, Effect, Picture, Table, bars, measured
from gammabeta.tasks.networks import build, describe, impossible_arms
from gammabeta.tasks.sources import load
from gammabeta.tasks.training import chance
from gammabeta.trial import Trial, versioned
from gammabeta.tuning import at_best, error_then_loss

# Below this difference in test error, in percentage points, nobody would change the normalization.
MARGIN = (-1.0, 1.0)
LEAST_STEPS, MOST_STEPS = 150, 800


@dataclass(frozen=True)
class Compared:
    """One arm: its errors, a seed each, in percent; seconds a step; bytes that a forward keeps for the backward.

    ``gain`` is the usual arm's error less this one's; None for the usual arm itself.
    """

    norm: str
    name: str
    rate: float
    errors: tuple[float, ...]
    seconds: float
    saved: int
    gain: Effect | None

    @property
    def error(self) -> float:
        return mean(self.errors)


@dataclass(frozen=True)
class Comparison:
    """What the recommendation rests on. The first arm is the usual one: BatchNorm as each device computes it."""

    network: str
    batch_size: int
    devices: int
    steps: int
    arms: tuple[Compared, ...]
    chance: float

    @property
    def usual(self) -> Compared:
        return self.arms[0]

    def picture(self) -> Picture:
        effects = [arm.gain for arm in self.arms if arm.gain is not None]
        return bars(
            f"Test error of {self.usual.name}, less each norm's",
            f"{self.network}, batches of {self.batch_size}, {self.devices} device(s). Above 0: better than "
            f"{self.usual.name}. 95 % interval over seeds.",
            "norm",
            Axis("difference of test errors", "percentage points"),
            effects,
        )

    def table(self) -> Table:
        rows = [
            [
                arm.name,
                arm.rate,
                arm.error,
                min(arm.errors),
                max(arm.errors),
                arm.seconds / self.usual.seconds,
                arm.saved / self.usual.saved,
            ]
            for arm in sorted(self.arms, key=lambda arm: arm.error)
        ]
        columns = ["norm", "rate", "test error, %", "lowest", "highest", "time of a step", "memory for the backward"]
        return Table(f"Norms side by side; time and memory in those of {self.usual.name}", columns, rows)

    def to_json(self) -> dict[str, Any]:
        return {"network": self.network, "batch_size": self.batch_size, "devices": self.devices, "steps": self.steps}


def norms(batch_size: int, devices: int, *, flat: bool) -> dict[str, str]:
    """The arms by the name that a reader knows them by; the usual one first."""
    if devices > 1:
        found = {
            f"ghost:{batch_size}": "BatchNorm of each device's own batch",
            "batch": "BatchNorm synced over the devices",
        }
    else:
        found = {"batch": "BatchNorm", "renorm": "batch renormalization"}
    found |= {"group": "GroupNorm", "layer": "LayerNorm", "rms": "RMSNorm"}
    return found | ({} if flat else {"instance": "InstanceNorm"}) | {"none": "no normalization"}


@versioned(1)
def saved_bytes(*, task: Mapping[str, Any], network: Mapping[str, Any], norm: str, batch_size: int) -> dict[str, Any]:
    """Bytes that one forward on a batch keeps for its backward, the parameters left out, each storage once."""
    data = load(task)
    model = build(data, network, norm, 0).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        index = torch.arange(batch_size) % len(data.train)
        loss = functional.cross_entropy(model(data.train.x_nchw[index]), data.train.y_n[index])
    del loss
    return {"bytes": sum(storage.nbytes() for storage in kept.values())}


def is_flat(experiment: Experiment, network: Mapping[str, Any]) -> bool:
    """Whether some norm of the network has one value a channel and image, where InstanceNorm has nothing to do."""
    model = build(experiment.task, network, "batch", 0)
    return any(isinstance(module, nn.BatchNorm1d) for module in model.modules())


def compare(experiment: Experiment, batch_size: int, devices: int) -> Comparison:
    """Train the network with every norm, each at its own best rate, and measure what it costs.

    Rates are tuned on the validation split on seeds of their own, one (quick) or three, errors are of the test split
    with exact statistics.
    """
    network = experiment.convolutional
    seeds = experiment.seeds(4, 10)
    whole = batch_size * devices
    images = 9_600 if experiment.quick else 25_600
    steps = min(max(images // whole, LEAST_STEPS), MOST_STEPS)
    impossible = impossible_arms(network, experiment.task)
    named = {
        norm: name
        for norm, name in norms(batch_size, devices, flat=is_flat(experiment, network)).items()
        if norm.partition(":")[0] not in impossible
    }
    arms = {norm: {"network": dict(network), "norm": norm, "batch_size": whole, "steps": steps} for norm in named}
    rates, found = at_best(
        experiment, arms, error_then_loss, seeds, tuning=experiment.tuning_seeds(1, 3), report="test"
    )
    timed = seeds[:3]
    timings = [
        Trial(
            "gammabeta.tasks.training:step_time",
            {
                "task": dict(experiment.source),
                "network": dict(network),
                "norm": norm,
                "batch_size": whole,
                "seed": seed,
            },
        )
        for norm in named
        for seed in timed
    ]
    seconds = [record["timing"]["seconds_per_step"] for record in experiment.records(timings)]
    sizes = experiment.run(
        [
            Trial(
                f"{__name__}:saved_bytes",
                {"task": dict(experiment.source), "network": dict(network), "norm": norm, "batch_size": whole},
            )
            for norm in named
        ]
    )
    errors = {norm: tuple(100 * result["error"] for result in results) for norm, results in found.items()}
    usual = next(iter(named))
    compared = []
    for index, (norm, name) in enumerate(named.items()):
        gain = None
        if norm != usual:
            differences = [a - b for a, b in zip(errors[usual], errors[norm], strict=True)]
            gain = measured(name, differences, unit="percentage points", margin=MARGIN, direction="above")
        of_arm = seconds[len(timed) * index : len(timed) * (index + 1)]
        compared.append(
            Compared(norm, name, 2.0 ** rates[norm], errors[norm], median(of_arm), max(1, sizes[index]["bytes"]), gain)
        )
    return Comparison(
        describe(network), batch_size, devices, steps, tuple(compared), 100 * (1 - chance(experiment.task))
    )
