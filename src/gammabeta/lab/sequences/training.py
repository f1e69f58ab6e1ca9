"""Training runs on sequences: Adam, a learning rate that falls as half a cosine, each arm at its own best rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

import gammabeta as gb
from gammabeta.lab.answers import precision_of
from gammabeta.lab.comparison import ERROR
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images.training import Judged, lost, reported
from gammabeta.lab.interval import Precision
from gammabeta.lab.procedure import Chosen, choose_rates
from gammabeta.lab.sequences.networks import build_sequence_network, exact_statistics, networks_of, users_own
from gammabeta.lab.sequences.task import Sequences, SequenceTask
from gammabeta.lab.sequences.user_network import build as build_user_network
from gammabeta.lab.sources import load_sequences
from gammabeta.lab.trials.trial import Trial, versioned
from gammabeta.lab.tuning import Grid, deployed

BATCH = 32
RATES = (-9, -7, -5)
WIDEST = ERROR.margin[1] / 100
POPULATION = 512  # the training sequences whose statistics are used in evaluation
Cell = tuple[str, str]  # network, arm


def batch_of(split: Sequences, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sequences at ``index``, padded to the longest of them, with their mask and labels."""
    lengths = split.lengths_n[index]
    longest = int(lengths.max())
    return split.x_ntf[index, :longest], gb.lengths_to_mask(lengths, longest), split.y_n[index]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one trial of :func:`classified`.

    Attributes:
        task: as :func:`gammabeta.lab.sources.load_sequences` takes it.
        network: a name, as :func:`gammabeta.lab.sequences.networks.build_sequence_network` takes it, or the user's
            network as settings identify it.
        arm: the norm.
        rate: the learning rate at the start; it falls to 0 as half a cosine.
        seed: decides the initialization and the batches.
        report: the split that is reported: ``"validation"`` while tuning, ``"test"`` after it.
    """

    task: Mapping[str, Any]
    network: str | Mapping[str, Any]
    arm: str
    rate: float
    steps: int
    seed: int
    report: str
    batch_size: int = BATCH

    def build(self, data: SequenceTask) -> nn.Module:
        """Build the network with its norms, initialized by ``seed``."""
        return build_network(self.network, data, self.arm, self.seed)

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step; steps count from 1."""
        return 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))

    def places(self, data: SequenceTask) -> torch.Tensor:
        """Draw which sequences each batch holds: (steps, batch)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.stack(
            [
                torch.randint(len(data.train), (self.batch_size,), generator=generator)
                for _ in range(self.steps)
            ]
        )  # fmt: skip

    def result(self, data: SequenceTask, model: nn.Module | None) -> dict[str, Any]:
        """Judge a trained network; None for one whose loss was not finite."""
        wanted: list[Sequences] = [getattr(data, self.report)]
        wanted += [data.validation] if self.report == "test" else []
        if model is None:
            exact = moving = [lost(cast(Any, part)) for part in wanted]
        else:
            model.eval()
            exact = moving = [judged(model, part) for part in wanted]
            if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
                return reported(cast(Any, data), cast(Any, self), exact, moving)
            population = torch.arange(min(POPULATION, len(data.train)))
            with exact_statistics(model, *batch_of(data.train, population)[:2]):
                exact = [judged(model, part) for part in wanted]
        return reported(cast(Any, data), cast(Any, self), exact, moving)


def build_network(network: str | Mapping[str, Any], data: SequenceTask, arm: str, seed: int) -> nn.Module:
    """Build one of the study's networks or the user's, with an arm's norms, in training mode."""
    if isinstance(network, str):
        longest = 2 * data.train.x_ntf.shape[1]
        return build_sequence_network(network, data.features, data.classes, arm, longest, seed)
    return build_user_network(network["model"], data, arm, seed)


@versioned(4, together="gammabeta.lab.sequences.together")
def classified(**settings: Any) -> dict[str, Any]:
    """Train one network by Adam.

    Args:
        settings: the fields of :class:`Run`.

    Returns:
        - ``moving_error``, ``moving_loss``: on the reported split, with moving averages, as a network is deployed.
        - ``error``, ``loss``: with exact statistics.
        - ``validation``: these four on the validation split, where ``report`` is ``"test"``; otherwise None.
        - ``wrong``, ``moving_wrong``: which test sequences were classified wrongly, as
          :func:`gammabeta.lab.answers.packed` writes them, where all splits share them; otherwise None.
    """
    run = Run(**settings)
    data = load_sequences(run.task)
    model = run.build(data).train()
    optimizer = torch.optim.Adam(model.parameters(), run.rate, fused=True)
    for step, index in enumerate(run.places(data), start=1):
        optimizer.param_groups[0]["lr"] = run.rate * run.rate_factor(step)
        x, mask, y = batch_of(data.train, index)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x, mask), y)
        if not torch.isfinite(loss):
            return run.result(data, None)
        loss.backward()
        optimizer.step()
    return run.result(data, model)


@torch.no_grad()
def judged(model: nn.Module, split: Sequences) -> Judged:
    """Judge a network's answers on one split."""
    parts = [batch_of(split, index) for index in torch.arange(len(split)).split(1000)]
    return Judged.of(torch.cat([model(x, mask) for x, mask, _ in parts]), split.y_n)


def seeds_of(experiment: Experiment) -> list[int]:
    return experiment.seeds(3, 12)


def steps_of(experiment: Experiment) -> int:
    return 100 if experiment.is_small else 400


def shorter_of(experiment: Experiment) -> dict[str, int] | None:
    """Return what the coarse search has other than the results: in a quick study, two fifths of the steps."""
    return {"steps": 2 * steps_of(experiment) // 5} if experiment.quick else None


def precision(data: SequenceTask, ones: Chosen, others: Chosen, wrong: tuple[str, str]) -> Precision:
    """Return the precision of differences of test errors, in percent, as `gammabeta.lab.answers.precision_of` does."""
    return precision_of(ones.results, others.results, len(data.test), len(data.train), wrong)


def settings_of(experiment: Experiment, network: str, arm: str, batch_size: int = BATCH) -> dict[str, Any]:
    """Return the settings that all trials of one network with one arm share."""
    # Without norms, pre-norm and post-norm are the same Transformer, which is trained once.
    same = {("Transformer, post-norm", "none"): "Transformer, pre-norm"}
    of_user = users_own(experiment, "sequences")
    own = dict(of_user) if of_user is not None else same.get((network, arm), network)
    base = {"network": own, "arm": arm, "steps": steps_of(experiment)}
    return base if batch_size == BATCH else {**base, "batch_size": batch_size}


def trained(experiment: Experiment, arms: Sequence[str], batch_size: int = BATCH) -> dict[Cell, Chosen]:
    """Train each network with each arm, each replicate at the learning rate that it chose as the network is deployed.

    A whole study extends the coarse search until both ends are worse than the best by the margin of 1 point.

    Returns:
        By (network, arm), what :func:`gammabeta.lab.procedure.choose_rates` returns.
    """
    cells = [(network, arm) for network in networks_of(experiment) for arm in arms]
    settings = {cell: settings_of(experiment, *cell, batch_size) for cell in cells}

    def trial(of_cell: Mapping[str, Any], exponent: int, replicate: int, report: str) -> Trial:
        own = {"task": experiment.drawn(replicate, "sequences"), "seed": replicate, "report": report}
        return Trial(f"{__name__}:classified", {**of_cell, **own, "rate": 2.0**exponent})

    widest = None if experiment.quick else WIDEST
    grid = Grid(RATES, widest, shorter_of(experiment))
    return choose_rates(experiment, settings, seeds_of(experiment), deployed, grid, trial)
