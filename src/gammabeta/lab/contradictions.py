"""Options of a new study that contradict each other, or of which one has no effect beside the others."""

from collections.abc import Mapping
from typing import Any

# What only the comparison of norms reads, with its value where it is not given.
OF_THE_COMPARISON = {"batch_size": None, "devices": 1, "link": "infiniband", "until_settled": False}


def contradiction(asked: Mapping[str, Any]) -> str | None:
    """Return a sentence on the first two options that contradict each other; None where none do.

    A study that is resumed is not checked: its options are those of several runs.

    Args:
        asked: ``claims``, ``compare_only``, ``quick``, ``first_look``, ``at_scale``, and the names in
            ``OF_THE_COMPARISON``.
    """
    claims = " ".join(asked["claims"] or [])
    if asked["at_scale"]:
        for name in ("quick", "first_look"):
            if asked[name]:
                option = f"--{name.replace('_', '-')}"
                return (
                    f"--at-scale {option}: expected one of the two, got both: --at-scale has the networks and lengths "
                    f"of whole studies, and {option} small ones."
                )
    if asked["first_look"]:
        if asked["quick"]:
            return (
                "--first-look --quick: expected one of the two, got both: --first-look is quick on its own, and "
                "measures only the headline claims; --quick measures all."
            )
        if asked["compare_only"]:
            return (
                "--first-look --compare: expected one of the two, got both: --first-look measures claims, and "
                "--compare does not; to compare norms quickly, use --compare --quick."
            )
        if claims:
            return (
                f"--first-look {claims}: expected one of the two, got both: --first-look has its own claims; to "
                "measure these quickly, use --quick."
            )
    if claims and not asked["compare_only"]:
        for name, default in OF_THE_COMPARISON.items():
            if asked[name] != default:
                option = f"--{name.replace('_', '-')}"
                given = option if asked[name] is True else f"{option} {asked[name]}"
                return (
                    f"{given} {claims}: expected --compare too, got only claims, which do not read {option}: add "
                    f"--compare, or leave {option} out."
                )
    if asked["devices"] == 1 and asked["link"] != OF_THE_COMPARISON["link"]:
        return (
            f"--link {asked['link']}: expected --devices 2 or more, got 1: one device has nothing to synchronize; add "
            "--devices, or leave --link out."
        )
    return None


def without_contradiction(claims: list[str] | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run without those that :func:`contradiction` would refuse, and that change nothing.

    A resumed study keeps all options of its first run, whatever the present one measures.

    Args:
        claims: of the run.
        asked: options by name, with ``compare`` in place of ``compare_only``.
    """
    kept = dict(asked)
    if kept["first_look"] and (claims or kept["compare"]):
        kept = {name: (name == "quick" if name in ("quick", "first_look") else value) for name, value in kept.items()}
    if claims and not kept["compare"]:
        kept |= OF_THE_COMPARISON
    return kept
