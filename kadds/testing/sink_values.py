"""What the suite of sinks writes: rows and keys, edge values, names that were meant to hurt; exact equality.

Equality is exact: floats by their bits, times by their integers, decimals with every digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from kadds.api.change import AS_TEXT_TYPE, HISTORY
from kadds.api.connector import KeyKind, Mode, Target
from kadds.api.schema import Column, Table, decimal_text

STREAM = "default/shop/public.orders"

_KEYS = {KeyKind.SINGLE: ("id",), KeyKind.COMPOSITE: ("id", "part"), KeyKind.NONE: ()}
COLUMNS = (
    Column("id", pa.int64(), nullable=False),
    Column("part", pa.string(), nullable=False),
    Column("amount", pa.decimal128(12, 2)),
    Column("note", pa.string()),
)
NOTE = 3  # the number of the column of text

Row = tuple[int, str, Any, str | None]


def orders(mode: Mode, key: KeyKind = KeyKind.SINGLE, *, name: str = "orders") -> Target:
    """The target that most tests write to."""
    table = Table("public", name, COLUMNS, _KEYS[key])
    return Target(STREAM, table.qualified_name, table, mode)


def rows_of(target: Target, rows: Sequence[Row | Sequence[Any]]) -> pa.RecordBatch:
    """Rows of the target's own columns."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(target.table.columns)
    arrays = [pa.array(values, c.type) for values, c in zip(columns, target.table.columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=target.table.arrow_schema)


def keys_of(target: Target, *rows: Row) -> pa.RecordBatch:
    """The keys of rows."""
    whole = rows_of(target, rows)
    return whole.select(list(target.table.key))


def history_of(target: Target, rows: pa.RecordBatch, ops: str, **facts: Sequence[Any]) -> pa.RecordBatch:
    """`rows` as history, one letter of `ops` each; `facts` are cells of HISTORY by their names without the prefix."""
    count = rows.num_rows
    columns: dict[str, Sequence[Any]] = {
        "op": list(ops),
        "offset": range(100, 100 + count),
        "xid": ["7001"] * count,
        "committed_at": [1_750_000_000_123_456] * count,
        "position": ["0/16B3748"] * count,
        "image": ["before" if op == "d" else "after" for op in ops],
        "not_given": [[]] * count,
        **facts,
    }
    arrays = [pa.array(columns[field.name.removeprefix("_kadds_")], field.type) for field in HISTORY]
    schema = pa.schema([*target.table.arrow_schema, *HISTORY])
    return pa.RecordBatch.from_arrays([*rows.columns, *arrays], schema=schema)


def text_cell(rows: int, row: int, column: int, text: str) -> pa.Array:
    """`as_text` of `rows` rows with one entry."""
    return pa.array(
        [[{"column": column, "text": text}] if number == row else None for number in range(rows)], AS_TEXT_TYPE
    )


_INT64_MAX = 2**63 - 1


def _integers(arrow: pa.DataType, *values: int) -> pa.Array:
    return pa.array(values, pa.int32() if arrow.bit_width == 32 else pa.int64()).view(arrow)


def _times(arrow: pa.DataType) -> pa.Array:
    year_10000 = 253_402_300_800_000_000
    return _integers(arrow, 0, 1, -1, 1_700_000_000_123_456, year_10000, -year_10000, _INT64_MAX, -(2**63))


def _decimals(arrow: pa.DataType, *values: str) -> pa.Array:
    return pa.array([Decimal(value) for value in values], arrow)


#: Type → edge values of it; the suite adds a NULL.
EDGE_VALUES: dict[pa.DataType, pa.Array] = {
    pa.bool_(): pa.array([True, False]),
    **{
        signed: pa.array([0, -1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1], signed)
        for bits, signed in ((8, pa.int8()), (16, pa.int16()), (32, pa.int32()), (64, pa.int64()))
    },
    **{
        unsigned: pa.array([0, 2**bits - 1, 2 ** (bits - 1)], unsigned)
        for bits, unsigned in ((8, pa.uint8()), (16, pa.uint16()), (32, pa.uint32()), (64, pa.uint64()))
    },
    pa.float32(): pa.array([0.1, -0.0, 1e-45, 3.4028235e38, 16777216.0, float("inf"), float("nan")], pa.float32()),
    pa.float64(): pa.array([0.1, -0.0, 5e-324, 1.7976931348623157e308, 2.0**53, 1e16, float("-inf"), float("nan")]),
    pa.string(): pa.array(
        [
            "",
            " trailing ",
            "a\0b",
            "\n\r\t\b",
            "\"quoted\" and 'single'",
            "back\\slash",
            "žluťoučký 日本語 🂡",
            "x" * 70_000,
            "NULL",
            "\\N",
            "\u2028\u200f\ufeff",
            '{"json": [1]}',
            "%s ${x} $1 :x ?",
            "\x1f\x7f",
            "e\u0301",
            "\u00e9",
        ]
    ),
    pa.binary(): pa.array([b"", b"\0", b"\xff\xfe\0\x01", bytes(range(256)), b"a", b"ab", b"abc"], pa.binary()),
    pa.date32(): _integers(pa.date32(), 0, -1, 2_932_897, -719_529, -1_000_000, 2**31 - 1, -(2**31)),
    pa.time64("us"): _integers(pa.time64("us"), 0, 1, 86_399_999_999),
    **{arrow: _times(arrow) for arrow in (pa.timestamp("us"), pa.timestamp("us", "UTC"))},
    **{arrow: _times(arrow) for arrow in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"))},
    pa.decimal128(12, 2): _decimals(pa.decimal128(12, 2), "0", "-0.01", "9999999999.99", "-9999999999.99"),
    pa.decimal128(38, 0): _decimals(pa.decimal128(38, 0), "9" * 38, "-" + "9" * 38),
    pa.decimal128(38, 37): _decimals(pa.decimal128(38, 37), "1E-37", "-9." + "9" * 37),
    pa.decimal128(5, -2): _decimals(pa.decimal128(5, -2), "1200", "-9999900"),
    pa.decimal256(50, 10): _decimals(pa.decimal256(50, 10), "9" * 40 + "." + "9" * 10, "-1E-10", "0"),
    pa.null(): pa.nulls(1),
}

#: Names that a careless sink takes for SQL, for a path, or for one another.
HOSTILE_NAMES = (
    'quo"te',
    "o'hara'; DROP TABLE sentinel;--",
    "o'hara'); DROP TABLE public.sentinel;--",
    'x"; DROP TABLE "public"."sentinel";--',
    'x" (id int); DROP TABLE public.sentinel; SELECT ("',
    "back`tick",
    "back\\slash",
    "dot.ted",
    "spa ce",
    "select",
    "%s %(x)s {0} $1 :x ?",
    "../../up",
    "a/b",
    ".",
    "..",
    "_hidden",
    ".hidden",
    "žluťoučký 日本語 🂡",
    "\u202eright to left",
    "new\nline",
    "x" * 63,
    "y" * 300,
)


def exact_rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """The rows as Python values that are equal exactly where the cells are, in an order of their own."""
    columns = [_exact(table.column(number).combine_chunks()) for number in range(table.num_columns)]
    return sorted(zip(*columns, strict=True), key=repr)


def _exact(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.nulls(0, values.type)
    kind = values.type
    if pa.types.is_floating(kind):
        bits = values.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
        return ["NaN" if value != value else bit for bit, value in zip(bits, values.to_pylist(), strict=True)]
    if pa.types.is_temporal(kind):
        values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif pa.types.is_decimal(kind):
        values = decimal_text(values)
    plain: list[Any] = values.to_pylist()
    return plain
