"""Settings that make malloc keep freed memory, so that the next tensor reuses it.

Linux hands out memory in pages that it must clear at the first touch, and glibc's malloc returns large blocks as soon
as they are freed. So each training step on a CPU fetches the pages of its activations again, which costs about as much
as the arithmetic of a normalization.
"""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def warm_allocator() -> str:
    """Set malloc to keep freed memory for this process, and say what was changed.

    On Linux with glibc's malloc it sets two parameters of mallopt:

        M_MMAP_MAX = 0           no block is mapped separately, which would be unmapped when it is freed
        M_TRIM_THRESHOLD = -1    the free end of the heap is never returned

    Elsewhere (macOS, Windows, musl, another malloc in place of glibc's) it changes nothing and says why. No result
    depends on it. It may be called at any time and any number of times.

    Speedup, measured with two threads, as medians of steps side by side in separate processes:

        BatchNorm of (32, 64, 112, 112), native kernels                                5.7 forward, 4 backward
        the same by torch's op                                                         2.3 for both together
        training a small network of torch's depthwise convolutions and BatchNorm,
        16 images of 160×160                                                           1.25
        LayerNorm of (8192, 768), whose 25 MB malloc keeps anyway after a few calls    1

    Cost: the process keeps its peak memory until it ends, that of numpy as well as that of torch. The peak can be
    higher, because a free block must fit: 1.0 times for the network above, 2.4 times for the single BatchNorm. The
    setting holds for the whole process and for processes forked from it, and glibc has no call that undoes it. In
    threads other than the first, tensors above 64 MiB are still mapped, since a thread's own heap cannot hold them.
    M_ARENA_MAX=1 would place them in the first thread's heap, but then all threads would wait for one lock, so it is
    not set.

    Returns:
        One sentence: what was changed, or why nothing was.

    Source: mallopt(3).
    """
    reason = _why_not()
    if reason is not None:
        return f"Nothing was changed: {reason}."
    set_option = ctypes.CDLL(None).mallopt
    set_option.argtypes = (ctypes.c_int, ctypes.c_int)
    refused = [
        name
        for name, option, value in (("M_MMAP_MAX", M_MMAP_MAX, 0), ("M_TRIM_THRESHOLD", M_TRIM_THRESHOLD, -1))
        if not set_option(option, value)
    ]
    if refused:
        return f"Nothing is sure to have changed: malloc refused {' and '.join(refused)}."
    return "malloc keeps what is freed until this process ends: M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1."


def trim_heap() -> None:
    """Return the pages of all free blocks to the system once, and keep malloc's settings. glibc only.

    For a process that uses tensors of many sizes, whose heap would otherwise be the sum of what each one left.
    """
    if _why_not() is None:
        ctypes.CDLL(None).malloc_trim(0)


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3): the library that contains an address."""

    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _why_not() -> str | None:
    """Return why mallopt would change nothing here; None where it would."""
    if not sys.platform.startswith("linux"):
        return f"this is for glibc's malloc, and the system is {sys.platform}"
    libraries = ctypes.CDLL(None)
    if not hasattr(libraries, "gnu_get_libc_version"):
        return "this is for glibc's malloc, and the C library is another one"
    malloc, libc = _library_of(libraries, "malloc"), _library_of(libraries, "gnu_get_libc_version")
    if malloc != libc:
        return f"this is for glibc's malloc, and {os.path.basename(malloc)} is in its place"
    return None


def _library_of(libraries: ctypes.CDLL, function: str) -> str:
    """Return the file of the library from which the process takes that function."""
    place = _Place()
    libraries.dladdr(ctypes.cast(getattr(libraries, function), ctypes.c_void_p), ctypes.byref(place))
    return os.fsdecode(place.library or b"")
