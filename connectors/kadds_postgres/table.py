"""The table that a target means: made where there is none, matched with the one that exists, never bent.

Rules of the match: every column of ours is there, under a name that is equal letter by letter, with a type that holds
its values exactly; columns of theirs may be empty, or have a default, an identity or a computed value; the key is that
of a primary key or a unique index on exactly those columns. A table that Kadds made says so in its comment and follows
the stream: new columns are added, gone ones stay and may be NULL, wider types are taken over. Any other difference is a
SchemaMismatchError that names all of them. Rows are written by name, so the order of the columns is the owner's.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import pyarrow as pa
from psycopg import sql

from kadds.api.change import HISTORY
from kadds.api.connector import Mode, Target
from kadds.api.errors import SchemaMismatchError
from kadds.api.schema import Column
from kadds_postgres.binary import writes
from kadds_postgres.connection import Connection
from kadds_postgres.existing import Existing, ExistingColumn, find
from kadds_postgres.names import TableName, quoted, table_name
from kadds_postgres.sink_types import holds, made_type, widens

MADE_BY_US = "made by Kadds"
_OWN_PREFIX = "_kadds_"  # the history columns


@dataclass(frozen=True)
class StoredColumn:
    """One column of ours in the table."""

    name: str
    arrow: pa.DataType
    there: ExistingColumn
    written: bool  # False: computed by the table itself
    in_key: bool

    @property
    def sql(self) -> str:
        """The quoted name."""
        return quoted(self.name)

    @cached_property
    def is_binary(self) -> bool:
        """Whether its values have a binary form."""
        return writes(self.arrow, self.there.own_name)


@dataclass(frozen=True)
class Layout:
    """A table ready for steps: `columns` in the order of a step's rows, `key` in the key's order."""

    name: TableName
    existing: Existing
    columns: tuple[StoredColumn, ...]
    key: tuple[StoredColumn, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """What a step's rows look like."""
        return pa.schema([pa.field(column.name, column.arrow) for column in self.columns])

    @property
    def overriding(self) -> str:
        """What INSERT needs to say where a column of ours numbers itself (COPY needs nothing)."""
        always = any(column.there.identity == "a" and column.written for column in self.columns)
        return " OVERRIDING SYSTEM VALUE" if always else ""


def wanted_columns(target: Target) -> tuple[Column, ...]:
    """What the table must have: the target's columns, and in `append` those of the history."""
    own = target.table.columns
    if target.mode is not Mode.APPEND:
        return own
    return own + tuple(Column(field.name, field.type) for field in HISTORY)


def wanted_key(target: Target) -> tuple[str, ...]:
    """The columns by which rows are found; none in `append`."""
    return () if target.mode is Mode.APPEND else target.table.key


def unnameable(target: Target) -> list[str]:
    """What about the target's columns cannot be a name here; ConfigurationError for what no table can have."""
    for column in target.table.columns:
        quoted(column.name)
    if target.mode is not Mode.APPEND:
        return []
    return [
        f"column {column.name} has the name of a column of the history"
        for column in target.table.columns
        if column.name.startswith(_OWN_PREFIX)
    ]


def prepare(connection: Connection, target: Target, default_schema: str, state_schema: str) -> Layout:
    """Make the table, take over what is new, or match it; in the caller's transaction."""
    name = table_name(target, default_schema, state_schema)
    _refuse(target, name, unnameable(target))
    existing = find(connection, name)
    if existing is None:
        _create(connection, target, name)
    elif changes := evolution(target, existing):
        for change in changes.values():
            connection.execute(f"ALTER TABLE {name.sql} {change}".encode())
    else:
        return _matched(target, name, existing)
    return _matched(target, name, find(connection, name))


def _matched(target: Target, name: TableName, existing: Existing | None) -> Layout:
    _refuse(target, name, ["it has gone"] if existing is None else differences(target, existing))
    return _layout(target, name, cast(Existing, existing))


def evolution(target: Target, existing: Existing) -> dict[str, str]:
    """Column → what ALTER TABLE does to it, so that a table that we made follows the stream; empty for all others."""
    if not (existing.comment or "").startswith(MADE_BY_US):
        return {}
    key, wanted, changes = wanted_key(target), wanted_columns(target), {}
    for column in wanted:
        there, made = existing.columns.get(column.name), made_type(column)
        if there is None and column.name not in key:
            changes[column.name] = f"ADD COLUMN {quoted(column.name)} {made}"
        elif there is not None and not holds(there.type, column) and widens(there.type, made):
            changes[column.name] = f"ALTER COLUMN {quoted(column.name)} TYPE {made}"
    names = {column.name for column in wanted}
    for there in existing.columns.values():
        if there.name not in names and there.required and there.name not in existing.primary_key:
            changes[there.name] = f"ALTER COLUMN {quoted(there.name)} DROP NOT NULL"
    return changes


