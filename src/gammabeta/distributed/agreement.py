"""A debug mode that checks whether processes which share statistics call the same layer in the same way.

Where they do not, each raises an error instead of hanging. The mode is on where GAMMABETA_DEBUG=1 is in the environment
when gammabeta is imported, in every process. Before each exchange a process tells the others, through the store of
their process group, which layer it calls and with what. It waits for them 30 seconds, or the number of seconds in
GAMMABETA_DEBUG where that is over 1. A process in evaluation takes no part in an exchange. It leaves a note, which the
others quote when they have waited in vain. Compiled code is not checked.
"""

from __future__ import annotations

import json
import os
import sys
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gammabeta._torch_private import process_group, store_of
from gammabeta.distributed.process_groups import Peers


def _wait_from(text: str) -> float:
    """Return the seconds to wait for other processes; 0 where the mode is off."""
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(
            f"GAMMABETA_DEBUG: expected 0, 1, or the number of seconds to wait for other processes, got {text!r}."
        )
    return 30.0 if seconds == 1 else seconds


WAIT = _wait_from(os.environ.get("GAMMABETA_DEBUG", ""))

_POLL = 0.002  # seconds
_exchanges: dict[str, int] = {}  # by group, how many exchanges this process has begun


def check(peers: Peers, x: Tensor) -> None:
    """Wait until every process of the group calls this layer, and compare the calls.

    Raises:
        RuntimeError: the processes are in different layers, or disagree on dtype, channels, device or on needing a
            gradient; or some did not call. Every process that called raises.
    """
    group, store = _group_and_store(peers)
    rank, ranks = group.rank(), dist.get_process_group_ranks(group)
    number = _exchanges.get(peers.name, 0) + 1
    layer = _calling_layer()
    own = {
        "layer": layer,
        "mode": "training",
        "dtype": str(x.dtype).removeprefix("torch."),
        "channels": f"{x.shape[1]} channels",
        "device": x.device.type,
        "gradient": "with gradient" if x.requires_grad and torch.is_grad_enabled() else "without gradient",
    }
    # Two slots in turn: when a process overwrites one, all have begun the exchange in between, and so have read it.
    slot = number % 2
    store.set(_key(rank, slot), json.dumps([number, own]))
    calls = {rank: own}
    deadline = time.monotonic() + WAIT
    while len(calls) < peers.size and time.monotonic() < deadline:
        for other in range(peers.size):
            if other not in calls and store.check([_key(other, slot)]):
                theirs, call = json.loads(store.get(_key(other, slot)))
                if theirs == number:
                    calls[other] = call
        time.sleep(_POLL)
    if len(calls) < peers.size:
        store.set(_key(rank, slot), json.dumps([0, own]))  # as if it had not called
        missing = [other for other in range(peers.size) if other not in calls]
        told = "; ".join(_last_heard(store, other, ranks[other], number) for other in missing)
        raise RuntimeError(
            f"{layer}: expected ranks {_listed(ranks)} to call it in training, since they share its statistics, got "
            f"no call from {_listed([ranks[other] for other in missing], 'rank')} in {WAIT:g} s: {told}. Call the "
            "layer on every rank of its group, in the same mode."
        )
    _exchanges[peers.name] = number
    differing = [what for what in own if len({calls[other][what] for other in calls}) > 1]
    if differing:
        told = "; ".join(
            f"rank {ranks[other]}: {', '.join(str(calls[other][what]) for what in differing)}"
            for other in sorted(calls)
        )
        raise RuntimeError(
            f"{layer}: expected ranks {_listed(ranks)}, which share its statistics, to agree on {_listed(differing)}, "
            f"got {told}: they would wait for each other forever, or take each other's numbers for their own. Make "
            "them the same on every rank."
        )


def check_count(peers: Peers, count_C: Tensor) -> None:
    """Raise on every process where all of them together have only one value per channel.

    Raises:
        ValueError: they have one value.
    """
    if int(count_C.max()) == 1:
        raise ValueError(
            f"{_calling_layer()}: expected more than 1 value per channel in training, and in evaluation without "
            f"running statistics, got 1 on all {peers.size} processes together: the variance of one value is 0 and the "
            "output would be the bias whatever comes in. "
            "Use larger batches."
        )


def note_evaluation(peers: Peers | None) -> None:
    """Leave a note that this process calls the layer in evaluation, without waiting."""
    if peers is None:
        return
    group, store = _group_and_store(peers)
    call = {"layer": _calling_layer(), "mode": "evaluation"}
    store.set(_key(group.rank(), "evaluation"), json.dumps([_exchanges.get(peers.name, 0) + 1, call]))


def _last_heard(store: Any, other: int, rank: int, number: int) -> str:
    """Describe what a process that did not call did instead, as far as it left a note."""
    if store.check([_key(other, "evaluation")]):
        at, call = json.loads(store.get(_key(other, "evaluation")))
        if at == number:
            return f"rank {rank} called {call['layer']} in evaluation"
    if store.check([_key(other, (number - 1) % 2)]):
        at, call = json.loads(store.get(_key(other, (number - 1) % 2)))
        if at == number - 1:
            return f"rank {rank} was last in {call['layer']}"
    return f"rank {rank} has called no such layer"


def _group_and_store(peers: Peers) -> tuple[dist.ProcessGroup, Any]:
    group = process_group(peers.name)
    return group, store_of(group)


def _key(rank: int, slot: object) -> str:
    return f"gammabeta/{rank}/{slot}"


def _calling_layer() -> str:
    """Return the layer whose forward is running: its name in the outermost running model, and its class.

    They are read off the stack, since a source of statistics does not know its layer, nor a layer its name.
    """
    running: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not isinstance(module, nn.parallel.DistributedDataParallel):
            running.append(module)
        frame = frame.f_back
    if not running:
        return "batch_norm"
    layer, kind = running[0], type(running[0]).__name__
    name = next((name for name, module in running[-1].named_modules() if module is layer), "")
    return f"{name} ({kind})" if name else kind


def _listed(items: list[Any], noun: str = "") -> str:
    """Join as "0, 1 and 2"; with a noun as "rank 0" or "ranks 0 and 1"."""
    words = [str(item) for item in items]
    text = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{noun}{'s' * (len(words) > 1)} {text}" if noun else text
