"""The judges of acceptance tests: is a target its source, is a history all that happened, once and in order?

They compare Arrow tables and know nothing of how Kadds works. Each returns what is wrong in words, an empty list where
all is well; `tests/acceptance/test_oracle.py` shows each of them failing on a planted fault. Values are compared
exactly: floats bit by bit, types by name, rows as a multiset.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

_SHOWN = 3
_HISTORY = ("_kadds_op", "_kadds_offset", "_kadds_image")


def is_same(expected: pa.Table, actual: pa.Table) -> list[str]:
    """What tells `actual` from `expected`: columns, types, and rows that are lost, changed, or there too often."""
    faults = _column_faults(expected, actual)
    if faults:
        return faults
    names = expected.column_names
    with _judging() as connection:
        connection.register("expected", comparable(expected))
        connection.register("actual", comparable(actual.select(names)))
        lost = _minus(connection, "expected", "actual", names)
        more = _minus(connection, "actual", "expected", names)
    return [*_told("rows of the source are missing", lost), *_told("rows are not in the source", more)]


def happened_once(
    history: pa.Table, changes: pa.Table, *, key: Sequence[str], order: str, every: bool = True, ops: bool = True
) -> list[str]:
    """What is wrong with `history` (with the columns `_kadds_…`) as the record of `changes`.

    `changes` has the table's columns, `op` (c, u or d) and `order`, which rises from change to change. Each change
    stands in the history once, with its values and its op (unless not `ops`), and those of a key in their order. Where
    not `every`, changes may be missing (a poll sees a row's last version only), but none may be made up or repeated.
    """
    missing = [name for name in _HISTORY if name not in history.column_names]
    if missing:
        return [f"the history has no column {name}" for name in missing]
    columns = [name for name in changes.column_names if name not in ("op", order)]
    faults = _column_faults(changes.select(columns), history.select(_own(history)))
    if faults:
        return faults
    told = ["_kadds_op", *columns] if ops else columns
    with _judging() as connection:
        connection.register("history", comparable(history))
        connection.register("changes", comparable(changes.rename_columns(_renamed(changes, "op", "_kadds_op"))))
        faults += _told("offsets stand twice", _repeated(connection, "history", ["_kadds_offset"]))
        faults += _told("rows have the wrong image", _wrong_images(connection))
        faults += _told(
            "rows of the history never happened, or not so often", _minus(connection, "history", "changes", told)
        )
        if every:
            faults += _told("changes are missing in the history", _minus(connection, "changes", "history", told))
        if not faults:
            faults += _told(
                "changes of a key stand in the wrong order", _disordered(connection, key, columns, order, ops)
            )
    return faults


def replayed(history: pa.Table, *, key: Sequence[str]) -> pa.Table:
    """The table that applying the history in offset order gives: the last image of each key that is not deleted."""
    last_of_each = (
        "SELECT place FROM (SELECT *, row_number() OVER () - 1 AS place FROM history) "
        f"QUALIFY row_number() OVER (PARTITION BY {_list(key)} ORDER BY _kadds_offset DESC) = 1 AND _kadds_op <> 'd'"
    )
    with _judging() as connection:
        connection.register("history", comparable(history).select([*key, "_kadds_op", "_kadds_offset"]))
        places = sorted(place for (place,) in connection.execute(last_of_each).fetchall())
    return history.select(_own(history)).take(pa.array(places, pa.int64()))


@contextmanager
def _judging() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB in memory: opening it costs more than judging a small table, and so do its threads."""
    connection = _kept()
    try:
        yield connection
    finally:
        for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
            connection.unregister(name)


@cache
def _kept() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def _own(history: pa.Table) -> list[str]:
    return [name for name in history.column_names if not name.startswith("_kadds_")]


def _renamed(table: pa.Table, old: str, new: str) -> list[str]:
    return [new if name == old else name for name in table.column_names]


def _column_faults(expected: pa.Table, actual: pa.Table) -> list[str]:
    faults = []
    there = {field.name: field.type for field in actual.schema}
    for field in expected.schema:
        if field.name not in there:
            faults.append(f"column {field.name} is missing")
        elif there.pop(field.name) != field.type:
            faults.append(f"column {field.name} is {actual.schema.field(field.name).type} and should be {field.type}")
    return [*faults, *(f"column {name} is too many" for name in there)]


def comparable(table: pa.Table) -> pa.Table:
    """The table with its floats as their bits, so that 0.0 differs from -0.0 and each NaN is one value."""
    columns = []
    for column in table.columns:
        if pa.types.is_floating(column.type):
            bits = pa.int64() if column.type == pa.float64() else pa.int32()
            one_nan = pc.if_else(pc.is_nan(column), pa.scalar(float("nan"), column.type), column)
            column = pa.chunked_array([chunk.view(bits) for chunk in one_nan.chunks], bits)
        elif pa.types.is_decimal256(column.type):
            column = column.cast(pa.string())  # DuckDB has no decimals of that size
        elif getattr(column.type, "tz", None):
            column = column.cast(
                pa.timestamp(column.type.unit)
            )  # DuckDB gives times with a zone to Python by pytz only
        columns.append(column)
    return pa.Table.from_arrays(columns, names=table.column_names)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(_quoted, names))


def _minus(
    connection: duckdb.DuckDBPyConnection, one: str, other: str, columns: Sequence[str]
) -> list[tuple[Any, ...]]:
    chosen = _list(columns)
    return connection.execute(f"SELECT {chosen} FROM {one} EXCEPT ALL SELECT {chosen} FROM {other}").fetchall()


def _repeated(connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    chosen = _list(columns)
    return connection.execute(
        f"SELECT {chosen}, count(*) FROM {table} GROUP BY {chosen} HAVING count(*) > 1"
    ).fetchall()


def _wrong_images(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT _kadds_offset, _kadds_op, _kadds_image FROM history WHERE _kadds_image IS DISTINCT FROM "
        "CASE _kadds_op WHEN 'd' THEN 'before' ELSE 'after' END"
    ).fetchall()


def _disordered(
    connection: duckdb.DuckDBPyConnection, key: Sequence[str], columns: Sequence[str], order: str, ops: bool
) -> list[tuple[Any, ...]]:
    """Changes whose place in the history is before that of an earlier change of their key.

    Equal changes of a key (same values, same op) are numbered, so that each finds its own row of the history.
    """
    told = [*columns, "_kadds_op"] if ops else columns
    equal = " AND ".join(f"h.{name} IS NOT DISTINCT FROM c.{name}" for name in map(_quoted, told))
    own, place = ", ".join(f"h.{name}" for name in map(_quoted, key)), f"c.{_quoted(order)}"
    return connection.execute(
        f"SELECT {own}, h._kadds_offset, {place} "
        f"FROM ({_numbered('history', told, '_kadds_offset')}) h "
        f"JOIN ({_numbered('changes', told, order)}) c ON {equal} AND h._nth = c._nth "
        f"QUALIFY {place} < lag({place}) OVER (PARTITION BY {own} ORDER BY h._kadds_offset)"
    ).fetchall()


def _numbered(table: str, equal: Sequence[str], order: str) -> str:
    return f"SELECT *, row_number() OVER (PARTITION BY {_list(equal)} ORDER BY {_quoted(order)}) AS _nth FROM {table}"


def _told(what: str, rows: Sequence[tuple[Any, ...]]) -> list[str]:
    if not rows:
        return []
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return [f"{len(rows)} {what}: {', '.join(map(repr, rows[:_SHOWN]))}{more}"]
