"""How many rows a second, over the last ten seconds."""

from __future__ import annotations

import threading
import time
from collections import deque

_WINDOW_SECONDS = 10.0


class Meter:
    """Counts rows; `per_second` looks back ten seconds, or to the start where that is nearer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self.total = 0

    def add(self, rows: int) -> None:
        """So many rows more."""
        if rows:
            with self._lock:
                self.total += rows
                self._recent.append((time.monotonic(), rows))
                self._forget()

    def per_second(self) -> float:
        """The rate now."""
        with self._lock:
            self._forget()
            seconds = min(_WINDOW_SECONDS, max(1.0, time.monotonic() - self._started))
            return round(sum(rows for _, rows in self._recent) / seconds, 1)

    def _forget(self) -> None:
        limit = time.monotonic() - _WINDOW_SECONDS
        while self._recent and self._recent[0][0] < limit:
            self._recent.popleft()
