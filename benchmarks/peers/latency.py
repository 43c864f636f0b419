"""How long after its commit a row is visible somewhere else: one clock, since everything runs on one machine."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event

import numpy as np
import numpy.typing as npt
import psycopg

COMMITS_PER_SECOND = 200
WARM_UP_SECONDS = 1.0
_PAUSE_SECONDS = 0.00025  # a reader that never pauses would take one of few cores from those who are measured
_PATIENCE_SECONDS = 60.0


def commit_to_visible(source: str, target: str, *, first: int, seconds: float) -> npt.NDArray[np.float64]:
    """Milliseconds from the end of each commit to the row's being seen at the target by a process of its own.

    Rows with ids from `first` go into `t0`, one a transaction; those of the first second are not counted.
    """
    count = int((WARM_UP_SECONDS + seconds) * COMMITS_PER_SECOND)
    spawning = multiprocessing.get_context("spawn")
    receiving, sending = spawning.Pipe(duplex=False)
    ready = spawning.Event()
    reader = spawning.Process(target=_watch, args=(target, first, count, ready, sending), daemon=True)
    reader.start()
    if not ready.wait(_PATIENCE_SECONDS):
        raise TimeoutError("the process that watches the target did not start")
    committed = _commit(source, first, count)
    if not receiving.poll(_PATIENCE_SECONDS):
        reader.kill()
        raise TimeoutError(f"not all of {count} rows were seen at the target after {_PATIENCE_SECONDS:g} s")
    seen: npt.NDArray[np.float64] = receiving.recv()
    reader.join()
    return 1000 * (seen - committed)[int(WARM_UP_SECONDS * COMMITS_PER_SECOND) :]


def _commit(source: str, first: int, count: int) -> npt.NDArray[np.float64]:
    committed = np.empty(count)
    with psycopg.connect(source, autocommit=True) as connection:
        start = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, start + number / COMMITS_PER_SECOND - time.perf_counter()))
            connection.execute(
                "INSERT INTO t0 VALUES (%s, 1, 1.5, 'new', '2024-01-01 00:00:00Z', 'one row')", [first + number]
            )
            committed[number] = time.perf_counter()
    return committed


def _watch(target: str, first: int, count: int, ready: Event, sending: Pipe) -> None:
    seen = np.zeros(count)
    known = 0
    with psycopg.connect(target, autocommit=True) as connection:
        ready.set()
        while known < count:
            [(last,)] = connection.execute("SELECT max(id) FROM t0", prepare=True).fetchall()
            reached = 0 if last is None else max(0, last - first + 1)
            seen[known:reached] = time.perf_counter()
            known = max(known, reached)
            time.sleep(_PAUSE_SECONDS)
    sending.send(seen)
