"""The steps of a delivery as SQL over staged columns; nothing here is per row.

Invariants: each value is parsed by the type of its column before it is compared or written; a key is given and not
NULL; the table takes as many rows as it was sent, or the delivery fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import given_mask
from kadds.api.connector import Append, Delete, Rekey, Step, Truncate, Upsert
from kadds.api.errors import DataError, UnknownInputError
from kadds_postgres.existing import OWN_COLUMNS
from kadds_postgres.names import quoted
from kadds_postgres.pipeline import Answer, TextParameter
from kadds_postgres.sink_text import texts
from kadds_postgres.staged import Staged, given_as_text, pieces, stage_keys, stage_rows
from kadds_postgres.table import Layout, StoredColumn
from kadds_postgres.transaction import Check, Transaction

#: From so many rows on COPY into the table itself is tried, which costs some round trips more.
COPY_ROWS = 500


@dataclass
class Progress:
    """What is known of a target between steps. `only_new`: it was empty, and no key has been there twice since."""

    only_new: bool = False


def apply(transaction: Transaction, layout: Layout, step: Step, progress: Progress) -> None:
    """Do one step; DataError names the column of a value that does not fit."""
    match step:
        case Truncate():
            # TRUNCATE is refused where foreign keys refer to the table, even from empty ones.
            how = "DELETE FROM" if layout.existing.referenced else "TRUNCATE"
            transaction.send(f"{how} {layout.name.sql}")
            progress.only_new = True
        case Delete():
            _delete(transaction, layout, step.keys)
        case Rekey():
            _rekey(transaction, layout, step)
        case Upsert():
            _upsert(transaction, layout, step, progress)
        case Append():
            _append(transaction, layout, step)


# ------------------------------------------------------------------------------------------------ what must hold before


def _check_rows(layout: Layout, rows: pa.RecordBatch) -> None:
    if rows.schema.names != layout.schema.names or rows.schema.types != layout.schema.types:
        raise UnknownInputError(
            f"rows have {rows.schema.to_string()} where the target was prepared for {layout.schema.to_string()}"
        )


def _check_keys(layout: Layout, keys: pa.RecordBatch) -> None:
    if not layout.key:
        raise UnknownInputError("a step by key for a target without a key")
    if keys.num_columns != len(layout.key):
        raise UnknownInputError(f"a key of {keys.num_columns} columns where the target has {len(layout.key)}")
    for column, values in zip(layout.key, keys.columns, strict=True):
        if values.null_count:
            raise DataError(
                f"key column {column.name} is NULL or was given as text in {values.null_count} rows",
                hint="such a row cannot be told from others; use mode `append`, or correct it at the source",
            )


def _check_texts(transaction: Transaction, layout: Layout, given_texts: dict[int, pa.Array]) -> None:
    """The server would round or cut a text that a column of its type has no room for."""
    for number, cells in given_texts.items():
        there = layout.columns[number].there
        if not layout.columns[number].written or "(" not in there.type:
            continue
        staged = Staged()
        value = staged.add("c", layout.columns[number], pa.nulls(len(cells), pa.string()), cells)
        transaction.send(
            f"SELECT s.c FROM {staged.relation} WHERE {value}::text <> {value}::{there.type}::text LIMIT 1",
            staged.parameters,
            _none_cut(layout.columns[number]),
            staged,
        )


def _none_cut(column: StoredColumn) -> Check:
    def check(answer: Answer) -> None:
        if answer.rows:
            raise DataError(
                f"column {column.name} is {column.there.type} and cannot hold {answer.rows[0][0]!r} as it is",
                hint=f"make column {column.name} wider in the target, or leave it out of the contract",
            )

    return check


def _all_taken(count: int) -> Check:
    def check(answer: Answer) -> None:
        if answer.count != count:
            raise DataError(
                f"the table took {answer.count} of {count} rows",
                hint="a trigger of the table leaves rows out; disable it, or give the target another name",
            )

    return check


def _same(columns: Sequence[StoredColumn], expressions: Sequence[str]) -> str:
    return " AND ".join(f"t.{column.sql} = {value}" for column, value in zip(columns, expressions, strict=True))


# -------------------------------------------------------------------------------------------------------------- deletes


def _delete(transaction: Transaction, layout: Layout, keys: pa.RecordBatch) -> None:
    _check_keys(layout, keys)
    for start, stop in pieces(keys):
        staged = Staged()
        values = stage_keys(staged, layout.key, keys.slice(start, stop - start), "k")
        transaction.send(
            f"DELETE FROM {layout.name.sql} AS t USING {staged.relation} WHERE {_same(layout.key, values)}",
            staged.parameters,
            staged=staged,
        )


# ---------------------------------------------------------------------------------------------------------- key changes


def _rekey(transaction: Transaction, layout: Layout, step: Rekey) -> None:
    _check_keys(layout, step.old)
    _check_keys(layout, step.new)
    staged = Staged()
    old = stage_keys(staged, layout.key, step.old, "o")
    new = stage_keys(staged, layout.key, step.new, "n")
    if _overlap(step) or any(column.there.identity == "a" for column in layout.key):
        _move_rows(transaction, layout, staged, old, new)
        return
    assignments = ", ".join(f"{column.sql} = {value}" for column, value in zip(layout.key, new, strict=True))
    transaction.send(
        f"UPDATE {layout.name.sql} AS t SET {assignments} FROM {staged.relation} WHERE {_same(layout.key, old)}",
        staged.parameters,
        staged=staged,
    )


def _overlap(step: Rekey) -> bool:
    """Whether a new key is also an old one: then an UPDATE, which checks row by row, could meet it too early."""
    names = [f"k{number}" for number in range(step.old.num_columns)]
    both = pa.concat_tables([pa.table(rows.columns, names=names) for rows in (step.old, step.new)])
    return bool(both.group_by(names).aggregate([]).num_rows != both.num_rows)


def _move_rows(
    transaction: Transaction, layout: Layout, staged: Staged, old: Sequence[str], new: Sequence[str]
) -> None:
    """Take the rows out, with the columns of the owner, and put them back under their new keys."""
    if layout.existing.cascades:
        raise DataError(
            f"keys change places, and foreign key {layout.existing.cascades[0]} acts on deleted rows",
            hint="make that foreign key NO ACTION and DEFERRABLE INITIALLY DEFERRED, or resync the table",
        )
    table, moved = layout.name.sql, 'pg_temp."_kadds_moved"'
    transaction.send(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
    own = {str(name) for (name,) in transaction.fetch(OWN_COLUMNS, [layout.existing.oid])}
    kept = ", ".join(quoted(name) for name in sorted(own - {column.name for column in layout.key}))
    keys = ", ".join(column.sql for column in layout.key)
    numbered = [f"k{number}" for number in range(len(layout.key))]
    news = ", ".join(f"{value} AS {name}" for value, name in zip(new, numbered, strict=True))
    comma = ", " if kept else ""
    rows = f"{table} AS t, {staged.relation} WHERE {_same(layout.key, old)}"
    # CREATE TABLE AS takes no parameters, so the table is made empty first.
    transaction.send(
        f"CREATE TEMPORARY TABLE _kadds_moved ON COMMIT DROP AS SELECT {keys}, {kept}{comma}"
        f"{', '.join(f'{column.sql} AS {name}' for column, name in zip(layout.key, numbered, strict=True))} "
        f"FROM {table} WITH NO DATA"
    )
    t_keys = ", ".join(f"t.{column.sql}" for column in layout.key)
    t_kept = ", ".join(f"t.{quoted(name)}" for name in sorted(own - {column.name for column in layout.key}))
    transaction.send(
        f"INSERT INTO {moved} ({keys}, {kept}{comma}{', '.join(numbered)}) "
        f"SELECT {t_keys}, {t_kept}{comma}{news} FROM {rows}",
        staged.parameters,
        staged=staged,
    )
    same = " AND ".join(f"t.{column.sql} = m.{column.sql}" for column in layout.key)
    transaction.send(f"DELETE FROM {table} AS t USING {moved} AS m WHERE {same}")
    transaction.send(
        f"INSERT INTO {table} ({keys}{comma}{kept}) OVERRIDING SYSTEM VALUE "
        f"SELECT {', '.join(numbered)}{comma}{kept} FROM {moved}"
    )
    transaction.send(f"DROP TABLE {moved}")


# -------------------------------------------------------------------------------------------------------------- upserts


def _upsert(transaction: Transaction, layout: Layout, step: Upsert, progress: Progress) -> None:
    _check_rows(layout, step.rows)
    _check_keys(layout, step.rows.select([column.name for column in layout.key]))
    given_texts = given_as_text(step.as_text, step.rows.num_rows)
    _check_texts(transaction, layout, given_texts)
    if step.not_given is None or step.not_given.null_count == len(step.not_given):
        _merge(transaction, layout, step.rows, given_texts, progress)
        return
    partial = step.not_given.is_valid()
    _update(
        transaction, layout, step.rows.filter(partial), step.not_given.filter(partial), _filtered(given_texts, partial)
    )
    whole = pc.invert(partial)
    _merge(transaction, layout, step.rows.filter(whole), _filtered(given_texts, whole), progress)


def _filtered(given_texts: dict[int, pa.Array], mask: pa.Array) -> dict[int, pa.Array]:
    return {number: cells.filter(mask) for number, cells in given_texts.items()}


def _merge(
    transaction: Transaction,
    layout: Layout,
    rows: pa.RecordBatch,
    given_texts: dict[int, pa.Array],
    progress: Progress,
) -> None:
    """Whole rows: insert them or overwrite what is there."""
    if rows.num_rows >= COPY_ROWS and _copied(transaction, layout, rows, given_texts, progress):
        return
    key = ", ".join(column.sql for column in layout.key)
    for start, stop in pieces(rows):
        staged, values = stage_rows(layout, rows, given_texts, start, stop)
        assignments = ", ".join(f"{column.sql} = excluded.{column.sql}" for column in values if not column.in_key)
        # Without a column to overwrite the key is set to itself, so that every row counts as taken.
        assignments = assignments or f"{layout.key[0].sql} = t.{layout.key[0].sql}"
        transaction.send(
            f"INSERT INTO {layout.name.sql} AS t ({', '.join(column.sql for column in values)}){layout.overriding} "
            f"SELECT {', '.join(values.values())} FROM {staged.relation} "
            f"ON CONFLICT ({key}) DO UPDATE SET {assignments}",
            staged.parameters,
            _all_taken(stop - start),
            staged,
        )


def _copied(
    transaction: Transaction,
    layout: Layout,
    rows: pa.RecordBatch,
    given_texts: dict[int, pa.Array],
    progress: Progress,
) -> bool:
    """Whether all rows were new and have gone in by COPY, which is what a first load consists of.

    It is tried where the range of the keys is empty, or where the target has met none but new keys since it was empty.
    """
    if not progress.only_new and not _range_is_empty(transaction, layout, rows):
        return False
    transaction.send("SAVEPOINT kadds_copy")
    try:
        _copy(transaction, layout, rows, given_texts)
    except psycopg.errors.UniqueViolation:
        progress.only_new = False
        transaction.send("ROLLBACK TO SAVEPOINT kadds_copy")
        return False
    transaction.send("RELEASE SAVEPOINT kadds_copy")
    return True


def _range_is_empty(transaction: Transaction, layout: Layout, rows: pa.RecordBatch) -> bool:
    """Whether no row of the target lies between the least and the greatest of the rows' keys, by its first column."""
    first = layout.key[0]
    ordered = pa.types.is_integer(first.arrow) or pa.types.is_temporal(first.arrow)
    if not ordered or not first.there.base_array or first.there.type == "text":
        return False
    if not any(index.usable and index.columns[:1] == (first.name,) for index in layout.existing.indexes):
        return False
    ends = pc.min_max(rows.column(first.name))
    least, greatest = (
        texts(pa.array([ends[end]], first.arrow), first.name, first.there.type) for end in ("min", "max")
    )
    found = transaction.fetch(
        f"SELECT EXISTS (SELECT 1 FROM {layout.name.sql} AS t "
        f"WHERE t.{first.sql} BETWEEN $1::{first.there.base} AND $2::{first.there.base})",
        [TextParameter(str(least[0]).encode()), TextParameter(str(greatest[0]).encode())],
    )
    return found == [("f",)]


