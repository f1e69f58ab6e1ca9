"""The verdicts of claims: their signs on a page, and what each of them means."""

SIGNS = {
    "supported": "✓",
    "contradicted": "✗",
    "mixed": "±",
    "equivalent": "≈",
    "reported": "i",
    "inconclusive": "?",
    "no room here": "∅",
    "does not apply": "–",
    "failed": "✕",
    "interrupted": "…",
}
VERDICTS = tuple(SIGNS)
MEANINGS = {
    "supported": "the whole interval lies where the claim puts it: beyond the margin in the claimed direction, or "
    "within the margins of a claimed value",
    "contradicted": "the whole interval lies beyond the margin on the other side",
    "mixed": "regimes are shown to differ: at least one supports or contradicts the claim, and another is shown to do "
    "otherwise",
    "equivalent": "the whole interval lies within the margins: no difference that anybody would care about",
    "inconclusive": "none of these: the interval is too wide. Where more replicates would decide, the claim's section "
    "has the whole command that runs them",
    "no room here": "a control named beforehand says that the claim cannot show on this model and data",
    "reported": "measured, without a verdict, which would rest on assumptions",
    "does not apply": "the claim is about another kind of data",
    "failed": "a trial raised three times, and the claim could not be measured",
    "interrupted": "the study was stopped before this claim was decided",
}
