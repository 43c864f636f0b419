"""Row filters: one boolean DuckDB expression over a stream's columns.

The expression runs in a DuckDB database in memory that has no access to files, loads no extension, reads no Python
variable and whose configuration is locked. It is parsed first, and only expressions over columns, constants and
functions that give the same answer every time are let through: no subquery, aggregate, window, lambda, parameter, and
nothing that depends on the time, on chance or on a session, because a delivery is repeated exactly as it was planned.
Times are in UTC. NULL is no match.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from kadds.api.errors import ConfigurationError, DataError
from kadds.api.schema import Table
from kadds.engine.cells import Bools

_ALLOWED_CLASSES = frozenset(
    ("COMPARISON", "CONJUNCTION", "COLUMN_REF", "CONSTANT", "FUNCTION", "BETWEEN", "OPERATOR", "CASE", "CAST", "TYPE")
)
_ALLOWED_MACROS = frozenset(("nullif", "ifnull", "fmod", "date_add", "split_part"))
_CONFIGURATION: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "256MB",
    "temp_directory": "",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "python_scan_all_frames": "false",
}
_local = threading.local()


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config=_CONFIGURATION)
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


_database_lock = threading.Lock()


def _connection() -> duckdb.DuckDBPyConnection:
    """This thread's connection to the locked database."""
    connection: duckdb.DuckDBPyConnection | None = getattr(_local, "connection", None)
    if connection is None:
        with _database_lock:
            connection = _database().cursor()
        _local.connection = connection
    return connection


@functools.cache
def _repeatable_functions() -> frozenset[str]:
    with _database_lock:
        found = _database().execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' GROUP BY 1 "
            "HAVING bool_and(stability = 'CONSISTENT')"
        )
        return frozenset(row[0] for row in found.fetchall())


class Where:
    """One expression over the columns of one table.

    ConfigurationError at once for whatever cannot run: syntax, an unknown column, a result that is not boolean. The
    columns it reads are `columns` (numbers).
    """

    def __init__(self, text: str, table: Table) -> None:
        self.text = text
        self._where = f"where of {table.qualified_name}"
        names = sorted(set(self._names(self._parse())))
        self.columns = self._resolve(names, table)
        self._schema = pa.schema([table.arrow_schema.field(number) for number in self.columns])
        self._check_type(table)

    def matches(self, values: pa.RecordBatch) -> Bools:
        """For each row of `values` (all columns of the table) whether it matches; DataError if that fails.

        The error does not carry DuckDB's message, which may quote values of the row.
        """
        arrays = [values.column(number) for number in self.columns]
        if not arrays:  # a filter such as `true` reads nothing, but still speaks of every row
            arrays, schema = [pa.nulls(values.num_rows)], pa.schema([pa.field("_", pa.null())])
        else:
            schema = self._schema
        try:
            found = self._run(pa.RecordBatch.from_arrays(arrays, schema=schema))
        except duckdb.Error as error:
            raise DataError(
                f"the filter {self.text!r} fails on a row ({type(error).__name__})",
                where=self._where,
                hint="try_cast gives NULL, which is no match, where a cast fails",
            ) from None
        return np.asarray(found.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)

    def _run(self, rows: pa.RecordBatch) -> pa.Array:
        connection = _connection()
        connection.register("changes", rows)
        try:
            table = connection.sql(f"SELECT (\n{self.text}\n) AS matches FROM changes").to_arrow_table()
        finally:
            connection.unregister("changes")
        return table.column(0).combine_chunks()

    def _parse(self) -> Any:
        tree = json.loads(
            _connection()
            .execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT (\n{self.text}\n)"])
            .fetchall()[0][0]
        )
        if tree.get("error"):
            raise self._refused(f"cannot be read: {tree.get('error_message')}")
        statements = tree["statements"]
        node = statements[0]["node"]
        if len(statements) != 1 or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
            raise self._refused("is more than one expression")
        if node["from_table"]["type"] != "EMPTY" or node.get("where_clause") or node["modifiers"]:
            raise self._refused("is more than an expression")
        return node["select_list"][0]

    def _names(self, tree: Any) -> Iterator[str]:
        for node in _nodes(tree):
            kind = node["class"]
            if kind not in _ALLOWED_CLASSES:
                raise self._refused(f"uses {kind.lower().replace('_', ' ')}, which a row filter cannot")
            if kind == "FUNCTION":
                name = node["function_name"].lower()
                if name not in _repeatable_functions() and name not in _ALLOWED_MACROS:
                    raise self._refused(f"uses {name}(), which is unknown or does not give the same answer every time")
            if kind == "COLUMN_REF":
                if len(node["column_names"]) != 1:
                    raise self._refused(f"names {'.'.join(node['column_names'])}; write the column's own name alone")
                yield node["column_names"][0]

    def _resolve(self, names: list[str], table: Table) -> tuple[int, ...]:
        """Numbers of the columns; DuckDB does not tell `a` from `A`, so such a pair cannot be used together."""
        known = [column.name for column in table.columns]
        numbers: dict[str, int] = {}
        for name in names:
            alike = [number for number, column in enumerate(known) if column.lower() == name.lower()]
            if name in known:
                number = known.index(name)
            elif len(alike) == 1:
                number = alike[0]
            else:
                raise self._refused(f"names a column {name!r}", hint=f"{table.qualified_name} has {', '.join(known)}")
            if numbers.setdefault(name.lower(), number) != number:
                raise self._refused(f"names two columns that differ only by case: {name}")
        return tuple(sorted(set(numbers.values())))

    def _check_type(self, table: Table) -> None:
        for number in self.columns:
            column = table.columns[number]
            if pa.types.is_decimal256(column.type):
                raise self._refused(f"reads {column.name}, a number of more than 38 digits, which it cannot compare")
        empty = pa.RecordBatch.from_pylist([], schema=self._schema if self.columns else pa.schema([("_", pa.null())]))
        try:
            found = self._run(empty)
        except duckdb.Error as error:
            raise self._refused(f"does not fit the columns: {str(error).splitlines()[0]}") from None
        if not pa.types.is_boolean(found.type):
            raise self._refused(f"gives {found.type}, not true or false")

    def _refused(self, message: str, *, hint: str | None = None) -> ConfigurationError:
        hint = hint or "a filter is one boolean expression over the columns, such as status <> 'draft'"
        return ConfigurationError(f"{self.text!r} {message}", where=self._where, hint=hint)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression node in a serialised tree."""
    if isinstance(tree, dict):
        if "class" in tree and "type" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
