"""The recommended normalization for one model, data, batch size and number of devices.

It follows from a comparison of the norms, and quotes the claims that were measured.
"""

from collections.abc import Mapping
from typing import Any

from gammabeta.lab.comparison import Compared, Comparison
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.outcome import Outcome
from gammabeta.lab.task import Kind

# The claims that say more about each choice on images, by norm. A recommendation quotes those that were measured.
SAY = {
    "batch": ("small_batch", "shifting_data", "train_eval_mismatch", "faster_convergence", "higher_learning_rate"),
    "ghost": ("small_batch", "sync_cost", "sync_equals_large_batch", "noise_regularizes"),
    "renorm": ("small_batch", "train_eval_mismatch"),
    "group": ("group_norm_needs_no_sync", "small_batch", "shifting_data"),
    "layer": ("small_batch",),
    "rms": (),
    "instance": ("small_batch",),
    "none": ("faster_convergence", "init_robustness", "gradient_flow"),
}
# Nobody runs more seeds than this to choose a norm.
PRACTICAL_SEEDS = 200
# How to use each norm on images.
HOW = {
    "batch": "gb.BatchNorm2d",
    "ghost": "gb.BatchNorm2d",
    "renorm": "gb.BatchNorm2d(statistics=gb.statistics.Renorm())",
    "group": "gb.GroupNorm",
    "layer": "gb.GroupNorm(1, channels); gb.LayerNorm where the channels are the only axis",
    "rms": "gb.RMSNorm over the channels, moved to the last axis",
    "instance": "gb.InstanceNorm2d",
    "none": "no normalization layer",
}
HOW_ON_SEQUENCES = {
    **HOW,
    "layer": "gb.LayerNorm",
    "rms": "gb.RMSNorm",
    "masked": "gb.BatchNorm1d, called with mask=",
    "padded": "gb.BatchNorm1d",
}
SYNCED = "statistics=gb.statistics.Synced()"
ABSENT = ("does not apply", "interrupted")


def summary(outcome: Outcome) -> str:
    """Summarize an outcome: its verdict, its first effect, and the other effects that contradict the claim."""
    if not outcome.effects:
        return f"{outcome.verdict.capitalize()}: {outcome.sentence}."
    main, *others = outcome.effects
    against = [effect.name for effect in others if effect.verdict == "contradicted"]
    interval = f" [{main.low:.3g}, {main.high:.3g}]" if main.low != main.high else ""
    text = f"{outcome.verdict.capitalize()}: {main.value:.3g}{interval} {main.unit} ({main.name})."
    return text + (f" Contradicted for: {'; '.join(against)}." if against else "")


def choose(comparison: Comparison) -> Compared:
    """Choose the norm to recommend: the usual one, unless another's mean is lower by more than the margin.

    Candidates are the norms whose whole interval lies above the margin; where there are none, all whose mean gain does.
    The choice is the lowest candidate, or the first one that is within the margin of it.
    """
    others = [arm for arm in comparison.arms if arm.gain is not None and arm.gain.value > arm.gain.margin[1]]
    better = [arm for arm in others if arm.gain is not None and arm.gain.verdict == "supported"] or others
    if not better:
        return comparison.usual
    least = min(arm.value for arm in better)
    return next(arm for arm in better if arm.value <= least + comparison.scale.margin[1])


def difference(arm: Compared, comparison: Comparison) -> str:
    """Say by how much an arm differs from the usual one, with the interval, and what it costs."""
    scale, usual = comparison.scale, comparison.usual
    if arm.gain is None:
        chosen = choose(comparison) is usual
        return "the usual choice" + (f", and nothing was better by the margin of {scale.least}" if chosen else "")
    sign = 1 if arm.gain.value > 0 else -1
    value, low, high = (
        f"{round(end, scale.digits) + 0.0:.{scale.digits}f}"  # + 0.0: no -0.0
        for end in (sign * arm.gain.value, *sorted((sign * arm.gain.low, sign * arm.gain.high)))
    )
    one_device = " on one device, without communication" if comparison.devices > 1 else ""
    return (
        f"{value} {scale.points} [{low}, {high}] {'below' if sign > 0 else 'above'} {usual.name}; "
        f"{relative(arm.seconds / usual.seconds, 'time per step')}{one_device}, "
        f"{relative(arm.saved / usual.saved, 'memory kept for the backward pass')}"
    )


def relative(ratio: float, what: str) -> str:
    """Say a ratio of costs in percent, as in "18 % less time per step"."""
    percent = round(100 * (ratio - 1))
    return f"{abs(percent)} % {'more' if percent > 0 else 'less'} {what}" if percent else f"the same {what}"


