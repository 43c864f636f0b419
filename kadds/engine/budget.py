"""`memory_limit`: one number, split here and nowhere else.

The parts are bounds, not reservations. Python, Arrow and the drivers take what they need beside them; that is why the
default is a quarter of the machine. A delivery holds its part from reading to the sink's answer, so that many slow
sinks cannot pile up batches: each worker has an equal share and never waits for another's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kadds.api.connector import StopSignal
from kadds.api.errors import Stopping

LEAST_BYTES = 512 << 20
LEAST_SINK_BYTES = 128 << 20
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class MemorySplit:
    """The parts, in bytes: the log's queue, cache and index, batches on their way out, what sinks use themselves."""

    log_bytes: int
    delivery_bytes: int
    sinks_bytes: int

    @classmethod
    def of(cls, memory_limit_bytes: int) -> MemorySplit:
        """Three eighths for the log, a quarter for batches, three eighths for sinks."""
        eighth = memory_limit_bytes // 8
        return cls(3 * eighth, 2 * eighth, 3 * eighth)

    def per_sink_bytes(self, sinks: int) -> int:
        """An equal share for each of so many sinks; less than 128 MiB is of no use to one that works in memory."""
        return max(LEAST_SINK_BYTES, self.sinks_bytes // max(1, sinks))


def default_memory_limit_bytes() -> int:
    """A quarter of the machine (or of the container, where that is smaller), at least 512 MB."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or "max"
        machine = min(machine, int(_CGROUP_LIMIT.read_text()))
    return max(LEAST_BYTES, machine // 4)


class Budget:
    """Bytes that many share; whoever asks for more than is free waits, in the order of asking."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._free = total_bytes
        self._changed = threading.Condition()
        self._turn = 0
        self._next = 0
        self._abandoned: set[int] = set()  # tickets of those who gave up before their turn

    @property
    def free_bytes(self) -> int:
        """What nobody holds now."""
        return self._free

    def acquire(self, wanted_bytes: int, stopping: StopSignal) -> int:
        """Wait for `wanted_bytes` and hold them; Stopping if `stopping` is set first.

        More than there is at all is granted as all there is: one thing larger than the budget goes through alone.
        Returns what to give to `release`.
        """
        wanted = min(wanted_bytes, self._total)
        with self._changed:
            ticket, self._next = self._next, self._next + 1
            try:
                while self._turn != ticket or self._free < wanted:
                    if stopping.is_set():
                        raise Stopping
                    self._changed.wait(0.2)  # the stop signal is not ours and cannot wake us
                self._free -= wanted
            finally:
                self._leave(ticket)
        return wanted

    def _leave(self, ticket: int) -> None:
        if self._turn == ticket:
            self._turn += 1
        else:
            self._abandoned.add(ticket)
        while self._turn in self._abandoned:
            self._abandoned.discard(self._turn)
            self._turn += 1
        self._changed.notify_all()

    def release(self, held_bytes: int) -> None:
        """Give back what `acquire` returned."""
        with self._changed:
            self._free += held_bytes
            self._changed.notify_all()

    @contextmanager
    def held(self, wanted_bytes: int, stopping: StopSignal) -> Iterator[int]:
        """Hold bytes for the time of a block."""
        held = self.acquire(wanted_bytes, stopping)
        try:
            yield held
        finally:
            self.release(held)
