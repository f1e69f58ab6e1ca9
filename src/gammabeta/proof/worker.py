"""The process in which one backend is verified: `python -m gammabeta.proof.worker`, started by `verify.py`.

A process of its own, because kernels and instruction set are chosen once in a process, and because a kernel that is
wrong may end it. It reads a request, one line of JSON, and writes one line before and one after every case, so that
whoever reads knows the case in which it ended.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable
from typing import IO, Any

import torch

from gammabeta.proof.backends import Backend, entered
from gammabeta.proof.catalogue import Entry, dtype_name, entries, named
from gammabeta.proof.check import MismatchError, NotRunError
from gammabeta.proof.tolerances import TABLE

SILENCE = 300.0  # seconds for one case, after which the process ends itself


def prove(backend: Backend, chosen: Iterable[Entry], seed: int, out: IO[str]) -> None:
    """Run the cases on the backend, and write what comes of each."""
    torch.set_num_threads(1)
    with entered(backend.route, backend.device):
        for entry in chosen:
            _write(out, {"case": entry.name})
            faulthandler.dump_traceback_later(SILENCE, exit=True)
            begin = time.perf_counter()
            done = {"done": entry.name, "topic": entry.topic, "op": entry.op, "dtype": dtype_name(entry.dtype)}
            _write(out, done | _outcome(entry, backend, seed) | {"seconds": time.perf_counter() - begin})
    faulthandler.cancel_dump_traceback_later()


def _outcome(entry: Entry, backend: Backend, seed: int) -> dict[str, Any]:
    try:
        compared = entry.case.holds(entry.case.make(seed), backend.route)
    except MismatchError as error:
        return {"failure": str(error)}
    except NotRunError as error:
        return {"not_run": str(error)}
    except Exception as error:
        if _is_out_of_memory(error):
            return {"out_of_memory": str(error).splitlines()[0]}
        return {"failure": f"raised {type(error).__name__}: {error}"}
    return {"compared": [(c.quantity, c.error, c.allowed, TABLE.index(c.row)) for c in compared]}


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory was short: others use it too, and a kernel is not wrong for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _write(out: IO[str], event: dict[str, Any]) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


def main() -> None:
    """Answer one request."""
    # What anything else prints goes to the standard error, where it does not disturb.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.readline())
    backend = Backend(**request["backend"])
    found = named(request["cases"]) if request["cases"] else entries(thorough=request["thorough"])
    chosen = [e for e in found if backend.runs(e.op, e.case, e.topic)]
    isa = torch.ops.gammabeta.cpu_instruction_set() if backend.certified == "native" else ""
    device = torch.cuda.get_device_name(backend.device) if backend.device != "cpu" else isa
    _write(out, {"begin": backend.name, "on": device, "cases": len(chosen)})
    prove(backend, chosen, request["seed"], out)
    _write(out, {"end": backend.name})


if __name__ == "__main__":
    main()
