"""A PostgreSQL database that the source under test captures into a log in memory, in the thread that a test watches."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy

from kadds.api.connector import Finding
from kadds.api.errors import KaddsError
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds.testing.memory_log import MemoryInlet, MemoryLog
from kadds_postgres.settings import PostgresSourceSettings
from kadds_postgres.source import PostgresSource
from tests.support.postgres_bed import plain_url
from tests.support.servers import DatabaseServer

SOURCE = "default/shop"
SLOT = "kadds_test"
TIMEOUT_SECONDS = 30.0


class Capturing:
    """A source that streams in a thread of its own until `stop`."""

    def __init__(self, source: PostgresSource, tables: Sequence[Table], log: MemoryLog, inlet: MemoryInlet) -> None:
        self.source = source
        self.inlet = inlet
        self.error: BaseException | None = None
        self.ended = False
        self._log = log
        self._tables = tables
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.source.stream(self._tables, self.inlet)
        except BaseException as error:  # noqa: BLE001 - it is raised again by `stop`, in the thread of the test
            self.error = error
        with self._log.changing():
            self.ended = True

    def reach_head(self) -> None:
        """Wait until all that is committed now is in the log, or the stream has ended."""
        self.until(self.reached(self.source.head()))

    def reached(self, head: Position) -> Callable[[], bool]:
        """Whether the log has everything up to there."""
        return lambda: any(
            t.lineage == head.lineage and t.position.reaches(head) for t in self._log.transactions(SOURCE, "stream")
        )

    def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for `predicate`, which is asked when the log changes, or for the end of the stream."""
        self._log.wait(lambda: self.ended or predicate(), TIMEOUT_SECONDS)
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask it to end and wait; raises what it raised."""
        self.inlet.stopping.set()
        self.join()
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive(), "the source does not stop"

    def failed(self) -> KaddsError:
        """The error with which it ends by itself."""
        self.join()
        assert isinstance(self.error, KaddsError), repr(self.error)
        return self.error


class CapturedDatabase:
    """A database of its own on `server`, with what tests do to it; `remove` gives it back with all slots on it."""

    def __init__(self, server: DatabaseServer, name: str | None = None) -> None:
        self.server = server
        self._made_url = server.create_database(name)
        self.name = str(sqlalchemy.make_url(self._made_url).database)
        self.url = plain_url(self._made_url)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        """A connection of the test's."""
        return psycopg.connect(self.url, autocommit=autocommit)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Each statement as a transaction of its own; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with self.connect() as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def together(self, *statements: str) -> None:
        """All statements in one transaction."""
        with self.connect(autocommit=False) as connection:
            for statement in statements:
                connection.execute(statement)

    def source(self, **settings: Any) -> PostgresSource:
        """A source over it; the slot is called `SLOT` unless the settings say otherwise."""
        return PostgresSource(PostgresSourceSettings.model_validate({"url": self.url, "slot": SLOT, **settings}))

    @contextmanager
    def opened(self, **settings: Any) -> Iterator[PostgresSource]:
        """A source that is closed at the end."""
        source = self.source(**settings)
        try:
            yield source
        finally:
            source.close()

    def tables(self, source: PostgresSource, *names: str) -> list[Table]:
        """The tables of these qualified names; without names all that there are."""
        return list(source.discover(lambda name: not names or name in names))

    def findings(self, *names: str, **settings: Any) -> list[Finding]:
        """What `check` says."""
        with self.opened(**settings) as source:
            return list(source.check(self.tables(source, *names)))

    def start(self, source: PostgresSource, log: MemoryLog, *names: str) -> Capturing:
        """Begin to stream."""
        return Capturing(source, self.tables(source, *names), log, MemoryInlet(log, SOURCE))

    @contextmanager
    def capturing(self, log: MemoryLog, *names: str, **settings: Any) -> Iterator[Capturing]:
        """A source that streams while the block runs."""
        with self.opened(**settings) as source:
            running = self.start(source, log, *names)
            try:
                yield running
            finally:
                running.inlet.stopping.set()
                running.join()
            running.stop()

    def capture(self, log: MemoryLog, *names: str, **settings: Any) -> None:
        """Bring all that is committed now into the log."""
        with self.capturing(log, *names, **settings) as running:
            running.reach_head()

    def refuse(self, log: MemoryLog, *names: str, **settings: Any) -> KaddsError:
        """The error with which a session of this source ends by itself."""
        with self.opened(**settings) as source:
            return self.start(source, log, *names).failed()

    def slot(self, name: str = SLOT) -> dict[str, Any]:
        """What the server shows of a slot; empty where there is none."""
        with self.connect() as connection:
            cursor = connection.execute(
                "SELECT *, confirmed_flush_lsn - '0/0' AS confirmed, restart_lsn - '0/0' AS restart "
                "FROM pg_replication_slots WHERE slot_name = %s",
                [name],
            )
            row, names = cursor.fetchone(), [column.name for column in cursor.description or ()]
        return dict(zip(names, row, strict=True)) if row else {}

    def image(self, table: str) -> set[tuple[Any, ...]]:
        """The rows of a table, as text."""
        schema, name = table.split(".")
        return {(row,) for (row,) in self.run(f'SELECT t::text FROM "{schema}"."{name}" t')}

    def remove(self) -> None:
        """Drop its slots and the database."""
        self.server.execute(
            f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots "
            f"WHERE database = '{self.name}' AND active"
        )
        self.server.execute(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            f"WHERE database = '{self.name}' AND NOT active"
        )
        self.server.drop_database(self._made_url)


def same_rows(log: MemoryLog, database: CapturedDatabase, table: str, key: str = "id") -> None:
    """The log, applied in its order, gives what the table holds; and no row of it was created twice."""
    expected = {row[0]: row for row in database.run(f"SELECT {key}, * FROM {table}")}
    image = log.image(table, key)
    assert image.keys() == expected.keys()
    for one, values in image.items():
        assert tuple(values.values()) == expected[one][1:], one
