"""CPU seconds of whole process trees, so that what a peer lets a server do is counted as its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class _Process(NamedTuple):
    parent: int
    ticks: int  # its own, and those of children that have ended and were waited for


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])))
    return found


def _tree(roots: set[int]) -> dict[int, _Process]:
    """These processes and all that they started."""
    processes = _processes()
    wanted = set(roots)
    while more := {pid for pid, one in processes.items() if one.parent in wanted} - wanted:
        wanted |= more
    return {pid: processes[pid] for pid in wanted if pid in processes}


def cpu_seconds(*roots: int) -> float:
    """User and system time of these processes and all that they started, ended ones included.

    One that ends while it is looked at may be missed or be counted twice, so it is looked at until none has.
    """
    before, found = _tree(set(roots)), _tree(set(roots))
    while before.keys() != found.keys():
        before, found = found, _tree(set(roots))
    return sum(one.ticks for one in found.values()) / _TICKS


class Stopwatch:
    """Wall and CPU time from `start` to `stop`; the processes live at both ends, or their parent is among them."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self.seconds = self.cpu_seconds = 0.0
        self.start()

    def start(self) -> None:
        """Begin, or begin anew."""
        self._cpu, self._time = cpu_seconds(*self._pids), time.perf_counter()

    def stop(self) -> None:
        """End: from here on `seconds` and `cpu_seconds` stand."""
        self.seconds = time.perf_counter() - self._time
        self.cpu_seconds = cpu_seconds(*self._pids) - self._cpu