def _update(
    transaction: Transaction,
    layout: Layout,
    rows: pa.RecordBatch,
    not_given: pa.Array,
    given_texts: dict[int, pa.Array],
) -> None:
    """Rows with cells not given: those cells stay as they are, and the row must be there."""
    for start, stop in pieces(rows):
        count = stop - start
        staged, values = stage_rows(layout, rows, given_texts, start, stop)
        assignments = []
        for number, column in enumerate(layout.columns):
            given = given_mask(not_given, number, rows.num_rows)[start:stop]
            if column.in_key and not given.all():
                raise DataError(f"key column {column.name} was not given")
            if column.in_key or not column.written or not given.any():
                continue
            value = values[column]
            if not given.all():
                value = f"CASE WHEN {staged.add_flags(f'g{number}', given)} THEN {value} ELSE t.{column.sql} END"
            assignments.append(f"{column.sql} = {value}")
        same = _same(layout.key, [values[column] for column in layout.key])
        statement = f"UPDATE {layout.name.sql} AS t SET {', '.join(assignments)} FROM {staged.relation} WHERE {same}"
        keys = ", ".join(f"{values[column]}::text" for column in layout.key)
        absent = (
            f"SELECT concat_ws(', ', {keys}) FROM {staged.relation} "
            f"WHERE NOT EXISTS (SELECT 1 FROM {layout.name.sql} AS t WHERE {same}) LIMIT 1"
        )
        parameters = staged.parameters
        transaction.send(absent, parameters, _none_absent, staged)
        if assignments:
            transaction.send(statement, parameters, _all_taken(count), staged)


