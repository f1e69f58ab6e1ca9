"""How a command ends: the exit codes, and one sentence in place of a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from gammabeta.cli.blame import describe
from gammabeta.cli.signals import as_interrupts
from gammabeta.cli.streams import accept_every_character, as_utf_8, open_closed, silence

# Findings; the request cannot be carried out; gammabeta failed; Ctrl-C or a signal; the reader of a pipe is gone.
FOUND, WRONG, FAILED, STOPPED, UNREAD = 1, 2, 3, 130, 141

CODES = (
    "Exit codes: 0 done, and nothing found; 1 findings, or claims that could not be measured; 2 the request cannot be "
    "carried out; 3 gammabeta itself failed; 130 stopped by Ctrl-C, SIGTERM or SIGHUP."
)


class Commands(TyperGroup):
    """The commands, with every end of theirs turned into an exit code and a sentence.

    `--debug`, anywhere on the command line, adds the traceback.
    """

    words: Sequence[str] = ()

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Run the command line; where `args` is None, that of the process."""
        self.words = tuple(sys.argv[1:] if args is None else args)
        open_closed()
        accept_every_character()
        try:
            return super().main(args, *rest, **options)
        except OSError as error:  # of --version or --help, which are no commands
            if not _is_unwritten(error):
                raise
            with contextlib.suppress(typer.Exit):
                unwritten(error)
            sys.exit(WRONG)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            with as_interrupts():
                value = super().invoke(ctx)
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                unwritten(error)
            return value
        except BrokenPipeError:
            silence()
            raise typer.Exit(UNREAD) from None
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(STOPPED) from None
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich's answer to it
                raise typer.Exit(UNREAD) from None
            self._end(WRONG, f"your code called sys.exit({error.code!r}): leave that out where it builds or runs.")
        except BaseException as error:
            if isinstance(error, OSError) and _is_unwritten(error):
                unwritten(error)
            if isinstance(error, ImportError) and str(error).startswith("gammabeta: "):  # it says what to install
                say(str(error))
                raise typer.Exit(WRONG) from None
            code = getattr(error, "exit_code", None)
            if code is not None:  # typer's own: it prints what there is to say, and exits
                if code == WRONG and hasattr(error, "format_message"):
                    self._document(error.format_message())
                raise
            if "--debug" in self.words:
                traceback.print_exception(error)
            hint = "" if "--debug" in self.words else " with what the same command prints with --debug"
            self._end(
                FAILED,
                f"this should not have happened ({describe(error).rstrip('.')}): it is a fault of gammabeta, so please "
                f"report it{hint}.",
            )

    def _end(self, code: int, text: str) -> NoReturn:
        say(f"gammabeta: {text}")
        self._document(text)
        raise typer.Exit(code) from None

    def _document(self, text: str) -> None:
        """Write the document of a check that could not be run, where the command line asks for one."""
        name = format_of(self.words)
        if name is not None:
            fail(name, text, target_of(self.words))


def format_of(words: Sequence[str]) -> str | None:
    """Return the output format for programs that a command line of `check` asks for; None if it asks for none."""
    if "check" not in words:
        return None
    name = None
    for word, after in zip(words, (*words[1:], ""), strict=True):
        if word == "--format" or word.startswith("--format="):
            name = after if word == "--format" else word.partition("=")[2]
    return name


def target_of(words: Sequence[str]) -> str:
    """Return the first word after `check` that is no option, or "" where there is none."""
    after = list(words[list(words).index("check") + 1 :])
    return next((word for word in after if not word.startswith("-")), "")


def fail(name: str, text: str, target: str) -> None:
    """Write the document of a check that could not be run; nothing for a format without documents."""
    from gammabeta.cli.formats import WRITERS

    if name in WRITERS:
        write(WRITERS[name].fail(text, target), name)


def write(text: str, name: str) -> None:
    """Write a document of a format to the standard output; a reader that is gone changes no exit code."""
    if name == "github" and os.environ.get("GITHUB_ACTIONS"):
        as_utf_8()  # as which GitHub reads what a step prints
    try:
        print(text, flush=True)  # typer.echo would write UTF-8 where the output is to be ASCII
    except BrokenPipeError:
        silence()
    except OSError as error:
        unwritten(error)


def _is_unwritten(error: OSError) -> bool:
    """Return whether an output could not be written, rather than opened."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def unwritten(error: OSError) -> NoReturn:
    """End the command because an output cannot be written, as on a full disk; what is left is discarded."""
    silence()
    say(
        f"gammabeta: expected an output that can be written, got {error.strerror or type(error).__name__}: what was "
        "written is incomplete; make room, or write it elsewhere."
    )
    raise typer.Exit(WRONG) from None


def say(text: str) -> None:
    """Write a sentence to the standard error."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, or its disk is full
        silence()
