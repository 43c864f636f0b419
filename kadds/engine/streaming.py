"""Sources that read a change log.

A streaming source has one thread, in which it runs in **sessions**: discover, check, stream until it is told to stop.
Beside it another thread looks every `rediscover_seconds` what tables there are; where they are no longer those of the
session, the session is ended and the next one begins with them. A look that fails is told once and ends nothing.

A table of which `check` says that it cannot be captured fails by name and is left out of the stream; it is tried again
when it has changed, and when a person resumes it. What `check` refuses of the source as a whole fails the source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from kadds.api.connector import Finding, Level, Producer, StopSignal, StreamSource
from kadds.api.errors import ConfigurationError, KaddsError, RefusedError, RetryableError
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds.engine.capture import CLOSING_SECONDS, Intake, SourceRunner
from kadds.engine.runs import Run
from kadds.engine.spec import SourceSpec
from kadds.engine.states import State

_ASK_HEAD_SECONDS = 1.0

_logger = structlog.get_logger(__name__)


class _Session:
    """One run of `stream`: which tables it has, and what ends it. It is the `Inlet` of the source."""

    def __init__(self, producer: Callable[[str], Producer]) -> None:
        self.halt = threading.Event()
        self.tables: tuple[Table, ...] | None = None  # None until it streams
        self._producer = producer

    @property
    def stopping(self) -> StopSignal:
        """Set when the source is to return."""
        return self.halt

    def producer(self, name: str) -> Producer:
        """Claim a producer of the log."""
        return self._producer(name)


class StreamRunner(SourceRunner):
    """A source that reads a change log."""

    def __init__(self, spec: SourceSpec, source: StreamSource, intake: Intake) -> None:
        super().__init__(spec, intake)
        self._source = source
        self._session = _Session(self._producer)
        self._wake = threading.Event()
        self._look_failed: str | None = None  # what was told last
        self._warned: set[Finding] = set()
        self._threads = [
            threading.Thread(target=target, name=f"kadds-{what}-{spec.name}", daemon=True)
            for what, target in (("stream", self._run), ("look", self._look))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------------------------------- sessions

    def _run(self) -> None:
        while not self._stops():
            self._wake.clear()
            if self.box.at_rest:
                self._wake.wait()
                continue
            before = self.progress.position
            try:
                self._stream()
                self._attempts.succeeded()
            except Exception as error:  # noqa: BLE001 - whatever it is, `retry` decides
                if self._stops() or self.box.at_rest:
                    continue
                if self.progress.position != before:  # it went on in between: this is no failure in a row
                    self._attempts.succeeded()
                decided, problem = self._attempts.failed(error, source=self.spec.name)
                self.box.become(decided.state, problem)
                if decided.again_in_seconds is not None:
                    self._wake.wait(decided.again_in_seconds)

    def _stream(self) -> None:
        """One session."""
        self._session = session = _Session(self._producer)
        if self._stops() or self.box.at_rest:
            return
        found = self._source.discover(self.spec.wanted)
        findings = list(self._source.check(found))
        _refuse(findings, found)
        with self._lock:
            self._discovered(found)
            self._fail(findings)
            streamed = tuple(table for table in found if not self.tables[table.qualified_name].box.at_rest)
            for table in streamed:
                self.tables[table.qualified_name].box.become(State.RUNNING)
        self._warn(findings)
        self.box.become(State.RUNNING)
        session.tables = streamed
        _logger.info("streaming", source=self.spec.name, tables=len(streamed))
        self._source.stream(streamed, session)
        if not session.halt.is_set():
            raise RetryableError("the source has ended its stream by itself", where=self.spec.name)

    def _discovered(self, found: Sequence[Table]) -> None:
        """As for every source; a table that is gone is forgotten, for nothing asks for it alone."""
        there = {table.qualified_name for table in found}
        for name in [name for name, known in self.tables.items() if name not in there and known.table.columns]:
            del self.tables[name]
        super()._discovered(found)

    def _fail(self, findings: Iterable[Finding]) -> None:
        """Show the tables that are left out; one that has failed already stays as it is."""
        for where, some in _by_table(findings, self.tables).items():
            known = self.tables[where]
            if not known.box.at_rest:
                error = RefusedError(
                    "; ".join(one.message for one in some),
                    where=where,
                    hint=next((o.hint for o in some if o.hint), None),
                )
                decided, problem = known.attempts.failed(error, source=self.spec.name, table=where)
                known.box.become(decided.state, problem)

    def _warn(self, findings: Iterable[Finding]) -> None:
        for one in findings:
            if one.level is Level.WARNING and one not in self._warned:
                self._warned.add(one)
                _logger.warning("finding", source=self.spec.name, where=one.where, message=one.message, hint=one.hint)

    # ------------------------------------------------------------------------------------------- looking

    def _look(self) -> None:
        """Look, again and again, whether the tables are still those of the session."""
        while not self._ended.wait(self.spec.rediscover_seconds):
            session = self._session
            if session.tables is None or session.halt.is_set() or self._stops():
                continue
            try:
                found = self._source.discover(self.spec.wanted)
                findings = list(self._source.check(found))
                _refuse(findings, found)
            except Exception as error:  # noqa: BLE001 - the stream goes on; if it cannot, it says so itself
                if not (session.halt.is_set() or self._stops()):
                    self._tell(error)
                continue
            self._look_failed = None
            if self._streamable(found, findings) != session.tables:
                _logger.info("tables_changed", source=self.spec.name)
                session.halt.set()

    def _tell(self, error: Exception) -> None:
        if str(error) != self._look_failed:
            self._look_failed = str(error)
            defect = None if isinstance(error, KaddsError) else error
            _logger.warning("tables_not_looked_for", source=self.spec.name, message=str(error), exc_info=defect)

    def _streamable(self, found: Sequence[Table], findings: Iterable[Finding]) -> tuple[Table, ...]:
        """What the next session would have."""
        with self._lock:
            failed = {name: known.table for name, known in self.tables.items() if known.box.at_rest}
        out = _by_table(findings, {table.qualified_name for table in found})
        return tuple(
            table for table in found if table.qualified_name not in out and failed.get(table.qualified_name) != table
        )

    # ------------------------------------------------------------------------------------------- asking

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
            position = self.progress.position
            return position is not None and position.reaches(head)

        return reached

    def pause(self, table: str | None = None) -> bool:
        if table is not None:
            raise ConfigurationError(
                "a table of a streaming source cannot be paused alone",
                where=f"{self.spec.name}/{table}",
                hint="pause the table in its subscriptions, or the source",
            )
        done = self.box.command(State.PAUSED)
        self._session.halt.set()
        return done

    def resume(self, table: str | None = None) -> bool:
        with self._lock:
            if table is not None and table not in self.tables:
                return False
            chosen = [self.tables[table]] if table is not None else list(self.tables.values())
            failed = [known for known in chosen if known.box.state is State.FAILED]
            for known in failed:
                known.attempts.succeeded()
                known.box.command(State.STARTING)
        if failed:
            self._session.halt.set()  # the next one has them
        if self.box.at_rest:
            self._attempts.succeeded()
            self.box.command(State.STARTING)
        self._wake.set()
        return True

    def stop(self, deadline: float) -> bool:
        self._ended.set()
        self._session.halt.set()
        self._wake.set()
        self._join(deadline - CLOSING_SECONDS)
        self._source.close()
        self._join(deadline)
        self._stopped()
        return not any(thread.is_alive() for thread in self._threads)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


def _by_table(findings: Iterable[Finding], names: Iterable[str]) -> dict[str, list[Finding]]:
    """The errors that are a table's own, by its qualified name."""
    known, found = set(names), dict[str, list[Finding]]()
    for one in findings:
        if one.level is Level.ERROR and one.where in known:
            found.setdefault(one.where, []).append(one)
    return found


def _refuse(findings: Iterable[Finding], tables: Iterable[Table]) -> None:
    """RefusedError where something other than a table is wrong."""
    names = {table.qualified_name for table in tables}
    own = [one for one in findings if one.level is Level.ERROR and one.where not in names]
    if own:
        raise _refusal(own)


def _refusal(findings: Sequence[Finding]) -> RefusedError:
    hint = next((one.hint for one in findings if one.hint), None)
    return RefusedError("; ".join(one.message for one in findings), where=findings[0].where, hint=hint)
