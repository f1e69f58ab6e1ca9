"""Directives that run what they show: ``{run}`` a command, ``{example}`` a file of docs/site/examples."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, ClassVar

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gammabeta.benchmarks.networks import load_timm

# A torchvision that is built for CUDA cannot be imported where torch is not, and Lightning and transformers import it.
if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
    load_timm()

SITE = Path(__file__).parents[1]
LIMIT = 300  # seconds
# A command sees the machine as it is, and not the one thread that conf.py allows.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
ENVIRONMENT |= {"COLUMNS": "88", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}


def block(text: str, language: str) -> nodes.literal_block:
    """Return a block of code."""
    return nodes.literal_block(text, text, language=language)


class Run(SphinxDirective):
    """Run a command of `gammabeta`, and show it with its output.

    The argument is the command. The content is a file that the command reads, shown before it, whose name is in
    ``:file:``. ``:exit:`` is the exit code that is expected; ``:lines:`` is the number of lines that are shown.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"file": str, "exit": int, "lines": int}

    def run(self) -> list[nodes.Node]:
        command = self.arguments[0]
        folder = Path(self.env.doctreedir) / "running"
        folder.mkdir(exist_ok=True)
        shown: list[nodes.Node] = []
        if self.content:
            text = "\n".join(self.content)
            (folder / self.options["file"]).write_text(text + "\n", encoding="utf-8")
            shown = [
                nodes.paragraph("", "", nodes.literal("", self.options["file"]), nodes.Text(":")),
                block(text, "python"),
            ]
        words = shlex.split(command)
        assert words[0] == "gammabeta", f"expected a command of gammabeta, got {words[0]}"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=ENVIRONMENT,
        )
        expected = self.options.get("exit", 0)
        if done.returncode != expected:
            raise self.error(
                f"{command}: expected exit code {expected}, got {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        output = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
        count = self.options.get("lines", len(output))
        output = output[:count] + ["..."] * (len(output) > count)
        return [*shown, block("\n".join([f"$ {command}", *output]), "console")]


def printed(source: str, name: str) -> str:
    """Run an example in a namespace of its own, and return what it prints."""
    stream = io.StringIO()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(stream):
        exec(compile(source, name, "exec"), {"__name__": "__example__"})
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", stream.getvalue().rstrip())


class Example(SphinxDirective):
    """Show a file of docs/site/examples, and what it prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = SITE / "examples" / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(path))
        source = path.read_text(encoding="utf-8").rstrip()
        try:
            output = printed(source, path.name)
        except Exception as error:
            raise self.error(f"{path.name} fails:\n{traceback.format_exc()}") from error
        shown: list[nodes.Node] = [block(source, "python")]
        if output:
            shown += [nodes.paragraph("", "It prints:"), block(output, "text")]
        return shown


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("run", Run)
    app.add_directive("example", Example)
    return {"parallel_read_safe": False}
