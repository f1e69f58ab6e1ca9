"""What a claim measures with: the tasks, the networks, the seeds, and trials that are run or read from disk."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gammabeta.lab.images.task import Task
from gammabeta.lab.sources import load
from gammabeta.lab.task import Kind
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import Trial
from gammabeta.lab.trials.workers import run_trials

Arm = TypeVar("Arm", bound=Hashable)
Replicate = TypeVar("Replicate")

TRAIN = "gammabeta.lab.images.training:train"


@dataclass
class Experiment:
    """The circumstances of one study.

    Attributes:
        sources: the tasks, as a trial's settings identify them, by kind.
        store: the finished trials.
        user: the user's network, as settings identify it; it replaces the study's own on its kind of data.
        quick: few seeds and the smaller grids that each claim states.
        at_scale: whether networks have the size and the length of training that people use on such data; with
            ``quick``, which keeps replicates and grids small.
        seed: of the whole study; another number repeats it with other initializations and batches.
        seed_count: how many seeds results are taken from; None for each claim's own number.
        link: between devices, a name in `gammabeta.lab.links.LINKS`, for the cost of synchronizing.
        confidence: of all of a recommendation's intervals together.
        jobs: worker processes.
        progress: called with the numbers of finished and of all trials.
        trials: those that the present claim has asked for, in order.
    """

    sources: Mapping[Kind, Mapping[str, str]]
    store: Store
    user: Mapping[str, Any] | None = None
    quick: bool = True
    seed: int = 0
    seed_count: int | None = None
    jobs: int = 1
    link: str = "infiniband"
    confidence: float = 0.95
    at_scale: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None
    trials: list[Trial] = field(default_factory=list)

    @property
    def source(self) -> Mapping[str, str]:
        """The images, as a trial's settings identify them."""
        return self.sources["images"]

    @property
    def task(self) -> Task:
        """The images."""
        return load(self.source)

    @property
    def tuning_seed(self) -> int:
        """The seed on which learning rates are tuned; no result is taken from it."""
        return 1000 * self.seed

    def tuning_seeds(self, quick: int, full: int) -> list[int]:
        """Return several seeds for tuning, the first of which is ``tuning_seed``: one seed would decide by luck."""
        return [
            self.tuning_seed,
            *(1000 * self.seed + 999 - index for index in range((quick if self.quick else full) - 1)),
        ]

    def coarse_replicates(self, count: int) -> list[int]:
        """Return replicates for a coarse search of learning rates; no result is taken from them."""
        return [1000 * self.seed + 999 - index for index in range(count)]

    def seeds(self, quick: int, full: int) -> list[int]:
        """Return the seeds that results are taken from."""
        count = self.seed_count or (quick if self.quick else full)
        return [1000 * self.seed + index + 1 for index in range(count)]

    @property
    def convolutional(self) -> Mapping[str, Any]:
        """The user's model where there is one, otherwise the small ResNet."""
        of_images = self.user is not None and self.user.get("of", "images") == "images"
        return self.user if of_images and self.user else {"kind": "resnet", "init": "matched"}

    def mlp(
        self, depth: int, *, width: int = 64, activation: str = "relu", init: str = "matched", **more: Any
    ) -> Mapping[str, Any]:
        """Describe an MLP; ``more`` may hold gain, dropout and dropout_at."""
        return {"kind": "mlp", "depth": depth, "width": width, "activation": activation, "init": init, **more}

    def train(self, **settings: Any) -> Trial:
        """Make a training trial on this study's images, with the settings of `gammabeta.lab.images.training.Run`.

        Its seed is also the number of its split.
        """
        return Trial(TRAIN, {"task": self.drawn(settings["seed"]), **settings})

    def drawn(self, replicate: int, kind: Kind = "images") -> dict[str, Any]:
        """Return a replicate's own split of the data, as a trial's settings identify it."""
        return {**self.sources[kind], "split": replicate}

    @property
    def is_small(self) -> bool:
        """Whether networks are small and training is short, as in a quick study that is not at scale."""
        return self.quick and not self.at_scale

    def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Return the trials' results, in order; trials on disk do not run again."""
        return [record["result"] for record in self.records(trials)]

    def grid(
        self, arms: Sequence[Arm], replicates: Sequence[Replicate], make: Callable[[Arm, Replicate], Trial]
    ) -> dict[Arm, list[dict[str, Any]]]:
        """Run every arm on every replicate and return each arm's results, in the order of the replicates.

        Args:
            arms: the keys under which the results are filed; hashable, and all different.
            replicates: usually seeds.
            make: makes the trial of one arm on one replicate.

        Raises:
            ValueError: two arms are equal, so their results could not be distinguished.
        """
        return _by_arm(arms, replicates, self.run(_trials(arms, replicates, make)))

    def grid_of_records(
        self, arms: Sequence[Arm], replicates: Sequence[Replicate], make: Callable[[Arm, Replicate], Trial]
    ) -> dict[Arm, list[dict[str, Any]]]:
        """Run a grid as :meth:`grid` does, and return whole records as :meth:`records` does."""
        return _by_arm(arms, replicates, self.records(_trials(arms, replicates, make)))

    def records(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Return the trials' records: ``result``, ``seconds`` and, where the trial measured times, ``timing``."""
        self.trials += trials
        distinct = {trial.key for trial in trials}
        missing = {trial.key for trial in trials if trial not in self.store}
        done = len(distinct) - len(missing)

        def finished() -> None:
            nonlocal done
            done += 1
            self.progress(done, len(distinct))

        self.progress(done, len(distinct))
        # Longest first, so that no worker is left with a long trial while the others wait.
        longest_first = sorted(trials, key=lambda trial: -int(trial.settings.get("steps", 0)))
        run_trials(longest_first, self.store, jobs=self.jobs, finished=finished)
        return [self.store[trial] for trial in trials]


def _trials(
    arms: Sequence[Arm], replicates: Sequence[Replicate], make: Callable[[Arm, Replicate], Trial]
) -> list[Trial]:
    """Make the trials of a grid, arm after arm."""
    if len(set(arms)) < len(arms):
        raise ValueError(f"grid: expected arms that differ, got {list(arms)}.")
    return [make(arm, replicate) for arm in arms for replicate in replicates]


def _by_arm(
    arms: Sequence[Arm], replicates: Sequence[Any], found: Sequence[dict[str, Any]]
) -> dict[Arm, list[dict[str, Any]]]:
    """File what was found for the trials of a grid under each arm."""
    each = iter(found)
    return {arm: [next(each) for _ in replicates] for arm in arms}
