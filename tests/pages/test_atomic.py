"""Atomic writes: a new text or the old one, never a part."""

import json
import os
from pathlib import Path

import pytest

from gammabeta.pages.atomic import write_atomically


def test_it_makes_the_folder_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "new" / "page.html"
    for text in ("first γ", "second β"):
        assert write_atomically(str(path), text) == path
        assert path.read_bytes() == text.encode()
    assert os.listdir(path.parent) == ["page.html"]


def test_bytes_of_a_name_that_is_no_text_are_written_as_json_reads_them(tmp_path):
    path = write_atomically(tmp_path / "page.json", json.dumps({"name": "γ\udcff"}, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "γ\udcff"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_write_that_stops_midway_leaves_no_part(tmp_path, monkeypatch, error):
    write = Path.write_text

    def stop(self, text, **options):
        write(self, text[:2], **options)
        raise error

    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "page.html", "a whole page")
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "page.html", "old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]
