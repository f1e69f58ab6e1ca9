"""Finished trials on disk: one line each with a checksum, written by one study at a time."""

import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from gammabeta.lab.trials.trial import Trial, canonical, plain


class StoreError(Exception):
    """The folder of trials cannot be used."""


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the CRC-32 of the record's canonical text."""
    return f"{zlib.crc32(canonical(record).encode()):08x}"


class Store:
    """Finished trials in ``folder/trials.jsonl``, one JSON line each with a checksum, on disk before the next begins.

    An incomplete last line (the machine stopped while writing it) is cut off, and a line with a wrong checksum is
    ignored; those trials run again. ``folder/study.lock`` says who is writing.

    Attributes:
        note: what the user should know about the folder; None where there is nothing.

    Raises:
        StoreError: another process is writing to the same folder, or the folder cannot be made or written to.
    """

    def __init__(self, folder: str | Path, *, fresh: bool = False) -> None:
        self.path = Path(folder) / "trials.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Names of files and arguments may hold bytes that are not UTF-8.
            self._holder: IO[str] = (self.path.parent / "study.lock").open(
                "a+", encoding="utf-8", errors="backslashreplace"
            )
            self.note = self._lock()
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise StoreError(f"cannot write to {self.path.parent}: {error.strerror}. Choose another folder.") from error
        if fresh:
            self._file.truncate(0)
        self._records = self._read()

    def _lock(self) -> str | None:
        """Lock the folder, or return why that is impossible there."""
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            return None
        note = None
        try:
            fcntl.flock(self._holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._holder.seek(0)
            held = " ".join(self._holder.read().split()) or "another study"
            self._holder.close()
            raise StoreError(
                f"{held} is running in {self.path.parent}. Wait for it to end, or choose another folder."
            ) from error
        except OSError as error:  # of a network's file system, which may have no locks
            note = (
                f"{self.path.parent} cannot be locked ({error.strerror or error}): two studies in it at once would run "
                "each other's trials; let only one write to it."
            )
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._holder.truncate(0)
        self._holder.write(f"process {os.getpid()} on {platform.node()} since {now} ({shlex.join(sys.argv)[:200]})\n")
        self._holder.flush()
        return note

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            self._file.truncate(whole)
        records: dict[str, dict[str, Any]] = {}
        for line in text[:whole].splitlines():
            # A damaged line is ignored: its trial runs again and is appended again.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record.pop("checksum") == _checksum(record):
                    records[record["key"]] = record
        return records

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self._records

    def __getitem__(self, trial: Trial) -> dict[str, Any]:
        return self._records[trial.key]

    def __len__(self) -> int:
        return len(self._records)

    def append(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """Keep one finished trial, which is on disk when this returns.

        Raises:
            StoreError: the disk is full or fails otherwise. What was kept before stays, and no half line remains.
        """
        whole = {"key": trial.key, "run": trial.run, "settings": plain(trial.settings), **record}
        # In memory first: the count stays right if an interrupt comes between the two.
        self._records[trial.key] = whole
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(canonical({**whole, "checksum": _checksum(whole)}).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            del self._records[trial.key]
            # What the buffer still holds must not reach the file later, so the file is opened again.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                os.truncate(self.path, end)
            self._file = self.path.open("a+b")
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}. {len(self)} finished trials are kept: make room and "
                "run the same command again."
            ) from error

    def close(self) -> None:
        self._file.close()
        self._holder.close()
