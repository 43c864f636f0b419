"""Capture: from sources into the log.

* A polling source (`PollRunner`) is asked table by table; each table has a state, a producer and a time of its own, so
  a table that fails or is slow holds up no other. The source's tables share a small pool of threads.
* A streaming source (`StreamRunner`) has one thread, in which it runs until it is told to stop. A table cannot stop
  alone there unless the source itself can do that.

A source is acknowledged behind the log's fsync because the future of an append is done only then. When the log's disk
is full, the error comes out of the append, the state is `no-space`, and the same rows are read again when there is
room. Nobody decides about retries but `retry`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from kadds.api.connector import PollSource, Producer, StopSignal, StreamSource
from kadds.api.errors import ConfigurationError, FencedError, RefusedError, RetryableError
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds.engine.alarms import Alarms
from kadds.engine.intake import Progress, WatchedProducer
from kadds.engine.meter import Meter
from kadds.engine.retry import Attempts
from kadds.engine.runs import Run
from kadds.engine.spec import SourceSpec
from kadds.engine.states import Problem, State, StateBox, utc_now
from kadds.engine.workers import Workers
from kadds.log.log import Log

_logger = structlog.get_logger(__name__)


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


class _PollStop:
    """Tells a poll to stop: the engine drains, the source is removed, or a person paused it or the table."""

    def __init__(self, draining: threading.Event, others: Callable[[], bool]) -> None:
        self._draining = draining
        self._others = others

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._draining.is_set() or self._others()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the engine's drain; the other reasons are seen by `is_set`."""
        self._draining.wait(timeout)
        return self.is_set()


