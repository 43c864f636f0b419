"""A system in memory with two sources over it, one that streams and one that polls: the suite proves itself on them.

`FakeDatabase` is the system: commits in order, tables, exact values, and how far it was told that it has been read.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kadds.api.change import (
    NOT_GIVEN_TYPE,
    ChangeBatch,
    Control,
    ControlKind,
    Op,
    Transactions,
    not_given_bitmap,
)
from kadds.api.connector import (
    Appended,
    Capture,
    Connector,
    Event,
    Finding,
    Inlet,
    Polled,
    Producer,
    Source,
    SourceAbilities,
    SourceSide,
    StopSignal,
)
from kadds.api.errors import RetryableError
from kadds.api.position import Position
from kadds.api.schema import Column, Table, TableSet
from kadds.api.settings import Settings

LINEAGE = "fake"
_LOOK_AGAIN_SECONDS = 0.05  # a StopSignal cannot wake the wait for a commit
Cells = dict[str, Any]
_Image = tuple[int, Op, bool, Cells]  # ordinal, op, whether it is the image before, cells


@dataclass(frozen=True)
class FakeChange:
    """One change of one table: `before` and `after` as far as there are any."""

    table: str
    op: Op
    before: Cells | None = None
    after: Cells | None = None


@dataclass
class FakeDatabase:
    """What the fake sources read; thread-safe."""

    tables: dict[str, Table] = field(default_factory=dict)
    commits: list[tuple[FakeChange, ...]] = field(default_factory=list)
    rows: dict[str, dict[Any, Cells]] = field(default_factory=dict)
    acknowledged: int = 0
    reachable: bool = True
    changed: threading.Condition = field(default_factory=threading.Condition)

    def create(self, name: str, columns: Sequence[Column], key: Sequence[str] = ("id",)) -> str:
        """Make a table; its qualified name."""
        table = Table("public", name, tuple(columns), tuple(key))
        with self.changed:
            self.tables[table.qualified_name] = table
            self.rows[table.qualified_name] = {}
        return table.qualified_name

    def commit(self, *changes: FakeChange) -> None:
        """Commit changes as one transaction; before images are filled in from what the tables hold."""
        with self.changed:
            self.commits.append(tuple(self._apply(change) for change in changes))
            self.changed.notify_all()

    def _apply(self, change: FakeChange) -> FakeChange:
        rows, table = self.rows[change.table], self.tables[change.table]
        if change.op is Op.TRUNCATE:
            rows.clear()
            return change
        before = change.before and rows.pop(change.before[table.key[0]])
        if change.after is not None:
            rows[change.after[table.key[0]]] = change.after
        return FakeChange(change.table, change.op, before, change.after)


def _batches(changes: Iterable[FakeChange], tables: dict[str, Table]) -> list[ChangeBatch]:
    """One batch a table; ordinals in the order of the changes, the image before ahead of the one after."""
    images: dict[str, list[_Image]] = {}
    ordinal = 0
    for change in changes:
        cells = [(change.before, True), (change.after, False)] if change.op is not Op.TRUNCATE else [({}, False)]
        for row, before in cells:
            if row is not None:
                images.setdefault(change.table, []).append((ordinal, change.op, before, row))
                ordinal += 1
    return [_batch(tables[name], rows) for name, rows in images.items()]


def _batch(table: Table, images: Sequence[_Image]) -> ChangeBatch:
    ordinals, ops, before, rows = zip(*images, strict=True)
    names = [column.name for column in table.columns]
    absent = [[number for number, name in enumerate(names) if name not in row] for row in rows]
    bitmaps = [not_given_bitmap(numbers, len(names)) if numbers else None for numbers in absent]
    return ChangeBatch(
        TableSet.of(table),
        pa.array(ordinals, pa.uint32()),
        pa.array(map(int, ops), pa.uint8()),
        pa.RecordBatch.from_pylist(list(rows), schema=table.arrow_schema),
        before=pa.array(before) if any(before) else None,
        not_given=pa.array(bitmaps, NOT_GIVEN_TYPE) if any(absent) else None,
    )


class _FakeSource:
    """What both have in common."""

    def __init__(self, database: FakeDatabase) -> None:
        self._database = database
        self._closed = False

    @contextmanager
    def _reading(self) -> Iterator[FakeDatabase]:
        with self._database.changed:
            if self._closed or not self._database.reachable:
                raise RetryableError("the fake database does not answer", where=LINEAGE)
            yield self._database

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        """The wanted tables."""
        with self._reading() as database:
            return [table for name, table in database.tables.items() if wanted(name)]

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        """Nothing is ever wrong here."""
        with self._reading():
            return []

    def close(self) -> None:
        """End what is under way."""
        with self._database.changed:
            self._closed = True
            self._database.changed.notify_all()


class FakeStreamSource(_FakeSource):
    """Reads the commits in order: transaction n has sequence n, and n is acknowledged once its append is on disk.

    Whoever asks for the head gets a `progress` record, under the sequence of the last transaction.
    """

    def __init__(self, database: FakeDatabase) -> None:
        super().__init__(database)
        self._asked = threading.Event()

    def head(self) -> Position:
        """Behind the last commit."""
        with self._reading() as database:
            self._asked.set()
            database.changed.notify_all()
            return _position(len(database.commits))

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        """Capture until asked to stop."""
        producer = inlet.producer("stream")
        resume = producer.resume()
        number = 0 if resume is None else _number(resume.sequence)
        self._asked.set()  # whoever asked a session that broke off is answered by this one
        wanted = {table.qualified_name: table for table in tables}
        waiting: deque[tuple[int, Future[Appended]]] = deque()
        while not inlet.stopping.is_set():
            self._acknowledge(waiting)
            asked = self._asked.is_set()
            for changes in self._after(number):
                number += 1
                kept = [change for change in changes if change.table in wanted]
                transaction = Transactions.one(
                    _sequence(number), _batches(kept, wanted), lineage=LINEAGE, token=str(number), xid=str(number)
                )
                waiting.append((number, producer.append(transaction, b"")))
            if asked:
                self._asked.clear()
                waiting.append((number, producer.append(_progress(number), b"")))
        for _, future in waiting:
            future.result()
        self._acknowledge(waiting)

    def _after(self, number: int) -> list[tuple[FakeChange, ...]]:
        """The commits behind `number`, waiting a moment for one."""
        with self._reading() as database:
            database.changed.wait_for(
                lambda: len(database.commits) > number or self._closed or self._asked.is_set(), _LOOK_AGAIN_SECONDS
            )
            return database.commits[number:]

    def _acknowledge(self, waiting: deque[tuple[int, Future[Appended]]]) -> None:
        while waiting and waiting[0][1].done():
            number, future = waiting.popleft()
            future.result()
            with self._database.changed:
                self._database.acknowledged = number
                self._database.changed.notify_all()


class FakePollSource(_FakeSource):
    """Asks what was committed since its last run: run n is one transaction of all that is new, whatever its size."""

    piece_rows = 100

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        """Append the commits behind the last run's as one transaction, in pieces."""
        resume = producer.resume()
        run, seen = (0, 0) if resume is None else (_number(resume.sequence), _number(resume.state))
        with self._reading() as database:
            commits = database.commits[seen:]
        changes = [change for commit in commits for change in commit if change.table == table.qualified_name]
        if not changes and resume is not None:
            return Polled(0)
        transaction = producer.begin(f"run-{run + 1}")
        for start in range(0, len(changes), self.piece_rows):
            if stopping.is_set():
                transaction.abort()
                return Polled(0, more=True)
            transaction.add(_batches(changes[start : start + self.piece_rows], {table.qualified_name: table}))
        transaction.commit(_sequence(run + 1), _sequence(seen + len(commits)), lineage=LINEAGE).result()
        return Polled(len(changes))


