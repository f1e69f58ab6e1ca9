"""How long to train: T is doubled while the differences between arms still move by more than the margin."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Generic, TypeVar

Arm = TypeVar("Arm", bound=Hashable)


@dataclass(frozen=True)
class Length(Generic[Arm]):
    """The number of steps to train for.

    Attributes:
        steps: T.
        course: by number of steps, each arm's value minus the usual one's, a mean over the coarse search's replicates.
        stable: whether the differences at T and 2T agree to within the margin; None where that was not looked at.
    """

    steps: int
    course: Mapping[int, Mapping[Arm, float]]
    stable: bool | None

    def said(self, epochs: Callable[[int], float]) -> str:
        """Say how far the length was looked at."""
        long = f"{epochs(self.steps):.0f} epochs"
        if self.stable is None:
            return f"{long}; whether longer training changes the differences was not looked at"
        if self.stable:
            return (
                f"{long}; the differences between norms are those of {epochs(2 * self.steps):.0f} to within the margin"
            )
        return f"{long}, the limit; the differences between norms still move by more than the margin there"


def find(
    values: Callable[[int], Mapping[Arm, Sequence[float]]], usual: Arm, start: int, limit: int, margin: float
) -> Length[Arm]:
    """Double the number of steps until the differences between arms stand still, or the limit is reached.

    Args:
        values: trains every arm for a number of steps, with the schedule for that many, and returns one value per
            replicate.
        usual: the arm that the others are compared with.
        start: T at first.
        limit: the largest T. With ``start`` nothing is trained, and ``stable`` is None.
    """
    if limit <= start:
        return Length(start, {}, None)

    def differences(steps: int) -> dict[Arm, float]:
        found = values(steps)
        return {arm: mean(own) - mean(found[usual]) for arm, own in found.items()}

    steps, course = start, {start: differences(start)}
    while True:
        course[2 * steps] = differences(2 * steps)
        moved = max(abs(course[2 * steps][arm] - course[steps][arm]) for arm in course[steps])
        if moved <= margin:
            return Length(steps, course, True)
        if 2 * steps > limit:
            return Length(steps, course, False)
        steps *= 2
