"""Data from the user's own function.

``gammabeta study --data package.module:function`` or ``--data file.py:function`` calls the function without arguments,
or with the literals written after it, as in ``file.py:load(3)``. It returns a dict, of one of three kinds:

images
    ``{"x_train", "y_train", "x_test", "y_test"}``: x is (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3,
    height, width), of any real dtype, 8 × 8 pixels or more, all of one shape. y is (n,), integers from 0 to the number
    of classes minus 1.
sequences
    the same four and ``{"lengths_train", "lengths_test"}``: x is (n, time, features), padded at the end of time;
    lengths is (n,), integers from 1 to time. Values of x after a sequence's length are ignored.
text
    ``{"text"}``: one str of 10,000 characters or more.

Each array is a numpy array or a tensor. There must be at least 10 test samples. Of many samples, a quick study takes a
stratified subset: 2,000 for training and 500 for tuning from x_train, and 1,000 of x_test for the test. ``--train N``
takes N, N/4 and N/2. Each class needs at least 10 training and 5 test samples in it. The study standardizes them, so
the function need not.

The function is called in every process of the study and must return the same each time, so it must seed what it draws.
Trials are kept under a hash of what it returns and of the file that defines it. A change of either makes new trials.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gammabeta.lab.arrays import NAMES, describe
from gammabeta.lab.task import Kind, TaskError
from gammabeta.lab.text.characters import SHORTEST
from gammabeta.target import TargetError, in_any_folder, load_value

LENGTHS = ("lengths_train", "lengths_test")


@dataclass(frozen=True)
class UserData:
    """What a user's function returned.

    Attributes:
        target: names the function, from any working directory.
        content: arrays by name, or the text under ``"text"``.
        fingerprint: a hash of the content and of the file that defines the function.
    """

    target: str
    kind: Kind
    content: Mapping[str, Any]
    fingerprint: str

    @property
    def name(self) -> str:
        """The function's name and the last part of its location, for example ``load of data.py``."""
        where, _, function = self.target.partition("(")[0].rpartition(":")
        return f"{function} of {Path(where).name}"


def read(target: str) -> UserData:
    """Call the user's function, and check what it returned.

    Raises:
        TaskError: the function cannot be called, or what it returned breaks the contract of this module's docstring.
    """
    state = np.random.get_state()
    try:
        # Seeds that the function sets must not reach any trial.
        with torch.random.fork_rng(devices=[]):
            made = load_value(target)
    except TargetError as error:
        raise TaskError(f"--data {error}") from error
    finally:
        np.random.set_state(state)
    where = f"--data {target}"
    kind, names = _kind(made.value, where)
    content = {name: _item(name, made.value, where) for name in names}
    if kind != "text":
        content = {name: _array(name, value, where) for name, value in content.items()}
    if kind == "text":
        _check_text(content["text"], where)
    try:
        code = Path(made.file).read_bytes() if made.file is not None else b""
    except OSError:  # the module was imported from an archive, or made up while it ran
        code = b""
    return UserData(in_any_folder(target), kind, content, _hash(code, content))


def _kind(value: Any, where: str) -> tuple[Kind, tuple[str, ...]]:
    forms = f"{', '.join(NAMES)}; these and {', '.join(LENGTHS)}; or text"
    if not isinstance(value, Mapping):
        raise TaskError(
            f"{where}: expected a dict with {forms}, got {type(value).__name__}: return the arrays under these names."
        )
    keys = set(value)
    if keys == {"text"}:
        return "text", ("text",)
    if keys == set(NAMES):
        return "images", NAMES
    if keys == {*NAMES, *LENGTHS}:
        return "sequences", (*NAMES, *LENGTHS)
    got = ", ".join(str(key) for key in value) or "nothing"
    raise TaskError(f"{where}: expected a dict with {forms}, got {got}: return these names and no others.")


def _item(name: str, value: Mapping[str, Any], where: str) -> Any:
    """Return what a mapping holds; some, as what numpy.load returns, read it only now."""
    try:
        return value[name]
    except Exception as error:
        raise TaskError(f"{where}: expected {name}, got {describe(error)}: return what can be read.") from error


def _array(name: str, value: Any, where: str) -> np.ndarray:
    expected = f"{where}: expected {name} as a numpy array or a tensor"
    if isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu()
            return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
        except Exception as error:  # of sparse, quantized, meta and nested tensors
            raise TaskError(
                f"{expected}, got a tensor that numpy cannot hold ({describe(error)}): return a dense one on a CPU."
            ) from error
    if np.ma.is_masked(value):
        raise TaskError(
            f"{expected} without gaps, got one with {np.ma.count_masked(value)} masked values: replace them, as "
            f"{name}.filled(0) does."
        )
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    raise TaskError(f"{expected}, got {type(value).__name__}: convert it, as np.asarray({name}) does.")


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise TaskError(
            f"{where}: expected text as a str, got {type(text).__name__}: decode or join what the function returns."
        )
    if len(text) < SHORTEST:
        raise TaskError(
            f"{where}: expected a text of {SHORTEST:,} characters or more, got {len(text)}: return a longer one."
        )


def _hash(code: bytes, content: Mapping[str, Any]) -> str:
    whole = hashlib.sha256(hashlib.sha256(code).digest())
    for name in sorted(content):
        value = content[name]
        if isinstance(value, str):
            whole.update(f"{name}\0".encode() + value.encode("utf-8", "surrogatepass"))
        else:
            whole.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
            # Python objects are stored as addresses, which say nothing about values; their dtype is refused later.
            whole.update(b"" if value.dtype.hasobject else np.ascontiguousarray(value).tobytes())
    return whole.hexdigest()[:16]
