"""Settings that make malloc keep freed memory: that they work, and what is said where they cannot."""

import ctypes
import subprocess
import sys

import pytest

from gammabeta import allocator, warm_allocator

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
glibc = pytest.mark.skipif(not GLIBC, reason="glibc's malloc is not in use here")

# Page faults of a process while it allocates, fills and frees the same tensor many times, without the first times, in
# which the heap grows until a freed block fits.
FAULTS = """
import resource, sys, torch, gammabeta
if sys.argv[1] == "warm":
    gammabeta.warm_allocator()
torch.set_num_threads(1)
def use(times):
    for _ in range(times):
        torch.empty(int(sys.argv[2]) << 20, dtype=torch.uint8).fill_(1)
use(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, mebibytes):
    command = [sys.executable, "-c", FAULTS, how, str(mebibytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@glibc
def test_pages_are_kept():
    pages = 10 * 128 * 2**20 // 65536  # the largest pages that are in common use, so the least faults there can be
    cold, warm = faults("cold", 128), faults("warm", 128)
    assert cold >= pages
    assert warm < cold / 3, "the last of the growth may fall into what is counted"


@glibc
def test_it_says_what_it_changed_each_time():
    script = "import gammabeta; print(gammabeta.warm_allocator()); print(gammabeta.warm_allocator())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == 2 * [
        "malloc keeps what is freed until this process ends: M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1."
    ]


class Libraries:
    """A stand-in for ctypes.CDLL(None); a call that is not expected fails."""

    def __init__(self, accepted=None):
        if accepted is not None:
            self.gnu_get_libc_version = None
            self.mallopt = Mallopt(accepted)


class Mallopt:
    def __init__(self, accepted):
        self.accepted = accepted

    def __call__(self, option, value):
        return option in self.accepted


def said(monkeypatch, libraries, libraries_of=("libc.so.6", "libc.so.6")):
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libraries)
    of = dict(zip(("malloc", "gnu_get_libc_version"), libraries_of, strict=True))
    monkeypatch.setattr(allocator, "_library_of", lambda _, function: f"/usr/lib/{of[function]}")
    return warm_allocator()


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_on_another_system_nothing_is_changed(monkeypatch, system):
    monkeypatch.setattr(allocator.sys, "platform", system)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("no library is asked"))
    assert warm_allocator() == f"Nothing was changed: this is for glibc's malloc, and the system is {system}."


def test_with_another_c_library_nothing_is_changed(monkeypatch):
    expected = "Nothing was changed: this is for glibc's malloc, and the C library is another one."
    assert said(monkeypatch, Libraries()) == expected


def test_with_another_malloc_nothing_is_changed(monkeypatch):
    expected = "Nothing was changed: this is for glibc's malloc, and libjemalloc.so.2 is in its place."
    assert said(monkeypatch, Libraries(accepted=()), ("libjemalloc.so.2", "libc.so.6")) == expected


def test_what_malloc_refuses_is_said(monkeypatch):
    expected = "Nothing is sure to have changed: malloc refused M_TRIM_THRESHOLD."
    assert said(monkeypatch, Libraries(accepted=(allocator.M_MMAP_MAX,))) == expected
