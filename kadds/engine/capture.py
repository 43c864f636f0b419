"""Capture: from sources into the log. What every kind of source has in common; `polling` and `streaming` are the kinds.

A source is acknowledged behind the log's fsync because the future of an append is done only then. When the log's disk
is full, the error comes out of the append, the state is `no-space`, and the same rows are read again when there is
room. Nobody decides about retries but `retry`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kadds.api.connector import Producer
from kadds.api.errors import RefusedError
from kadds.api.schema import Table
from kadds.engine.alarms import Alarms
from kadds.engine.intake import Progress, WatchedProducer
from kadds.engine.meter import Meter
from kadds.engine.retry import Attempts
from kadds.engine.runs import Run
from kadds.engine.spec import SourceSpec
from kadds.engine.states import Problem, State, StateBox
from kadds.log.log import Log

CLOSING_SECONDS = 2.0  # of the deadline of `stop`, kept for what is cut off by closing the source


@dataclass(frozen=True)
class Intake:
    """What every source of an engine uses."""

    log: Log
    alarms: Alarms
    stopping: threading.Event
    changed: Callable[[], None]
    run_ended: Callable[[Run, str], None]


class CapturedTable:
    """One table of a source: what it is, how it does, what it gave."""

    def __init__(self, table: Table, changed: Callable[[], None]) -> None:
        self.table = table
        self.box = StateBox(changed)
        self.attempts = Attempts()
        self.meter = Meter()
        self.producer: Producer | None = None
        self.queued = False  # a poll is under way or waits for a thread
        self.due_at: float | None = None  # monotonic; None: when somebody asks
        self.polls = 0  # complete polls, after which nothing was left
        self.asked = 0  # the poll that must be complete for those who wait: a count of `polls`
        self.in_run = False
        self.last_polled_at: Any = None

    def to_json(self) -> dict[str, Any]:
        """For status."""
        return {
            **self.box.to_json(),
            "key": list(self.table.key),
            "columns": len(self.table.columns),
            "rows": self.meter.total,
            "rows_per_second": self.meter.per_second(),
            "last_polled_at": self.last_polled_at and self.last_polled_at.isoformat(),
        }


class SourceRunner:
    """What both kinds have in common."""

    def __init__(self, spec: SourceSpec, intake: Intake) -> None:
        self.spec = spec
        self._intake = intake
        self._lock = threading.RLock()
        self.box = StateBox(intake.changed)
        self._attempts = Attempts()
        self.progress = Progress(intake.changed)
        self.tables: dict[str, CapturedTable] = {}
        self.paused_tables: frozenset[str] = frozenset()  # as the log remembers them; set before the start
        self._other_rows = Meter()  # of batches of many tables
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to capture."""
        raise NotImplementedError

    def resume(self, table: str | None = None) -> bool:
        """Go on; False for a table it does not have."""
        raise NotImplementedError

    def pause(self, table: str | None = None) -> bool:
        """Stop taking rows, of the source or of one table; False for a table it does not have."""
        raise NotImplementedError

    def run_now(self, run: Run) -> None:
        """Capture what there is now."""
        raise NotImplementedError

    def expect(self) -> Callable[[], bool]:
        """From now: a question that is answered with yes once all that is in the source now is in the log."""
        raise NotImplementedError

    def stop(self, deadline: float) -> bool:
        """Take no more rows and close the source; whether it came to rest in time."""
        raise NotImplementedError

    def _stops(self) -> bool:
        return self._ended.is_set() or self._intake.stopping.is_set()

    def _producer(self, name: str) -> WatchedProducer:
        return WatchedProducer(self._intake.log.producer(self.spec.name, name), self.progress, self._count)

    def _count(self, table: str, rows: int) -> None:
        known = self.tables.get(table)
        (known.meter if known is not None else self._other_rows).add(rows)

    def _discovered(self, found: Sequence[Table]) -> None:
        """Take over what the source has now; a table that failed as it was is tried again where it has changed."""
        with self._lock:
            for table in found:
                known = self.tables.get(table.qualified_name)
                if known is None:
                    new = self.tables[table.qualified_name] = CapturedTable(table, self._intake.changed)
                    if table.qualified_name in self.paused_tables:
                        new.box.command(State.PAUSED)
                elif known.table != table:
                    known.table = table
                    if known.box.state is State.FAILED:
                        known.attempts.succeeded()
                        known.box.command(State.STARTING)
            for name in sorted(self.spec.named - self.tables.keys()):
                self._missing(name)

    def _missing(self, name: str) -> None:
        """Show a table that was asked for by its name and is not there; it begins as soon as it is discovered."""
        table = self.tables[name] = CapturedTable(Table(None, name, ()), self._intake.changed)
        error = RefusedError(
            "there is no such table, or this user may not see it",
            where=name,
            hint="check the name and the user's privileges",
        )
        decided, problem = table.attempts.failed(error, source=self.spec.name, table=name)
        table.box.become(decided.state, problem)

    def failures(self) -> dict[str, Problem]:
        """What has failed, by the name of the source or of its table."""
        return {name: box.problem for name, box in self.boxes().items() if box.state is State.FAILED and box.problem}

    def boxes(self) -> dict[str, StateBox]:
        """The states of the source (by its name) and of its tables (`source/schema.table`)."""
        with self._lock:
            boxes = {f"{self.spec.name}/{name}": table.box for name, table in self.tables.items()}
        return {self.spec.name: self.box, **boxes}

    def to_json(self) -> dict[str, Any]:
        """For status."""
        with self._lock:
            tables = {name: table.to_json() for name, table in sorted(self.tables.items())}
        position = self.progress.position
        return {
            **self.box.to_json(),
            "capture": str(self.spec.abilities.capture),
            "interval_seconds": self.spec.interval_seconds,
            "position": position and position.token,
            "rows": self._other_rows.total + sum(table["rows"] for table in tables.values()),
            "rows_per_second": round(
                self._other_rows.per_second() + sum(table["rows_per_second"] for table in tables.values()), 1
            ),
            "failed_tables": [name for name, table in tables.items() if table["state"] == "failed"],
            "tables": tables,
        }

    def _stopped(self) -> None:
        for box in self.boxes().values():
            if not box.at_rest:
                box.become(State.STOPPED)
