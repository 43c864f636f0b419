"""The polling source: one poll of one table is one read transaction and one transaction in the log.

The invariant: rows and the watermark that covers them enter the log together or not at all. Whatever fails in between
leaves the producer's resume state as it was, so the next poll reads the same rows again.

A run that finds nothing appends nothing, so that an idle table costs the log nothing; only the first run of an empty
table appends a `progress` record, which says that the table was read.
"""

from __future__ import annotations

import datetime as dt
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from kadds.api.change import ChangeBatch, Control, ControlKind, Op
from kadds.api.connector import Finding, Level, OpenTransaction, Polled, Producer, StopSignal
from kadds.api.errors import KaddsError, RefusedError, RetryableError
from kadds.api.schema import Table, TableSet
from kadds_polling.dialects import dialect_of, url_with_driver
from kadds_polling.dialects.interface import quoted, selectable
from kadds_polling.failures import translate, unusable_url
from kadds_polling.plan import (
    Plan,
    captured_table,
    change_table_place,
    make_plan,
    problems,
    refuse_other_shape,
)
from kadds_polling.settings import PollingSettings, PollingTableSettings
from kadds_polling.types import Cells, as_text_column, decode
from kadds_polling.watermark import Axis, State, Window, describe

_FIRST_FETCH_ROWS = 256  # before anything is known of a row's size
_LOOK_AGAIN_SECONDS = 0.5  # a StopSignal cannot wake who waits for a connection


class _Stopped(Exception):  # noqa: N818 - it is no error, and never leaves this module
    """Asked to stop while waiting for a connection."""


