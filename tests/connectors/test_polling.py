"""The polling source: the shipped suite by each way of polling, on SQLite, PostgreSQL and MariaDB, then its own rules.

Every test asks a real database; the log is the one in memory, through which all bytes pass as in the real one.
"""

from __future__ import annotations

import base64
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import pytest
import sqlalchemy as sa

from kadds.api.connector import Connector, Event, Finding, Level, Polled, Source
from kadds.api.errors import (
    ConfigurationError,
    DataError,
    KaddsError,
    RefusedError,
    RetryableError,
    UnknownInputError,
)
from kadds.api.schema import Table
from kadds.testing.memory_log import MemoryLog
from kadds.testing.source_contract import SOURCE, ExactValues, GivenAsText, Row, SourceContract
from kadds_polling import connector
from kadds_polling.dialects.other import Other
from kadds_polling.settings import PollingSettings, PollingTableSettings
from kadds_polling.source import PollingSource
from tests.support.waiting import wait_until

Settings = dict[str, Any]
_START = datetime(2026, 1, 1, tzinfo=UTC)


class Database:
    """A database that tests write to; its own engine, so that nothing of the source is used to check the source."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        self.product = self.engine.dialect.name

    def run(self, *statements: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Statements in one transaction; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with self.engine.begin() as connection:
            for statement in statements:
                result = connection.execute(sa.text(statement), parameters)
                rows = [tuple(row) for row in result] if result.returns_rows else []
        return rows

    def name(self, table: str) -> str:
        """The qualified name as the source gives it."""
        schema = {"postgresql": "public.", "sqlite": ""}.get(self.product, f"{self.engine.url.database}.")
        return f"{schema}{table}"

    def type(self, kind: str) -> str:
        """The product's name of a type."""
        times = {"postgresql": "timestamptz", "sqlite": "DATETIME"}.get(self.product, "timestamp(6)")
        return {"time": times, "text": "varchar(200)", "key": "INTEGER" if self.product == "sqlite" else "bigint"}[kind]


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of each product."""
    if request.param != "sqlite":
        return Database(request.getfixturevalue(f"{request.param}_database"))
    path = tmp_path / "shop.db"
    sqlite3.connect(path).close()
    path.touch()
    return Database(f"sqlite:///{path}")


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Database:
    """An empty SQLite file."""
    (tmp_path / "shop.db").touch()
    return Database(f"sqlite:///{tmp_path / 'shop.db'}")


def _same(settings: Settings) -> Callable[[str], PollingTableSettings]:
    """The same settings for every table."""
    table_settings = PollingTableSettings.model_validate(settings)
    return lambda _: table_settings


def _source(database: Database, settings: Settings, **more: Any) -> PollingSource:
    return PollingSource(PollingSettings.model_validate({"url": database.url, **more}), _same(settings))


@contextmanager
def _opened(database: Database, settings: Settings, **more: Any) -> Iterator[PollingSource]:
    source = _source(database, settings, **more)
    try:
        yield source
    finally:
        source.close()


def _poll(source: PollingSource, log: MemoryLog, name: str) -> Polled:
    (table,) = source.discover(lambda found: found == name)
    return source.poll(table, log.producer(SOURCE, f"table:{name}"), threading.Event())


def _poll_once(database: Database, settings: Settings, log: MemoryLog, table: str) -> Polled:
    with _opened(database, settings) as source:
        return _poll(source, log, database.name(table))


# ---------------------------------------------------------------------------------------------- the shipped suite


class _OverDatabase(SourceContract):
    """The suite's system is a real database; the way of polling is the subclass' affair."""

    connector: ClassVar[Connector] = connector
    settings: ClassVar[Settings]

    @pytest.fixture(autouse=True)
    def _database(self, database: Database) -> None:
        self.database = database
        self.ticks = 0

    def make_source(self) -> Source:
        return _source(self.database, self.settings, fetch_rows=100)

    def make_unusable_source(self) -> Source:
        urls = {
            "sqlite": "sqlite:////nowhere/shop.db",
            "postgresql": "postgresql://nobody:secret-word@127.0.0.1:1/shop",
        }
        url = urls.get(self.database.product, "mariadb://nobody:secret-word@127.0.0.1:1/shop")
        return PollingSource(PollingSettings.model_validate({"url": url}), _same({"incrementing": "id"}))

    def now(self) -> str:
        """A time that rises from call to call, on a clock of the test's own."""
        self.ticks += 1
        return _written(_START + timedelta(seconds=self.ticks), self.database)

    def create_table(self, name: str) -> str:
        key, text, at = (self.database.type(kind) for kind in ("key", "text", "time"))
        self.database.run(
            f"CREATE TABLE {name} (id {key} NOT NULL PRIMARY KEY, label {text}, changed_at {at} NOT NULL)"
        )
        return self.database.name(name)

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        self._write(f"INSERT INTO {_bare(table)} (id, label, changed_at) VALUES (:id, :label, :at)", rows)

    def update(self, table: str, rows: Sequence[Row]) -> None:
        self._write(f"UPDATE {_bare(table)} SET label = :label, changed_at = :at WHERE id = :id", rows)

    def _write(self, statement: str, rows: Sequence[Row]) -> None:
        at = self.now()
        with self.database.engine.begin() as connection:
            connection.execute(sa.text(statement), [{"id": number, "label": text, "at": at} for number, text in rows])

    def delete(self, table: str, ids: Sequence[int]) -> None:
        self.database.run(f"DELETE FROM {_bare(table)} WHERE id IN ({', '.join(map(str, ids))})")

    def late_commit(self, table: str, rows: Sequence[Row]) -> Callable[[], None]:
        at = self.now()
        insert = sa.text(f"INSERT INTO {_bare(table)} (id, label, changed_at) VALUES (:id, :label, :at)")
        values = [{"id": number, "label": text, "at": at} for number, text in rows]
        return _late(self.database, insert, values)

    def store_exact_values(self) -> ExactValues:
        return _EXACT[self.database.product](self.database)


def _late(database: Database, statement: sa.TextClause, values: Sequence[Any]) -> Callable[[], None]:
    """A second session that has written and not yet committed; SQLite has one writer, whose late row comes at once."""
    if database.product == "sqlite":

        def write() -> None:
            with database.engine.begin() as connection:
                connection.execute(statement, values)

        return write
    connection = database.engine.connect()
    connection.execute(statement, values)

    def commit() -> None:
        connection.commit()
        connection.close()

    return commit


def _bare(name: str) -> str:
    return name.rpartition(".")[2]


def _written(moment: datetime, database: Database) -> str:
    text = moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    return f"{text}+00" if database.product == "postgresql" else text


