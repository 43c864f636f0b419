"""MySQL and MariaDB: catalog by information_schema, values by the server's own text form where a driver would round."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from kadds.api.errors import DataError, RefusedError, RetryableError
from kadds.api.schema import Column, Table
from kadds_polling.dialects.interface import Dialect, Failure, with_primary_key
from kadds_polling.types import arguments, decimal_or_text

# Each alone is answered from the data dictionary at once; joined, MariaDB opens every table for every row.
_COLUMNS = """
    SELECT table_schema AS a, table_name AS b, column_name AS c, column_type AS d, is_nullable AS e, extra AS f
    FROM information_schema.columns WHERE {which} ORDER BY table_schema, table_name, ordinal_position
"""
_KEYS = """
    SELECT table_schema AS a, table_name AS b, column_name AS c, seq_in_index AS d
    FROM information_schema.statistics WHERE index_name = 'PRIMARY' AND {which}
"""
_VIEWS = "SELECT table_schema AS a, table_name AS b FROM information_schema.views WHERE {which}"
_INDEXED = """
    SELECT column_name AS a FROM information_schema.statistics
    WHERE seq_in_index = 1 AND table_schema = :schema AND table_name = :name
"""
_DATABASE = "table_schema = :schema"
_ANY = "table_schema NOT IN ('information_schema', 'mysql', 'performance_schema', 'sys')"
_ONE = "table_schema = :schema AND table_name = :name"

_INTEGERS = {"tinyint": 8, "smallint": 16, "mediumint": 32, "int": 32, "integer": 32, "bigint": 64}
_TYPES: dict[str, pa.DataType] = {
    "float": pa.float32(),
    "double": pa.float64(),
    "year": pa.uint16(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", "UTC"),
    "time": pa.time64("us"),
}
_BINARY = {
    "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry", "point", "linestring", "polygon",
    "multipoint", "multilinestring", "multipolygon", "geometrycollection", "geomcollection",
}  # fmt: skip
_PLAIN_TEXT = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"}

_REFUSED = {1044, 1045, 1049, 1130, 1142, 1143, 1146, 1227, 1370, 1698, 3118}
_DATA = {1054, 1366, 1292, 1264}
_RETRYABLE = {1040, 1053, 1203, 1205, 1213, 1317, 1412, 2002, 2003, 2006, 2013, 2014, 2055, 3024, 1969, 1927}


def _word(declared: str) -> str:
    return re.split(r"[ (]", declared.lower(), maxsplit=1)[0]


def type_of(declared: str) -> pa.DataType:
    """The Arrow type of a COLUMN_TYPE; text for what Arrow has no type for. TINYINT(1) holds -128 to 127."""
    word, lower = _word(declared), declared.lower()
    if word in _INTEGERS:
        make = f"{'u' if 'unsigned' in lower else ''}int{_INTEGERS[word]}"
        return getattr(pa, make)()
    if word == "decimal":
        precision, scale = (*arguments(declared), 0, 0)[:2]
        return decimal_or_text(precision, scale)
    if word == "bit":
        return pa.bool_() if arguments(declared) == (1,) else pa.uint64()
    if word in _BINARY:
        return pa.binary()
    return _TYPES.get(word, pa.string())


class MySQL(Dialect):
    """MySQL, MariaDB and what behaves like them."""

    def tables(self, connection: sa.Connection) -> Sequence[Table]:
        database = connection.engine.url.database
        which, place = (_DATABASE, {"schema": database}) if database else (_ANY, {})
        views = set(map(tuple, connection.execute(sa.text(_VIEWS.format(which=which)), place)))
        return [t for t in self._catalog(connection, which, place) if (t.schema, t.name) not in views]

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        place = {"schema": schema or connection.engine.url.database, "name": name}
        found = self._catalog(connection, _ONE, place)
        return found[0] if found else None

    def _catalog(self, connection: sa.Connection, which: str, place: Mapping[str, Any]) -> list[Table]:
        keys = {
            (schema, table, column): int(number)
            for schema, table, column, number in connection.execute(sa.text(_KEYS.format(which=which)), place)
        }
        rows = connection.execute(sa.text(_COLUMNS.format(which=which)), place)
        return with_primary_key(
            [
                (
                    schema,
                    table,
                    "",
                    Column(name, type_of(declared), declared, nullable == "YES", "GENERATED" in extra.upper()),
                    keys.get((schema, table, name)),
                )
                for schema, table, name, declared, nullable, extra in map(_texts, rows)
            ]
        )

    def indexed(self, connection: sa.Connection, table: Table) -> set[str]:
        place = {"schema": table.schema or connection.engine.url.database, "name": table.name}
        return {name for (name,) in connection.execute(sa.text(_INDEXED), place)}

    def read(self, expression: sa.ColumnElement[Any], column: Column) -> sa.ColumnElement[Any]:
        word = _word(column.declared)
        if word == "bit":
            return sa.cast(expression, mysql.INTEGER(unsigned=True))
        if word == "float":
            return sa.cast(expression, sa.Double())  # as FLOAT the server writes six digits only
        if pa.types.is_decimal(column.type) or pa.types.is_temporal(column.type):
            return sa.cast(expression, sa.String())  # zero dates, negative times, and digits no driver rounds
        if column.type == pa.string() and word not in _PLAIN_TEXT:
            return sa.cast(expression, sa.String())
        return expression

    def connect_arguments(self, timeout_seconds: int) -> Mapping[str, Any]:
        return {"connect_timeout": timeout_seconds}

    def prepare(self, connection: Any) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SET SESSION sql_mode = '', time_zone = '+00:00', net_write_timeout = 3600")
            cursor.execute("SET SESSION TRANSACTION READ ONLY")

    def snapshot(self, connection: sa.Connection) -> sa.Connection:
        return connection.execution_options(isolation_level="REPEATABLE READ")

    def abandon(self, cursor: Any) -> None:
        # PyMySQL reads such a result to its end, from a closed connection too, when it is garbage collected.
        result: Any = getattr(cursor, "_result", None)
        if getattr(result, "unbuffered_active", False):
            result.unbuffered_active = False
        super().abandon(cursor)

    def cancel(self, connection: Any, url: sa.URL) -> None:
        with contextlib.suppress(Exception):  # it has ended by itself, or the server cannot be reached
            helper = sa.create_engine(url, poolclass=sa.pool.NullPool, connect_args={"connect_timeout": 5})
            with helper.connect() as other:
                other.exec_driver_sql(f"KILL {int(connection.thread_id())}")

    def classify(self, error: BaseException, connecting: bool) -> type[Failure] | None:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else None
        if code in _REFUSED:
            return RefusedError
        if code in _DATA:
            return DataError
        return RetryableError if code in _RETRYABLE else None


def _texts(row: Any) -> tuple[str, ...]:
    """Some versions give catalog text as bytes."""
    return tuple(value.decode() if isinstance(value, bytes) else value or "" for value in row)
