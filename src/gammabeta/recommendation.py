"""Which normalization for this data: what follows from the outcomes, and what they do not tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gammabeta.experiment import Experiment
from gammabeta.outcome import Outcome
from gammabeta.tasks.norms import NORMS
from gammabeta.verdict import judge

# Below this difference in test error, in percentage points, nobody would change the normalization.
MARGIN = (-1.0, 1.0)
SMALL, LARGE = (2, 4), (32,)
# What is taken where nothing is better by the margin: BatchNorm can be folded away for inference; GroupNorm is
# the usual one where batches are small.
USUAL = {SMALL: "group", LARGE: "batch"}

Cells = Mapping[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Choice:
    """The norm for these batch sizes, its mean test error, and what its rivals' errors were."""

    norm: str
    errors: Mapping[str, float]
    undecided: Sequence[str]

    def __str__(self) -> str:
        others = ", ".join(f"{NORMS[norm]} {error:.1f} %" for norm, error in self.errors.items() if norm != self.norm)
        return f"{self.errors[self.norm]:.1f} % test error; {others}"


def choose(cells: Cells, sizes: tuple[int, ...]) -> Choice:
    """The usual norm, unless another's mean error is lower by more than the margin: then the lowest. Norms whose
    interval does not tell on which side of the margin they are, are undecided."""
    of_norm = {
        norm: [mean(of_seed) for of_seed in zip(*(cells[norm, size] for size in sizes), strict=True)]
        for norm in dict.fromkeys(norm for norm, _ in cells)
        if all((norm, size) in cells for size in sizes)
    }
    usual = USUAL[sizes]
    better, undecided = [], []
    for norm, errors in of_norm.items():
        if norm != usual:
            gain = [a - b for a, b in zip(of_norm[usual], errors, strict=True)]
            verdict = judge(gain, MARGIN, "above")[1]
            better += [norm] if mean(gain) > MARGIN[1] else []
            undecided += [norm] if verdict == "inconclusive" else []
    errors_of = {norm: mean(errors) for norm, errors in of_norm.items()}
    chosen = min(better, key=lambda norm: errors_of[norm]) if better else usual
    return Choice(chosen, dict(sorted(errors_of.items(), key=lambda item: item[1])), undecided)


def summary(outcome: Outcome) -> str:
    """The verdict, the effect it goes by, and in how many of the other effects the claim was contradicted."""
    if not outcome.effects:
        return f"{outcome.verdict.capitalize()}: {outcome.sentence}."
    main, *others = outcome.effects
    against = [effect.name for effect in others if effect.verdict == "contradicted"]
    interval = f" [{main.low:.3g}, {main.high:.3g}]" if main.low != main.high else ""
    text = f"{outcome.verdict.capitalize()}: {main.value:.3g}{interval} {main.unit} ({main.name})."
    return text + (f" The other way: {'; '.join(against)}." if against else "")


def recommend(outcomes: Mapping[str, Outcome], experiment: Experiment) -> dict[str, Any]:
    """The recommendation in the form of ``results.json``: headline, evidence, what to avoid, and what is uncertain.

    The networks of the user's kind come first; of a network's regimes the one of equal epochs is preferred, in which
    every batch size has seen the same data.
    """
    name = experiment.task.name
    evidence = [
        {"text": summary(outcome), "claim": claim}
        for claim, outcome in sorted(outcomes.items(), key=lambda item: item[0] != "small_batch")
        if claim in ("small_batch", "faster_convergence", "higher_learning_rate", "gradient_flow")
    ]
    if "small_batch" not in outcomes:
        return {
            "headline": f"No recommendation yet for {name}: it rests on the claim small_batch, which was not measured.",
            "evidence": evidence,
            "avoid": [],
            "uncertain": "Run gammabeta study small_batch, or all claims.",
        }
    regimes: dict[str, tuple[str, Cells]] = {}
    for regime, (network, cells) in outcomes["small_batch"].evidence.items():
        if network not in regimes or "epochs" in regime:
            regimes[network] = (regime, cells)
    if not regimes:
        return {
            "headline": f"No recommendation for {name}: the networks did not train well enough to compare norms.",
            "evidence": evidence,
            "avoid": [],
            "uncertain": "A run without --quick trains longer."
            if experiment.quick
            else "Give another model with --model.",
        }
    parts, found, avoid, open_questions = [], [], [], []
    order = sorted(regimes.items(), key=lambda item: item[0].startswith("MLP"))
    for network, (regime, cells) in order:
        large, small = choose(cells, LARGE), choose(cells, SMALL)
        if large.norm == small.norm:
            parts.append(f"{network}: {NORMS[large.norm]} at any batch size from 2 to 32")
        else:
            parts.append(
                f"{network}: {NORMS[large.norm]} with batches of 32, {NORMS[small.norm]} with 4 images or fewer"
            )
        found += [
            {"text": f"{regime}, batches of 32: {NORMS[large.norm]}, {large}.", "claim": "small_batch"},
            {"text": f"{regime}, batches of 2 and 4: {NORMS[small.norm]}, {small}.", "claim": "small_batch"},
        ]
        worse = [norm for norm, error in small.errors.items() if error > 2 * small.errors[small.norm] + 5]
        avoid += [
            f"{NORMS[norm]} with batches of 2 or 4 in {network}: {small.errors[norm]:.1f} % test error"
            for norm in worse
        ]
        open_questions += [f"{NORMS[norm]} at 2 and 4 in {network}" for norm in small.undecided]
        open_questions += [f"{NORMS[norm]} at 32 in {network}" for norm in large.undecided]
    doubts = [
        f"{network} was compared at equal steps alone, where a batch of 2 sees a sixteenth of the data of one of 32; "
        f"{'a run without --quick adds equal epochs' if experiment.quick else 'at equal epochs there was no room'}"
        for network, (regime, _) in order
        if "epochs" not in regime
    ]
    if open_questions:
        remedy = "run without --quick" if experiment.quick else "run again with another --seed and --out"
        doubts.append(
            f"not told apart from what is recommended by a margin of 1 point: {', '.join(open_questions)}; {remedy}"
        )
    return {
        "headline": f"On {name}, " + "; ".join(parts) + ".",
        "evidence": found + evidence,
        "avoid": avoid,
        "uncertain": ". ".join(doubt[0].upper() + doubt[1:] for doubt in doubts) + "." if doubts else None,
    }
