"""The steps of a delivery as SQL over registered Arrow columns; nothing here is per row.

Invariants: rows come into SQL under names of our own (`c0`, `c1`, …), so that no name of theirs meets one of ours; each
value is cast to the type of its column before it is compared or written; a key is given, not NULL and stands once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import numpy as np
import pyarrow as pa

from kadds.api.change import given_mask, text_cells
from kadds.api.connector import Append, Delete, Rekey, Step, Truncate, Upsert
from kadds.api.errors import DataError, UnknownInputError
from kadds_duckdb.table import Layout, StoredColumn
from kadds_duckdb.types import arrow_for

ROWS = "_kadds_rows"


def apply(connection: duckdb.DuckDBPyConnection, layout: Layout, step: Step) -> None:
    """Do one step; DataError names the column of a value that does not fit."""
    match step:
        case Truncate():
            connection.execute(f"DELETE FROM {layout.name.sql}")
        case Delete():
            _delete(connection, layout, step.keys)
        case Rekey():
            _rekey(connection, layout, step)
        case Upsert():
            _upsert(connection, layout, step)
        case Append():
            _append(connection, layout, step)


# ------------------------------------------------------------------------------------------------- rows on their way in


class Staged:
    """Columns gathered for one statement; `cast` gives the SQL that reads one as its table column needs it."""

    def __init__(self) -> None:
        self.arrays: dict[str, pa.Array] = {}

    def add(self, name: str, column: StoredColumn, values: pa.Array, texts: pa.Array | None = None) -> str:
        """Stage `values` as `name`; the SQL expression of the value. `texts` (null: none) win over values."""
        self.arrays[name] = arrow_for(values, column.name)
        if texts is None:
            return f"CAST({name} AS {column.sql_type}) AS {name}"
        self.arrays[f"{name}_text"] = texts
        return f"coalesce({name}_text, CAST({name} AS {column.sql_type})) AS {name}"

    def add_flags(self, name: str, flags: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
        """Stage booleans as `name`; their SQL expression."""
        self.arrays[name] = pa.array(flags)
        return name

    @contextmanager
    def registered(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """The columns are there as table ROWS inside; an error leaves them to the transaction's end."""
        connection.register(ROWS, pa.table(self.arrays))
        yield
        connection.unregister(ROWS)


def _stage_keys(staged: Staged, layout: Layout, keys: pa.RecordBatch, prefix: str) -> list[str]:
    if not layout.key:
        raise UnknownInputError("a step by key for a target without a key")
    if keys.num_columns != len(layout.key):
        raise UnknownInputError(f"a key of {keys.num_columns} columns where the target has {len(layout.key)}")
    expressions = []
    for number, column in enumerate(layout.key):
        values = keys.column(number)
        _refuse_null(values, column)
        expressions.append(staged.add(f"{prefix}{number}", column, values))
    return expressions


def _refuse_null(values: pa.Array, column: StoredColumn) -> None:
    if values.null_count:
        raise DataError(
            f"key column {column.name} is NULL or was given as text in {values.null_count} rows",
            hint="such a row cannot be told from others; use mode `append`, or correct it at the source",
        )


def _texts(layout: Layout, as_text: pa.Array | None, rows: int) -> dict[int, pa.Array]:
    """Column number → text per row (null: none); DataError where the column cannot hold one."""
    found = {}
    for number, (places, texts) in text_cells(as_text).items():
        column = layout.columns[number]
        if not column.takes_text:
            raise DataError(
                f"column {column.name} is {column.sql_type} and cannot hold {texts[0].as_py()!r}",
                hint=f"make column {column.name} VARCHAR in the target, or leave it out of the contract",
            )
        indexes = np.full(rows, -1)
        indexes[places] = np.arange(len(places))
        found[number] = texts.take(pa.array(indexes, mask=indexes < 0))
    return found


def _same(left: str, columns: Sequence[StoredColumn], prefix: str) -> str:
    return " AND ".join(f"{left}.{column.sql} = s.{prefix}{number}" for number, column in enumerate(columns))


def _check_rows(layout: Layout, rows: pa.RecordBatch) -> None:
    if rows.schema.names != layout.schema.names or rows.schema.types != layout.schema.types:
        raise UnknownInputError(
            f"rows have {rows.schema.to_string()} where the target was prepared for {layout.schema.to_string()}"
        )


# -------------------------------------------------------------------------------------------------------------- steps


def _delete(connection: duckdb.DuckDBPyConnection, layout: Layout, keys: pa.RecordBatch) -> None:
    staged = Staged()
    read = ", ".join(_stage_keys(staged, layout, keys, "k"))
    with staged.registered(connection):
        connection.execute(
            f"DELETE FROM {layout.name.sql} AS t USING (SELECT {read} FROM {ROWS}) AS s "
            f"WHERE {_same('t', layout.key, 'k')}"
        )


