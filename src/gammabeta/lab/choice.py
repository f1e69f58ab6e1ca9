"""Which norm to use: the decision that a comparison of norms allows, only by whole intervals."""

from dataclasses import dataclass
from typing import Literal

from gammabeta.lab.comparison import Compared, Comparison

# The part of the usual norm's time or memory that an equally good norm must save to be worth a change.
SAVING = 0.1


@dataclass(frozen=True)
class Choice:
    """What to use, and what the intervals say of the other arms.

    Attributes:
        arm: the norm to use.
        why: ``"better"`` than the usual norm by the margin, ``"cheaper"`` and as good, or ``"usual"``.
        avoid: the arms that are shown to be worse by the margin: than the usual norm, or the usual norm itself where
            the chosen one is better.
        open: the arms whose intervals do not decide.
        fragile: the arms that are shown to be better, or as good and cheaper, and that are not recommended because
            fewer than half as many learning rates serve as with the usual norm, or one at twice their own fails.
    """

    arm: Compared
    why: Literal["better", "cheaper", "usual"]
    avoid: tuple[Compared, ...]
    open: tuple[Compared, ...]
    fragile: tuple[Compared, ...] = ()


def choose(comparison: Comparison) -> Choice:
    """Choose the norm to use: the usual one, unless another is shown to be better, or as good and cheaper.

    Every step reads an arm's verdict, which rests on its whole interval; the intervals of all arms hold together with
    95 %. Means only rank arms that are all shown to be better: the choice is the first within the margin of the lowest.
    """
    usual, margin = comparison.usual, comparison.scale.margin[1]

    def having(verdict: str) -> list[Compared]:
        return [arm for arm in comparison.arms if arm.gain is not None and arm.gain.verdict == verdict]

    shown = [*having("supported"), *(arm for arm in having("equivalent") if saves(arm, usual))]
    fragile = tuple(arm for arm in shown if is_fragile(arm, usual))
    better = [arm for arm in having("supported") if arm not in fragile]
    cheaper = [arm for arm in shown if arm not in fragile and arm not in better]
    worse, undecided = tuple(having("contradicted")), tuple(having("inconclusive"))
    if better:
        least = min(arm.value for arm in better)
        chosen = next(arm for arm in better if arm.value <= least + margin)
        return Choice(chosen, "better", (usual, *worse), undecided, fragile)
    if cheaper:
        least_cost = min(cheaper, key=lambda arm: arm.seconds * arm.saved)
        return Choice(least_cost, "cheaper", worse, undecided, fragile)
    return Choice(usual, "usual", worse, undecided, fragile)


def is_fragile(arm: Compared, usual: Compared) -> bool:
    """Judge whether an arm leaves too little room for its learning rate to be recommended over the usual norm."""
    if arm.fragile:
        return True
    return arm.headroom is not None and usual.headroom is not None and 2 * arm.headroom < usual.headroom


def saves(arm: Compared, usual: Compared) -> bool:
    """Judge whether an arm saves 10 % of time or memory, and costs less than 10 % more of the other.

    Times vary from run to run: the saving must show in every timing, against the usual norm's of the same seed.
    """
    times = [one / other for one, other in zip(arm.timings, usual.timings, strict=True)]
    memory = arm.saved / usual.saved
    dearest, most = max(times), 1 + SAVING
    return (dearest <= 1 - SAVING and memory < most) or (memory <= 1 - SAVING and arm.seconds / usual.seconds < most)
