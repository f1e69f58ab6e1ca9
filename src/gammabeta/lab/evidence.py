"""What the measured claims say for a choice of norm and against it, by their verdicts."""

from collections.abc import Mapping
from typing import Literal

from gammabeta.lab.claims import CLAIMS
from gammabeta.lab.comparison import Compared, Comparison
from gammabeta.lab.kinds import KINDS
from gammabeta.lab.outcome import Outcome, tally

Side = Literal["for", "against", "neither"]

# Of which norms a claim speaks: 1 where "supported" speaks for the norm, −1 where it speaks against it.
SPEAKS: dict[str, dict[str, int]] = {
    "small_batch": {"batch": -1, "ghost": -1, "group": 1, "layer": 1},
    "online_stream": {"batch": -1, "group": 1},
    "few_shot": {"batch": -1, "group": 1},
    "train_eval_mismatch": {"batch": 1},
    "faster_convergence": {"batch": 1, "none": -1},
    "higher_learning_rate": {"batch": 1, "none": -1},
    "init_families": {"batch": 1, "none": -1},
    "gradient_flow": {"batch": 1, "none": -1},
    "noise_regularizes": {"ghost": 1},
    "group_norm_needs_no_sync": {"group": -1},
    "sequences": {"layer": 1, "padded": -1},
    "layernorm_in_transformers": {"layer": 1, "rms": 1, "padded": -1},
    "rate_headroom": {"layer": 1, "none": -1},
}
# Claims that say several different things: "contradicted" does not tell which of them fails.
SEVERAL = ("group_norm_needs_no_sync", "sequences", "layernorm_in_transformers")
# What is quoted of a synchronized norm, and the largest batch of which small_batch speaks.
SYNCHRONIZING, SMALL = "sync_cost", 4
ABSENT = ("does not apply", "interrupted", "failed", "no room here")
TITLES = {claim.name: claim.title for claim in CLAIMS}


def norm_of(arm: Compared) -> str:
    """Return the norm's name without its size of a ghost batch."""
    return arm.norm.partition(":")[0]


def is_synced(arm: Compared, comparison: Comparison) -> bool:
    """Whether the arm takes its statistics from all devices."""
    return comparison.devices > 1 and arm.norm in ("batch", "masked", "padded")


def summary(name: str, outcome: Outcome) -> str:
    """Summarize a claim in a sentence whose subject is its title: its verdict, with k of m regimes or its effect."""
    title = TITLES.get(name, name)
    if outcome.verdict == "no room here":
        return f"{title}: no room here ({outcome.room.control})."
    if counted := tally(outcome.regimes):
        return f"{title}: {counted if counted.startswith(outcome.verdict) else f'{outcome.verdict} ({counted})'}."
    if not outcome.effects:
        return f"{title}: {outcome.verdict}; {outcome.sentence}."
    main = outcome.effects[0]
    interval = f" [{main.low:.3g}, {main.high:.3g}]" if main.low != main.high else ""
    return f"{title}: {outcome.verdict}, {main.value:.3g}{interval} {main.unit} ({main.name})."


def said(outcomes: Mapping[str, Outcome], comparison: Comparison, chosen: Compared) -> list[tuple[Side, str, str]]:
    """List what the measured claims say of the chosen norm: side, claim, sentence.

    A claim about the usual norm speaks the other way where another norm is chosen. What is equivalent, mixed,
    inconclusive or only reported is on neither side.
    """
    found: list[tuple[Side, str, str]] = []
    for name in _about(comparison, chosen):
        if name in outcomes and outcomes[name].verdict not in ABSENT:
            sign = _sign(name, outcomes[name], comparison, chosen)
            side: Side = "for" if sign > 0 else "against" if sign < 0 else "neither"
            found.append((side, name, summary(name, outcomes[name])))
    return found


def _about(comparison: Comparison, chosen: Compared) -> list[str]:
    """Name the claims that say something of the chosen norm or of the usual one."""
    names = list(KINDS[comparison.kind].claims)
    if not names:
        names = [name for name in SPEAKS if any(_says(name, arm, comparison) for arm in (chosen, comparison.usual))]
    if is_synced(chosen, comparison):
        names.append(SYNCHRONIZING)
    return list(dict.fromkeys(names))


def _says(name: str, arm: Compared, comparison: Comparison) -> bool:
    """Whether a claim says something of an arm, at the batch that the arm takes its statistics from."""
    if norm_of(arm) not in SPEAKS.get(name, {}):
        return False
    batch = comparison.batch_size * (comparison.devices if is_synced(arm, comparison) else 1)
    return name != "small_batch" or batch <= SMALL


def _sign(name: str, outcome: Outcome, comparison: Comparison, chosen: Compared) -> int:
    """Return 1 where the outcome speaks for the chosen norm, −1 where against it, 0 where neither."""
    decided = {"supported": 1, "contradicted": 0 if name in SEVERAL else -1}.get(outcome.verdict, 0)
    if _says(name, chosen, comparison):
        return decided * SPEAKS[name][norm_of(chosen)]
    if _says(name, comparison.usual, comparison):
        return -decided * SPEAKS[name][norm_of(comparison.usual)]
    return 0