def _rekey(connection: duckdb.DuckDBPyConnection, layout: Layout, step: Rekey) -> None:
    staged = Staged()
    read = [*_stage_keys(staged, layout, step.old, "o"), *_stage_keys(staged, layout, step.new, "n")]
    rows = f"(SELECT {', '.join(read)} FROM {ROWS}) AS s"
    assignments = ", ".join(f"{column.sql} = s.n{number}" for number, column in enumerate(layout.key))
    with staged.registered(connection):
        taken = connection.execute(
            f"SELECT {', '.join(f't.{column.sql}' for column in layout.key)} FROM {layout.name.sql} AS t "
            f"WHERE EXISTS (SELECT 1 FROM {rows} WHERE {_same('t', layout.key, 'n')}) "
            f"AND NOT EXISTS (SELECT 1 FROM {rows} WHERE {_same('t', layout.key, 'o')}) LIMIT 1"
        ).fetchall()
        if taken:
            raise DataError(
                f"a row is to take the key {', '.join(map(str, taken[0]))}, which another row of the target has",
                hint="the target is not what the stream left there: `kadds resync` loads the table again",
            )
        connection.execute(
            f"UPDATE {layout.name.sql} AS t SET {assignments} FROM {rows} WHERE {_same('t', layout.key, 'o')}"
        )


def _upsert(connection: duckdb.DuckDBPyConnection, layout: Layout, step: Upsert) -> None:
    _check_rows(layout, step.rows)
    _check_keys(layout, step, step.rows.num_rows)
    rows = step.rows.num_rows
    texts = _texts(layout, step.as_text, rows)
    staged, reads = Staged(), []
    whole = np.ones(rows, np.bool_)
    new_values: dict[StoredColumn, str] = {}
    for number, column in enumerate(layout.columns):
        if column.computed:
            continue
        reads.append(staged.add(f"c{number}", column, step.rows.column(number), texts.get(number)))
        given = given_mask(step.not_given, number, rows)
        new_values[column] = f"s.c{number}"
        if not given.all():
            whole &= given
            reads.append(staged.add_flags(f"g{number}", given))
            new_values[column] = f"CASE WHEN s.g{number} THEN s.c{number} ELSE t.{column.sql} END"
    reads.append(staged.add_flags("whole", whole))
    with staged.registered(connection):
        connection.execute(_merge(layout, reads, new_values, bool(whole.all())))


def _check_keys(layout: Layout, step: Upsert, rows: int) -> None:
    if not layout.key:
        raise UnknownInputError("rows to merge into a target without a key")
    keys = step.rows.select([column.name for column in layout.key])
    for column, values in zip(layout.key, keys.columns, strict=True):
        _refuse_null(values, column)
        if not given_mask(step.not_given, layout.columns.index(column), rows).all():
            raise DataError(f"key column {column.name} was not given")
    distinct = pa.Table.from_batches([keys]).group_by(keys.schema.names).aggregate([]).num_rows
    if distinct != rows:
        raise UnknownInputError(f"{rows} rows of one step have {distinct} keys")


def _merge(layout: Layout, reads: Sequence[str], new_values: dict[StoredColumn, str], all_whole: bool) -> str:
    assignments = ", ".join(f"{column.sql} = {value}" for column, value in new_values.items() if not column.in_key)
    numbers = {column: number for number, column in enumerate(layout.columns)}
    on = " AND ".join(f"t.{column.sql} = s.c{numbers[column]}" for column in layout.key)
    names = ", ".join(column.sql for column in new_values)
    values = ", ".join(f"s.c{numbers[column]}" for column in new_values)
    key_text = ", ".join(f"s.c{numbers[column]}" for column in layout.key)
    parts = [
        f"MERGE INTO {layout.name.sql} AS t USING (SELECT {', '.join(reads)} FROM {ROWS}) AS s ON {on}",
        f"WHEN MATCHED THEN UPDATE SET {assignments}" if assignments else "WHEN MATCHED THEN DO NOTHING",
        f"WHEN NOT MATCHED{'' if all_whole else ' AND s.whole'} THEN INSERT ({names}) VALUES ({values})",
    ]
    if not all_whole:
        parts.append(f"WHEN NOT MATCHED THEN ERROR concat_ws(', ', {key_text})")
    return " ".join(parts)


def _append(connection: duckdb.DuckDBPyConnection, layout: Layout, step: Append) -> None:
    _check_rows(layout, step.rows)
    texts = _texts(layout, step.as_text, step.rows.num_rows)
    staged = Staged()
    written = [(number, column) for number, column in enumerate(layout.columns) if not column.computed]
    reads = [
        staged.add(f"c{number}", column, step.rows.column(number), texts.get(number)) for number, column in written
    ]
    names = ", ".join(column.sql for _, column in written)
    with staged.registered(connection):
        connection.execute(f"INSERT INTO {layout.name.sql} ({names}) SELECT {', '.join(reads)} FROM {ROWS}")