def _none_absent(answer: Answer) -> None:
    if answer.rows:
        raise DataError(
            f"the row with key {answer.rows[0][0]} has cells that were not given and is not in the target",
            hint="rows are missing in the target: `kadds resync` loads the table again",
        )


# -------------------------------------------------------------------------------------------------------------- history


def _append(transaction: Transaction, layout: Layout, step: Append) -> None:
    _check_rows(layout, step.rows)
    given_texts = given_as_text(step.as_text, step.rows.num_rows)
    _check_texts(transaction, layout, given_texts)
    if step.rows.num_rows >= COPY_ROWS:
        _copy(transaction, layout, step.rows, given_texts)
        return
    for start, stop in pieces(step.rows):
        staged, values = stage_rows(layout, step.rows, given_texts, start, stop)
        transaction.send(
            f"INSERT INTO {layout.name.sql} ({', '.join(column.sql for column in values)}){layout.overriding} "
            f"SELECT {', '.join(values.values())} FROM {staged.relation}",
            staged.parameters,
            _all_taken(stop - start),
            staged,
        )


def _copy(transaction: Transaction, layout: Layout, rows: pa.RecordBatch, given_texts: dict[int, pa.Array]) -> None:
    def staged() -> Iterator[Staged]:
        for start, stop in pieces(rows):
            yield stage_rows(layout, rows, given_texts, start, stop)[0]

    written = [column for column in layout.columns if column.written]
    binary = not given_texts and all(column.is_binary for column in written)  # one format for all of a COPY
    names = ", ".join(column.sql for column in written)
    taken = transaction.copy(f"COPY {layout.name.sql} ({names}) FROM STDIN", staged(), binary)
    if taken != rows.num_rows:
        raise DataError(
            f"the table took {taken} of {rows.num_rows} rows",
            hint="a trigger of the table leaves rows out; disable it, or give the target another name",
        )
