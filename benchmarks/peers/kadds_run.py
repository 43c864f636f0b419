"""Kadds as a person runs it: `kadds run` with a file, from the moment its slot streams."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.postgres import connect, wait_until_streaming
from benchmarks.peers.processes import Stopwatch
from benchmarks.peers.workload import Connection, Shape, until, wait_for_last
from kadds.log.log import Log
from tests.support.kadds_process import Kadds, Running
from tests.support.servers import PostgresServer

_SOURCE = "default/bench"


class KaddsRun:
    """One source, one log and, with a target, one subscription; made so that its slot holds what is written next."""

    def __init__(
        self,
        folder: Path,
        source: PostgresServer,
        database: str,
        *,
        slot: str,
        target: tuple[PostgresServer, str] | None = None,
        options: dict[str, Any],
    ) -> None:
        self._source, self._database, self._slot = source, database, slot
        self._target = target[0] if target else source
        plain: dict[str, Any] = {
            "log": {"path": "log"},
            "sources": {
                "bench": {
                    "connector": "postgres",
                    "url": _url(source, database),
                    "slot": slot,
                    "snapshot": "never",
                    "tables": {"public.*": {}},
                    **options,
                }
            },
        }
        if target is not None:
            plain["sinks"] = {"target": {"connector": "postgres", "url": _url(*target)}}
            plain["subscriptions"] = {
                "bench-to-target": {
                    "source": "bench",
                    "sink": "target",
                    "mode": "merge",
                    "tables": {"public.*": {}},
                }
            }
        self.kadds = Kadds(folder, plain)

    def prepare(self) -> None:
        """Make slot, publication and log, and end again."""
        with self.streaming() as (run, _):
            self._until(run, lambda status: _source_of(status).get("position"), "a position in the log")
            run.terminate().check()

    @contextlib.contextmanager
    def streaming(self) -> Iterator[tuple[Running, Stopwatch]]:
        """`kadds run`, and a stopwatch that was started when the server began to stream to it."""
        with connect(self._source, self._database) as connection, self.kadds.start() as run:
            stopwatch = Stopwatch(*{self._source.pid, self._target.pid, run.process.pid})
            wait_until_streaming(connection, self._slot, self._alive(run))
            stopwatch.start()
            yield run, stopwatch

    def capture(self, shape: Shape) -> Stopwatch:
        """The time until the log has all changes on its disk; then it is read, to count them."""
        with self.streaming() as (run, stopwatch):
            pause_seconds = 0.02 if shape.tables <= 10 else 0.2  # an answer of a thousand tables is work
            changes = f"{shape.changes} changes in the log"
            self._until(run, lambda status: _rows(status) >= shape.changes, changes, pause_seconds=pause_seconds)
            stopwatch.stop()
            run.terminate().check()
        with Log.open(self.kadds.log, writable=False) as log:
            rows = sum(one.rows for one in log.read(log.begin(), source=_SOURCE))
        assert rows == shape.changes, f"the log has {rows} changes, not {shape.changes}"
        return stopwatch

    def deliver(self, shape: Shape, target: Connection) -> Stopwatch:
        """The time until the target shows the end of the workload."""
        with self.streaming() as (run, stopwatch):
            wait_for_last(target, shape, self._alive(run))
            stopwatch.stop()
            run.terminate().check()
        return stopwatch

    def _until(self, run: Running, wanted: Callable[[Any], object], what: str, *, pause_seconds: float = 0.02) -> None:
        until(lambda: wanted(self.kadds.try_status()), what, pause_seconds=pause_seconds, alive=self._alive(run))

    def _alive(self, run: Running) -> Callable[[], None]:
        """Raises where Kadds has ended, or a part of it has failed; asked for the latter once a second."""
        asked = time.monotonic()

        def alive() -> None:
            nonlocal asked
            if run.process.poll() is not None:
                raise AssertionError(f"Kadds ended:\n{run.said[-4000:]}")
            if time.monotonic() > asked + 1:
                asked = time.monotonic()
                status = self.kadds.try_status() or {"sources": [], "subscriptions": []}
                if failed := [one for one in (*status["sources"], *status["subscriptions"]) if one["problem"]]:
                    raise AssertionError(f"Kadds has a problem: {failed[0]['name']}: {failed[0]['problem']}")

        return alive


def _rows(status: Any) -> int:
    return _source_of(status).get("rows") or 0


def _source_of(status: Any) -> dict[str, Any]:
    found: dict[str, Any] = status["sources"][0] if status and status["sources"] else {}
    return found


def _url(server: PostgresServer, database: str) -> str:
    return f"postgresql://postgres@/{database}?host={server.folder}&port={server.port}"