class PollingSource:
    """Tables of one database; `poll` may run in several threads, `close` in another."""

    def __init__(self, settings: PollingSettings, settings_of: Callable[[str], PollingTableSettings]) -> None:
        self._settings = settings
        self._settings_of = settings_of
        self._changed = threading.Condition()
        self._places = settings.max_connections
        self._active: set[Any] = set()
        self._closed = False
        try:
            self._url = url_with_driver(sa.make_url(settings.url.reveal()))
            self._dialect = dialect_of(self._url)
            self._engine = sa.create_engine(
                self._url,
                connect_args=dict(self._dialect.connect_arguments(settings.connect_timeout_seconds)),
                poolclass=sa.pool.QueuePool,
                pool_size=settings.max_connections,
                max_overflow=0,
                pool_pre_ping=True,
            )
        except (sa.exc.ArgumentError, ModuleNotFoundError, ValueError) as error:
            raise unusable_url(error, settings.url) from None
        sa.event.listen(self._engine, "connect", lambda connection, _: self._dialect.prepare(connection))
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    # ------------------------------------------------------------------------------------------ catalog

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        """The wanted tables; with a change table configured, with the columns that it has."""
        with self._reading(None) as connection:
            every = {table.qualified_name: table for table in self._dialect.tables(connection)}
            chosen = [table for name, table in every.items() if wanted(name)]
            found = []
            for table in chosen:
                settings = self._settings_of(table.qualified_name)
                found.append(captured_table(table, settings, self._relation(connection, table, settings, every)))
        return found

    def _relation(
        self,
        connection: sa.Connection,
        base: Table,
        settings: PollingTableSettings,
        known: dict[str, Table] | None = None,
    ) -> Table | None:
        """The table that is read for `base`; None if there is none."""
        if settings.change_table is None:
            return base
        schema, name = change_table_place(base, settings.change_table)
        found = (known or {}).get(f"{schema}.{name}" if schema else name)
        return found or self._dialect.table(connection, schema, name)

    def _plan(self, connection: sa.Connection, table: Table, settings: PollingTableSettings) -> Plan:
        """How `table` is read; refuses it where the database no longer has it as it was discovered."""
        base = self._dialect.table(connection, table.schema, table.name)
        if base is None:
            raise RefusedError(
                "there is no such table, or this user may not see it",
                where=table.qualified_name,
                hint="check the name and the user's privileges",
            )
        relation = self._relation(connection, base, settings)
        plan = make_plan(base, settings, relation, text_times=self._dialect.text_times)
        refuse_other_shape(plan.table, table)
        return plan

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        """What would be lost, slow or refused."""
        found: list[Finding] = []
        with self._reading(None) as connection:
            for table in tables:
                found += self._check(connection, table)
        return found

    def _check(self, connection: sa.Connection, table: Table) -> Iterator[Finding]:
        where, settings = table.qualified_name, self._settings_of(table.qualified_name)
        base = self._dialect.table(connection, table.schema, table.name)
        relation = None if base is None else self._relation(connection, base, settings)
        if base is None:
            settings = settings.model_copy(update={"change_table": None})
        errors = [*problems(base or table, settings, relation, text_times=self._dialect.text_times)]
        yield from errors
        if errors or base is None or relation is None:
            return
        plan = make_plan(base, settings, relation, text_times=self._dialect.text_times)
        if refusal := self._refusal(connection, plan):
            yield refusal
            return
        yield from _notes(plan, settings, base)
        indexed = self._dialect.indexed(connection, relation)
        for axis in plan.axes:
            if axis.name not in indexed:
                yield Finding(
                    Level.WARNING,
                    where,
                    f"{relation.qualified_name} has no index that begins with {axis.name}: each poll reads all of it",
                    f"make an index on {axis.name}",
                )
        if not self._dialect.tried:
            yield Finding(
                Level.NOTE,
                where,
                f"values of {self._engine.dialect.name} are taken as its driver gives them, which has not been tried",
                "compare some rows of each type before relying on it",
            )

    def _refusal(self, connection: sa.Connection, plan: Plan) -> Finding | None:
        """Whether reading is refused; inside a savepoint, so that the next table can still be asked."""
        nothing = self._select(plan).where(sa.false())
        try:
            with connection.begin_nested():
                connection.execute(nothing).close()
        except sa.exc.DBAPIError as error:
            failure = self._translated(error, plan.table.qualified_name)
            if isinstance(failure, RetryableError):
                raise failure from error
            return Finding(Level.ERROR, plan.table.qualified_name, failure.message, failure.hint)
        return None

    # ------------------------------------------------------------------------------------------ polling

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        """Append what is new as one transaction. Asked to stop on the way, it leaves no trace and says `more`."""
        where, settings = table.qualified_name, self._settings_of(table.qualified_name)
        run: _Run | None = None
        try:
            with self._reading(where, stopping) as connection:
                plan = self._plan(connection, table, settings)
                state = State.read(producer.resume(), plan.axes, plan.relation.incarnation, where)
                window, raw_uppers = self._window(connection, plan, state, settings)
                run = _Run(plan, window, producer)
                with self._result(connection, self._statement(plan, window, raw_uppers)) as result:
                    for rows in self._pieces(result, run):
                        if stopping.is_set() or self._closed:
                            run.abort()
                            return Polled(0, more=True)
                        run.add(self._decode(plan, rows))
        except _Stopped:
            return Polled(0, more=True)
        except BaseException:
            if run is not None:
                run.abort()
            raise
        return run.commit()  # the connection is given back: no read transaction waits for the log's disk

    def _window(
        self, connection: sa.Connection, plan: Plan, state: State, settings: PollingTableSettings
    ) -> tuple[Window, dict[str, Any]]:
        """Where this run begins and ends. One query an axis: two in one would keep some products from their index."""
        raws: dict[str, Any] = {}
        uppers: dict[str, int | None] = {}
        source = selectable(plan.relation)
        for axis in plan.axes:
            highest = self._dialect.read(sa.func.max(source.c[axis.name]), axis.column)
            raw = connection.execute(sa.select(highest)).scalar_one()
            raws[axis.name] = raw
            values = [] if raw is None else self._measure(axis, [raw], plan).to_pylist()
            uppers[axis.name] = int(values[0]) if values else None
        window = Window(
            plan.axes, state, uppers, most_rows=settings.max_overlap_rows, latest_wins=plan.change is not None
        )
        return window, raws

    def _measure(self, axis: Axis, values: Sequence[Any], plan: Plan) -> pa.Array:
        cells = decode(self._dialect.values(axis.column, values), axis.column.type)
        return axis.measure(cells, plan.table.qualified_name)

    def _select(self, plan: Plan) -> sa.Select[Any]:
        source = selectable(plan.relation)
        return sa.select(*(self._dialect.read(source.c[c.name], c) for c in plan.columns)).select_from(source)

    def _statement(self, plan: Plan, window: Window, raw_uppers: dict[str, Any]) -> sa.Select[Any]:
        """The rows of this run in the order of their watermark; those without one as well, which are then refused."""
        limits = [sa.true(), *(self._below_upper(axis, window, raw_uppers[axis.name]) for axis in plan.axes)]
        wanted = reduce(sa.and_, limits)
        if not window.first:
            wanted = sa.and_(wanted, reduce(sa.or_, (self._above_lower(axis, window) for axis in plan.axes)))
        for axis in plan.axes:
            if axis.column.nullable and not axis.optional:
                wanted = sa.or_(wanted, sa.column(quoted(axis.name)).is_(None))
        # The key behind it makes ties come in one order each time; products keep it in the index anyway.
        names = dict.fromkeys([plan.axes[0].name, *plan.table.key])
        return self._select(plan).where(wanted).order_by(*(sa.column(quoted(name)) for name in names))

    def _below_upper(self, axis: Axis, window: Window, raw: Any) -> sa.ColumnElement[bool]:
        column: sa.ColumnClause[Any] = sa.column(quoted(axis.name))
        if raw is None:
            return column.is_(None)  # the column holds nothing else in this view of the table
        if not axis.time:
            return column <= _number(window.uppers[axis.name])
        within = column <= self._dialect.upper(axis.column, window.uppers[axis.name] or 0, raw)
        return sa.or_(within, column.is_(None)) if axis.optional else within

    def _above_lower(self, axis: Axis, window: Window) -> sa.ColumnElement[bool]:
        column: sa.ColumnClause[Any] = sa.column(quoted(axis.name))
        lower = window.lowers[axis.name]
        if lower is None:
            return column.is_not(None)
        return column >= (self._dialect.bound(axis.column, lower) if axis.time else _number(lower))

    @contextmanager
    def _result(self, connection: sa.Connection, statement: sa.Select[Any]) -> Iterator[sa.CursorResult[Any]]:
        """The rows, which stay with the server; what is left unread goes away with the connection."""
        result = connection.execution_options(stream_results=True).execute(statement)
        try:
            yield result
        finally:
            if result.cursor is not None:  # most drivers would read a result to its end before they close it
                self._dialect.abandon(result.cursor)
                connection.invalidate()

    def _pieces(self, result: sa.CursorResult[Any], run: _Run) -> Iterator[Sequence[Any]]:
        """Rows in pieces whose size follows the size of the rows before."""
        rows = min(_FIRST_FETCH_ROWS, self._settings.fetch_rows)
        while piece := result.fetchmany(rows):
            yield piece
            rows = run.next_fetch_rows(self._settings.fetch_rows, self._settings.fetch_bytes)

    def _decode(self, plan: Plan, rows: Sequence[Any]) -> list[Cells]:
        pairs = zip(plan.columns, zip(*rows, strict=True), strict=True)
        return [decode(self._dialect.values(column, values), column.type) for column, values in pairs]

    # ------------------------------------------------------------------------------------------ connections

    @contextmanager
    def _reading(self, where: str | None, stopping: StopSignal | None = None) -> Iterator[sa.Connection]:
        """A connection in one read transaction; what the driver raises becomes one of our errors."""
        connecting = True
        try:
            with self._place(where, stopping), self._connected() as plain:
                connection = self._dialect.snapshot(plain)
                held = plain.connection.dbapi_connection
                with self._changed:
                    self._active.add(held)
                connecting = False
                try:
                    self._refuse_closed(where)
                    yield connection
                finally:
                    with self._changed:
                        self._active.discard(held)
                    if self._closed:
                        plain.invalidate()  # its pool is gone, so nobody else would close it
        except sa.exc.SQLAlchemyError as error:
            raise self._translated(error, where, connecting) from error

    def _connected(self) -> sa.Connection:
        self._dialect.check_place(self._url)
        return self._engine.connect()

    @contextmanager
    def _place(self, where: str | None, stopping: StopSignal | None) -> Iterator[None]:
        """One of `max_connections`; a long first run of other tables is waited for, however long it takes."""
        with self._changed:
            self._refuse_closed(where)
            while not self._places:
                self._changed.wait(_LOOK_AGAIN_SECONDS)
                self._refuse_closed(where)
                if stopping is not None and stopping.is_set():
                    raise _Stopped
            self._places -= 1
        try:
            yield
        finally:
            with self._changed:
                self._places += 1
                self._changed.notify()

    def _refuse_closed(self, where: str | None) -> None:
        if self._closed:
            raise RetryableError("the source has been closed", where=where)

    def _translated(self, error: sa.exc.SQLAlchemyError, where: str | None, connecting: bool = False) -> KaddsError:
        if self._closed:
            return RetryableError("the source has been closed", where=where)
        return translate(error, self._dialect, self._settings.url, where=where, connecting=connecting)

    def close(self) -> None:
        """Cancel what is under way and close every connection."""
        with self._changed:
            self._closed = True
            active = list(self._active)
            self._changed.notify_all()
        for connection in active:
            self._dialect.cancel(connection, self._url)
        self._engine.dispose()


