"""Which normalization for this model, data, batch size and devices: what follows from the comparison and the claims."""

from collections.abc import Mapping
from typing import Any

from gammabeta.comparison import Compared, Comparison
from gammabeta.outcome import Outcome

# The claims that say more about each choice; those that were measured are quoted.
SAY = {
    "batch": ("small_batch", "shifting_data", "train_eval_mismatch", "faster_convergence", "higher_learning_rate"),
    "ghost": ("small_batch", "sync_cost", "sync_equals_large_batch", "noise_regularizes"),
    "renorm": ("small_batch", "train_eval_mismatch"),
    "group": ("group_norm_needs_no_sync", "small_batch", "shifting_data"),
    "layer": ("small_batch", "sequences", "layernorm_in_transformers"),
    "rms": ("layernorm_in_transformers",),
    "instance": ("small_batch",),
    "none": ("faster_convergence", "init_robustness", "gradient_flow"),
}
# The claims that compare norms on sequences and on text.
ABOUT_OTHERS = ("sequences", "layernorm_in_transformers")
# More than this nobody runs to choose a norm.
PRACTICAL_SEEDS = 200
# How to take it up.
HOW = {
    "batch": "gb.BatchNorm2d",
    "ghost": "gb.BatchNorm2d",
    "renorm": "gb.BatchNorm2d(statistics=gb.statistics.Renorm())",
    "group": "gb.GroupNorm",
    "layer": "gb.LayerNorm, for images gb.GroupNorm(1, channels)",
    "rms": "gb.RMSNorm",
    "instance": "gb.InstanceNorm2d",
    "none": "no normalization layer",
}
SYNCED = "gb.BatchNorm2d(statistics=gb.statistics.Synced())"


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
    """The usual norm, unless another's mean error is lower by more than the margin: then the lowest of those whose
    interval is above it, or else the lowest."""
    others = [arm for arm in comparison.arms if arm.gain is not None and arm.gain.value > arm.gain.margin[1]]
    sure = [arm for arm in others if arm.gain is not None and arm.gain.verdict == "supported"]
    return min(sure or others, key=lambda arm: arm.error, default=comparison.usual)


def between(arm: Compared, usual: Compared) -> str:
    """How much better than the usual one, with the interval, and what it costs."""
    if arm.gain is None:
        return "the usual choice, and nothing was better by the margin of 1 point"
    sign = 1 if arm.gain.value > 0 else -1
    low, high = sorted((sign * arm.gain.low, sign * arm.gain.high))
    return (
        f"{sign * arm.gain.value:.1f} points [{low:.1f}, {high:.1f}] {'below' if sign > 0 else 'above'} {usual.name}; "
        f"{arm.seconds / usual.seconds:.2f} times its time a step, {arm.saved / usual.saved:.2f} times its memory for "
        "the backward"
    )


def recommend(
    name: str, comparison: Comparison | None, outcomes: Mapping[str, Outcome], *, images: bool = True
) -> dict[str, Any]:
    """The recommendation in the form of ``results.json``: headline, evidence, what to avoid, and what is uncertain.

    Args:
        name: of the data.
        comparison: None where it was not run.
        outcomes: of the claims that were measured, by name.
        images: whether there are any among the data: norms are compared side by side on images alone.
    """
    if comparison is None and not images:
        told = {claim: one for claim, one in outcomes.items() if one.verdict not in ("does not apply", "interrupted")}
        return {
            "headline": f"No recommendation for {name}: norms are compared side by side on images alone. What was "
            "measured about such data:",
            "evidence": [{"text": summary(told[claim]), "claim": claim} for claim in ABOUT_OTHERS if claim in told],
            "avoid": [],
            "uncertain": None,
        }
    if comparison is None:
        return {
            "headline": f"No recommendation yet for {name}: it rests on the comparison of the norms, which was not "
            "run.",
            "evidence": [{"text": summary(outcome), "claim": claim} for claim, outcome in list(outcomes.items())[:4]],
            "avoid": [],
            "uncertain": "Run gammabeta study --compare, or all claims.",
        }
    usual, chosen = comparison.usual, choose(comparison)
    where = f"batches of {comparison.batch_size}" + (
        f" on each of {comparison.devices} devices" if comparison.devices > 1 else " on one device"
    )
    if min(arm.error for arm in comparison.arms) > 0.5 * comparison.chance:
        return {
            "headline": f"No recommendation for {name} and {comparison.network} with {where}: no norm trained well "
            f"enough in {comparison.steps} steps.",
            "evidence": [],
            "avoid": [],
            "uncertain": "A run without --quick trains longer; else give another model with --model.",
        }
    kind = chosen.norm.partition(":")[0]
    synced = comparison.devices > 1 and chosen.norm == "batch"
    avoid = [
        f"{arm.name}: {arm.error:.1f} % test error, {between(arm, usual)}"
        for arm in comparison.arms
        if arm.gain is not None and arm.gain.verdict == "contradicted" and arm is not chosen
    ]
    if chosen is not usual and usual.error > chosen.error + 2:
        avoid.insert(0, f"{usual.name}: {usual.error:.1f} % test error")
    claims = [*SAY[kind], *(["sync_cost"] if synced else []), *SAY[usual.norm.partition(":")[0]]]
    evidence = [
        {"text": f"{arm.name}: {arm.error:.1f} % test error, {between(arm, usual)}.", "claim": "comparison"}
        for arm in sorted(comparison.arms, key=lambda arm: arm.error)[:4]
    ] + [
        {"text": summary(outcomes[claim]), "claim": claim}
        for claim in dict.fromkeys(claims)
        if claim in outcomes and outcomes[claim].verdict not in ("does not apply", "interrupted")
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
        f"{max(enough)}, with the other options as they were."
        if enough
        else "No number of seeds that is practical settles it: the norms are about as good as each other here."
    )
    return {
        "headline": (
            f"For {comparison.network} on {name} with {where}: {chosen.name}, {chosen.error:.1f} % test error, "
            f"{between(chosen, usual)}."
        ),
        "how": SYNCED if synced else HOW[kind],
        "evidence": evidence,
        "avoid": avoid,
        "uncertain": (
            f"Not told apart from {usual.name} by the margin of 1 point: {', '.join(open_questions)}. {settles}"
            if open_questions
            else None
        ),
    }