def differences(target: Target, existing: Existing, remedied: Container[str] = ()) -> list[str]:
    """What keeps the table from taking the target's rows, one sentence each; nothing of the columns `remedied`."""
    problems = [] if existing.is_table else [f"it is a {existing.kind}, not a table"]
    if existing.hides_rows:
        problems.append("row-level security is active for this user, so that rows could be out of sight")
    if existing.has_rules:
        problems.append("it has rules, which rewrite what is written")
    wanted, key = wanted_columns(target), wanted_key(target)
    for column in wanted:
        there = existing.columns.get(column.name)
        if column.name in remedied:
            continue
        if there is None:
            problems.append(f"column {column.name} is missing")
        elif there.computed:
            if not column.generated:
                problems.append(f"column {column.name} is computed by the table")
        elif not holds(there.type, column):
            problems.append(f"column {column.name} is {there.type} and does not hold {_in_words(column)}")
        elif column.name in key and not there.deterministic:
            problems.append(f"key column {column.name} has a collation that takes different texts for equal")
        elif there.identity == "a" and column.name not in key and target.mode is not Mode.APPEND:
            problems.append(
                f"column {column.name} is GENERATED ALWAYS AS IDENTITY, which no UPDATE may set "
                f"(ALTER COLUMN {quoted(column.name)} SET GENERATED BY DEFAULT)"
            )
    names = {column.name for column in wanted}
    problems += [
        f"column {there.name}, which the stream does not have, is NOT NULL without a default"
        for there in existing.columns.values()
        if there.name not in names and there.required and there.name not in remedied
    ]
    if key and not existing.is_unique(key):
        columns = ", ".join(map(quoted, key))
        problems.append(f"its key ({', '.join(key)}) is not unique: ALTER TABLE … ADD PRIMARY KEY ({columns})")
    return problems


def cautions(target: Target, existing: Existing) -> list[str]:
    """What may change or refuse values though the table fits."""
    found = [f"trigger {trigger} runs before each row and may change it" for trigger in existing.triggers_before_rows]
    key = wanted_key(target)
    found += [
        f"unique index {index.name} is not of the key: rows that exchange its values within a batch are refused"
        for index in existing.indexes
        if set(index.columns) != set(key)
    ]
    found += [
        f"foreign key {name} acts on deleted rows: key changes that overlap are refused"
        for name in existing.cascades
        if key
    ]
    return found


def _in_words(column: Column) -> str:
    return column.declared if column.declared and column.type == pa.string() else str(column.type)


def _refuse(target: Target, name: TableName, problems: list[str]) -> None:
    if problems:
        raise SchemaMismatchError(
            f"table {name} does not fit stream {target.stream}: " + "; ".join(problems),
            hint="change the table, or give the target another name with `target:`",
        )


def _create(connection: Connection, target: Target, name: TableName) -> None:
    key = wanted_key(target)
    definitions = [
        f"{quoted(column.name)} {made_type(column)}{' NOT NULL' if column.name in key else ''}"
        for column in wanted_columns(target)
    ]
    if key:
        definitions.append(f"PRIMARY KEY ({', '.join(map(quoted, key))})")
    there = connection.execute("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s", [name.schema]).fetchone()
    if there is None:  # asked first: IF NOT EXISTS wants the privilege even where the schema exists
        connection.execute(f"CREATE SCHEMA {quoted(name.schema)}".encode())
    connection.execute(f"CREATE TABLE {name.sql} ({', '.join(definitions)})".encode())
    comment = f"{MADE_BY_US} from {target.stream}, mode {target.mode.value}".replace("\0", "")
    connection.execute(f"COMMENT ON TABLE {name.sql} IS {sql.Literal(comment).as_string(connection)}".encode())


def _layout(target: Target, name: TableName, existing: Existing) -> Layout:
    key = wanted_key(target)
    columns = {}
    for column in wanted_columns(target):
        there = existing.columns[column.name]
        columns[column.name] = StoredColumn(
            name=column.name,
            arrow=column.type,
            there=there,
            written=not there.computed,
            in_key=column.name in key,
        )
    return Layout(name, existing, tuple(columns.values()), tuple(columns[k] for k in key))
