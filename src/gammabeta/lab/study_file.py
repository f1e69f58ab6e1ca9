"""``study.json``: which study a folder holds, and how to continue it from any working directory.

A folder holds one study: its data and model, by name and by content, quick or not, one seed, one version of gammabeta
and of torch. Runs of the same study add claims and comparisons to its results. Another study moves the results of the
one before into ``earlier/``; its trials stay.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gammabeta
from gammabeta.lab.sources import resolved
from gammabeta.lab.task import Kind, TaskError
from gammabeta.lab.trials.store import StoreError
from gammabeta.lab.trials.trial import plain
from gammabeta.pages.atomic import write_atomically
from gammabeta.target import canonical, search

SCHEMA = 4
_NOTHING = type(None)
OPTIONS: dict[str, tuple[type, ...]] = {
    "data": (str, _NOTHING),
    "model": (str, _NOTHING),
    "quick": (bool,),
    "first_look": (bool,),
    "at_scale": (bool,),
    "train": (str, _NOTHING),
    "batch_size": (int, _NOTHING),
    "devices": (int,),
    "link": (str,),
    "until_settled": (bool,),
    "confirmatory": (bool,),
    "seed": (int,),
    "seeds": (int, _NOTHING),
    "jobs": (int, _NOTHING),
    "engine": (str,),
    "address": (str, _NOTHING),
}
# What a run that continues a study may not change, by the option's name; claims and --compare add to the study.
FIXED = (
    "data",
    "model",
    "quick",
    "first_look",
    "at_scale",
    "train",
    "batch_size",
    "devices",
    "link",
    "until_settled",
    "confirmatory",
    "seed",
)
_OPEN = ("interrupted", "failed")

Sources = Mapping[Kind, Mapping[str, str]]
Wanted = tuple[list[str] | None, bool]  # claims, None for all; and whether norms are compared


def identity(sources: Sources, user: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a study another one."""
    found: dict[str, Any] = plain(
        {
            "sources": sources,
            "model": user,
            "quick": options["quick"] or options["first_look"],
            "at_scale": options["at_scale"],
            "seed": options["seed"],
            "gammabeta": gammabeta.__version__,
            "torch": torch.__version__,
        }
    )
    return found


def read(folder: str | Path) -> dict[str, Any] | None:
    """Return the content of a folder's ``study.json``; None where there is none of this version."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads((Path(folder) / "study.json").read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("schema") == SCHEMA and _is_whole(content):
            return content
    return None


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Return whether a file of this version holds all that :func:`write` puts there, each of its type."""
    asked, identity, wanted = (content.get(name) for name in ("asked", "identity", "wanted"))
    if not isinstance(asked, dict) or set(asked) != set(OPTIONS):
        return False
    if not isinstance(identity, dict) or not isinstance(identity.get("sources"), dict):
        return False
    if not all(isinstance(source, dict) for source in identity["sources"].values()):
        return False
    if not isinstance(wanted, dict) or not isinstance(content.get("searched"), str):
        return False
    typed = all(
        # A bool is an int to isinstance, and no number here.
        isinstance(asked[name], kinds) and (not isinstance(asked[name], bool) or bool in kinds)
        for name, kinds in OPTIONS.items()
    )
    return typed and all(_is_run(part) for part in (content, wanted))


def _is_run(part: Mapping[str, Any]) -> bool:
    claims = part.get("claims")
    named = isinstance(claims, list) and all(isinstance(claim, str) for claim in claims)
    return (claims is None or named) and isinstance(part.get("compare"), bool)


def refuse_other_data(folder: str | Path, before: Mapping[str, Any] | None, run: Mapping[str, Any]) -> None:
    """Raise where data that a study in the folder was about are other data now, under the same name.

    Args:
        before: what the folder holds.
        run: as :func:`write` takes it.

    Raises:
        TaskError: it says which.
    """
    data = run["asked"]["data"]
    if before is None or data is None:
        return
    for kind, source in run["identity"]["sources"].items():
        known = before["identity"]["sources"].get(kind, {})
        if known.get("data") == source["data"] and known.get("fingerprint") != source["fingerprint"]:
            raise TaskError(
                f"--data {data}: expected the data of the study in {folder}, got other data under the same name: put "
                "those back, name another folder with --out, or discard that study with --fresh."
            )