class PollRunner(SourceRunner):
    """A source that is polled."""

    def __init__(self, spec: SourceSpec, source: PollSource, intake: Intake) -> None:
        super().__init__(spec, intake)
        self._source = source
        # One thread more than may poll at once: looking what tables there are waits for no poll.
        self._workers = Workers(f"kadds-poll-{spec.name}", spec.workers + 1, per_group=spec.workers)
        self._discovering = False
        self._discovered_once = False
        self._discovered_at = 0.0
        self._run: Run | None = None
        self._run_rows = 0

    def start(self) -> None:
        self._discover()

    # ------------------------------------------------------------------------------------------- discovering

    def _discover(self) -> None:
        with self._lock:
            if self._discovering or self._stops() or self.box.at_rest:
                return
            self._discovering = True
        self._workers.submit("discover", self._discover_now)

    def _discover_now(self) -> None:
        try:
            found = self._source.discover(self.spec.wanted)
        except Exception as error:  # noqa: BLE001 - whatever it is, `retry` decides
            self._discovering = False
            if not self._stops():
                self._failed(error)
            return
        self._attempts.succeeded()
        with self._lock:
            self._discovered(found)
            self._discovered_once, self._discovering = True, False
            self._discovered_at = time.monotonic()
        self.box.become(State.IDLE)
        self._poll_what_is_due()
        self._end_run_if_done()
        if self.spec.interval_seconds is not None:
            self._intake.alarms.after(self.spec.rediscover_seconds, self._discover)

    def _failed(self, error: Exception) -> None:
        decided, problem = self._attempts.failed(error, source=self.spec.name)
        self.box.become(decided.state, problem)
        if decided.again_in_seconds is None or self._gives_up(self._attempts):
            self._end_run("failed", {self.spec.name: problem})
        if decided.again_in_seconds is not None:
            self._intake.alarms.after(decided.again_in_seconds, self._discover)

    def _gives_up(self, attempts: Attempts) -> bool:
        return self._run is not None and attempts.seconds >= self.spec.give_up_seconds

    # ------------------------------------------------------------------------------------------- polling

    def _poll_what_is_due(self) -> None:
        with self._lock:
            for table in self.tables.values():
                self._poll_if_due(table)

    def _poll_if_due(self, table: CapturedTable) -> None:
        """Queue a poll whose time has come or that somebody asked for; a failure waits for its time in any case."""
        with self._lock:
            if self._stops() or self.box.at_rest or table.box.at_rest or table.queued:
                return
            time_has_come = table.due_at is not None and table.due_at <= time.monotonic()
            first = table.polls == 0 and table.due_at is None and self.spec.interval_seconds is not None
            asked = table.asked > table.polls and not (table.due_at is not None and table.box.state in _HELD)
            if time_has_come or first or asked:
                table.queued, table.due_at = True, None
                self._workers.submit("poll", partial(self._poll, table))

    def _poll(self, table: CapturedTable) -> None:
        name = table.table.qualified_name
        if self._stops() or self.box.at_rest or table.box.at_rest:
            table.queued = False
            return
        stop = _PollStop(self._intake.stopping, lambda: self._ended.is_set() or self.box.at_rest or table.box.at_rest)
        table.box.become(State.POLLING)
        self._show_polling()
        asked = table.asked
        try:
            if table.producer is None:
                table.producer = self._producer(f"table:{name}")
            polled = self._source.poll(table.table, table.producer, stop)
        except Exception as error:  # noqa: BLE001 - whatever it is, `retry` decides
            self._poll_failed(table, error)
            return
        table.attempts.succeeded()
        table.last_polled_at = utc_now()
        with self._lock:
            table.queued = False
            if polled.more:
                table.due_at = time.monotonic()
            else:
                table.polls = max(table.polls + 1, asked)
                table.due_at = self._next_poll(table)
        table.box.become(State.RUNNING if polled.more else State.IDLE)
        self._show_polling()
        self._end_run_if_done()
        self._poll_if_due(table)

    def _next_poll(self, table: CapturedTable) -> float | None:
        if self.spec.interval_seconds is None:
            return None
        return self._intake.alarms.after(self.spec.interval_seconds, partial(self._poll_if_due, table))

    def _poll_failed(self, table: CapturedTable, error: Exception) -> None:
        if self._stops():  # a source that is closed under a poll fails; that is no failure of the table
            table.queued = False
            return
        if isinstance(error, FencedError):
            table.queued = False
            self._failed(error)
            return
        decided, problem = table.attempts.failed(error, source=self.spec.name, table=table.table.qualified_name)
        with self._lock:
            table.queued = False
            table.box.become(decided.state, problem)
            gives_up = self._gives_up(table.attempts)
            if gives_up and self._run is not None:  # the next run begins anew
                self._run.problems[f"{self.spec.name}/{table.table.qualified_name}"] = problem
                table.polls, table.due_at = max(table.polls, table.asked), None
                table.attempts.succeeded()
            elif decided.again_in_seconds is not None:
                again = partial(self._poll_if_due, table)
                table.due_at = self._intake.alarms.after(decided.again_in_seconds, again)
        if decided.again_in_seconds is None and table.attempts.count == 1:
            self._discover()  # the table may have changed under us; if it has, it is tried as it is now
        self._show_polling()
        self._end_run_if_done()

    def _show_polling(self) -> None:
        """The source shows what most needs to be seen of its tables."""
        with self._lock:
            shown = {table.box.state: table.box for table in self.tables.values()}
        for state in (State.NO_SPACE, State.POLLING, State.RUNNING, State.RETRYING, State.WAITING):
            if state in shown:
                self.box.become(state, shown[state].problem)
                return
        if self._discovered_once:
            self.box.become(State.IDLE)

    # ------------------------------------------------------------------------------------------- asking

    def run_now(self, run: Run) -> None:
        with self._lock:
            joined = self._run is not None
            if not joined:
                self._run = run
                self._run_rows = self._total_rows()
                self._discovered_once = False  # a run begins with what there is now
                self._ask_all()
        if joined:
            self._intake.run_ended(run, "joined")
            return
        self._discover()
        self._end_run_if_done()

    def _discovered(self, found: Sequence[Table]) -> None:
        super()._discovered(found)
        if self._run is not None:
            for table in self.tables.values():
                table.asked = max(table.asked, 1)

    def _ask_all(self) -> None:
        """Each table is polled once from its beginning from now on; a poll under way does not count."""
        for table in self.tables.values():
            table.asked = max(table.asked, table.polls) + 1 + table.queued

    def _total_rows(self) -> int:
        return sum(table.meter.total for table in self.tables.values())

    def _end_run_if_done(self) -> None:
        with self._lock:
            if self._run is None or not self._discovered_once:
                return
            if any(table.asked > table.polls and not table.box.at_rest for table in self.tables.values()):
                return
        self._end_run("done")

    def _end_run(self, outcome: str, problems: dict[str, Problem] | None = None) -> None:
        with self._lock:
            run, self._run = self._run, None
            if run is None:
                return
            run.rows = self._total_rows() - self._run_rows
            for table in self.tables.values():  # what this run did not get to is the next one's
                table.polls = max(table.polls, table.asked)
            run.problems.update({**self.failures(), **(problems or {})})
            outcome = "failed" if run.problems and outcome == "done" else outcome
        self._intake.run_ended(run, outcome)

    def expect(self) -> Callable[[], bool]:
        with self._lock:
            self._ask_all()
            wanted = {name: table.asked for name, table in self.tables.items()}
            known = self._discovered_once
        if known:
            self._poll_what_is_due()

        def reached() -> bool:
            with self._lock:
                if self.box.at_rest:
                    return True
                if not self._discovered_once:
                    return False
                return all(t.box.at_rest or t.polls >= wanted.get(name, 1) for name, t in self.tables.items())

        return reached

    def pause(self, table: str | None = None) -> bool:
        if table is None:
            for one in self.tables.values():
                if not one.box.at_rest:
                    one.box.become(State.IDLE)
            return self.box.command(State.PAUSED)
        found = self.tables.get(table)
        return found is not None and found.box.command(State.PAUSED)

    def resume(self, table: str | None = None) -> bool:
        with self._lock:
            if table is not None and table not in self.tables:
                return False
            chosen = [self.tables[table]] if table is not None else list(self.tables.values())
            for one in chosen:
                if one.box.state is State.FAILED or table is not None:
                    one.attempts.succeeded()
                    one.due_at = time.monotonic()
                    one.box.command(State.STARTING)
            if table is None or self.box.state is State.FAILED:
                self._attempts.succeeded()
                self.box.command(State.STARTING)
        self._discover()
        return True

    def stop(self, deadline: float) -> bool:
        self._ended.set()
        self._workers.stop()
        clean = self._workers.join(max(0.0, deadline - time.monotonic() - _CLOSING_SECONDS))
        self._source.close()
        clean = clean or self._workers.join(max(0.0, deadline - time.monotonic()))
        self._end_run("stopped")
        self._stopped()
        return clean


