"""Which normalization for this model, data, batch size and devices: what follows from a comparison and the claims."""

from collections.abc import Mapping
from typing import Any

from gammabeta.lab.comparison import Compared, Comparison
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.outcome import Outcome
from gammabeta.lab.task import Kind

# The claims that say more about each choice on images; those that were measured are quoted.
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
# More than this nobody runs to choose a norm.
PRACTICAL_SEEDS = 200
# How to take it up.
HOW = {
    "batch": "gb.BatchNorm2d",
    "ghost": "gb.BatchNorm2d",
    "renorm": "gb.BatchNorm2d(statistics=gb.statistics.Renorm())",
    "group": "gb.GroupNorm",
    "layer": "gb.GroupNorm(1, channels); where channels alone are the axis gb.LayerNorm",
    "rms": "gb.RMSNorm of the channels, moved last",
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
    """The verdict, the effect it goes by, and in how many of the other effects the claim was contradicted."""
    if not outcome.effects:
        return f"{outcome.verdict.capitalize()}: {outcome.sentence}."
    main, *others = outcome.effects
    against = [effect.name for effect in others if effect.verdict == "contradicted"]
    interval = f" [{main.low:.3g}, {main.high:.3g}]" if main.low != main.high else ""
    text = f"{outcome.verdict.capitalize()}: {main.value:.3g}{interval} {main.unit} ({main.name})."
    return text + (f" The other way: {'; '.join(against)}." if against else "")


def choose(comparison: Comparison) -> Compared:
    """The usual norm, unless another's mean is lower by more than the margin: then of those whose interval is above it,
    or else of all that are lower, the lowest, or the first that is above the lowest by less than the margin."""
    others = [arm for arm in comparison.arms if arm.gain is not None and arm.gain.value > arm.gain.margin[1]]
    better = [arm for arm in others if arm.gain is not None and arm.gain.verdict == "supported"] or others
    if not better:
        return comparison.usual
    least = min(arm.value for arm in better)
    return next(arm for arm in better if arm.value <= least + comparison.scale.margin[1])


def between(arm: Compared, comparison: Comparison) -> str:
    """How much better than the usual one, with the interval, and what it costs."""
    scale, usual = comparison.scale, comparison.usual
    if arm.gain is None:
        chosen = choose(comparison) is usual
        return "the usual choice" + (f", and nothing was better by the margin of {scale.least}" if chosen else "")
    sign = 1 if arm.gain.value > 0 else -1
    value, low, high = (
        f"{round(end, scale.digits) + 0.0:.{scale.digits}f}"  # + 0.0: no -0.0
        for end in (sign * arm.gain.value, *sorted((sign * arm.gain.low, sign * arm.gain.high)))
    )
    return (
        f"{value} {scale.points} [{low}, {high}] {'below' if sign > 0 else 'above'} {usual.name}; "
        f"{arm.seconds / usual.seconds:.2f} times its time a step"
        + (" on one device, without communication" if comparison.devices > 1 else "")
        + f", {arm.saved / usual.saved:.2f} times its memory for the backward"
    )


def not_compared(name: str, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What stands in a recommendation's place where nothing was compared."""
    return {
        "headline": f"No recommendation yet for {name}: it rests on the comparison of the norms, which was not run.",
        "evidence": [{"text": summary(outcome), "claim": claim} for claim, outcome in list(outcomes.items())[:4]],
        "avoid": [],
        "uncertain": "Run gammabeta study --compare, or all claims.",
    }


def failed(kind: Kind, error: str) -> dict[str, Any]:
    """What stands in a recommendation's place where the comparison failed."""
    return {
        "headline": f"No recommendation on {kind}: the comparison of the norms failed.",
        "evidence": [],
        "avoid": [],
        "uncertain": error,
    }


def recommend(
    comparison: Comparison, outcomes: Mapping[str, Outcome], *, quick: bool = False, option: str = ""
) -> dict[str, Any]:
    """The recommendation in the form of ``results.json``: headline, scope, evidence, what to avoid, what is uncertain.

    Args:
        comparison: of one network.
        outcomes: of the claims that were measured, by name.
        quick: whether the study was.
        option: what the command line needs to compare this network's norms alone, as ``" --data strokes"``.
    """
    usual, chosen, scale = comparison.usual, choose(comparison), comparison.scale
    if not comparison.learned:
        return {
            "headline": f"No recommendation for {comparison.where}: no norm trained well enough in {comparison.steps} "
            "steps.",
            "evidence": [],
            "avoid": [],
            "uncertain": " ".join(
                (["A run without --quick trains longer."] if quick else [])
                + (["Another model is given with --model."] if comparison.kind == "images" else [])
            )
            or None,
        }
    kind = chosen.norm.partition(":")[0]
    synced = comparison.devices > 1 and chosen.norm in ("batch", "masked", "padded")
    avoid = [
        f"{arm.name}: {scale.say(arm.value)}, {between(arm, comparison)}"
        for arm in comparison.arms
        if arm.gain is not None and arm.gain.verdict == "contradicted" and arm is not chosen
    ]
    if chosen is not usual and usual.value > chosen.value + 2 * scale.margin[1]:
        avoid.insert(0, f"{usual.name}: {scale.say(usual.value)}")
    if comparison.kind == "images":
        claims = [
            *(SAY[kind] if kind != "none" else []),
            *(["sync_cost"] if synced else []),
            *SAY[usual.norm.partition(":")[0]],
        ]
    else:
        claims = [*KINDS[comparison.kind].claims, *(["sync_cost"] if synced else [])]
    evidence = [
        {"text": f"{arm.name}: {scale.say(arm.value)}, {between(arm, comparison)}.", "claim": "comparison"}
        for arm in sorted(comparison.arms, key=lambda arm: arm.value)[:4]
    ] + [
        {"text": summary(outcomes[claim]), "claim": claim}
        for claim in dict.fromkeys(claims)
        if claim in outcomes and outcomes[claim].verdict not in ABSENT
    ]
    given_up = [
        {"text": f"Given up without a norm: {summary(outcomes[claim])}", "claim": claim}
        for claim in SAY["none"]
        if kind == "none" and claim in outcomes and outcomes[claim].verdict not in ABSENT
    ]
    undecided = {
        arm.name: arm.gain.seeds_needed
        for arm in comparison.arms
        if arm.gain is not None and arm.gain.verdict == "inconclusive"
    }
    open_questions = [
        f"{arm} ({f'{n} seeds would tell' if n else 'no number of seeds'})" for arm, n in undecided.items()
    ]
    enough = [n for n in undecided.values() if n and n <= PRACTICAL_SEEDS]
    settles = (
        f"What settles {'it' if len(enough) == len(undecided) else 'what can be'}: gammabeta study --compare --seeds "
        f"{max(enough)}{option}, with the other options as they were."
        if enough
        else "No number of seeds that is practical settles it: the norms are about as good as each other here."
    )
    how = (HOW if comparison.kind == "images" else HOW_ON_SEQUENCES)[kind]
    return {
        "headline": (
            f"For {comparison.where}: {chosen.name}, {scale.say(chosen.value)}, {between(chosen, comparison)}."
        ),
        "scope": f"After {comparison.steps} steps, each norm at its own best rate"
        + (f" by {comparison.rates_by}" if comparison.rates_by else "")
        + ("." if comparison.own else ", in a network of the study's own: a deeper one may tell otherwise."),
        "how": f"{how}, with {SYNCED}" if synced else how,
        "evidence": evidence + given_up,
        "avoid": avoid,
        "uncertain": (
            f"Not told apart from {usual.name} by the margin of {scale.least}: {', '.join(open_questions)}. {settles}"
            if open_questions
            else None
        ),
    }
