"""Things to be done at a time: one thread and a heap, however many there are.

What is done must be quick (put a task in a queue); a callback that raises is a defect and is logged.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

import structlog

_logger = structlog.get_logger(__name__)


class Alarms:
    """Calls callbacks at monotonic times; `stop` forgets those that are not due."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, callback: Callable[[], None]) -> float:
        """Call `callback` in `seconds`; the monotonic time at which, so that it finds what it rings for due."""
        due = time.monotonic() + max(0.0, seconds)
        with self._changed:
            if self._stopped:
                return due
            heapq.heappush(self._heap, (due, next(self._numbers), callback))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kadds-alarms", daemon=True)
                self._thread.start()
            self._changed.notify()
        return due

    def stop(self) -> None:
        """Nothing rings any more once this returns."""
        with self._changed:
            self._stopped = True
            self._heap.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (callback := self._next()) is not None:
            try:
                callback()
            except Exception:  # one defect must not silence the alarms of everybody
                _logger.exception("defect_in_alarm")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                if self._heap and self._heap[0][0] <= now:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(self._heap[0][0] - now if self._heap else None)
        return None
