"""The hash of the claims, and whether a study's results confirm them or explore.

A claim says beforehand how it is judged. Results confirm it only if nothing about that was changed after they were
seen. The hash names the claims that results were measured by: whoever changes a criterion, a margin, a setting or how
verdicts are reached changes the hash.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["confirmatory", "exploratory"]

LAB = Path(__file__).parent
# They decide, whether or not a claim imports them on its own: how samples become parts, values become verdicts, and
# comparisons become recommendations.
ALWAYS = (
    "arrays.py", "images/comparison.py", "interval.py", "looks.py", "outcome.py", "paired.py", "procedure.py",
    "recommendation.py", "sequences/comparison.py", "text/comparison.py", "verdict.py",
)  # fmt: skip
# They read data and run what claims ask for, and say nothing about what is asked or how it is judged.
MACHINERY = ("claim.py", "kinds.py", "model_identity.py", "sources.py", "trials/", "user_model.py")


def claims_hash(lab: Path = LAB) -> str:
    """Return the hash of all claims: 16 hexadecimal digits.

    It covers the source of every module of ``claims/`` (docstring, margins and code), and of all modules of ``lab/``
    that these rest on, such as networks, training and recipes. It also covers how samples are split, and what turns
    values into verdicts and recommendations. It does not cover how data are read, nor how trials are run, stored and
    reported. Line endings do not count, nor does the platform.

    Args:
        lab: the folder of ``gammabeta.lab``.
    """
    whole = hashlib.sha256()
    for name, text in sorted(hashed(lab).items()):
        whole.update(f"{name}\0{text}\0".encode())
    return whole.hexdigest()[:16]


def hashed(lab: Path = LAB) -> dict[str, str]:
    """Return the source of every module that the hash covers, by its path below ``lab``; lines end with ``\\n``."""
    waiting = [*ALWAYS, *(f"claims/{path.name}" for path in (lab / "claims").glob("*.py"))]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name not in found and not name.startswith(MACHINERY):
            found[name] = (lab / name).read_text(encoding="utf-8")  # takes \r\n and \r as \n
            waiting += _named(lab, found[name])
    return found


def _named(lab: Path, source: str) -> Iterator[str]:
    """Yield the paths, below ``lab``, of the modules of ``gammabeta.lab`` that a source imports, or names in a string.

    A trial function is named ``"package.module:function"``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            named = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = [node.value.partition(":")[0]]
        else:
            continue
        for module in named:
            name = module.removeprefix("gammabeta.lab.").replace(".", "/") + ".py"
            if module.startswith("gammabeta.lab.") and (lab / name).is_file():
                yield name


class StatusError(Exception):
    """A run cannot have the status that was asked for; the message says why, and what to do."""


@dataclass(frozen=True)
class Asked:
    """What decides a run's status.

    Attributes:
        confirmatory: whether ``--confirmatory`` was given.
        claims_hash: of the claims as they are.
        seed, seeds: the options of those names; replicates of seed 0 were looked at while claims were written.
    """

    confirmatory: bool
    claims_hash: str
    seed: int
    seeds: int | None = None


@dataclass(frozen=True)
class Held:
    """What a folder holds of a study before a run.

    Attributes:
        status: of that study; "exploratory" where it does not say.
        claims_hash: of the claims that it was measured by; "" where it does not say.
        seeds: its option of that name.
        same: whether the run is of the same study: the same data, model, options, seed and versions.
    """

    status: Status
    claims_hash: str
    seeds: int | None
    same: bool


def held_by(content: Mapping[str, Any] | None, identity: Mapping[str, Any], *, anything: bool) -> Held | None:
    """Return what a folder holds before a run; None where it holds nothing.

    Args:
        content: of its ``study.json``; None where there is none that this version can read.
        identity: of the run's study, as `gammabeta.lab.study_file.identity` returns it.
        anything: whether the folder has trials or results.
    """
    if content is None:
        return Held("exploratory", "", None, same=False) if anything else None
    status: Status = "confirmatory" if content.get("status") == "confirmatory" else "exploratory"
    return Held(
        status,
        str(content.get("claims_hash", "")),
        content["asked"].get("seeds"),
        same=content["identity"] == identity,
    )


def status_of(asked: Asked, held: Held | None, folder: str | Path = "the folder") -> Status:
    """Decide the status of a study's results: "confirmatory" or "exploratory".

    A run is confirmatory if that was asked for before anything was measured: in a folder where nothing was looked at,
    with replicates of a seed other than 0. It may be interrupted and continued, by the same claims and with as many
    replicates. Everything else is exploratory. That a seed was looked at in another folder cannot be seen from here.

    Args:
        asked: the run.
        held: what the folder holds before it, also where ``--fresh`` would discard that; None where it holds nothing.
        folder: its name, for messages.

    Raises:
        StatusError: a confirmatory study is asked for where it cannot be one, or an exploratory run would be mixed with
            a confirmatory study.
    """
    if not asked.confirmatory:
        if held is not None and held.status == "confirmatory":
            raise StatusError(
                f"{folder}: expected --confirmatory, because the folder holds a confirmatory study, whose results are "
                "fixed beforehand. Continue that study with --resume, or explore in another folder, with --out."
            )
        return "exploratory"
    if asked.seed == 0:
        raise StatusError(
            "--confirmatory: expected a --seed other than 0, got 0, whose replicates were looked at while the claims "
            "were written. Give the number of a seed that you have not looked at."
        )
    if held is None:
        return "confirmatory"
    if held.status != "confirmatory" or not held.same:
        raise StatusError(
            f"--confirmatory: expected a folder in which nothing was looked at, got {folder}, which holds "
            f"{'another' if held.status == 'confirmatory' else 'an exploratory'} study. Name a new folder with --out, "
            "and a seed that you have not looked at."
        )
    if held.claims_hash != asked.claims_hash:
        raise StatusError(
            f"--confirmatory: expected the claims of the study in {folder} (hash {held.claims_hash}), got claims that "
            f"were changed since (hash {asked.claims_hash}). What was looked at confirms no other claims: begin again "
            "with --out and a fresh --seed, or continue with the gammabeta that began."
        )
    if held.seeds != asked.seeds:
        raise StatusError(
            f"--confirmatory: expected as many replicates as the study in {folder} began with (--seeds "
            f"{held.seeds or 'not given'}), got {asked.seeds or 'none'}. To add some after a look makes verdicts too "
            "easy: leave --seeds as it was, or begin again with --out and a fresh --seed."
        )
    return "confirmatory"
