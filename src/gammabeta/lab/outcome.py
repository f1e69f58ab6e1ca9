"""What a claim hands back: its verdict with the effects, pictures and tables that it rests on, ready for JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gammabeta.lab.trials.trial import Trial, plain
from gammabeta.lab.verdict import Direction, Verdict, judge


@dataclass(frozen=True)
class Effect:
    """One measured effect. ``low`` and ``high`` bound its 95 % interval; ``margin`` is what nobody would care about."""

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

    @classmethod
    def exactly(cls, name: str, wrong: int, cases: int, unit: str) -> "Effect":
        """An identity: it holds in every case or it does not hold."""
        verdict: Verdict = "contradicted" if wrong or not cases else "supported"
        return cls(f"{name}, of {cases}", wrong, wrong, wrong, unit, (0.0, 0.0), 0.0, verdict, 1)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What a claim fixes about an effect before anything runs.

    Attributes:
        unit: of the effect, as a reader reads it.
        margin: (lower, upper), between which nobody would care; with ``ratio`` as ratios.
        direction: where the claim says that the effect lies.
        null: the value of no effect; with ``ratio`` as a ratio.
        ratio: whether an effect's values are natural logs of paired ratios, which a reader reads as ratios.
    """

    unit: str
    margin: tuple[float, float]
    direction: Direction
    null: float = 0.0
    ratio: bool = False

    def effect(self, name: str, values: Sequence[float], *, resolution: float = 0.0, censored: int = 0) -> Effect:
        """Judge the effect of one value a seed.

        Args:
            values: (n,) one a seed: paired differences, or with ``ratio`` the natural logs of paired ratios.
            resolution: on the scale of ``values``.
            censored: how many of the values are restricted at a limit.
        """
        lower, upper = (math.log(self.margin[0]), math.log(self.margin[1])) if self.ratio else self.margin
        around, verdict, needed = judge(
            values, (lower, upper), self.direction, resolution=resolution, censored=censored
        )
        value, low, high = (self._shown(end) for end in (around.value, around.low, around.high))
        return Effect(name, value, low, high, self.unit, self.margin, self.null, verdict, len(values), needed)

    def _shown(self, value: float) -> float:
        return math.exp(min(value, 700.0)) if self.ratio and math.isfinite(value) else value


def measured(
    name: str, values: Sequence[float], *, resolution: float = 0.0, censored: int = 0, **criterion: Any
) -> Effect:
    """Judge the effect of one value a seed by a criterion's fields; see :meth:`Criterion.effect`."""
    return Criterion(**criterion).effect(name, values, resolution=resolution, censored=censored)


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
    """Effects side by side with their intervals, and the margins as lines."""
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
    """The control that decides whether the claim can be judged here: what was required beforehand and what was seen."""

    holds: bool
    control: str


@dataclass(frozen=True)
class Outcome:
    """A claim's verdict, in ``sentence`` with its numbers; the first effect is the one the verdict goes by."""

    verdict: Verdict
    sentence: str
    effects: Sequence[Effect]
    room: Room
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    settings: str = ""
    trials: Sequence[Trial] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """The part of ``results.json`` that is the claim's own; NaN and infinities are null."""
        fields = asdict(self)
        fields["trials"] = list(dict.fromkeys(trial.key for trial in self.trials))
        whole: dict[str, Any] = plain(fields)
        return whole
