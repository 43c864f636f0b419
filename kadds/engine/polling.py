"""Sources that are polled.

A polling source is asked table by table; each table has a state, a producer and a time of its own, so that a table that
fails or is slow holds up no other. The source's tables share a small pool of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from kadds.api.connector import PollSource
from kadds.api.errors import FencedError
from kadds.api.schema import Table
from kadds.engine.capture import CLOSING_SECONDS, CapturedTable, Intake, SourceRunner
from kadds.engine.retry import Attempts
from kadds.engine.runs import Run
from kadds.engine.spec import SourceSpec
from kadds.engine.states import Problem, State, utc_now
from kadds.engine.workers import Workers

_HELD = (State.RETRYING, State.WAITING, State.NO_SPACE)


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
        clean = self._workers.join(max(0.0, deadline - time.monotonic() - CLOSING_SECONDS))
        self._source.close()
        clean = clean or self._workers.join(max(0.0, deadline - time.monotonic()))
        self._end_run("stopped")
        self._stopped()
        return clean
