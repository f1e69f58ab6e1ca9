"""Entries for our classes in other libraries' tables that look classes up exactly.

A table with an entry for `nn.BatchNorm2d` has none for a subclass. When a library with such a table is imported, each
of our classes gets the entry of the torch class that it replaces. So do the classes of adopted layers, which are made
later. Nothing is imported here.
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

# Our class, and the class of torch that it replaces.
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
_tables: dict[str, Enter] = {}  # of the modules that are imported


def add_class(cls: type[nn.Module], ours: type[nn.Module]) -> None:
    """Enter a class as one of ours is entered: in the present tables and in later ones.

    Classes that compute other formulas than torch's get no entry: what such tables hold is written for torch's.
    """
    if ours not in TORCHS:
        return
    _classes[cls] = ours
    for enter in tuple(_tables.values()):
        enter(cls, ours)


def add_table(name: str, prepare: Callable[[ModuleType], Enter]) -> None:
    """Fill a table of another library as soon as its module is imported.

    Args:
        name: the module's full name.
        prepare: takes the module and returns a function that enters a class. That function is called with the class and
            with the class of ours whose entry it gets.
    """

    def fill(module: ModuleType) -> None:
        _tables[name] = enter = prepare(module)
        for cls, ours in tuple(_classes.items()):
            enter(cls, ours)

    on_import(name, fill)


def like_torchs(table: dict[Any, Any]) -> Enter:
    """Make a function that enters a class with the entry of torch's class, where there is one."""

    def enter(cls: type[nn.Module], ours: type[nn.Module]) -> None:
        if TORCHS[ours] in table:
            table.setdefault(cls, table[TORCHS[ours]])

    return enter


# These count floating point operations by hooks, which they look up by class; a class without one counts nothing.
add_table("thop.profile", lambda thop: like_torchs(thop.register_hooks))
add_table("ptflops.pytorch_ops", lambda ptflops: like_torchs(ptflops.MODULES_MAPPING))