def _number(value: int | None) -> sa.ColumnElement[Any]:
    """A number of any size; SQLAlchemy would take what it does not know for a 32-bit integer."""
    fits = value is not None and -(2**63) <= value < 2**63
    return sa.literal(value, sa.BigInteger() if fits else sa.Numeric(38, 0))


def _notes(plan: Plan, settings: PollingTableSettings, base: Table) -> Iterator[Finding]:
    """What this way of polling cannot see."""
    where = base.qualified_name
    for axis in plan.axes:
        if axis.column.nullable and not axis.optional:
            yield Finding(
                Level.WARNING, where, f"column {axis.name} may be NULL; such a row stops the table", "make it NOT NULL"
            )
    if not plan.table.key:
        yield Finding(Level.NOTE, where, "the table has no key, so it can be appended but not merged", "set `key`")
    missing = [c.name for c in base.columns if c.name not in {mine.name for mine in plan.table.columns}]
    if missing:
        yield Finding(
            Level.WARNING,
            where,
            f"{plan.relation.qualified_name} has no columns {', '.join(missing)}, which therefore are not captured",
            "add them to the change table",
        )
    late = [
        f"{settings.overlap_seconds:g} s before the latest {axis.name}"
        if axis.time
        else f"{settings.overlap} numbers below the highest {axis.name}"
        for axis in plan.axes
    ]
    unseen = f"what commits later than {' and '.join(late)}"
    if plan.change is None:
        unseen = f"{'deletes' if settings.timestamp is not None else 'updates and deletes'}, nor {unseen}"
    yield Finding(
        Level.NOTE,
        where,
        f"polling cannot see {unseen}",
        "use a change table for deletes, and an overlap longer than the longest transaction",
    )


