"""README.md: what it shows is what the commands print, and its numbers are those of the pages that it names."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from gammabeta.lab.claims import CLAIMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def loaded(name):
    """Import a module of docs/, which is no package, without leaving it behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
        module = importlib.import_module(name)
        sys.modules.pop(name)
        return module


readme = loaded("readme")
SHOWN = readme.outputs(README)
(CHECK,) = (command for command in SHOWN if command.startswith("gammabeta check"))
(ADOPT,) = (command for command in SHOWN if command.startswith("python"))
(STUDY,) = (command for command in SHOWN if command.startswith("gammabeta study"))
(VERIFY,) = (command for command in SHOWN if command.startswith("gammabeta verify"))


def masked(text):
    """Return a text without its numbers and without the spaces by which columns of numbers are aligned."""
    return re.sub(r" +", " ", re.sub(r"[\d.,]+", "#", text))


def test_each_command_shows_six_lines_at_most():
    assert len(SHOWN) == 4
    for command, output in SHOWN.items():
        assert 2 <= output.count("\n") <= 6, command


def test_the_check_prints_what_is_shown():
    assert readme.shown(CHECK, readme.run(CHECK)) == SHOWN[CHECK]


def test_adopting_prints_what_is_shown_but_for_the_time():
    assert masked(readme.shown(ADOPT, readme.run(ADOPT))) == masked(SHOWN[ADOPT])
    assert "9 BatchNorm2d now run on gammabeta" in SHOWN[ADOPT]


@pytest.mark.slow
def test_verify_prints_what_is_shown_but_for_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    printed = readme.shown(VERIFY, readme.run(VERIFY))
    # Another machine has other instruction sets, and so another number of cases.
    assert [re.sub(r"[\d,]+ cases", "N cases", line).split()[:2] for line in printed.splitlines()] == [
        re.sub(r"[\d,]+ cases", "N cases", line).split()[:2] for line in SHOWN[VERIFY].splitlines()
    ]
    for text in (printed, SHOWN[VERIFY]):
        (cases,) = re.findall(r"^[\d,]+ cases .*", text, flags=re.M)
        assert cases.endswith("all within tolerance")


def test_what_the_study_says_was_confirmed_and_is_kept():
    kept = json.loads((ROOT / "docs" / "findings" / "batch-2.json").read_text(encoding="utf-8"))
    (said,) = kept["recommended"]
    assert said["status"] == "confirmatory"
    assert sorted(STUDY.split()) == sorted(kept["command"].split())
    assert said["headline"] in " ".join(SHOWN[STUDY].split())


def test_its_numbers_are_those_of_the_pages_that_it_names():
    rates = (ROOT / "docs" / "error_rates.md").read_text(encoding="utf-8")
    decided, contests = re.search(r"Together (\d+) of (\d+) contests were decided with a margin of 0", rates).groups()
    other, asked = re.search(r"and (\d+) of (\d+) recommendations named another norm", rates).groups()
    text = " ".join(README.split())
    assert f"{other} of {asked} recommendations preferred one of them, and {decided} of {contests} contests" in text

    (census,) = re.findall(r"\((benchmarks/results/census_architectures-[\d-]+\.md)\)", README)
    found = (ROOT / census).read_text(encoding="utf-8")
    architectures, quiet, others = re.search(
        r"^(\d+) architectures.*?(\d+) are quiet or have true findings only; (\d+) have others", found, re.M | re.S
    ).groups()
    assert architectures == quiet
    assert others == "0"
    assert f"{architectures} healthy architectures" in text

    (recomputed,) = re.findall(r"\((benchmarks/results/recompute-[\d-]+\.md)\)", README)
    found = (ROOT / recomputed).read_text(encoding="utf-8")
    models = re.search(r"All (\d+) models have gradients and buffers of the same bits", found)[1]
    assert f"{models} of {models} models" in text
    median, low, high = re.search(r"the median is ([\d.]+) with torch's norms \(([\d.]+) to ([\d.]+)\)", found).groups()
    assert f"keeps {median} of what" in text
    assert f"({low} to {high})" in text
    assert f"{len(CLAIMS)} claims" in text


def test_its_pictures_are_there_for_light_and_for_dark():
    pictures = re.findall(r'(?:srcset|src)="([^"]+)"', README)
    assert [Path(picture).name for picture in pictures] == ["card-dark.png", "card-light.png"]
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
