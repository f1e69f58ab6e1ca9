"""Worker processes end with the process that started them, even when that is killed."""

from collections.abc import Callable


def _ending() -> Callable[[int, bool], None]:
    """Make the function that workers call when they begin.

    It is pickled by value, because it is local to this one, so that a worker need not import torch first: until it has,
    its parent may be gone.
    """

    def end_with(parent: int, lasting: bool) -> None:
        import ctypes
        import os
        import signal
        import sys
        import threading
        import time

        name = f"end with {parent}"
        if any(thread.name == name for thread in threading.enumerate()):
            return
        if lasting and sys.platform == "linux":
            prctl = getattr(ctypes.CDLL(None), "prctl", None)
            if prctl is not None:
                prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(0.5)
            os._exit(1)

        threading.Thread(target=watch, name=name, daemon=True).start()

    end_with.__doc__ = """End this process, at once and without a word, when its parent has ended.

    The parent's end is seen by its process id: orphans get another parent. On Linux the kernel watches as well, and
    needs no turn of a thread of this process.

    Args:
        parent: the parent's process id. If this process has another parent by now, it ends.
        lasting: whether the parent's thread that started this process lasts as long as the parent: the kernel goes by
            that thread.
    """
    return end_with


end_with = _ending()
