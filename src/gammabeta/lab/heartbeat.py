"""Lines that say how far a study is, for output that goes to a file or a pipe, where no progress bar can be drawn."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

INTERVAL = 18.0  # seconds without a line; whoever waits 20 for one should see it


class Heartbeat:
    """A thread that writes a line whenever none has been written for a while.

    Attributes:
        doing: what the study does now, for the line.
    """

    def __init__(self, write: Callable[[str], None], interval: float) -> None:
        """Begin without a thread; :meth:`beating` starts it.

        Args:
            write: writes one line.
            interval: seconds without a line after which one is written.
        """
        self.doing = "reading the data"
        self._write = write
        self._interval = interval
        self._began = time.monotonic()
        self._changed = threading.Event()
        self._ended = False
        self._failed: BaseException | None = None

    def written(self) -> None:
        """Note that the study itself has just written a line."""
        self._changed.set()

    def check(self) -> None:
        """Raise what the last line ended in, such as BrokenPipeError where nobody reads any more."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Write lines until the block ends."""
        thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended = True
            self._changed.set()
            thread.join(1.0)  # a reader that has stopped may block it for ever

    def _beat(self) -> None:
        while not self._ended:
            if self._changed.wait(self._interval):
                self._changed.clear()
                continue
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            try:
                self._write(f"{self.doing}, {f'{minutes} min ' if minutes else ''}{seconds} s so far")
            except BaseException as error:  # rich answers a closed pipe with SystemExit
                self._failed = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
                return
