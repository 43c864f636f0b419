"""PostgreSQL's built-in types and the Arrow types that hold their values exactly.

What Arrow has no name for is text, as PostgreSQL itself writes it; the declared type stands beside it in the column.
Source and sink ask the same function, so that a column comes back as it was declared.
"""

from __future__ import annotations

import re

import pyarrow as pa

_SIMPLE: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "oid": pa.uint32(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}
_PRECISION = re.compile(r"\(\d+\)")
_NUMERIC = re.compile(r"^numeric\((\d+),(-?\d+)\)$")
_DECIMAL128_DIGITS, _DECIMAL256_DIGITS = 38, 76


def arrow_type(declared: str) -> pa.DataType:
    """The Arrow type of a built-in type as `format_type()` writes it: `numeric(12,2)`, `timestamp(3) with time zone`.

    string for everything that Arrow has no name for: numeric without digits or with more than 76, interval, arrays,
    types of users.
    """
    if match := _NUMERIC.match(declared):
        precision, scale = int(match[1]), int(match[2])
        if not 0 <= scale <= precision <= _DECIMAL256_DIGITS:
            return pa.string()
        return (pa.decimal128 if precision <= _DECIMAL128_DIGITS else pa.decimal256)(precision, scale)
    if declared.startswith(("time(", "timestamp(")):
        declared = _PRECISION.sub("", declared, count=1)
    return _SIMPLE.get(declared, pa.string())