def write(folder: str | Path, same: Mapping[str, Any] | None, run: Mapping[str, Any]) -> None:
    """Write what the folder holds.

    Args:
        same: what it held before, where that is the same study: what was wanted then stays wanted.
        run: ``identity``; ``asked``, the options; ``claims`` and ``compare``; ``status`` and ``claims_hash``.

    Raises:
        StoreError: it cannot be written.
    """
    options = run["asked"]
    asked = {name: options[name] for name in OPTIONS}
    asked["data"] = options["data"] and resolved(options["data"])
    asked["model"] = options["model"] and canonical(options["model"])
    claims, compare = run["claims"], run["compare"]
    wanted = _wanted(claims, compare)
    if same is not None:
        wanted = _union((same["wanted"]["claims"], same["wanted"]["compare"]), wanted)
    whole = {
        "schema": SCHEMA,
        "identity": run["identity"],
        "status": run["status"],
        "claims_hash": run["claims_hash"],
        "asked": asked,
        "claims": claims,
        "compare": compare,
        "wanted": {"claims": wanted[0], "compare": wanted[1]},
        "searched": str(Path.cwd()),
    }
    path = Path(folder) / "study.json"
    try:
        write_atomically(path, json.dumps(plain(whole), indent=1, allow_nan=False))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}. Make room, or choose another folder.") from error


def _wanted(claims: Sequence[str] | None, compare: bool) -> Wanted:
    """Return which claims a run measures, and whether it compares norms."""
    if claims is None:
        return ([], True) if compare else (None, True)
    return list(claims), compare


def _union(one: Wanted, other: Wanted) -> Wanted:
    compare = one[1] or other[1]
    if one[0] is None or other[0] is None:
        return None, compare
    return list(dict.fromkeys([*one[0], *other[0]])), compare


def to_continue(folder: str | Path, names: Sequence[str], sets: Mapping[str, Sequence[str]]) -> dict[str, Any] | None:
    """Return the arguments of ``study`` that continue the study in a folder; None where there is none.

    These are the options and claims of its last run, and what earlier runs of the same study have left open. Imports
    find what the study's working directory holds.

    Args:
        names: of all claims.
        sets: those that a study with an option measures in place of all, by the option.
    """
    content = read(folder)
    if content is None:
        return None
    search(Path(content["searched"]))
    claims, compare = content["wanted"]["claims"], content["wanted"]["compare"]
    arguments = {**content["asked"], "out": folder}
    if content["claims"] is None and not content["compare"]:  # the last run was of everything
        return {**arguments, "claims": None, "compare_only": False}
    decided = _decided(folder)
    own = _wanted(content["claims"], content["compare"])[0] or []
    listed = next((of_set for option, of_set in sets.items() if content["asked"][option]), None)
    whole = names if listed is None else list(dict.fromkeys([*listed, *own]))
    left = [name for name in (whole if claims is None else claims) if name in own or name not in decided]
    return {**arguments, "claims": left or None, "compare_only": compare}


def _decided(folder: str | Path) -> set[str]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        return {claim["name"] for claim in results["claims"] if claim["verdict"] not in _OPEN}
    return set()


def conflict(folder: str | Path, given: Mapping[str, Any]) -> str | None:
    """Return what stands against continuing the study in a folder with these options; None where nothing does.

    Args:
        given: the options that were written on the command line, by name.
    """
    content = read(folder)
    if content is None:
        return None
    asked = content["asked"]
    same = {**given}
    if "data" in same:
        same["data"] = resolved(same["data"])
    if "model" in same:
        same["model"] = canonical(same["model"])
    if "out" in same and Path(same["out"]).resolve() != Path(folder).resolve():
        return f"--out {given['out']}"
    for name in FIXED:
        if name in same and same[name] != asked[name]:
            return f"--{name.replace('_', '-')}" + ("" if given[name] is True else f" {given[name]}")
    return None


def set_aside(folder: str | Path) -> Path | None:
    """Move the results of another study out of the way, and return where they are; None where there are none.

    Raises:
        StoreError: they cannot be moved.
    """
    results = Path(folder) / "results.json"
    if not results.is_file():
        return None
    date = "undated"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        date = str(json.loads(results.read_text(encoding="utf-8"))["date"])[:19].replace(":", "")
    earlier = Path(folder) / "earlier"
    place = next(
        path for count in range(10_000) if not (path := earlier / (f"{date}-{count}" if count else date)).exists()
    )
    try:
        place.mkdir(parents=True)
        for name in ("study.json", "report.html", "results.json"):
            with contextlib.suppress(FileNotFoundError):
                (Path(folder) / name).rename(place / name)
    except OSError as error:
        raise StoreError(f"cannot move {results} to {place}: {error.strerror}. Choose another folder.") from error
    return place
