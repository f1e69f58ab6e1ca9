"""Other libraries that have to know our classes, and which module tells each of them, once it is imported."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import ModuleType

from gammabeta.layers.integrations.on_import import on_import

# The module of another library -> the module of this folder that enters our classes in it. Neither is imported here,
# nor is torch. To add a library, add its file and its row.
LIBRARIES = {
    "opacus": "opacus",
    "ptflops.pytorch_ops": "class_tables",
    "thop.profile": "class_tables",
    "timm.layers.create_norm_act": "timm",
}


def tell_libraries() -> None:
    """Enter our classes in each library, now if it is imported, otherwise as soon as it is."""
    for library, file in LIBRARIES.items():
        on_import(library, partial(_enter, file))


def _enter(file: str, _: ModuleType) -> None:
    import_module(f"{__package__}.{file}")
