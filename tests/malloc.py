"""What malloc has handed out."""

import ctypes
import platform

import pytest


class Mallinfo(ctypes.Structure):
    """glibc's mallinfo2: in bytes, but for the counts."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def in_use(*, large=False):
    """Return the bytes that malloc has handed out and not got back; `large`: also those of blocks that it maps."""
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] != "glibc" or not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc's mallinfo2, of 2.33 or newer")
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    return info.uordblks + (info.hblkhd if large else 0)
