"""The recommended normalization for one model, data, batch size and number of devices, in words.

It follows from a comparison of the norms (`gammabeta.lab.choice`), and quotes the claims that were measured.
"""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gammabeta.lab.choice import Choice, choose
from gammabeta.lab.comparison import Compared, Comparison
from gammabeta.lab.evidence import Side, is_synced, norm_of, said, summary
from gammabeta.lab.looks import MOST
from gammabeta.lab.outcome import Effect, Outcome
from gammabeta.lab.task import Kind

# What to write for each norm on images, in a network that has BatchNorm.
HOW = {
    "batch": "gb.BatchNorm2d(channels)",
    "ghost": "gb.BatchNorm2d(channels)",
    "renorm": "gb.set_statistics(model, gb.statistics.Renorm())",
    "group": 'gb.convert(model, "group")',
    "layer": 'gb.convert(model, "layer")',
    "rms": "gb.RMSNorm(channels), over the channels, moved to the last axis",
    "instance": 'gb.convert(model, "instance")',
    "none": "no normalization layer",
}
HOW_ON_SEQUENCES = {
    **HOW,
    "batch": "gb.BatchNorm1d(features)",
    "group": "gb.GroupNorm(groups, features)",
    "layer": "gb.LayerNorm(features)",
    "rms": "gb.RMSNorm(features)",
    "masked": "gb.BatchNorm1d(features), called with mask=",
    "padded": "gb.BatchNorm1d(features)",
}
SYNCED = "gb.set_statistics(model, gb.statistics.Synced())"
# The part of the memory for the backward pass at which recompute is named.
WORTH_SAYING = 0.9
OVER_DEVICES = "statistics=gb.statistics.Synced()"
RECALIBRATE = "after training gb.recalibrate(model, batches)"


@dataclass(frozen=True)
class Run:
    """The study that a comparison comes from.

    Attributes:
        quick: whether the study was quick.
        command: its whole command line.
        until_settled: whether it looked at the replicates again until all norms were decided.
        data: what the command line needs to compare this network's norms only, for example ``"strokes"``; empty where
            the command names its data.
    """

    quick: bool = False
    command: str = "gammabeta study"
    data: str = ""
    until_settled: bool = False

    def again(self) -> str:
        """Return the command that compares the norms with fresh replicates until all are decided, into another folder.

        More replicates in the same folder would be a second look at the first ones, which decides wrongly more often.
        """
        program, study, *words = shlex.split(self.command)
        options: dict[str, str | None] = {}
        for place, word in enumerate(words):
            if word.startswith("--"):
                following = words[place + 1 : place + 2]
                options[word] = following[0] if following and not following[0].startswith("--") else None
        options = {name: value for name, value in options.items() if name not in ("--seeds", "--first-look")}
        options |= {"--compare": None, "--until-settled": None, "--seed": str(int(options.get("--seed") or 0) + 1)}
        options["--out"] = f"{(options.get('--out') or 'gammabeta-study').rstrip('/')}-again"
        options |= {"--data": self.data} if self.data else {}
        if self.quick and "--at-scale" not in options:
            options["--quick"] = None
        return shlex.join([program, study, *(word for pair in options.items() for word in pair if word is not None)])