class _Inlet:
    """What a streaming source is given for one session."""

    def __init__(self, halt: threading.Event, producer: Callable[[str], Producer]) -> None:
        self._halt = halt
        self._producer = producer

    @property
    def stopping(self) -> StopSignal:
        """Set when the source is to return."""
        return self._halt

    def producer(self, name: str) -> Producer:
        """Claim a producer of the log."""
        return self._producer(name)


class StreamRunner(SourceRunner):
    """A source that reads a change log."""

    def __init__(self, spec: SourceSpec, source: StreamSource, intake: Intake) -> None:
        super().__init__(spec, intake)
        self._source = source
        self._halt = threading.Event()  # of the session under way
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"kadds-stream-{spec.name}", daemon=True)
        self._resumed_at: bytes | None = None

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stops():
            self._wake.clear()
            if self.box.at_rest:
                self._wake.wait()
                continue
            try:
                self._session()
                self._attempts.succeeded()
            except Exception as error:  # noqa: BLE001 - whatever it is, `retry` decides
                if self._stops() or self.box.at_rest:
                    continue
                decided, problem = self._attempts.failed(error, source=self.spec.name)
                self.box.become(decided.state, problem)
                if decided.again_in_seconds is not None:
                    self._wake.wait(decided.again_in_seconds)

    def _session(self) -> None:
        self._halt = halt = threading.Event()
        if self._stops() or self.box.at_rest:
            return
        tables = self._source.discover(self.spec.wanted)
        self._discovered(tables)
        for table in self.tables.values():
            table.box.become(State.RUNNING)
        self.box.become(State.RUNNING)
        _logger.info("streaming", source=self.spec.name, tables=len(tables))
        self._source.stream(tables, _Inlet(halt, self._claimed))
        if not halt.is_set():
            raise RetryableError("the source has ended its stream by itself", where=self.spec.name)

    def _claimed(self, name: str) -> Producer:
        producer = self._producer(name)
        resume = producer.resume()
        if resume is not None:
            self._resumed_at = max(resume.sequence, self._resumed_at or b"")
        return producer

    def run_now(self, run: Run) -> None:
        self._intake.run_ended(run, "done")  # it never stops running

    def expect(self) -> Callable[[], bool]:
        head: Position | None = None
        asked_at = 0.0

        def reached() -> bool:
            nonlocal head, asked_at
            if self.box.at_rest:
                return True
            if head is None:
                if time.monotonic() - asked_at < _ASK_HEAD_SECONDS:
                    return False
                asked_at = time.monotonic()
                try:
                    head = self._source.head()
                except RetryableError:
                    return False
            return self._is_at(head)

        return reached

    def _is_at(self, head: Position) -> bool:
        position = self.progress.position
        if position is None:  # nothing new since the start: the sequence of a stream is its commit position
            return self._resumed_at is not None and self._resumed_at >= head.sort_key
        return position.reaches(head)

    def pause(self, table: str | None = None) -> bool:
        if table is not None:
            raise ConfigurationError(
                "a table of a streaming source cannot be paused alone",
                where=f"{self.spec.name}/{table}",
                hint="pause the table in its subscriptions, or the source",
            )
        done = self.box.command(State.PAUSED)
        self._halt.set()
        return done

    def resume(self, table: str | None = None) -> bool:
        if table is not None and table not in self.tables:
            return False
        if self.box.at_rest:
            self._attempts.succeeded()
            self.box.command(State.STARTING)
        self._wake.set()
        return True

    def stop(self, deadline: float) -> bool:
        self._ended.set()
        self._halt.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic() - _CLOSING_SECONDS))
        self._source.close()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stopped()
        return not self._thread.is_alive()


def source_runner(spec: SourceSpec, intake: Intake) -> SourceRunner:
    """The runner for a source: RefusedError for one that neither polls nor streams."""
    if isinstance(spec.source, StreamSource):
        return StreamRunner(spec, spec.source, intake)
    if isinstance(spec.source, PollSource):
        return PollRunner(spec, spec.source, intake)
    raise RefusedError(
        "the engine does not run this kind of source",
        where=spec.name,
        hint="a source polls (`poll`) or streams (`stream`); one that is pushed to takes a producer",
    )


_HELD = (State.RETRYING, State.WAITING, State.NO_SPACE)
_CLOSING_SECONDS = 2.0  # of the deadline, kept for what is cut off by closing the source
_ASK_HEAD_SECONDS = 1.0
