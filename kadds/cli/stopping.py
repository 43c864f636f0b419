"""SIGTERM and SIGINT: the first asks to end well, the second ends at once.

The handler takes no lock: it runs between two instructions of the main thread, which may hold any.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AT_ONCE = 1
_STANDARD_ERROR = 2
_SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """A `StopSignal` that a signal sets."""

    def __init__(self) -> None:
        self._set = False
        self._reading, self._writing = os.pipe()

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, at most `timeout` seconds; whether it is set."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._set:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            select.select([self._reading], [], [], left)
        return self._set

    def set(self) -> None:
        """Ask; a second time ends the process without another word, as after a loss of power."""
        if self._set:
            if os.isatty(_STANDARD_ERROR):
                os.write(_STANDARD_ERROR, _SHOW_CURSOR)  # a live table hides it
            os._exit(AT_ONCE)
        self._set = True
        os.write(self._writing, b".")

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._reading)
        os.close(self._writing)


@contextmanager
def stop_by_signal() -> Iterator[StopRequest]:
    """Signals set the request for the time of a block; only the main thread may begin one."""
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        request.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.close()