def not_compared(name: str, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the entry that replaces a recommendation where no norms were compared."""
    return {
        "headline": f"No recommendation yet for {name}: it rests on the comparison of the norms, which was not run.",
        "evidence": [_item("neither", claim, summary(claim, outcome)) for claim, outcome in list(outcomes.items())[:4]],
        "avoid": [],
        "uncertain": "Run gammabeta study --compare, or all claims.",
    }


def failed(kind: Kind, error: str) -> dict[str, Any]:
    """Return the entry that replaces a recommendation where the comparison failed."""
    return {
        "headline": f"No recommendation on {kind}: the comparison of the norms failed.",
        "evidence": [],
        "avoid": [],
        "uncertain": error,
    }


def interrupted(kind: Kind, command: str) -> dict[str, Any]:
    """Return the entry that replaces a recommendation where the comparison was interrupted."""
    return {
        "headline": f"No recommendation yet on {kind}: the comparison of the norms was interrupted.",
        "evidence": [],
        "avoid": [],
        "uncertain": f"Its finished trials are kept. Continue with: {command}",
    }


def recommend(comparison: Comparison, outcomes: Mapping[str, Outcome], run: Run) -> dict[str, Any]:
    """Recommend a norm, in the form of ``results.json``.

    Its keys are headline, settled, seeds (the number of replicates), scope, costs, how, evidence, avoid, uncertain, and
    settle, the command that settles what is open. Each piece of evidence has a side: for the choice, against it, or
    neither.

    Args:
        comparison: of one network.
        outcomes: of the claims that were measured, by name.
        run: the study that the comparison comes from.
    """
    if not comparison.learned:
        return _untrained(comparison, run)
    choice = choose(comparison)
    return {
        "headline": f"For {comparison.where}: {_verdict(choice, comparison)}",
        "settled": not choice.open,
        "seeds": len(choice.arm.values),
        "scope": _scope(comparison),
        "costs": _all_costs(choice, comparison),
        "how": _how(choice, comparison),
        "evidence": _evidence(choice, comparison, outcomes),
        "avoid": [_compared(arm, choice, comparison) for arm in choice.avoid],
        "uncertain": _uncertain(choice, comparison),
        "settle": run.again() if _can_be_settled(choice) and not run.until_settled else None,
    }


def _verdict(choice: Choice, comparison: Comparison) -> str:
    """Say what to use and how much that is known to gain, the end of the interval nearer to 0 first."""
    arm, usual, scale = choice.arm, comparison.usual, comparison.scale
    seeds = f"{len(arm.values)} replicates"
    if choice.why == "better":
        return f"use {arm.name}. Its {scale.name} is {_gain(arm, comparison)}, over {seeds}."
    if choice.why == "cheaper":
        return (
            f"use {arm.name}. It is as good as {usual.name} to within {scale.least}, at {_costs(arm, comparison)} "
            f"({seeds})."
        )
    return (
        f"keep {usual.name}. Nothing was shown to be better by {scale.least} ({scale.say(usual.value)}, over {seeds})."
    )


def _gain(arm: Compared, comparison: Comparison) -> str:
    """Say how an arm's value lies to the usual one's: at least how far from it, where that is shown.

    The interval's ends are rounded outwards, so that "at least" stays true.
    """
    gain, scale = arm.gain, comparison.scale
    assert gain is not None
    sign = 1 if gain.value > 0 else -1
    side = "below" if sign > 0 else "above"
    ends = sorted((sign * gain.low, sign * gain.high))
    value, low, high = (
        f"{rounded + 0.0:.{scale.digits}f}"  # + 0.0: no -0.0
        for rounded in (
            round(sign * gain.value, scale.digits),
            _outwards(ends[0], scale.digits, math.floor),
            _outwards(ends[1], scale.digits, math.ceil),
        )
    )
    seen = f"{value} [{low}, {high}]"
    of_usual = f"{comparison.usual.name}'s"
    if gain.verdict in ("supported", "contradicted"):
        return f"at least {low} {scale.points} {side} {of_usual} ({seen})"
    if gain.verdict == "equivalent":
        return f"within {scale.least} of {of_usual} ({seen} {side})"
    return f"not distinguished from {of_usual} by {scale.least} ({seen} {side})"


def _outwards(end: float, digits: int, rounding: Callable[[float], int]) -> float:
    """Round an end of an interval to ``digits``, up or down; an infinite one stays."""
    if not math.isfinite(end):
        return end
    scale = 10.0**digits
    return rounding(round(end * scale, 6)) / scale


def _all_costs(choice: Choice, comparison: Comparison) -> str | None:
    """Say what the choice costs relative to the usual norm, and what synchronizing does; None where that is nothing."""
    arm, shared = choice.arm, comparison.communication
    own = "" if arm is comparison.usual else f"{_costs(arm, comparison)}."
    kept = None if arm.recomputed is None else arm.recomputed / arm.saved
    less = (
        f"gb.recompute(model) leaves {100 * kept:.0f} % of the memory kept for the backward pass."
        if kept is not None and kept <= WORTH_SAYING
        else ""
    )
    parts = [part for part in (own, less, shared and f"{shared[0].upper()}{shared[1:]}.") if part]
    return " ".join(parts) or None


def _costs(arm: Compared, comparison: Comparison) -> str:
    """Say what an arm costs relative to the usual one."""
    one_device = " on one device" if comparison.devices > 1 else ""
    return (
        f"{relative(arm.seconds / comparison.usual.seconds, 'time per step')}{one_device}, "
        f"{relative(arm.saved / comparison.usual.saved, 'memory kept for the backward pass')}"
    )


def relative(ratio: float, what: str) -> str:
    """Say a ratio of costs in percent, as in "18 % less time per step"."""
    percent = round(100 * (ratio - 1))
    return f"{abs(percent)} % {'more' if percent > 0 else 'less'} {what}" if percent else f"the same {what}"


def _compared(arm: Compared, choice: Choice, comparison: Comparison) -> str:
    """Describe an arm in a sentence: its value, how it lies to the usual one's, and its costs."""
    own = f"{arm.name}: {comparison.scale.say(arm.value)}"
    if arm is not comparison.usual:
        return f"{own}, {_gain(arm, comparison)}; {_costs(arm, comparison)}."
    if choice.why == "better":
        return f"{own}; that of {choice.arm.name} is {_gain(choice.arm, comparison)}."
    return f"{own}, the usual choice."


def _scope(comparison: Comparison) -> str:
    long = f"Trained for {comparison.trained}" if comparison.trained else f"After {comparison.steps} steps"
    by = f" by {comparison.rates_by}" if comparison.rates_by else ""
    whom = f" Intervals speak of {comparison.whom}." if comparison.whom else ""
    reach = "" if comparison.own else " It is one of the study's own networks: a deeper one may behave differently."
    named = ", ".join(comparison.left_out)
    out = f" Left out: {named}; a whole study compares them." if named else ""
    return f"{long}. Each norm has its own best learning rate{by}.{whom}{out}{reach}"


def _how(choice: Choice, comparison: Comparison) -> str:
    """Name the layer to write, and the call that recalibrates it where that is shown to win by the margin."""
    arm = choice.arm
    how = (HOW if comparison.kind == "images" else HOW_ON_SEQUENCES)[norm_of(arm)]
    if is_synced(arm, comparison):
        how = SYNCED if comparison.kind == "images" else how.replace("features)", f"features, {OVER_DEVICES})")
    again: Effect | None = arm.recalibration
    if again is None or again.verdict != "supported":
        return how
    scale = comparison.scale
    least = f"{_outwards(again.low, scale.digits, math.floor):.{scale.digits}f} {scale.points}"
    return f"{how}; {RECALIBRATE}, which lowers the {scale.name} by at least {least}"


def _untrained(comparison: Comparison, run: Run) -> dict[str, Any]:
    hints = ["A run without --quick trains longer."] if run.quick and "--at-scale" not in run.command else []
    hints += ["Name another model with --model."] if comparison.kind == "images" else []
    return {
        "headline": f"No recommendation for {comparison.where}: no norm trained well enough in {comparison.steps} "
        "steps.",
        "evidence": [],
        "avoid": [],
        "uncertain": " ".join(hints) or None,
    }


def _item(side: Side, claim: str, text: str) -> dict[str, str]:
    return {"side": side, "claim": claim, "text": text}


def _evidence(choice: Choice, comparison: Comparison, outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    """List the chosen norm and the best others, then what the measured claims say for the choice and against it."""

    def side(arm: Compared) -> Side:
        """The chosen norm's own gain speaks for it, and so does what is shown to be worse than the usual norm."""
        return "for" if arm in choice.avoid or (arm is choice.arm and choice.why != "usual") else "neither"

    best = sorted(comparison.arms, key=lambda arm: (arm is not choice.arm, arm.value))[:4]
    return [
        *(_item(side(arm), "comparison", _compared(arm, choice, comparison)) for arm in best),
        *(_item("neither", "comparison", _why_not(arm, comparison)) for arm in choice.fragile),
        *(_item(*found) for found in said(outcomes, comparison, choice.arm)),
    ]


def _uncertain(choice: Choice, comparison: Comparison) -> str | None:
    """Name the norms that could not be distinguished from the usual one, and how many replicates would decide."""
    needed = {arm.name: arm.gain.seeds_needed for arm in choice.open if arm.gain is not None}
    if not needed:
        return None
    each = ", ".join(
        f"{arm} ({f'about {n} replicates' if n else 'no number of replicates'} would decide)"
        for arm, n in needed.items()
    )
    return (
        f"Not distinguished from {comparison.usual.name} by the margin of {comparison.scale.least} after "
        f"{len(comparison.usual.values)} replicates: {each}."
        + ("" if _can_be_settled(choice) else " More data would, or another margin.")
    )


def _can_be_settled(choice: Choice) -> bool:
    """Whether some norm that is open would be decided by as many replicates as `gammabeta.lab.looks` allows."""
    needed = [arm.gain.seeds_needed for arm in choice.open if arm.gain is not None]
    return any(n is not None and n <= MOST for n in needed)


def _why_not(arm: Compared, comparison: Comparison) -> str:
    """Say why an arm is not recommended that is shown to be better, or as good and cheaper."""
    usual = comparison.usual
    reasons = []
    if arm.fragile:
        reasons.append("at twice its learning rate training fails")
    if arm.headroom is not None and usual.headroom is not None and 2 * arm.headroom < usual.headroom:
        reasons.append(f"{arm.headroom} learning rates serve, and {usual.headroom} with {usual.name}")
    return f"{arm.name} is not recommended, although its {comparison.scale.name} is {_gain(arm, comparison)}: " + (
        f"{' and '.join(reasons)}."
    )