def not_compared(name: str, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the entry that replaces a recommendation where no norms were compared."""
    return {
        "headline": f"No recommendation yet for {name}: it rests on the comparison of the norms, which was not run.",
        "evidence": [{"text": summary(outcome), "claim": claim} for claim, outcome in list(outcomes.items())[:4]],
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


def recommend(
    comparison: Comparison, outcomes: Mapping[str, Outcome], *, quick: bool = False, option: str = ""
) -> dict[str, Any]:
    """Recommend a norm, in the form of ``results.json``: headline, scope, how, evidence, what to avoid, what is open.

    Args:
        comparison: of one network.
        outcomes: of the claims that were measured, by name.
        quick: whether the study was quick.
        option: what the command line needs to compare this network's norms only, for example ``" --data strokes"``.
    """
    if not comparison.learned:
        return _untrained(comparison, quick)
    chosen, scale = choose(comparison), comparison.scale
    how = (HOW if comparison.kind == "images" else HOW_ON_SEQUENCES)[_norm_of(chosen)]
    return {
        "headline": (
            f"For {comparison.where}: {chosen.name}, {scale.say(chosen.value)}, {difference(chosen, comparison)}."
        ),
        "scope": f"After {comparison.steps} steps, each norm at its own best learning rate"
        + (f" by {comparison.rates_by}" if comparison.rates_by else "")
        + ("." if comparison.own else ", in one of the study's own networks: a deeper network may behave differently."),
        "how": f"{how}, with {SYNCED}" if _is_synced(chosen, comparison) else how,
        "evidence": _evidence(comparison, chosen, outcomes),
        "avoid": _avoid(comparison, chosen),
        "uncertain": _uncertain(comparison, option),
    }


def _norm_of(arm: Compared) -> str:
    return arm.norm.partition(":")[0]


def _is_synced(arm: Compared, comparison: Comparison) -> bool:
    return comparison.devices > 1 and arm.norm in ("batch", "masked", "padded")


def _untrained(comparison: Comparison, quick: bool) -> dict[str, Any]:
    hints = ["A run without --quick trains longer."] if quick else []
    hints += ["Name another model with --model."] if comparison.kind == "images" else []
    return {
        "headline": f"No recommendation for {comparison.where}: no norm trained well enough in {comparison.steps} "
        "steps.",
        "evidence": [],
        "avoid": [],
        "uncertain": " ".join(hints) or None,
    }


def _evidence(comparison: Comparison, chosen: Compared, outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    """The four best norms of the comparison, then the claims that were measured and say more about the choice."""
    kind, scale = _norm_of(chosen), comparison.scale
    synced = ["sync_cost"] if _is_synced(chosen, comparison) else []
    if comparison.kind == "images":
        claims = [*(SAY[kind] if kind != "none" else []), *synced, *SAY[_norm_of(comparison.usual)]]
    else:
        claims = [*KINDS[comparison.kind].claims, *synced]
    measured = {name: summary(outcome) for name, outcome in outcomes.items() if outcome.verdict not in ABSENT}
    given_up = SAY["none"] if kind == "none" else ()
    return [
        *(
            {"text": f"{arm.name}: {scale.say(arm.value)}, {difference(arm, comparison)}.", "claim": "comparison"}
            for arm in sorted(comparison.arms, key=lambda arm: arm.value)[:4]
        ),
        *({"text": measured[claim], "claim": claim} for claim in dict.fromkeys(claims) if claim in measured),
        *(
            {"text": f"What is given up without a norm: {measured[claim]}", "claim": claim}
            for claim in given_up
            if claim in measured
        ),
    ]


def _avoid(comparison: Comparison, chosen: Compared) -> list[str]:
    """The norms that are worse than the usual one, and the usual one where it is far behind the chosen one."""
    usual, scale = comparison.usual, comparison.scale
    behind = chosen is not usual and usual.value > chosen.value + 2 * scale.margin[1]
    return [f"{usual.name}: {scale.say(usual.value)}"] * behind + [
        f"{arm.name}: {scale.say(arm.value)}, {difference(arm, comparison)}"
        for arm in comparison.arms
        if arm.gain is not None and arm.gain.verdict == "contradicted" and arm is not chosen
    ]


def _uncertain(comparison: Comparison, option: str) -> str | None:
    """The norms that could not be distinguished from the usual one, and what would decide; None where there are none.

    Args:
        option: as :func:`recommend` takes it.
    """
    undecided = {
        arm.name: arm.gain.seeds_needed
        for arm in comparison.arms
        if arm.gain is not None and arm.gain.verdict == "inconclusive"
    }
    if not undecided:
        return None
    each = ", ".join(
        f"{arm} ({f'{n} seeds' if n else 'no number of seeds'} would decide)" for arm, n in undecided.items()
    )
    text = f"Not distinguished from {comparison.usual.name} by the margin of {comparison.scale.least}: {each}."
    enough = [n for n in undecided.values() if n and n <= PRACTICAL_SEEDS]
    if not enough:
        return f"{text} No practical number of seeds would decide: the norms are about equally good here."
    which = "To decide" if len(enough) == len(undecided) else "To decide where that is practical"
    return f"{text} {which}: gammabeta study --compare --seeds {max(enough)}{option}, with the other options unchanged."
