"""Import the modules of docs/site, which is no package."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"


def loaded(name):
    """Import a module of docs/site/ without leaving it, or what it imports beside it, behind."""
    folders = (SITE, SITE / "extensions", SITE.parent)
    own = {path.stem for folder in folders for path in folder.glob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*map(str, folders), *sys.path])
        try:
            return importlib.import_module(name)
        finally:
            for module in own & {*sys.modules}:
                del sys.modules[module]
