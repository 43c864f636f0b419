"""The table that a target means: made where there is none, matched with the one that exists, never bent.

Rules of the match: every column of ours is there, under a name that is equal letter by letter, with a type that holds
its values exactly; columns of theirs may be empty or have a default. A table that Kadds made says so in its comment and
takes new columns; any other difference is a SchemaMismatchError that names all of them. The key of a table we make is
NOT NULL and not declared PRIMARY KEY: docs/decisions/0003-duckdb-merge.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import duckdb
import pyarrow as pa

from kadds.api.change import HISTORY
from kadds.api.connector import Mode, Target
from kadds.api.errors import SchemaMismatchError
from kadds.api.schema import Column
from kadds_duckdb.names import OWN_PREFIX, TableName, folded, quoted, same_to_duckdb, table_name
from kadds_duckdb.types import TEXT, holds, stored_as

MADE_BY_US = "made by Kadds"


@dataclass(frozen=True)
class StoredColumn:
    """One column of ours in the table: the type of its values, and the type that the table gives it."""

    name: str
    arrow: pa.DataType
    sql_type: str
    in_key: bool = False
    computed: bool = False  # by the table itself; not written

    @property
    def sql(self) -> str:
        """The quoted name."""
        return quoted(self.name)

    @property
    def takes_text(self) -> bool:
        """Whether a value given as text can stand in it."""
        return self.sql_type == TEXT and not self.in_key


@dataclass(frozen=True)
class Layout:
    """A table ready for steps: `columns` in the order of a step's rows, `key` in the key's order."""

    name: TableName
    columns: tuple[StoredColumn, ...]
    key: tuple[StoredColumn, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """What a step's rows look like."""
        return pa.schema([pa.field(column.name, column.arrow) for column in self.columns])


@dataclass(frozen=True)
class Existing:
    """A column that the table has."""

    name: str
    sql_type: str
    required: bool  # a row without a value for it is refused
    computed: bool


def wanted_columns(target: Target) -> tuple[Column, ...]:
    """What the table must have: the target's columns, and in `append` those of the history."""
    own = target.table.columns
    if target.mode is not Mode.APPEND:
        return own
    return own + tuple(Column(field.name, field.type) for field in HISTORY)


def unnameable(target: Target) -> list[str]:
    """What about the target's columns DuckDB cannot tell apart, or we keep for ourselves."""
    seen: dict[str, str] = {}
    problems = []
    for column in target.table.columns:
        quoted(column.name)
        if (other := seen.setdefault(folded(column.name), column.name)) != column.name:
            problems.append(f"DuckDB does not tell column {column.name} from {other}")
        if target.mode is Mode.APPEND and folded(column.name).startswith(OWN_PREFIX):
            problems.append(f"column {column.name} has the name of a column of the history")
    return problems


def prepare(connection: duckdb.DuckDBPyConnection, target: Target, default_schema: str) -> Layout:
    """Make the table, add columns that are new, or match it; in the caller's transaction."""
    name = table_name(target, default_schema)
    _refuse(target, name, unnameable(target))
    existing = find(connection, name)
    if existing is None:
        _create(connection, target, name)
    elif new := addable(connection, target, name, existing):
        for column in new:
            connection.execute(f"ALTER TABLE {name.sql} ADD COLUMN {_definition(column, False)}")
            _note(connection, name, column)
    found = find(connection, name) or {}
    _refuse(target, name, differences(target, found))
    return _layout(target, name, found)


def find(connection: duckdb.DuckDBPyConnection, name: TableName) -> dict[str, Existing] | None:
    """The columns of the table, None if there is none; SchemaMismatchError for another that DuckDB takes for it."""
    rows = connection.execute("SELECT DISTINCT schema_name FROM duckdb_schemas() WHERE NOT internal").fetchall()
    _refuse_lookalike("schema", name.schema, [schema for (schema,) in rows])
    of_schema = "WHERE database_name = current_database() AND schema_name = ?"
    tables = connection.execute(f"SELECT table_name FROM duckdb_tables() {of_schema}", [name.schema]).fetchall()
    views = connection.execute(f"SELECT view_name FROM duckdb_views() {of_schema}", [name.schema]).fetchall()
    _refuse_lookalike("table", name.table, [table for (table,) in tables + views])
    if (name.table,) in views:
        raise SchemaMismatchError(f"{name} is a view", hint="give the target another name with `target:`")
    if (name.table,) not in tables:
        return None
    columns = connection.execute(
        "SELECT column_name, data_type, NOT is_nullable AND column_default IS NULL, is_generated FROM duckdb_columns() "
        f"{of_schema} AND table_name = ? ORDER BY column_index",
        [name.schema, name.table],
    ).fetchall()
    return {column[0]: Existing(*column) for column in columns}


