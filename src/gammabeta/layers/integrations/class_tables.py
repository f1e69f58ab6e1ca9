"""Other libraries' tables that go by exact class, in which our classes are entered as torch's are.

A table with an entry for `nn.BatchNorm2d` knows nothing of a subclass. When a library with such a table is imported,
each of our classes gets the entry of the class whose place it takes; so do the classes of adopted layers, which are
made later. Nothing is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from gammabeta.layers.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from gammabeta.layers.group_norm import GroupNorm
from gammabeta.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from gammabeta.layers.integrations.on_import import on_import
from gammabeta.layers.layer_norm import LayerNorm
from gammabeta.layers.rms_norm import RMSNorm

Enter = Callable[[type[nn.Module], type[nn.Module]], None]

# Ours, and the class of torch's in whose place it stands.
TORCHS: dict[type[nn.Module], type[nn.Module]] = {
    BatchNorm: nn.SyncBatchNorm,
    BatchNorm1d: nn.BatchNorm1d,
    BatchNorm2d: nn.BatchNorm2d,
    BatchNorm3d: nn.BatchNorm3d,
    InstanceNorm1d: nn.InstanceNorm1d,
    InstanceNorm2d: nn.InstanceNorm2d,
    InstanceNorm3d: nn.InstanceNorm3d,
    GroupNorm: nn.GroupNorm,
    LayerNorm: nn.LayerNorm,
    RMSNorm: nn.RMSNorm,
}
_classes: dict[type[nn.Module], type[nn.Module]] = {ours: ours for ours in TORCHS}
_tables: dict[str, Enter] = {}  # of the modules that have been imported


def add_class(cls: type[nn.Module], ours: type[nn.Module]) -> None:
    """A class to be entered as that one of ours is: in the tables that are there, and in those to come."""
    _classes[cls] = ours
    for enter in tuple(_tables.values()):
        enter(cls, ours)


def add_table(name: str, prepare: Callable[[ModuleType], Enter]) -> None:
    """A table of another library, as soon as its module of that name is imported.

    Args:
        name: the module's full name.
        prepare: gets the module; returns what enters a class, called with it and the one of ours that it is.
    """

    def fill(module: ModuleType) -> None:
        _tables[name] = enter = prepare(module)
        for cls, ours in tuple(_classes.items()):
            enter(cls, ours)

    on_import(name, fill)


def like_torchs(table: dict[Any, Any]) -> Enter:
    """Enters a class with the entry of torch's, where there is one."""

    def enter(cls: type[nn.Module], ours: type[nn.Module]) -> None:
        if TORCHS[ours] in table:
            table.setdefault(cls, table[TORCHS[ours]])

    return enter


# What counts floating point operations by hooks that it looks up by class, and counts nothing for a class it lacks.
add_table("thop.profile", lambda thop: like_torchs(thop.register_hooks))
add_table("ptflops.pytorch_ops", lambda ptflops: like_torchs(ptflops.MODULES_MAPPING))
