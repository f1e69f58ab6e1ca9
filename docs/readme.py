"""Run the commands that README.md shows, and put their output in.

    python docs/readme.py              runs all; the study takes some minutes
    python docs/readme.py check verify runs those whose command has one of the words

A command stands in a block ``console`` after ``$``. What it prints follows: whole where it has at most six lines, else
the lines of KEPT. Numbers of time differ from run to run; tests/test_readme.py compares all else.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)```", re.DOTALL)
WIDTH = "104"
# By a word of the command: which lines are shown of a longer output. Others become one "...".
KEPT = {
    "check": r"GB101|  1, 3\.bn1|  fix  +gammabeta\.freeze| {23}(training mode|batch's)",
    "adopt": ".",
    "study": r" +recommended|to be better",
    "verify": r"operation|batch_norm +float32 |[\d,]+ cases",
}


def outputs(text: str) -> dict[str, str]:
    """Return what the blocks of a page show, by their commands."""
    return {match["command"]: match["output"] for match in BLOCK.finditer(text)}


def run(command: str) -> str:
    """Run a command in the root of the repository, as a terminal without colours shows it."""
    environment = {**os.environ, "COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb", "PYTHONWARNINGS": "ignore"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return done.stdout


def shown(command: str, printed: str) -> str:
    """Return the lines of an output that the page shows."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    (wanted,) = (pattern for word, pattern in KEPT.items() if re.search(rf"\b{word}\b", command))
    kept: list[str] = []
    for line in lines if len(lines) <= 6 else [line if re.match(wanted, line) else "..." for line in lines]:
        if not (line == "..." and kept and kept[-1] == "..."):
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def main(words: list[str]) -> None:
    text = README.read_text(encoding="utf-8")

    def again(match: re.Match[str]) -> str:
        command = match["command"]
        if words and not any(word in command for word in words):
            return match[0]
        print(f"$ {command}", flush=True)
        return f"```console\n$ {command}\n{shown(command, run(command))}```"

    README.write_text(BLOCK.sub(again, text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