def _refuse_lookalike(kind: str, name: str, existing: Sequence[str]) -> None:
    for other in existing:
        if other != name and same_to_duckdb(other, name):
            raise SchemaMismatchError(
                f"there is a {kind} {other}, which DuckDB does not tell from {name}",
                hint="give the target another name with `target:`",
            )


def addable(
    connection: duckdb.DuckDBPyConnection, target: Target, name: TableName, existing: dict[str, Existing]
) -> list[Column]:
    """The columns that a table of ours lacks and can take: in `merge` only nullable ones, rows being there already."""
    missing = [column for column in wanted_columns(target) if column.name not in existing]
    comments = connection.execute(
        "SELECT comment FROM duckdb_tables() "
        "WHERE database_name = current_database() AND schema_name = ? AND table_name = ?",
        [name.schema, name.table],
    ).fetchall()
    made_by_us = any(str(comment).startswith(MADE_BY_US) for (comment,) in comments)
    allowed = made_by_us and all(
        (column.nullable or target.mode is Mode.APPEND) and column.name not in target.table.key for column in missing
    )
    return missing if allowed else []


def differences(target: Target, existing: dict[str, Existing]) -> list[str]:
    """What keeps the table from taking the target's rows, one sentence each."""
    problems = []
    wanted = wanted_columns(target)
    for column in wanted:
        there = existing.get(column.name)
        if there is None:
            alike = [name for name in existing if same_to_duckdb(name, column.name)]
            problems.append(f"column {column.name} is missing" + (f" (there is {alike[0]})" if alike else ""))
        elif there.computed and not column.generated:
            problems.append(f"column {column.name} is computed by the table")
        elif not there.computed and not holds(there.sql_type, column.type):
            problems.append(f"column {column.name} is {there.sql_type} and does not hold {column.type}")
    names = {column.name for column in wanted}
    for name, there in existing.items():
        if name not in names and there.required and not there.computed:
            problems.append(f"column {name}, which the stream does not have, is NOT NULL without a default")
    return problems


def _refuse(target: Target, name: TableName, problems: list[str]) -> None:
    if problems:
        raise SchemaMismatchError(
            f"table {name} does not fit stream {target.stream}: " + "; ".join(problems),
            hint="change the table, or give the target another name with `target:`",
        )


def _create(connection: duckdb.DuckDBPyConnection, target: Target, name: TableName) -> None:
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(name.schema)}")
    key = set() if target.mode is Mode.APPEND else set(target.table.key)
    columns = wanted_columns(target)
    definitions = ", ".join(_definition(column, column.name in key) for column in columns)
    connection.execute(f"CREATE TABLE {name.sql} ({definitions})")
    comment = f"{MADE_BY_US} from {target.stream}, mode {target.mode.value}"
    connection.execute(f"COMMENT ON TABLE {name.sql} IS {_literal(comment)}")
    for column in columns:
        _note(connection, name, column)


def _definition(column: Column, required: bool) -> str:
    return f"{quoted(column.name)} {stored_as(column.type).sql}{' NOT NULL' if required else ''}"


def _note(connection: duckdb.DuckDBPyConnection, name: TableName, column: Column) -> None:
    if note := stored_as(column.type).note:
        connection.execute(f"COMMENT ON COLUMN {name.sql}.{quoted(column.name)} IS {_literal(note)}")


def _literal(text: str) -> str:
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def _layout(target: Target, name: TableName, existing: dict[str, Existing]) -> Layout:
    columns = [
        StoredColumn(
            name=column.name,
            arrow=column.type,
            sql_type=existing[column.name].sql_type,
            in_key=target.mode is not Mode.APPEND and column.name in target.table.key,
            computed=existing[column.name].computed,
        )
        for column in wanted_columns(target)
    ]
    key = () if target.mode is Mode.APPEND else target.table.key
    return Layout(name, tuple(columns), tuple(columns[target.table.arrow_schema.get_field_index(k)] for k in key))
