"""What a claim returns: its verdict, and the effects, pictures and tables behind it, ready for JSON."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gammabeta.lab.interval import CONTINUOUS, Precision
from gammabeta.lab.trials.trial import Trial, plain
from gammabeta.lab.verdict import Direction, Verdict, judge

# An interval over replicates that all agree: it bounds nothing, and a sentence about it should say that.
UNKNOWN = re.compile(r"\[-inf, \+?inf\]")


@dataclass(frozen=True)
class Effect:
    """One measured effect with its interval from ``low`` to ``high``, which holds with ``confidence``.

    Between the two bounds of ``margin`` nobody would care about it. ``seeds_needed`` is how many seeds would decide an
    inconclusive effect; None where none would.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    margin: tuple[float, float]
    null: float
    verdict: Verdict
    seeds: int
    seeds_needed: int | None = None
    confidence: float = 0.95

    @classmethod
    def exactly(cls, name: str, wrong: int, cases: int, unit: str) -> "Effect":
        """Make the effect of an identity: the number of ``cases`` in which it does not hold."""
        verdict: Verdict = "contradicted" if wrong or not cases else "supported"
        return cls(f"{name}, of {cases}", wrong, wrong, wrong, unit, (0.0, 0.0), 0.0, verdict, 1)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What a claim fixes about an effect before anything runs.

    Attributes:
        unit: of the effect.
        margin: (lower, upper), between which nobody would care; ratios with ``ratio``.
        direction: where the claim says that the effect lies: above the margin, below it, or within.
        null: the value of no effect; a ratio with ``ratio``.
        ratio: whether values are natural logs of paired ratios; the effect then shows ratios.
    """

    unit: str
    margin: tuple[float, float]
    direction: Direction
    null: float = 0.0
    ratio: bool = False

    def effect(
        self,
        name: str,
        values: Sequence[float],
        precision: Precision = CONTINUOUS,
        *,
        censored: int = 0,
        confidence: float = 0.95,
    ) -> Effect:
        """Judge an effect by one value per seed.

        Args:
            values: (n,), one per seed: paired differences, or with ``ratio`` the natural logs of paired ratios.
            precision: how finely the values could be read, on their scale.
            censored: how many of the values are cut off at a limit.
            confidence: of the interval; above 95 % where one of several effects is chosen.
        """
        lower, upper = (math.log(self.margin[0]), math.log(self.margin[1])) if self.ratio else self.margin
        around, verdict, needed = judge(
            values, (lower, upper), self.direction, precision, censored=censored, confidence=confidence
        )
        value, low, high = (self._shown(end) for end in (around.value, around.low, around.high))
        return Effect(
            name, value, low, high, self.unit, self.margin, self.null, verdict, len(values), needed, confidence
        )

    def _shown(self, value: float) -> float:
        return math.exp(min(value, 700.0)) if self.ratio and math.isfinite(value) else value


@dataclass(frozen=True)
class Axis:
    label: str
    unit: str = ""
    log: bool = False


@dataclass(frozen=True)
class Series:
    name: str
    x: Sequence[Any]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    dash: bool = False


@dataclass(frozen=True)
class Line:
    """A reference line at ``value`` of ``axis``."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True)
class Heat:
    """z[row][column], with the text of each cell."""

    x: Sequence[str]
    y: Sequence[str]
    z: Sequence[Sequence[float | None]]
    text: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    kind: Literal["line", "bar", "heatmap"]
    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    lines: Sequence[Line] = ()
    heat: Heat | None = None


def bars(title: str, caption: str, x: str, y: Axis, effects: Sequence[Effect]) -> Picture:
    """Draw effects side by side with their intervals, and the margins as lines."""
    margins = dict.fromkeys(bound for effect in effects for bound in effect.margin)
    return Picture(
        title,
        caption,
        "bar",
        Axis(x),
        y,
        [
            Series(
                "effect",
                [effect.name for effect in effects],
                [effect.value for effect in effects],
                [effect.low for effect in effects],
                [effect.high for effect in effects],
            )
        ],
        [Line("y", bound, "margin") for bound in margins],
    )


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Room:
    """The control that decides whether a claim can be judged here: what was required in advance, and what was seen."""

    holds: bool
    control: str


def tally(regimes: Mapping[str, Verdict]) -> str:
    """Count the verdicts over regimes, as in "supported in 2 of 3 regimes, equivalent in 1"; empty without regimes.

    Regimes without room are not among the m of "k of m".
    """
    counts = Counter(verdict for verdict in regimes.values() if verdict != "no room here")
    whole = counts.total()
    parts = [f"{verdict} in {count}" for verdict, count in counts.most_common()]
    return ", ".join([f"{parts[0]} of {whole} regime{'s' * (whole != 1)}", *parts[1:]]) if parts else ""


@dataclass(frozen=True)
class Outcome:
    """A claim's verdict, with its numbers in ``sentence``.

    Without ``regimes`` the first effect is the one that decides it. With them, the verdict of each regime is given by
    name, and `gammabeta.lab.verdict.over_regimes` combines them; no average over regimes decides.
    """

    verdict: Verdict
    sentence: str
    effects: Sequence[Effect]
    room: Room
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    settings: str = ""
    regimes: Mapping[str, Verdict] = field(default_factory=dict)
    trials: Sequence[Trial] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentence", UNKNOWN.sub("[unknown]", self.sentence))

    def to_json(self) -> dict[str, Any]:
        """Return the claim's own part of ``results.json``; NaN and infinities are null."""
        fields = asdict(self)
        fields["trials"] = list(dict.fromkeys(trial.key for trial in self.trials))
        fields["tally"] = tally(self.regimes)
        whole: dict[str, Any] = plain(fields)
        return whole