@dataclass
class _Run:
    """The transaction of one poll; it opens with the first row that is new."""

    plan: Plan
    window: Window
    producer: Producer
    rows: int = 0
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    _open: OpenTransaction | None = None
    _piece_rows: int = 0
    _piece_bytes: int = 0

    def __post_init__(self) -> None:
        self._tables = TableSet.of(self.plan.table)

    def add(self, cells: Sequence[Cells]) -> None:
        """Add the rows of one piece (a column each of `plan.columns`) that the log has not."""
        plan, table = self.plan, self.plan.table
        width = len(table.columns)
        names = [column.name for column in plan.columns]
        arrays = [cell.values for cell in cells]
        self._piece_rows = len(arrays[0])
        self._piece_bytes = sum(array.nbytes for array in arrays)
        as_text = as_text_column(len(arrays[0]), {n: cell.texts for n, cell in enumerate(cells[:width])})
        measured = [axis.measure(cells[names.index(axis.name)], table.qualified_name) for axis in plan.axes]
        keep = self.window.sift(measured, arrays, [arrays[n] for n in table.key_indexes], as_text, table.qualified_name)
        if not keep.any():
            return
        codes = None if plan.change is None else arrays[names.index(plan.change.op)]
        new = plan.axes[0].above(measured[0], self.window.state.marks.get(plan.axes[0].name))
        ops = plan.ops(codes, new)
        values = pa.RecordBatch.from_arrays(arrays[:width], schema=table.arrow_schema)
        self._append(keep, values, ops, as_text)

    def _append(
        self, keep: np.ndarray[Any, Any], values: pa.RecordBatch, ops: pa.Array, as_text: pa.Array | None
    ) -> None:
        if not keep.all():
            mask = pa.array(keep)
            values, ops, as_text = values.filter(mask), ops.filter(mask), as_text and as_text.filter(mask)
        deleted = ops.to_numpy() == Op.DELETE
        batch = ChangeBatch(
            self._tables,
            pa.array(np.arange(len(ops), dtype=np.uint32)),
            ops,
            values,
            before=pa.array(deleted) if deleted.any() else None,
            as_text=as_text if as_text is not None and as_text.null_count < len(as_text) else None,
        )
        self._transaction().add([batch])
        self.rows += len(batch)

    def _transaction(self) -> OpenTransaction:
        if self._open is None:
            self._open = self.producer.begin(f"run-{self.window.after().run}")
        return self._open

    def next_fetch_rows(self, most_rows: int, most_bytes: int) -> int:
        """How many rows to fetch next, by the size of those before; at most four times as many at once."""
        fitting = most_bytes * self._piece_rows // max(self._piece_bytes, 1)
        return max(1, min(most_rows, fitting, 4 * self._piece_rows))

    def commit(self) -> Polled:
        """End the transaction with the new watermark, if there is anything to say; returns when it is on disk."""
        after = self.window.after()
        if self._open is None and not self.window.moved and self.window.state.run:
            return Polled(0)
        marks = ", ".join(describe(axis, after.marks[axis.name]) for axis in self.plan.axes)
        try:
            opened = self._transaction()
            if not self.rows:
                opened.add([], [Control(ControlKind.PROGRESS, 0, self.plan.table, {"watermark": marks})])
            future = opened.commit(
                struct.pack(">Q", after.run),
                after.to_bytes(self.plan.axes, self.plan.relation.incarnation),
                lineage=f"poll {self.plan.table.qualified_name}",
                token=marks,
                committed_at=self.started_at,
            )
        except BaseException:
            self.abort()
            raise
        future.result()
        return Polled(self.rows)

    def abort(self) -> None:
        """Forget what was added. A failure of that says nothing new: without a commit nothing can be seen."""
        opened, self._open = self._open, None
        if opened is not None:
            try:
                opened.abort()
            except KaddsError:
                return