class TestPollingByARisingNumber(_OverDatabase):
    settings: ClassVar[Settings] = {"incrementing": "id"}
    configured_events: ClassVar[frozenset[Event] | None] = frozenset({Event.CREATE})


class TestPollingByATimeOfChange(_OverDatabase):
    settings: ClassVar[Settings] = {"timestamp": "changed_at", "overlap_seconds": 600}
    configured_events: ClassVar[frozenset[Event] | None] = frozenset({Event.CREATE, Event.UPDATE})

    def test_rows_of_many_pieces_arrive_whole_and_in_order(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        for number in range(1, 1001, 100):
            self.insert(table, [(each, "x") for each in range(number, number + 100)])
        self.capture_newly(log, table)
        found = [row.values for row in log.rows(table)]
        assert sorted(values["id"] for values in found) == list(range(1, 1001))
        assert [values["changed_at"] for values in found] == sorted(values["changed_at"] for values in found)


class TestPollingByBoth(_OverDatabase):
    settings: ClassVar[Settings] = {"incrementing": "id", "timestamp": "changed_at"}
    configured_events: ClassVar[frozenset[Event] | None] = frozenset({Event.CREATE, Event.UPDATE})


class TestPollingATableOfChanges(_OverDatabase):
    settings: ClassVar[Settings] = {}
    configured_events: ClassVar[frozenset[Event] | None] = frozenset({Event.CREATE, Event.UPDATE, Event.DELETE})

    def make_source(self) -> Source:
        def settings_of(name: str) -> PollingTableSettings:
            change = {"table": f"{_bare(name)}_changes", "sequence": "seq", "op": "op"}
            settings = {"change_table": change} if _bare(name) != "exact" else {"incrementing": "id"}
            return PollingTableSettings.model_validate(settings)

        return PollingSource(PollingSettings.model_validate({"url": self.database.url, "fetch_rows": 100}), settings_of)

    def create_table(self, name: str) -> str:
        qualified = super().create_table(name)
        key, text, at = (self.database.type(kind) for kind in ("key", "text", "time"))
        rows = f"id {self.database.type('key')}, label {text}, changed_at {at}"
        self.database.run(f"CREATE TABLE {name}_changes (seq {key} NOT NULL PRIMARY KEY, op char(1) NOT NULL, {rows})")
        self.sequence = 0
        return qualified

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        self._change(table, "I", rows)

    def update(self, table: str, rows: Sequence[Row]) -> None:
        self._change(table, "U", rows)

    def delete(self, table: str, ids: Sequence[int]) -> None:
        self._change(table, "D", [(number, "") for number in ids])

    def _change(self, table: str, op: str, rows: Sequence[Row]) -> None:
        with self.database.engine.begin() as connection:
            connection.execute(*self._changes(table, op, rows))

    def _changes(self, table: str, op: str, rows: Sequence[Row]) -> tuple[sa.TextClause, list[dict[str, Any]]]:
        at, values = self.now(), []
        for number, text in rows:
            self.sequence += 1
            values.append({"seq": self.sequence, "op": op, "id": number, "label": text or None, "at": at})
        insert = (
            f"INSERT INTO {_bare(table)}_changes (seq, op, id, label, changed_at) VALUES (:seq, :op, :id, :label, :at)"
        )
        return sa.text(insert), values

    def late_commit(self, table: str, rows: Sequence[Row]) -> Callable[[], None]:
        return _late(self.database, *self._changes(table, "I", rows))


# ---------------------------------------------------------------------------------------------- exact values

_INTEGERS: list[object] = [-(2**63), 2**63 - 1, 0]


def _sqlite_values(database: Database) -> ExactValues:
    """SQLite keeps any value in any column: what does not fit the declared type is given as text, never coerced."""
    columns: dict[str, tuple[str, list[Any], list[object]]] = {
        "whole": ("INTEGER", [-(2**63), "ten", 1.5], [-(2**63), GivenAsText("ten"), GivenAsText("1.5")]),
        "truth": ("BOOLEAN", [0, 1, 2], [False, True, GivenAsText("2")]),
        "double": ("DOUBLE", [-0.0, 1e-310, "abc"], [0.0, 1e-310, GivenAsText("abc")]),
        "price": ("DECIMAL(12,2)", [12.5, 7, 0.125], [Decimal("12.50"), Decimal("7.00"), GivenAsText("0.125")]),
        "amount": ("NUMERIC", [0.1, 12, "many"], ["0.1", "12", "many"]),
        "text": ("TEXT", ["", "ü😀", b"\x00\xff"], ["", "ü😀", GivenAsText("x'00ff'")]),
        "bytes": ("BLOB", [b"", b"\x00\xff", "text"], [b"", b"\x00\xff", GivenAsText("text")]),
        "day": ("DATE", ["2024-02-29", "9999-12-31", "2023-02-29"],
                [date(2024, 2, 29), date(9999, 12, 31), GivenAsText("2023-02-29")]),
        "at": ("DATETIME", ["2024-01-01 10:00:00.123456", "0001-01-01 00:00:00", "2024-01-01T10:00:00Z"],
               [datetime(2024, 1, 1, 10, 0, 0, 123456), datetime(1, 1, 1), GivenAsText("2024-01-01T10:00:00Z")]),  # noqa: DTZ001
        "hour": ("TIME", ["23:59:59.5", "00:00:00", "24:00:00"],
                 [time(23, 59, 59, 500000), time(0), GivenAsText("24:00:00")]),
        "untyped": ("", [None, "x", 5], [None, "x", GivenAsText("5")]),
        "uuid": ("UUID", ["a-b", None, b"\x01"], ["a-b", None, GivenAsText("x'01'")]),
    }  # fmt: skip
    return _store(database, columns, quote='"')


def _postgres_values(database: Database) -> ExactValues:
    columns: dict[str, tuple[str, list[Any], list[object]]] = {
        "small": ("smallint", ["-32768", "32767", None], [-32768, 32767, None]),
        "whole": ("integer", ["-2147483648", "2147483647", "0"], [-(2**31), 2**31 - 1, 0]),
        "big": ("bigint", list(map(str, _INTEGERS)), _INTEGERS),
        "single": ("real", ["0.1", "-0", "NaN"], [0.10000000149011612, -0.0, float("nan")]),
        "double": ("double precision", ["0.1", "5e-324", "-Infinity"], [0.1, 5e-324, float("-inf")]),
        "price": ("numeric(12,2)", ["-1234567890.12", "0", "NaN"],
                  [Decimal("-1234567890.12"), Decimal("0.00"), GivenAsText("NaN")]),
        "wide": ("numeric(70,10)", ["1" * 60 + ".5", "-0.0000000001", None],
                 [Decimal("1" * 60 + ".5000000000"), Decimal("-1E-10"), None]),
        "amount": ("numeric", ["0.10", "NaN", "1" * 200], ["0.10", "NaN", "1" * 200]),
        "rounded": ("numeric(5,-2)", ["12345", "0", None], ["12300", "0", None]),
        "truth": ("boolean", ["t", "f", None], [True, False, None]),
        "text": ("text", ["", "ü😀", None], ["", "ü😀", None]),
        "padded": ("character(4)", ["ab", "abcd", ""], ["ab  ", "abcd", "    "]),
        "bytes": ("bytea", ["\\x", "\\x00ff", None], [b"", b"\x00\xff", None]),
        "day": ("date", ["0001-01-01", "infinity", "0044-03-15 BC"],
                [date(1, 1, 1), GivenAsText("infinity"), GivenAsText("0044-03-15 BC")]),
        "at": ("timestamp", ["2024-01-01 10:00:00.123456", "-infinity", "10000-01-01 00:00:00"],
               [datetime(2024, 1, 1, 10, 0, 0, 123456), GivenAsText("-infinity"),  # noqa: DTZ001
                GivenAsText("10000-01-01 00:00:00")]),
        "moment": ("timestamptz", ["2024-03-31 02:30:00+01", "infinity", "2024-01-01 00:00:00.5-11:30"],
                   [datetime(2024, 3, 31, 1, 30, tzinfo=UTC), GivenAsText("infinity"),
                    datetime(2024, 1, 1, 11, 30, 0, 500000, UTC)]),
        "hour": ("time", ["23:59:59.999999", "24:00:00", "00:00:00"],
                 [time(23, 59, 59, 999999), GivenAsText("24:00:00"), time(0)]),
        "zoned": ("timetz", ["10:00:00+02", None, "24:00:00+00"], ["10:00:00+02", None, "24:00:00+00"]),
        "uuid": ("uuid", ["6f1ed002-ab5a-4b2f-9c3c-0d0d3b1f5a77", None, None],
                 ["6f1ed002-ab5a-4b2f-9c3c-0d0d3b1f5a77", None, None]),
        "json": ("json", ['{"b": 1,  "a": 1.10}', "null", None], ['{"b": 1,  "a": 1.10}', "null", None]),
        "jsonb": ("jsonb", ['{"a":1.10}', None, None], ['{"a": 1.10}', None, None]),
        "list": ("integer[]", ["{1,NULL,3}", "{}", None], ["{1,NULL,3}", "{}", None]),
        "net": ("inet", ["10.0.0.1/8", "::1", None], ["10.0.0.1/8", "::1", None]),
        "span": ("interval", ["1 mon -3 days 04:05:06.7", "-1 year", None],
                 ["1 mon -3 days +04:05:06.7", "-1 years", None]),
        "bits": ("bit(3)", ["101", None, "000"], ["101", None, "000"]),
        "percent": ("percentage", ["7", "100", None], [7, 100, None]),
    }  # fmt: skip
    database.run("CREATE DOMAIN percentage AS smallint CHECK (value BETWEEN 0 AND 100)")
    return _store(database, columns, quote='"')


def _mariadb_values(database: Database) -> ExactValues:
    columns: dict[str, tuple[str, list[Any], list[object]]] = {
        "truth": ("tinyint(1)", [0, 127, -128], [0, 127, -128]),
        "small": ("smallint unsigned", [0, 65535, None], [0, 65535, None]),
        "medium": ("mediumint", [-8388608, 8388607, None], [-8388608, 8388607, None]),
        "whole": ("int(10) unsigned zerofill", [0, 2**32 - 1, 7], [0, 2**32 - 1, 7]),
        "big": ("bigint unsigned", [0, 2**64 - 1, 2**63], [0, 2**64 - 1, 2**63]),
        "signed": ("bigint", _INTEGERS, _INTEGERS),
        "single": ("float", [0.1, 16777217.0, None], [0.10000000149011612, 16777216.0, None]),
        "double": ("double", [0.1, 5e-300, -1.7976931348623157e308], [0.1, 5e-300, -1.7976931348623157e308]),
        "price": ("decimal(12,2)", ["-1234567890.12", "0", None], [Decimal("-1234567890.12"), Decimal("0.00"), None]),
        "wide": ("decimal(65,30)", ["1" * 35 + ".5", "-0." + "0" * 29 + "1", None],
                 [Decimal("1" * 35 + "." + "5" + "0" * 29), Decimal("-1E-30"), None]),
        "flag": ("bit(1)", [0, 1, None], [False, True, None]),
        "bits": ("bit(64)", [0, 2**64 - 1, 5], [0, 2**64 - 1, 5]),
        "size": ("enum('s','m ','ü')", ["s", "ü", None], ["s", "ü", None]),
        "many": ("set('a','b')", ["a,b", "", None], ["a,b", "", None]),
        "year": ("year", [1901, 0, 2155], [1901, 0, 2155]),
        "text": ("varchar(20)", ["", "ü😀 ", None], ["", "ü😀 ", None]),
        "latin": ("varchar(20) character set latin1", ["é€", "", None], ["é€", "", None]),
        "long": ("longtext", ["x" * 70000, "", None], ["x" * 70000, "", None]),
        "bytes": ("varbinary(4)", [b"", b"\x00\xff", None], [b"", b"\x00\xff", None]),
        "fixed": ("binary(3)", [b"a", b"\x00\xff\x00", None], [b"a\x00\x00", b"\x00\xff\x00", None]),
        "blob": ("blob", [b"\x80", b"", None], [b"\x80", b"", None]),
        "day": ("date", ["2024-02-29", "0000-00-00", "2024-00-10"],
                [date(2024, 2, 29), GivenAsText("0000-00-00"), GivenAsText("2024-00-10")]),
        "at": ("datetime(6)", ["2024-01-01 10:00:00.123456", "0000-00-00 00:00:00", "9999-12-31 23:59:59.999999"],
               [datetime(2024, 1, 1, 10, 0, 0, 123456), GivenAsText("0000-00-00 00:00:00.000000"),  # noqa: DTZ001
                datetime(9999, 12, 31, 23, 59, 59, 999999)]),  # noqa: DTZ001
        "moment": ("timestamp(3) NULL", ["2024-03-31 02:30:00.125", "0000-00-00 00:00:00", None],
                   [datetime(2024, 3, 31, 2, 30, 0, 125000, UTC), GivenAsText("0000-00-00 00:00:00.000"), None]),
        "hour": ("time(6)", ["23:59:59.999999", "-838:59:59", "24:00:00"],
                 [time(23, 59, 59, 999999), GivenAsText("-838:59:59.000000"), GivenAsText("24:00:00.000000")]),
        "json": ("json", ['{"b": 1,  "a": 1.10}', "null", None], ['{"b": 1,  "a": 1.10}', "null", None]),
        "uuid": ("uuid", ["6f1ed002-ab5a-4b2f-9c3c-0d0d3b1f5a77", None, None],
                 ["6f1ed002-ab5a-4b2f-9c3c-0d0d3b1f5a77", None, None]),
        "net": ("inet6", ["::1", None, None], ["::1", None, None]),
    }  # fmt: skip
    return _store(database, columns, quote="`", before="SET SESSION sql_mode = '', time_zone = '+00:00'")


def _store(
    database: Database, columns: dict[str, tuple[str, list[Any], list[object]]], *, quote: str, before: str = ""
) -> ExactValues:
    names = [f"{quote}{name}{quote}" for name in columns]
    declared = ", ".join(f"{name} {kind}" for name, (kind, _, _) in zip(names, columns.values(), strict=True))
    with database.engine.begin() as connection:
        if before:
            connection.exec_driver_sql(before)
        connection.exec_driver_sql(
            f"CREATE TABLE exact (id {database.type('key')} NOT NULL PRIMARY KEY, {declared}, "
            f"changed_at {database.type('time')} NOT NULL)"
        )
        for row in range(3):
            texts = {f"v{number}": written[row] for number, (_, written, _) in enumerate(columns.values())}
            if database.product == "postgresql":
                casts = [f"CAST(CAST(:v{n} AS text) AS {kind})" for n, (kind, _, _) in enumerate(columns.values())]
            else:
                casts = [f":v{number}" for number in range(len(columns))]
            insert = f"INSERT INTO exact (id, {', '.join(names)}, changed_at) VALUES (:id, {', '.join(casts)}, :at)"
            connection.execute(sa.text(insert), {**texts, "id": row, "at": _written(_START, database)})
    return ExactValues(database.name("exact"), "id", {name: expected for name, (_, _, expected) in columns.items()})


_EXACT = {
    "sqlite": _sqlite_values,
    "postgresql": _postgres_values,
    "mariadb": _mariadb_values,
    "mysql": _mariadb_values,
}


# ---------------------------------------------------------------------------------------------- runs and watermarks


def _create(database: Database, table: str = "orders", *, changed_at: str = "NOT NULL") -> str:
    key, text, at = (database.type(kind) for kind in ("key", "text", "time"))
    database.run(
        f"CREATE TABLE {table} (id {key} NOT NULL PRIMARY KEY, label {text}, changed_at {at} {changed_at})",
        f"CREATE INDEX {table}_changed_at ON {table} (changed_at)",
    )
    return database.name(table)


def _put(database: Database, number: int, label: str = "x", *, at: int | None = 0, table: str = "orders") -> None:
    moment = None if at is None else _written(_START + timedelta(seconds=at), database)
    database.run(f"DELETE FROM {table} WHERE id = :id", id=number)
    database.run(f"INSERT INTO {table} VALUES (:id, :label, :at)", id=number, label=label, at=moment)


def _logged(log: MemoryLog, table: str) -> list[tuple[str, int, str]]:
    return [(row.op, row.values["id"], row.values["label"]) for row in log.rows(table)]


def _state(log: MemoryLog, table: str) -> dict[str, Any]:
    resume = log.producer(SOURCE, f"table:{table}").resume()
    assert resume is not None
    found: dict[str, Any] = json.loads(resume.state)
    return found


NUMBER: Settings = {"incrementing": "id"}
TIME: Settings = {"timestamp": "changed_at"}


def test_an_idle_table_costs_the_log_nothing(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    assert _poll_once(database, NUMBER, log, "orders") == Polled(0)
    (progress,) = log.transactions()[0].controls
    assert (progress.kind, progress.table and progress.table.qualified_name) == ("progress", name)
    for _ in range(3):
        assert _poll_once(database, NUMBER, log, "orders") == Polled(0)
    assert len(log.transactions()) == 1
    _put(database, 1)
    assert _poll_once(database, NUMBER, log, "orders") == Polled(1)
    assert _poll_once(database, NUMBER, log, "orders") == Polled(0)
    assert len(log.transactions()) == 2
    assert log.transactions()[1].facts["sequence"] == (2).to_bytes(8, "big")
    assert log.transactions()[1].facts["token"] == "id=1"


def test_rows_that_share_the_latest_time_are_not_lost(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    settings = {**TIME, "overlap_seconds": 0}
    for number in (1, 2, 3):
        _put(database, number, at=7)
        _poll_once(database, settings, log, "orders")
    assert [number for _, number, _ in _logged(log, name)] == [1, 2, 3]


def test_a_row_that_changes_again_within_the_overlap_is_logged_again(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    _put(database, 1, "one", at=7)
    _poll_once(database, TIME, log, "orders")
    _put(database, 1, "uno", at=7)
    _poll_once(database, TIME, log, "orders")
    _poll_once(database, TIME, log, "orders")
    assert _logged(log, name) == [("u", 1, "one"), ("u", 1, "uno")]


def test_by_both_a_new_number_is_a_create_and_a_new_time_an_update(database: Database) -> None:
    name, log = _create(database, changed_at="NULL"), MemoryLog()
    _put(database, 1, "one", at=None)
    _poll_once(database, {**NUMBER, **TIME}, log, "orders")
    _put(database, 1, "uno", at=5)
    _put(database, 2, "two", at=None)
    _poll_once(database, {**NUMBER, **TIME}, log, "orders")
    _poll_once(database, {**NUMBER, **TIME}, log, "orders")
    assert _logged(log, name) == [("c", 1, "one"), ("u", 1, "uno"), ("c", 2, "two")]


def test_a_row_that_comes_late_by_a_rising_number_alone_is_a_create(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    for number in (5, 4):
        _put(database, number)
        _poll_once(database, NUMBER, log, "orders")
    assert _logged(log, name) == [("c", 5, "x"), ("c", 4, "x")]


def test_a_time_without_which_a_row_cannot_be_placed_stops_the_table_by_name(database: Database) -> None:
    _, log = _create(database, changed_at="NULL"), MemoryLog()
    _put(database, 1, at=1)
    _poll_once(database, TIME, log, "orders")
    _put(database, 2, at=None)
    with pytest.raises(DataError, match=r"changed_at .* holds NULL"):
        _poll_once(database, TIME, log, "orders")
    assert len(log.transactions()) == 1


def test_a_wider_overlap_repeats_nothing_and_a_narrower_one_neither(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    for overlap, number in ((5, 100), (1000, 101), (0, 102), (1000, 103)):
        _put(database, number - 50)
        _put(database, number)
        _poll_once(database, {**NUMBER, "overlap": overlap}, log, "orders")
    ids = [number for _, number, _ in _logged(log, name)]
    assert len(ids) == len(set(ids))
    assert {100, 101, 102, 103} <= set(ids)


def test_only_rows_inside_the_overlap_are_remembered(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    for number in range(1, 31):
        _put(database, number)
    _poll_once(database, {**NUMBER, "overlap": 9}, log, "orders")
    assert len(base64.b64decode(_state(log, name)["logged"])) == 10 * 12
    assert _state(log, name)["floors"] == {"id": 21}


def test_an_overlap_of_more_rows_than_allowed_is_refused_by_name(database: Database) -> None:
    _, log = _create(database), MemoryLog()
    for number in range(1, 12):
        _put(database, number)
    with pytest.raises(DataError, match="more than 10 rows"):
        _poll_once(database, {**NUMBER, "max_overlap_rows": 10}, log, "orders")
    assert not log.transactions()


def test_polling_by_another_column_than_before_is_refused(database: Database) -> None:
    _, log = _create(database), MemoryLog()
    _put(database, 1)
    _poll_once(database, NUMBER, log, "orders")
    with pytest.raises(ConfigurationError, match="was polled by id until now"):
        _poll_once(database, TIME, log, "orders")


def test_pieces_are_as_small_as_the_settings_say(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    with database.engine.begin() as connection:
        insert = sa.text("INSERT INTO orders VALUES (:id, :label, :at)")
        rows = [{"id": n, "label": "x" * 190, "at": _written(_START, database)} for n in range(1, 601)]
        connection.execute(insert, rows)
    with _opened(database, NUMBER, fetch_rows=500, fetch_bytes=10_000) as source:
        _poll(source, log, name)
    (transaction,) = log.transactions()
    sizes = [len(batch) for batch in transaction.changes]
    assert sum(sizes) == 600
    assert max(sizes[1:]) < 60, "after the first piece the size of a row is known"


class _StopsLater:
    """Says so when asked for the second time; does something when asked for the first."""

    def __init__(self, first: Callable[[], object] = lambda: None, *, stops: bool = True) -> None:
        self._first, self._stops, self._asked = first, stops, 0

    def is_set(self) -> bool:
        self._asked += 1
        if self._asked == 1:
            self._first()
        return self._stops and self._asked > 1

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def _fill(database: Database, rows: int) -> str:
    name = _create(database)
    with database.engine.begin() as connection:
        insert = sa.text("INSERT INTO orders VALUES (:id, 'x', :at)")
        connection.execute(insert, [{"id": n, "at": _written(_START, database)} for n in range(1, rows + 1)])
    return name


def test_asked_to_stop_between_two_pieces_it_forgets_the_first(database: Database) -> None:
    name, log = _fill(database, 1000), MemoryLog()
    with _opened(database, NUMBER, fetch_rows=100) as source:
        (table,) = source.discover(lambda found: found == name)
        producer = log.producer(SOURCE, "table")
        assert source.poll(table, producer, _StopsLater()) == Polled(0, more=True)
        assert not log.transactions()
        assert source.poll(table, producer, threading.Event()) == Polled(1000)


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_a_run_sees_one_moment_of_the_table(database: Database) -> None:
    name, log = _fill(database, 1000), MemoryLog()

    def meanwhile() -> None:
        database.run("UPDATE orders SET label = 'y'", "DELETE FROM orders WHERE id = 1000")
        database.run("INSERT INTO orders (id, label, changed_at) VALUES (2000, 'y', '2026-01-01')")

    with _opened(database, NUMBER, fetch_rows=100) as source:
        (table,) = source.discover(lambda found: found == name)
        source.poll(table, log.producer(SOURCE, "table"), _StopsLater(meanwhile, stops=False))
    assert _logged(log, name) == [("c", number, "x") for number in range(1, 1001)]


def test_asked_to_stop_while_it_waits_for_a_connection_it_comes_back(database: Database) -> None:
    name, log, stopping = _create(database), MemoryLog(), threading.Event()
    with _opened(database, NUMBER, max_connections=1) as source:
        (table,) = source.discover(lambda found: found == name)
        with source._reading(None), ThreadPoolExecutor(1) as threads:
            polled = threads.submit(source.poll, table, log.producer(SOURCE, "table"), stopping)
            with pytest.raises(TimeoutError):
                polled.result(0.1)
            stopping.set()
            assert polled.result(20) == Polled(0, more=True)
        assert source.poll(table, log.producer(SOURCE, "table"), threading.Event()) == Polled(0)


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_closing_ends_a_poll_that_waits_for_the_server(database: Database) -> None:
    name, log = _fill(database, 10), MemoryLog()
    source = _source(database, NUMBER)
    (table,) = source.discover(lambda found: found == name)
    raised: list[BaseException] = []

    def poll() -> None:
        try:
            source.poll(table, log.producer(SOURCE, "table"), threading.Event())
        except KaddsError as error:
            raised.append(error)

    with database.engine.connect() as blocker:
        lock = "LOCK TABLE orders" if database.product == "postgresql" else "LOCK TABLES orders WRITE"
        blocker.execute(sa.text(lock))
        thread = threading.Thread(target=poll)
        thread.start()
        waiting = {
            "postgresql": "SELECT 1 FROM pg_locks WHERE NOT granted",
            "mariadb": "SELECT 1 FROM information_schema.processlist WHERE state LIKE 'Waiting for table%'",
        }[database.product]
        wait_until(lambda: database.run(waiting), waiting_for="the poll to wait for the lock")
        source.close()
        thread.join(20)
        assert not thread.is_alive()
    assert [type(error) for error in raised] == [RetryableError]
    assert "closed" in str(raised[0])


# ---------------------------------------------------------------------------------------------- late commits


def _changes_table(database: Database) -> str:
    _create(database)
    key, text, at = (database.type(kind) for kind in ("key", "text", "time"))
    database.run(
        f"CREATE TABLE orders_log (seq {key} NOT NULL PRIMARY KEY, op char(1), id {key}, label {text}, changed_at {at})"
    )
    return database.name("orders")


def _change_settings(**more: Any) -> Settings:
    return {"change_table": {"table": "orders_log", "sequence": "seq", "op": "op", **more}}


@pytest.mark.parametrize("way", ["incrementing", "timestamp", "change_table"])
@pytest.mark.parametrize("seed", range(2))
def test_random_interleavings_of_two_sessions_lose_nothing_and_repeat_nothing(
    postgres_database: str, way: str, seed: int
) -> None:
    """167 rounds of each of three ways and two seeds: 1,002 interleavings of two transactions and polls."""
    database, log, chance = Database(postgres_database), MemoryLog(), random.Random(f"{way} {seed}")
    name = _changes_table(database) if way == "change_table" else _create(database)
    settings = {"incrementing": NUMBER, "timestamp": TIME, "change_table": _change_settings()}[way]
    change = "orders_log (seq, op, id, label, changed_at) VALUES (:id, 'I', :id, :label, :at)"
    insert = sa.text(f"INSERT INTO {change if way == 'change_table' else 'orders VALUES (:id, :label, :at)'}")
    sessions = [database.engine.connect(), database.engine.connect()]
    last, committed = 0, set[int]()
    with _opened(database, {**settings, "overlap": 20, "overlap_seconds": 20}, max_connections=1) as source:
        (table,) = source.discover(lambda found: found == name)
        producer = log.producer(SOURCE, f"table:{name}")
        for _ in range(167):
            pending: list[set[int]] = [set(), set()]
            for one in chance.sample([0, 0, 1, 1], 4):
                if pending[one]:  # its second turn ends it
                    if chance.random() < 0.8:
                        sessions[one].commit()
                        committed |= pending[one]
                    sessions[one].rollback()
                else:
                    for _ in range(chance.randint(1, 3)):
                        last += 1
                        at = _written(_START + timedelta(seconds=last), database)
                        sessions[one].execute(insert, {"id": last, "label": "x", "at": at})
                        pending[one].add(last)
                if chance.random() < 0.6:
                    source.poll(table, producer, threading.Event())
        source.poll(table, producer, threading.Event())
    for session in sessions:
        session.close()
    found = [row.values["id"] for row in log.rows(name)]
    assert sorted(found) == sorted(committed)
    late = [number for place, number in enumerate(found) if place and number < max(found[:place])]
    assert len(late) > 20, "the walk has to bring late commits, or it proves nothing"


# ---------------------------------------------------------------------------------------------- tables of changes


def _log_change(database: Database, seq: int, op: str | None, number: int, label: str | None = None) -> None:
    database.run(
        "INSERT INTO orders_log (seq, op, id, label) VALUES (:seq, :op, :id, :label)",
        seq=seq, op=op, id=number, label=label,
    )  # fmt: skip


def test_a_change_table_gives_creates_updates_and_deletes_of_the_table_it_serves(database: Database) -> None:
    name, log = _changes_table(database), MemoryLog()
    for seq, (op, number, label) in enumerate([("I", 1, "one"), ("U", 1, "uno"), ("I", 2, "two"), ("D", 1, None)]):
        _log_change(database, seq, op, number, label)
    with _opened(database, _change_settings()) as source:
        (table,) = source.discover(lambda found: found == name)
        assert [column.name for column in table.columns] == ["id", "label", "changed_at"]
        assert table.key == ("id",)
        _poll(source, log, name)
    assert [(row.op, row.before, row.values["id"]) for row in log.rows(name)] == [
        ("c", False, 1), ("u", False, 1), ("c", False, 2), ("d", True, 1),
    ]  # fmt: skip
    assert set(log.image(name)) == {2}


def test_codes_of_a_change_table_are_what_the_settings_say_and_numbers_may_be_codes(database: Database) -> None:
    name, log = _changes_table(database), MemoryLog()
    for seq, op in enumerate("123"):
        _log_change(database, seq, op, 1, op)
    settings = _change_settings(ops={2: "c", "3": "u", 1: "d"})
    _poll_once(database, settings, log, "orders")
    assert [row.op for row in log.rows(name)] == ["d", "c", "u"]


@pytest.mark.parametrize("op", ["X", None])
def test_an_operation_that_nobody_explained_stops_the_table_by_name(database: Database, op: str | None) -> None:
    _, log = _changes_table(database), MemoryLog()
    _log_change(database, 1, "I", 1)
    _log_change(database, 2, op, 1)
    with pytest.raises(UnknownInputError, match="'X'" if op else "NULL"):
        _poll_once(database, _change_settings(), log, "orders")
    assert not log.transactions()


def test_after_a_late_change_of_a_key_its_later_one_comes_again_so_that_the_order_stays_right(
    database: Database,
) -> None:
    name, log = _changes_table(database), MemoryLog()
    _log_change(database, 1, "I", 1, "one")
    _log_change(database, 3, "U", 1, "three")
    _log_change(database, 4, "I", 2, "other")
    _poll_once(database, _change_settings(), log, "orders")
    _log_change(database, 2, "U", 1, "late")
    _poll_once(database, _change_settings(), log, "orders")
    assert [row.values["label"] for row in log.rows(name)] == ["one", "three", "other", "late", "three"]
    assert log.image(name)[1]["label"] == "three"
    assert _poll_once(database, _change_settings(), log, "orders") == Polled(0)


def test_equal_changes_are_as_many_as_they_are(sqlite_database: Database) -> None:
    database, log = sqlite_database, MemoryLog()
    database.run("CREATE TABLE orders (id INTEGER)", "CREATE TABLE orders_log (seq INTEGER, op TEXT, id INTEGER)")
    for expected in (2, 3):
        while len(database.run("SELECT 1 FROM orders_log")) < expected:
            database.run("INSERT INTO orders_log VALUES (1, 'I', 7)")
        _poll_once(database, _change_settings(), log, "orders")
        assert len(log.rows("orders")) == expected


# ---------------------------------------------------------------------------------------------- names and shapes


def test_names_are_quoted_whatever_they_contain(database: Database) -> None:
    quote = '"' if database.product in ("postgresql", "sqlite") else "`"
    table, columns = 'Wéird "%s" Täble', ["Id", "a%b", "select", "c:d", "x y"]
    quoted = {name: f"{quote}{name.replace(quote, quote * 2)}{quote}" for name in [table, *columns]}
    kinds = ", ".join(f"{quoted[name]} varchar(9)" for name in columns[1:])
    with database.engine.begin() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(
            f"CREATE TABLE {quoted[table]} ({quoted['Id']} {database.type('key')} NOT NULL PRIMARY KEY, {kinds})"
        )
        cursor.execute(f"INSERT INTO {quoted[table]} VALUES (1, 'a', 'b', 'c', 'd')")
    log = MemoryLog()
    for _ in range(2):
        _poll_once(database, {"incrementing": "Id"}, log, table)
    (row,) = log.rows(database.name(table))
    assert row.values == dict(zip(columns, [1, "a", "b", "c", "d"], strict=True))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER TABLE orders ADD COLUMN extra integer", "column extra is new"),
        ("ALTER TABLE orders DROP COLUMN label", "column label is gone"),
    ],
)
def test_a_table_that_changed_since_it_was_discovered_is_refused_until_it_is_discovered_anew(
    database: Database, change: str, says: str
) -> None:
    name, log = _create(database), MemoryLog()
    _put(database, 1)
    with _opened(database, NUMBER) as source:
        (table,) = source.discover(lambda found: found == name)
        database.run(change)
        with pytest.raises(DataError, match=says):
            source.poll(table, log.producer(SOURCE, f"table:{name}"), threading.Event())
        assert not log.transactions()
        assert _poll(source, log, name) == Polled(1)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_table_dropped_and_made_again_is_read_from_its_beginning(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    _put(database, 500)
    _poll_once(database, {**NUMBER, "overlap": 0}, log, "orders")
    database.run("DROP TABLE orders")
    _create(database)
    _put(database, 1)
    _poll_once(database, {**NUMBER, "overlap": 0}, log, "orders")
    assert [number for _, number, _ in _logged(log, name)] == [500, 1]
    incarnations = {batch.table.incarnation for t in log.transactions() for batch in t.changes}
    assert len(incarnations) == 2


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_partitioned_table_is_one_table_and_system_tables_are_none(database: Database) -> None:
    database.run(
        "CREATE TABLE orders (id bigint NOT NULL, label text) PARTITION BY RANGE (id)",
        "CREATE TABLE orders_low PARTITION OF orders FOR VALUES FROM (0) TO (100)",
        "CREATE VIEW orders_view AS SELECT * FROM orders",
    )
    with _opened(database, NUMBER) as source:
        (table,) = source.discover(lambda _: True)
    assert (table.qualified_name, table.key) == ("public.orders", ())
    assert [(c.name, c.declared, c.nullable, c.attribute) for c in table.columns] == [
        ("id", "bigint", False, 1), ("label", "text", True, 2),
    ]  # fmt: skip


def test_a_key_of_ones_own_and_keys_of_several_columns(database: Database) -> None:
    key = database.type("key")
    database.run(f"CREATE TABLE pairs (a {key} NOT NULL, b {key} NOT NULL, c {key}, PRIMARY KEY (b, a))")
    for settings, expected in ((NUMBER, ("b", "a")), ({**NUMBER, "key": ["c"]}, ("c",))):
        with _opened(database, settings) as source:
            (table,) = source.discover(lambda _: True)
            assert table.key == expected


@pytest.mark.parametrize("declared", ["TEXT", "DATETIME"])
def test_times_kept_as_text_in_sqlite_can_be_polled_by(sqlite_database: Database, declared: str) -> None:
    database, log, zone = sqlite_database, MemoryLog(), "Z" if declared == "TEXT" else ""
    database.run(f"CREATE TABLE orders (id INTEGER PRIMARY KEY, label TEXT, changed_at {declared} NOT NULL)")
    times = ["01T03:00:00", "01T10:00:00", "01T10:00:00.5", "01T09:59:30", "01 23:00:00", "01T23:00:01", "02T00:00:00"]
    for number, at in enumerate(times):
        database.run("INSERT INTO orders VALUES (:n, 'x', :at)", n=number, at=f"2024-01-{at}{zone}")
        _poll_once(database, TIME, log, "orders")
    assert [number for _, number, _ in _logged(log, "orders")] == list(range(len(times)))


def test_days_can_be_polled_by(database: Database) -> None:
    database.run(
        f"CREATE TABLE orders (id {database.type('key')} PRIMARY KEY, label varchar(9), changed_at date NOT NULL)"
    )
    log = MemoryLog()
    for number, at in enumerate(["2024-01-02", "2024-01-02", "2024-01-01", "2024-01-03"]):
        database.run("INSERT INTO orders VALUES (:n, 'x', :at)", n=number, at=at)
        _poll_once(database, TIME, log, "orders")
    assert [number for _, number, _ in _logged(log, database.name("orders"))] == [0, 1, 2, 3]


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_numbers_beyond_64_bits_can_be_polled_by(database: Database) -> None:
    database.run("CREATE TABLE orders (id decimal(30,0) PRIMARY KEY, label varchar(9), changed_at date)")
    log, start = MemoryLog(), 10**29
    for number in range(3):
        database.run(f"INSERT INTO orders VALUES ({start + number}, 'x', NULL)")
        _poll_once(database, NUMBER, log, "orders")
    assert [int(number) for _, number, _ in _logged(log, database.name("orders"))] == [start, start + 1, start + 2]


# ---------------------------------------------------------------------------------------------- findings and errors


def _findings(database: Database, settings: Settings, table: Table | None = None) -> list[Finding]:
    with _opened(database, settings) as source:
        tables = [table] if table else [t for t in source.discover(lambda _: True) if t.name == "orders"]
        return list(source.check(tables))


def _messages(findings: Sequence[Finding], level: Level) -> str:
    assert all(finding.hint for finding in findings), "every finding says what to do"
    return "; ".join(finding.message for finding in findings if finding.level is level)


def test_a_check_finds_nothing_to_refuse_in_a_good_table_and_says_what_cannot_be_seen(database: Database) -> None:
    _create(database)
    assert [f.level for f in _findings(database, TIME)] == [Level.NOTE]
    assert "cannot see deletes" in _messages(_findings(database, TIME), Level.NOTE)
    assert "cannot see updates and deletes" in _messages(_findings(database, NUMBER), Level.NOTE)


def test_a_product_without_code_of_its_own_is_read_through_its_inspector(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kadds_polling.source.dialect_of", lambda _: Other())
    database, log = sqlite_database, MemoryLog()
    database.run(
        "CREATE TABLE orders (id INTEGER NOT NULL PRIMARY KEY, label TEXT, price NUMERIC(12, 2), odd BLOB)",
        "INSERT INTO orders VALUES (1, 'one', 5, x'00'), (2, 'two', 'many', 'text')",
    )
    for expected in (2, 0):
        assert _poll_once(database, NUMBER, log, "main.orders") == Polled(expected)
    one, two = log.rows("main.orders")
    assert (one.values["label"], one.values["odd"], one.as_text) == ("one", b"\x00", {"price": "5"})
    assert two.as_text == {"price": "many", "odd": "text"}
    assert "has not been tried" in _messages(_findings(database, NUMBER), Level.NOTE)


def test_a_check_names_columns_that_are_missing_nullable_not_indexed_or_of_the_wrong_kind(database: Database) -> None:
    database.run("CREATE TABLE orders (id integer, label varchar(9), ratio double precision, at date)")

    def found(level: Level, **settings: Any) -> str:
        return _messages(_findings(database, settings), level)

    assert "has no column nope" in found(Level.ERROR, incrementing="nope")
    assert "has no column nope" in found(Level.ERROR, timestamp="nope")
    assert "floats round" in found(Level.ERROR, incrementing="ratio")
    assert "no whole number" in found(Level.ERROR, incrementing="label")
    assert "which is no time" in found(Level.ERROR, timestamp="id")
    assert "key names columns" in found(Level.ERROR, incrementing="id", key=["nope"])
    assert "may be NULL" in found(Level.WARNING, incrementing="id")
    assert "no index" in found(Level.WARNING, timestamp="at")
    assert "no key" in found(Level.NOTE, incrementing="id")


def test_what_a_check_refuses_a_poll_refuses_as_well(database: Database) -> None:
    _create(database)
    with pytest.raises(ConfigurationError, match="has no column nope"):
        _poll_once(database, {"incrementing": "nope"}, MemoryLog(), "orders")


def test_a_check_names_what_a_change_table_lacks(database: Database) -> None:
    _changes_table(database)
    assert not _messages(_findings(database, _change_settings()), Level.ERROR)
    assert "no column nope" in _messages(_findings(database, _change_settings(op="nope")), Level.ERROR)
    assert "there is no table gone" in _messages(_findings(database, _change_settings(table="gone")), Level.ERROR)
    database.run("ALTER TABLE orders_log DROP COLUMN label")
    assert "has no columns label" in _messages(_findings(database, _change_settings()), Level.WARNING)
    database.run("ALTER TABLE orders_log RENAME COLUMN id TO other")
    assert "lacks key columns" in _messages(_findings(database, _change_settings()), Level.ERROR)


def test_a_table_that_is_gone_is_refused_by_name(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    with _opened(database, NUMBER) as source:
        (table,) = source.discover(lambda found: found == name)
        database.run("DROP TABLE orders")
        with pytest.raises(RefusedError, match="no such table"):
            source.poll(table, log.producer(SOURCE, "table"), threading.Event())
        assert "no table" in _messages(list(source.check([table])), Level.ERROR)


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
def test_a_missing_privilege_is_found_before_anything_moves(database: Database) -> None:
    name, log = _create(database), MemoryLog()
    user = f"reader_{random.SystemRandom().randrange(10**9)}"
    if database.product == "postgresql":
        database.run(f"CREATE ROLE {user} LOGIN PASSWORD 'secret-word'")
    else:
        database.run(
            f"CREATE USER {user}@'%' IDENTIFIED BY 'secret-word'", f"GRANT SELECT (id) ON orders TO {user}@'%'"
        )
    url = sa.make_url(database.url).set(username=user, password="secret-word").render_as_string(hide_password=False)
    with _opened(database, NUMBER) as owner:
        (table,) = owner.discover(lambda found: found == name)
    try:
        with _opened(Database(url), NUMBER) as source:
            if database.product == "postgresql":
                assert "permission denied" in _messages(list(source.check([table])), Level.ERROR)
            with pytest.raises(RefusedError if database.product == "postgresql" else DataError):
                source.poll(table, log.producer(SOURCE, "table"), threading.Event())
    finally:
        database.run(f"DROP ROLE {user}" if database.product == "postgresql" else f"DROP USER {user}@'%'")
    assert not log.transactions()


@pytest.mark.parametrize("database", ["postgres", "mariadb"], indirect=True)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"password": "wrong-word"}, RefusedError),
        ({"database": "no_such_database"}, RefusedError),
        ({"port": 1}, RetryableError),
        ({"host": "no-such-host.invalid"}, RetryableError),
    ],
    ids=["password", "database", "port", "host"],
)
def test_a_server_that_cannot_be_used_is_named_without_its_password(
    database: Database, change: dict[str, Any], expected: type[KaddsError]
) -> None:
    url = sa.make_url(database.url).set(password="right-word").set(**change)
    if "database" in change:
        url = sa.make_url(database.url).set(**change)
    text = url.render_as_string(hide_password=False)
    with pytest.raises(expected) as caught, _opened(Database(text), NUMBER) as source:
        source.discover(lambda _: True)
    assert not any(secret in str(caught.value) for secret in ("right-word", "wrong-word"))
    assert caught.value.where


def test_a_sqlite_file_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with (
        pytest.raises(RefusedError, match="there is no file"),
        _opened(Database(f"sqlite:///{tmp_path / 'none.db'}"), NUMBER) as source,
    ):
        source.discover(lambda _: True)
    assert not list(tmp_path.iterdir())


def test_a_sqlite_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_text("this is no database, and long enough to be looked at" * 100)
    with pytest.raises(RefusedError), _opened(Database(f"sqlite:///{tmp_path / 'shop.db'}"), NUMBER) as source:
        source.discover(lambda _: True)


def test_a_sqlite_file_is_never_written(sqlite_database: Database) -> None:
    _create(sqlite_database)
    with (
        _opened(sqlite_database, NUMBER) as source,
        pytest.raises(RefusedError, match="readonly"),
        source._reading(None) as connection,
    ):
        connection.exec_driver_sql("DELETE FROM orders")


def test_a_locked_sqlite_file_may_be_tried_again(sqlite_database: Database) -> None:
    name, log = _create(sqlite_database), MemoryLog()
    holder = sqlite3.connect(sqlite_database.engine.url.database or "", isolation_level=None)
    with _opened(sqlite_database, NUMBER, connect_timeout_seconds=1) as source:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RetryableError, match="locked"):
            _poll(source, log, name)
        holder.execute("ROLLBACK")
        assert _poll(source, log, name) == Polled(0)
    holder.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [("nonsense://host/db", "nonsense"), ("postgresql+pg8000://host/db", "pg8000"), ("sqlite+nope:///x", "nope")],
)
def test_an_unusable_url_is_an_error_of_the_configuration(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        PollingSource(PollingSettings.model_validate({"url": url}), _same(NUMBER))
    assert caught.value.hint


@pytest.mark.parametrize("settings", [{}, {"incrementing": "id", "change_table": _change_settings()["change_table"]}])
def test_a_table_says_in_one_way_only_what_is_new(settings: Settings) -> None:
    with pytest.raises(pydantic.ValidationError, match="give"):
        PollingTableSettings.model_validate(settings)
