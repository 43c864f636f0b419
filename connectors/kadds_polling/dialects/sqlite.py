"""SQLite: any cell may hold any value, whatever its column says; dates are text; reading locks out nobody for long."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from kadds.api.errors import DataError, RefusedError, RetryableError
from kadds.api.schema import Column, Table
from kadds_polling.dialects.interface import Dialect, Failure, with_primary_key
from kadds_polling.types import arguments, decimal_or_text

_CATALOG = """
    SELECT m.name, p.name, p.type, p."notnull", p.hidden, p.pk
    FROM sqlite_master AS m JOIN pragma_table_xinfo(m.name) AS p
    WHERE m.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND p.hidden <> 1 AND {which} ORDER BY m.name, p.cid
"""
_ALL = "m.type = 'table'"
_ONE = "m.type IN ('table', 'view') AND m.name = :name"
_INDEXED = """
    SELECT c.name FROM pragma_index_list(:name) AS i JOIN pragma_index_info(i.name) AS c
    WHERE c.seqno = 0 AND NOT i.partial
"""
_BUSY = ("database is locked", "database table is locked", "interrupted", "database schema has changed")
_GONE = ("no such table", "unable to open", "not a database", "malformed", "disk I/O", "readonly")


def type_of(declared: str) -> pa.DataType:
    """The Arrow type by the names people use, then by SQLite's own rules of affinity."""
    name = declared.upper().strip()
    word = re.split(r"[ (]", name, maxsplit=1)[0]
    if word in ("BOOL", "BOOLEAN"):
        return pa.bool_()
    if word in ("DATETIME", "TIMESTAMP") and "ZONE" not in name:
        return pa.timestamp("us")
    if word in ("DATE", "TIME") and "ZONE" not in name:
        return pa.date32() if word == "DATE" else pa.time64("us")
    if word in ("DECIMAL", "NUMERIC"):
        numbers = arguments(name)
        return decimal_or_text(*(*numbers, 0)[:2]) if numbers else pa.string()
    if "INT" in name:
        return pa.int64()
    if re.search("CHAR|CLOB|TEXT", name):
        return pa.string()
    if "BLOB" in name:
        return pa.binary()
    return pa.float64() if re.search("REAL|FLOA|DOUB", name) else pa.string()


class SQLite(Dialect):
    """A SQLite file, which is only read."""

    text_times = True

    def tables(self, connection: sa.Connection) -> Sequence[Table]:
        return self._catalog(connection, _ALL, {})

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        found = self._catalog(connection, _ONE, {"name": name})
        return found[0] if found else None

    def _catalog(self, connection: sa.Connection, which: str, place: Mapping[str, Any]) -> list[Table]:
        rows = list(connection.execute(sa.text(_CATALOG.format(which=which)), place))
        composite = {table for table, _, _, _, _, place_in_key in rows if place_in_key > 1}
        return with_primary_key(
            [
                (
                    None,
                    table,
                    "",
                    Column(
                        name,
                        type_of(declared),
                        declared,
                        # INTEGER PRIMARY KEY is the row's number and never NULL; other keys may be NULL in SQLite.
                        not required and not (in_key and table not in composite and declared.upper() == "INTEGER"),
                        hidden in (2, 3),
                    ),
                    in_key or None,
                )
                for table, name, declared, required, hidden, in_key in rows
            ]
        )

    def indexed(self, connection: sa.Connection, table: Table) -> set[str]:
        found = {name for (name,) in connection.execute(sa.text(_INDEXED), {"name": table.name})}
        if len(table.key) == 1 and table.column(table.key[0]).declared.upper() == "INTEGER":
            found.add(table.key[0])
        return found

    def values(self, column: Column, values: Sequence[Any]) -> Sequence[Any]:
        # NUMERIC cells are integers or floats inside SQLite; the shortest text that gives the float back is the value.
        numeric = column.type == pa.string() and re.match("NUMERIC|DECIMAL", column.declared.upper())
        if not numeric and not pa.types.is_decimal(column.type):
            return values
        return [
            str(value) if type(value) is int else repr(value) if type(value) is float else value for value in values
        ]

    def bound(self, column: Column, micros: int) -> sa.ColumnElement[Any]:
        # Text is compared: whole seconds behind a blank sort before every other way to write that second. Where days
        # and hours are parted by T this lets through the whole day, which `Window.sift` then narrows.
        micros = max(micros, -62_135_596_800_000_000)
        moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=micros // 1_000_000)  # noqa: DTZ001
        return sa.literal(str(moment.date() if column.type == pa.date32() else moment), sa.String())

    def upper(self, column: Column, micros: int, raw: Any) -> sa.ColumnElement[Any]:
        return sa.literal(raw, sa.String())

    def connect_arguments(self, timeout_seconds: int) -> Mapping[str, Any]:
        return {"check_same_thread": False, "timeout": timeout_seconds}

    def check_place(self, url: sa.URL) -> None:
        name = url.database
        if name and name != ":memory:" and not name.startswith("file:") and not Path(name).is_file():
            raise RefusedError(
                f"there is no file {name}", hint="a file is never made by reading; check the path in the URL"
            )

    def prepare(self, connection: Any) -> None:
        connection.isolation_level = None  # the driver's own guesses about transactions begin none for SELECT
        connection.execute("PRAGMA query_only = ON")

    def cancel(self, connection: Any, url: sa.URL) -> None:
        with contextlib.suppress(Exception):  # closed already
            connection.interrupt()

    def classify(self, error: BaseException, connecting: bool) -> type[Failure] | None:
        text = str(error)
        if any(words in text for words in _BUSY):
            return RetryableError
        if any(words in text for words in _GONE):
            return RefusedError
        return DataError if re.search("no such column|Could not decode", text) else None
