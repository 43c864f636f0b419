"""The PostgreSQL source: the shipped suite over a real server with a logical log, the log in memory behind it.

A slot begins only when the transactions that write have ended, and what is there before it comes as a snapshot. Where a
test of the suite is about the stream itself, the capture begins before the test's rows are written.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import ClassVar

import psycopg
import pytest

from kadds.api.connector import Connector, Source
from kadds.api.position import Position
from kadds.testing.memory_log import MemoryLog
from kadds.testing.source_contract import TIMEOUT_SECONDS, ExactValues, GivenAsText, Row, SourceContract
from kadds_postgres import connector, snapshot
from kadds_postgres.position import position
from kadds_postgres.settings import PostgresSourceSettings
from kadds_postgres.source import PostgresSource
from tests.support.capturing import CapturedDatabase
from tests.support.servers import PostgresServer

pytestmark = pytest.mark.own_server("postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the module."""
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


class TestPostgresSource(SourceContract):
    """The suite."""

    connector: ClassVar[Connector] = connector

    @pytest.fixture(autouse=True)
    def _database(self, server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(snapshot, "CHUNK_ROWS", 100)
        self.database = CapturedDatabase(server)
        self.slot = "first"
        self.writers: list[psycopg.Connection[object]] = []
        yield
        for writer in self.writers:
            writer.close()
        self.database.remove()

    def make_source(self) -> Source:
        return self.database.source(slot=self.slot)

    def make_unusable_source(self) -> Source:
        return PostgresSource(
            PostgresSourceSettings.model_validate({"url": "postgresql://postgres@127.0.0.1:1/postgres"})
        )

    def create_table(self, name: str) -> str:
        self.database.run(f"CREATE TABLE {name} (id integer PRIMARY KEY, label text)")
        return f"public.{name}"

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        self.insert_together({table: rows})

    def update(self, table: str, rows: Sequence[Row]) -> None:
        with self.database.connect() as connection:
            connection.cursor().executemany(
                f"UPDATE {table} SET label = %s WHERE id = %s", [(label, number) for number, label in rows]
            )

    def delete(self, table: str, ids: Sequence[int]) -> None:
        with self.database.connect() as connection:
            connection.execute(f"DELETE FROM {table} WHERE id = ANY(%s)", [list(ids)])

    def truncate(self, table: str) -> None:
        self.database.run(f"TRUNCATE {table}")

    def change_key(self, table: str, old: int, new: int) -> None:
        self.database.run(f"UPDATE {table} SET id = {new} WHERE id = {old}")

    def late_commit(self, table: str, rows: Sequence[Row]) -> Callable[[], None]:
        writer = self.database.connect(autocommit=False)
        self.writers.append(writer)
        writer.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", rows)
        return writer.commit

    def insert_together(self, rows: Mapping[str, Sequence[Row]]) -> None:
        with self.database.connect(autocommit=False) as connection:
            for table, some in rows.items():
                connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", some)

    def store_exact_values(self) -> ExactValues:
        self.database.run(
            "CREATE DOMAIN price AS numeric(12, 2)",
            "CREATE TABLE exact (id integer PRIMARY KEY, big bigint, price price, plain numeric,"
            " ratio double precision, born date, at timestamptz, wall timestamp, clock time, flag boolean, raw bytea,"
            " label varchar(20), tags text[], document jsonb)",
            "INSERT INTO exact VALUES (1, 9223372036854775807, 9999999999.99, 1.10, '-0', '0001-01-01',"
            " '2026-03-29 01:30:00.123456+02', '9999-12-31 23:59:59.999999', '00:00', true, '\\x00ff', 'é\t\"', "
            "'{a,NULL,\"b c\"}', '{\"a\": 1.0}')",
            "INSERT INTO exact VALUES (2, -9223372036854775808, 'NaN', 'Infinity', 'NaN', 'infinity', '-infinity',"
            " '0044-03-15 BC', '24:00', false, '', '', '{}', 'null')",
            "INSERT INTO exact (id) VALUES (3)",
        )
        return ExactValues(
            "public.exact",
            "id",
            {
                "big": [9223372036854775807, -9223372036854775808, None],
                "price": [Decimal("9999999999.99"), GivenAsText("NaN"), None],
                "plain": ["1.10", "Infinity", None],
                "ratio": [-0.0, float("nan"), None],
                "born": [date(1, 1, 1), GivenAsText("infinity"), None],
                "at": [datetime(2026, 3, 28, 23, 30, 0, 123456, UTC), GivenAsText("-infinity"), None],
                "wall": [
                    datetime.fromisoformat("9999-12-31T23:59:59.999999"),
                    GivenAsText("0044-03-15 00:00:00 BC"),
                    None,
                ],
                "clock": [time(0), GivenAsText("24:00:00"), None],
                "flag": [True, False, None],
                "raw": [b"\0\xff", b"", None],
                "label": ['é\t"', "", None],
                "tags": ['{a,NULL,"b c"}', "{}", None],
                "document": ['{"a": 1.0}', "null", None],
            },
        )

    def acknowledged(self) -> Position | None:
        shown = self.database.slot(self.slot)
        if not shown:
            return None
        with self.opened() as source:
            assert isinstance(source, PostgresSource)
            return position(source.head().lineage, int(shown["confirmed"]))

    # ------------------------------------------------------------- tests that need a capture to have begun before them

    def test_a_row_that_commits_late_is_not_lost_and_no_row_comes_twice(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.capture_newly(log, table)
        self.insert(table, [(1, "one")])
        commit = self.late_commit(table, [(2, "late")])
        self.insert(table, [(3, "three")])
        self.capture_newly(log, table)
        assert self.labels(log, table) == {1: "one", 3: "three"}
        commit()
        self.capture_newly(log, table)
        self.capture_newly(log, table)
        assert self.labels(log, table) == {1: "one", 2: "late", 3: "three"}
        assert len(log.rows(table)) == 3

    def test_changes_of_one_transaction_arrive_in_one_transaction(self) -> None:
        one, two, log = self.create_table("one"), self.create_table("two"), MemoryLog()
        self.capture_newly(log, one, two)
        self.insert_together({one: [(1, "a")], two: [(1, "b")]})
        self.capture_newly(log, one, two)
        (holding,) = [t for t in log.transactions() if t.changes]
        assert len(holding.rows()) == 2
        assert self.labels(log, one) == {1: "a"}
        assert self.labels(log, two) == {1: "b"}

    def test_captured_again_from_nothing_the_same_transactions_get_the_same_sequences(self) -> None:
        table, logs = self.create_table("orders"), {"first": MemoryLog(), "second": MemoryLog()}
        for self.slot, log in logs.items():
            self.capture_newly(log, table)
        for number in range(1, 6):
            self.insert(table, [(number, "x")])
        found = []
        for self.slot, log in logs.items():
            self.capture_newly(log, table)
            found.append([t.facts["sequence"] for t in log.transactions() if t.changes])
        assert found[0] == found[1]
        assert len(found[0]) == 5

    def test_a_full_log_makes_the_source_wait_and_loses_nothing(self) -> None:
        table, log = self.create_table("orders"), MemoryLog(queue_bytes=1)
        self.capture_newly(log, table)
        log.automatic = False
        with self.opened() as source:
            running = self._start(source, log, table)
            for start in (1, 301, 601):
                self.insert(table, [(number, "x") for number in range(start, start + 300)])
            log.wait(lambda: log.waiting > 0, TIMEOUT_SECONDS)
            assert log.queued == 1
            assert not log.rows(table)
            while not running.ended and len(log.rows(table)) < 900:
                log.wait(lambda: running.ended or log.queued > 0, TIMEOUT_SECONDS)
                log.flush()
            log.automatic = True
            log.flush()
            running.stop()
        assert [row.values["id"] for row in log.rows(table)] == list(range(1, 901))

    # ------------------------------------------------------------------------------------------ what else it promises

    def test_values_of_the_stream_are_those_of_the_snapshot(self) -> None:
        expected, log = self.store_exact_values(), MemoryLog()
        self.capture_newly(log, expected.table)
        self.database.run("UPDATE exact SET id = id + 10")
        self.capture_newly(log, expected.table)
        rows = log.rows(expected.table)
        copied, streamed = rows[:3], [row for row in rows[3:] if not row.before]
        assert len(streamed) == 3
        for one, other in zip(copied, streamed, strict=True):
            assert repr({**one.values, "id": 0}) == repr({**other.values, "id": 0})
            assert one.as_text == other.as_text

    def test_a_source_that_waits_for_the_server_stops_when_it_is_asked_to(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        commit = self.late_commit(table, [(1, "one")])  # the slot waits for it
        with self.opened() as source:
            running = self._start(source, log, table)
            log.wait(lambda: bool(log.transactions()), TIMEOUT_SECONDS)
            stopped = threading.Thread(target=running.stop)
            stopped.start()
            stopped.join(5)
            assert not stopped.is_alive()
        commit()
        self.capture_newly(log, table)
        assert self.labels(log, table) == {1: "one"}
