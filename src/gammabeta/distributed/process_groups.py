"""Process groups as settings: ranks or a name stand for a group, which is looked up where it is used.

A `ProcessGroup` itself can be neither copied nor pickled, so no layer keeps one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch.distributed as dist

from gammabeta._torch_private import constant_in_graphs, declare_collectives, known_process_groups

Group = Any
"""None for the default group, a `torch.distributed.ProcessGroup`, ranks, or a group's name."""


class Peers(NamedTuple):
    """A process group as the collectives take it: at least two processes, including this one."""

    name: str
    size: int


class GroupSetting(NamedTuple):
    """The part of a group that can be kept: ranks, None or a name; and the name of the group in this process."""

    group: tuple[int, ...] | str | None
    name: str | None


def group_setting(owner: str, group: Group) -> GroupSetting:
    """Return what to keep of `group`; messages name the `owner`.

    Raises:
        TypeError: it is none of the kinds of a `Group`.
        ValueError: ranks are negative or repeated, or there are none; this process is not in the group.
    """
    if group is None or isinstance(group, str):
        return GroupSetting(group, None)
    if _initialized() and group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"{owner}: expected a process group that this process, rank {dist.get_rank()}, is in, got one that it is "
            "not in: give each process its own group, as gammabeta.statistics.groups(size) does."
        )
    if dist.is_available() and isinstance(group, dist.ProcessGroup):
        # The default group remains the default one in a world of another size.
        if group is dist.group.WORLD:
            return GroupSetting(None, None)
        return GroupSetting(tuple(dist.get_process_group_ranks(group)), group.group_name)
    ranks = tuple(group) if isinstance(group, Iterable) else (None,)
    if not all(type(rank) is int for rank in ranks):
        raise TypeError(
            f"{owner}: expected group None, a ProcessGroup, ranks as (0, 1) or a group's name, got {group!r}."
        )
    if not ranks or min(ranks) < 0 or len(set(ranks)) < len(ranks):
        raise ValueError(f"{owner}: expected ranks of at least 0, each once, at least one of them, got {ranks}.")
    return GroupSetting(tuple(sorted(ranks)), None)


def peers_of(owner: str, setting: GroupSetting) -> Peers | None:
    """Find the processes that the setting stands for; None where this process is alone.

    It is alone without `torch.distributed.init_process_group`, and in a group of one. A group is looked up among those
    that this process has made. None is made here, since processes outside it would have to take part. A compiled graph
    keeps what was found while it was traced.

    Raises:
        RuntimeError: this process has no such group, or is not in it.
    """
    if not _initialized():
        return None
    found = _find(owner, setting.group, setting.name)
    return None if found is None else Peers(*found)


def groups(size: int) -> dist.ProcessGroup | None:
    """Divide all processes into groups of `size` neighbours, and return the group of this process.

    Ranks 0 to size − 1 are the first group, and so on. The last group is smaller where `size` does not divide the
    number of processes. Every process has to call this, with the same size. Each call makes new groups, so call it once
    and keep the result.

    Args:
        size: number of processes in a group, at least 1.

    Returns:
        The group of this process, for `Synced(group)`; None, which is the default group, where one group has all
        processes.

    Raises:
        TypeError: size is not an integer.
        ValueError: size is under 1.
    """
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"groups: expected size as an integer number of processes, got {size!r}.")
    if size < 1:
        raise ValueError(f"groups: expected size of at least 1 process, got {size}.")
    if not _initialized() or size >= dist.get_world_size():
        return None
    own = None
    everyone = range(dist.get_world_size())
    for start in everyone[::size]:
        ranks = everyone[start : start + size]
        made = dist.new_group(list(ranks))  # all processes have to call it, members or not
        if dist.get_rank() in ranks:
            own = made
    return own


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


# While a compiler traces, this runs in eager mode and its result is a constant of the graph.
@constant_in_graphs
def _find(owner: str, group: tuple[int, ...] | str | None, name: str | None) -> tuple[str, int] | None:
    declare_collectives()
    if group is None:
        found = dist.group.WORLD
    elif isinstance(group, str):
        found = _named(group)
        if found is None:
            known = ", ".join(repr(group.group_name) for group in known_process_groups())
            raise RuntimeError(
                f"{owner}: expected the name of a process group of this process, which has {known}; got {group!r}: "
                "make it first, by torch.distributed.new_group in every process."
            )
    else:
        rank = dist.get_rank()
        if rank not in group:
            raise RuntimeError(
                f"{owner}: expected this process to be one of ranks {group}, got rank {rank}: give each process the "
                "ranks of its own group, as gammabeta.statistics.groups(size) does."
            )
        if len(group) == 1:
            return None
        found = None if name is None else _named(name)
        if found is None or tuple(dist.get_process_group_ranks(found)) != group:
            same = (g for g in known_process_groups() if set(dist.get_process_group_ranks(g)) == {*group})
            found = next(same, None)
        if found is None:
            raise RuntimeError(
                f"{owner}: expected a process group of ranks {group}, got none in this process: make it first, by "
                "gammabeta.statistics.groups(size) or torch.distributed.new_group(ranks) in every process."
            )
    assert found is not None
    return None if found.size() == 1 else (found.group_name, found.size())


def _named(name: str) -> dist.ProcessGroup | None:
    return next((known for known in known_process_groups() if known.group_name == name), None)
