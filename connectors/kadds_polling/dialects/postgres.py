"""PostgreSQL: one catalog query, values by its own text form where a Python value would lose something."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from kadds.api.errors import DataError, RefusedError, RetryableError
from kadds.api.schema import Column, Table
from kadds_polling.dialects.interface import Dialect, Failure, with_primary_key
from kadds_polling.types import arguments, decimal_or_text

# A domain is its base type; one over another domain stays a name and so is read as text. Leaves of a partitioned
# table are left out: their rows are the root's.
_CATALOG = """
    SELECT n.nspname, c.relname, c.oid::text, a.attnum, a.attname,
           CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod)
                ELSE format_type(a.atttypid, a.atttypmod) END,
           a.attnotnull OR t.typnotnull, a.attgenerated <> '', array_position(i.indkey::int2[], a.attnum)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
    WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%' AND {which}
    ORDER BY n.nspname, c.relname, a.attnum
"""
_ALL = "c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition"
_ONE = "c.relkind IN ('r', 'p', 'f', 'v', 'm') AND n.nspname = :schema AND c.relname = :name"
_INDEXED = """
    SELECT a.attname FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE i.indisvalid AND i.indpred IS NULL AND n.nspname = :schema AND c.relname = :name
"""

_TYPES: dict[str, pa.DataType] = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "oid": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}
_PLAIN_TEXT = re.compile(r"^(text|character varying|character|citext)(\(\d+\))?$")


def type_of(declared: str) -> pa.DataType:
    """The Arrow type of a type as `format_type` writes it; text for what Arrow has no type for."""
    if declared.startswith("numeric") and not declared.endswith("]"):
        precision, scale = (*arguments(declared), None, None)[:2]
        return decimal_or_text(precision, scale)
    return _TYPES.get(re.sub(r"\(\d+\)", "", declared), pa.string())


class PostgreSQL(Dialect):
    """PostgreSQL and what speaks its protocol and has its catalog."""

    def tables(self, connection: sa.Connection) -> Sequence[Table]:
        return self._catalog(connection, _ALL, {})

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        found = self._catalog(connection, _ONE, {"schema": schema or "public", "name": name})
        return found[0] if found else None

    def _catalog(self, connection: sa.Connection, which: str, parameters: Mapping[str, Any]) -> list[Table]:
        rows = connection.execute(sa.text(_CATALOG.format(which=which).replace("%%", "%")), parameters)
        return with_primary_key(
            [
                (
                    schema,
                    table,
                    incarnation,
                    Column(name, type_of(declared), declared, not required, generated, attribute),
                    # int2vector counts from 0
                    None if place is None else place + 1,
                )
                for schema, table, incarnation, attribute, name, declared, required, generated, place in rows
            ]
        )

    def indexed(self, connection: sa.Connection, table: Table) -> set[str]:
        place = {"schema": table.schema or "public", "name": table.name}
        return {name for (name,) in connection.execute(sa.text(_INDEXED), place)}

    def read(self, expression: sa.ColumnElement[Any], column: Column) -> sa.ColumnElement[Any]:
        if column.type == pa.string() and not _PLAIN_TEXT.match(column.declared):
            # As logical decoding writes it; a cast has its own ideas (inet gets a mask, character(n) loses blanks).
            return sa.case((expression.is_(None), sa.null()), else_=sa.func.format("%s", expression))
        if pa.types.is_decimal(column.type) or pa.types.is_temporal(column.type):
            return sa.cast(expression, sa.Text())  # infinity, BC and NaN do not come through the driver
        return expression

    def connect_arguments(self, timeout_seconds: int) -> Mapping[str, Any]:
        return {"connect_timeout": timeout_seconds}

    def prepare(self, connection: Any) -> None:
        was, connection.autocommit = connection.autocommit, True
        with connection.cursor() as cursor:
            for statement in (
                "SET datestyle = 'ISO, YMD'",
                "SET intervalstyle = 'postgres'",
                "SET timezone = 'UTC'",
                "SET bytea_output = 'hex'",
                "SET extra_float_digits = 1",
                # A full log makes the reader wait between two fetches; the wait is ours to bound, not the server's.
                "SET idle_in_transaction_session_timeout = 0",
            ):
                cursor.execute(statement)
        connection.autocommit = was

    def snapshot(self, connection: sa.Connection) -> sa.Connection:
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def cancel(self, connection: Any, url: sa.URL) -> None:
        with contextlib.suppress(Exception):  # nothing is under way, or the line is dead already
            connection.cancel()

    def classify(self, error: BaseException, connecting: bool) -> type[Failure] | None:
        state = getattr(error, "sqlstate", None)
        if state:
            return _by_state(state)
        # libpq gives no code for a refused login, only the server's words.
        if connecting and re.search(
            r"authentication failed|does not exist|pg_hba\.conf|not permitted|no password", str(error)
        ):
            return RefusedError
        return None


def _by_state(state: str) -> type[Failure] | None:
    if state in ("42P01", "42501", "3F000") or state[:2] in ("28", "3D"):
        return RefusedError
    if state == "42703" or state[:2] == "22":
        return DataError
    if state[:2] in ("08", "40", "53", "57", "55", "25"):
        return RetryableError
    return None
