#!/usr/bin/env python3
"""Capture by a thread of the engine's process, and by a process of its own (`isolation`), beside each other.

    python benchmarks/isolation.py [--rows 500000] [--rows-per-transaction 1000] [--rounds 3]

One PostgreSQL with fsync, one backlog of the yardstick row (bigint key, int, numeric(12,2), text, timestamptz, text),
and a slot on it for each capture: by `thread` and by `process`, each in an engine that is otherwise quiet, and in one
with a thread that is busy in Python (a loop, as a sink or a check may be). Each line is a JSON object: `figure`,
`value` in changes/s until all is on the log's disk, its `peer` (`process` against `thread`, busy against quiet), the
`ratio`, and `cpu_seconds_per_million` changes of all processes, server included, without the busy loop itself. Values
are medians of the rounds; in every round each capture runs once, in turning order.

A child is started before the time runs. The log is read afterwards: it has every change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers import postgres, workload
from benchmarks.peers.processes import Stopwatch
from benchmarks.peers.workload import Shape
from kadds import plugins
from kadds.api.connector import Producer, StreamSource
from kadds.api.position import Position
from kadds.app.isolation import open_isolated
from kadds.cli.run import SWITCH_INTERVAL_SECONDS
from kadds.engine.intake import Progress, WatchedProducer
from kadds.log.log import Log
from tests.support.servers import PostgresServer

CONNECTOR = "postgres"
SOURCE, DATABASE = "default/bench", "bench"
KINDS = [("thread", False), ("process", False), ("thread", True), ("process", True)]


class _Capture:
    """A log of its own, a slot of its own; made so that the slot holds what is written next."""

    def __init__(self, folder: Path, server: PostgresServer, slot: str, isolation: str) -> None:
        self._folder = folder / slot
        self._server = server
        self._isolation = isolation
        self._slot = slot
        with self._opened() as (log, source):
            self._stream(log, source)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Log, StreamSource]]:
        side = plugins.installed(CONNECTOR).connector.source
        assert side is not None
        url = f"postgresql://postgres@/{DATABASE}?host={self._server.folder}&port={self._server.port}"
        settings = side.settings.model_validate({"url": url, "slot": self._slot, "snapshot": "never"})
        source: Any
        if self._isolation == "process":
            source = open_isolated(CONNECTOR, settings, lambda _: None)
        else:
            source = plugins.open_source(CONNECTOR, settings, lambda _: None)
        with Log.open(self._folder) as log, closing(source):
            yield log, source

    def _stream(self, log: Log, source: StreamSource) -> Stopwatch:
        """Until all that is there when it begins is on the log's disk."""
        tables, head = source.discover(lambda _: True), source.head()
        inlet = _Inlet(log, head)
        failed: list[BaseException] = []

        def run() -> None:
            try:
                source.stream(tables, inlet)
            except BaseException as error:  # noqa: BLE001 - raised below
                failed.append(error)
                inlet.reached.set()

        thread = threading.Thread(target=run)
        stopwatch = Stopwatch(os.getpid(), self._server.pid)
        thread.start()
        inlet.reached.wait()
        stopwatch.stop()
        inlet.stopping.set()
        thread.join()
        if failed:
            raise failed[0]
        return stopwatch

    def measure(self, changes: int, *, busy: bool) -> Stopwatch:
        """The backlog into the log, which is counted afterwards."""
        with self._opened() as (log, source):
            with _busy_thread(busy) as spent:
                stopwatch = self._stream(log, source)
            stopwatch.cpu_seconds -= spent[0]
            rows = sum(one.rows for one in log.read(log.begin(), source=SOURCE))
        assert rows == changes, f"the log has {rows} changes, not {changes}"
        shutil.rmtree(self._folder)
        return stopwatch


class _Inlet:
    def __init__(self, log: Log, head: Position) -> None:
        self.stopping = threading.Event()
        self.reached = threading.Event()
        self._log = log
        self._head = head
        self._progress = Progress(self._look)

    def _look(self) -> None:
        if self._progress.position is not None and self._progress.position.reaches(self._head):
            self.reached.set()

    def producer(self, name: str) -> Producer:
        return WatchedProducer(self._log.producer(SOURCE, name), self._progress, lambda *_: None)


@contextmanager
def _busy_thread(busy: bool) -> Iterator[list[float]]:
    """A loop in Python, in this process; afterwards the list has the CPU seconds that it took."""
    spent, stop = [0.0], threading.Event()

    def loop() -> None:
        while not stop.is_set():
            sum(number * number for number in range(10_000))
        spent[0] = time.thread_time()

    thread = threading.Thread(target=loop)
    if busy:
        thread.start()
    yield spent
    stop.set()
    if busy:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000, help="changes of the backlog")
    parser.add_argument("--rows-per-transaction", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="at most 4: each capture has a slot")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)  # as `kadds run` does
    shape = Shape(arguments.rows, arguments.rows_per_transaction, 1)
    folder = Path(tempfile.mkdtemp(prefix="kadds-bench-"))
    try:
        with PostgresServer(postgres.SETTINGS, fsync=True) as server:
            _print(shape, _measure(folder, server, shape, arguments.rounds))
    finally:
        shutil.rmtree(folder)


def _measure(
    folder: Path, server: PostgresServer, shape: Shape, rounds: int
) -> dict[tuple[str, bool], list[Stopwatch]]:
    server.create_database(DATABASE)
    found: dict[tuple[str, bool], list[Stopwatch]] = {kind: [] for kind in KINDS}
    with postgres.connect(server, DATABASE) as connection:
        workload.create_tables(connection, shape)
        captures = {
            (one, kind): _Capture(folder, server, f"{kind[0]}_{'busy' if kind[1] else 'quiet'}_{one}", kind[0])
            for one in range(rounds)
            for kind in KINDS
        }
        workload.write_inserts(connection, shape)
        postgres.written_up_to(connection)
        for one in range(rounds):
            for kind in KINDS[one % 4 :] + KINDS[: one % 4]:
                found[kind].append(captures[one, kind].measure(shape.changes, busy=kind[1]))
        postgres.drop_slots(connection)
    return found


def _print(shape: Shape, found: dict[tuple[str, bool], list[Stopwatch]]) -> None:
    rates = {kind: shape.changes / statistics.median(one.seconds for one in some) for kind, some in found.items()}
    for (isolation, busy), took in found.items():
        name = f"{isolation}.{'busy' if busy else 'quiet'}"
        peers = [("thread", busy)] if isolation == "process" else []
        peers += [(isolation, False)] if busy else []
        for peer in peers or [None]:
            print(
                json.dumps(
                    {
                        "figure": f"isolation.{name}",
                        "value": round(rates[isolation, busy]),
                        "unit": "changes/s",
                        "peer": peer and f"{peer[0]}.{'busy' if peer[1] else 'quiet'}",
                        "peer_value": peer and round(rates[peer]),
                        "ratio": peer and round(rates[isolation, busy] / rates[peer], 3),
                        "cpu_seconds_per_million": round(
                            statistics.median(one.cpu_seconds for one in took) * 1e6 / shape.changes, 2
                        ),
                        "seconds": [round(one.seconds, 3) for one in took],
                        **shape.facts(),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