def _position(number: int) -> Position:
    return Position(LINEAGE, _sequence(number), str(number))


def _progress(number: int) -> Transactions:
    control = Control(ControlKind.PROGRESS, 0)
    return Transactions.one(_sequence(number), (), (control,), lineage=LINEAGE, token=str(number))


def _sequence(number: int) -> bytes:
    return struct.pack(">Q", number)


def _number(sequence: bytes) -> int:
    found: int = struct.unpack(">Q", sequence)[0]
    return found


class FakeSettings(Settings):
    """There is nothing to set."""


_EVENTS = frozenset({Event.CREATE, Event.UPDATE, Event.DELETE, Event.TRUNCATE, Event.KEY_CHANGE, Event.NOT_GIVEN})


def fake_stream_connector(database: FakeDatabase) -> Connector:
    """A connector whose source streams from `database`."""
    return _connector("fake-stream", Capture.STREAM, lambda *_: FakeStreamSource(database))


def fake_poll_connector(database: FakeDatabase) -> Connector:
    """A connector whose source polls `database`."""
    return _connector("fake-poll", Capture.POLL, lambda *_: FakePollSource(database))


def _connector(name: str, capture: Capture, opening: Callable[..., Source]) -> Connector:
    abilities = SourceAbilities(capture, _EVENTS, before_images=True, transactions=capture is Capture.STREAM)
    return Connector(name, "a system in memory, for tests", SourceSide(FakeSettings, abilities, opening))
