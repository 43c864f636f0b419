"""Arrow and DuckDB types: which column holds what, exactly or not at all.

`stored_as` decides the type of a column that we make, `holds` whether one that exists can take our values, and
`arrow_for` brings values into the form that DuckDB scans. What DuckDB would show as another value than the source's
(its infinities are the ends of the range) is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.errors import DataError
from kadds.api.schema import decimal_text

TEXT = "VARCHAR"

_SIMPLE: dict[pa.DataType, str] = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): TEXT,
    pa.null(): TEXT,
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.timestamp("ns"): "TIMESTAMP_NS",
    pa.timestamp("ns", "UTC"): "TIMESTAMPTZ_NS",
    pa.list_(pa.string()): "VARCHAR[]",  # only _kadds_not_given
}
_INTEGER_BITS = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64, "HUGEINT": 128}
_INTEGER_BITS |= {f"U{name}": bits for name, bits in _INTEGER_BITS.items()}
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")
_DECIMAL_DIGITS_MAX = 38

#: First and last value that DuckDB shows as what it is; beyond them are its infinities and what it cannot print.
_RANGES: dict[pa.DataType, tuple[int, int]] = {
    pa.date32(): (-(2**31) + 2, 2**31 - 2),
    pa.time64("us"): (0, 86_400_000_000),
    pa.timestamp("us"): (-9_223_372_022_400_000_000, 2**63 - 2),
    pa.timestamp("us", "UTC"): (-9_223_372_022_400_000_000, 2**63 - 2),
    pa.timestamp("ns"): (-9_223_286_400_000_000_000, 2**63 - 2),
    pa.timestamp("ns", "UTC"): (-9_223_286_400_000_000_000, 2**63 - 2),
}


@dataclass(frozen=True)
class StoredType:
    """How DuckDB keeps values of an Arrow type; `scanned` is the Arrow type it reads them in, `note` why another."""

    sql: str
    scanned: pa.DataType
    note: str | None = None


def stored_as(arrow: pa.DataType) -> StoredType:
    """The column type that we make for values of `arrow`; every type of the log has one."""
    if not pa.types.is_decimal(arrow):
        return StoredType(_SIMPLE[arrow], pa.string() if arrow == pa.null() else arrow)
    scale = max(arrow.scale, 0)
    digits = max(arrow.precision + max(-arrow.scale, 0), scale)
    if digits > _DECIMAL_DIGITS_MAX:
        note = f"{arrow} as text: a DECIMAL of DuckDB has at most {_DECIMAL_DIGITS_MAX} digits"
        return StoredType(TEXT, pa.string(), note)
    return StoredType(f"DECIMAL({digits},{scale})", pa.decimal128(digits, scale))


def holds(existing: str, arrow: pa.DataType) -> bool:
    """Whether a column of DuckDB type `existing` holds every value of `arrow` exactly, VARCHAR as text."""
    own = stored_as(arrow).sql
    if existing == own:
        return True
    if existing == TEXT:
        return own not in ("BLOB", "VARCHAR[]")
    if own in _INTEGER_BITS:
        bits, signed = _INTEGER_BITS[own], not own.startswith("U")
        if existing in _INTEGER_BITS:
            there, there_signed = _INTEGER_BITS[existing], not existing.startswith("U")
            return there >= bits if there_signed == signed else there_signed and there > bits
        match = _DECIMAL.fullmatch(existing)
        return match is not None and int(match[1]) - int(match[2]) >= len(str(2**bits))
    if own == "FLOAT":
        return existing == "DOUBLE"
    ours, theirs = _DECIMAL.fullmatch(own), _DECIMAL.fullmatch(existing)
    if ours is None or theirs is None:
        return False
    scale, there_scale = int(ours[2]), int(theirs[2])
    return there_scale >= scale and int(theirs[1]) - there_scale >= int(ours[1]) - scale


def arrow_for(values: pa.Array, column: str) -> pa.Array:
    """`values` in the form that DuckDB scans; DataError for one that DuckDB would show as another value."""
    stored = stored_as(values.type)
    if values.type in _RANGES:
        _refuse_outside(values, column, *_RANGES[values.type])
    if stored.scanned == values.type:
        return values
    return decimal_text(values) if stored.note else values.cast(stored.scanned)


def _refuse_outside(values: pa.Array, column: str, first: int, last: int) -> None:
    integers = values.view(pa.int32() if values.type == pa.date32() else pa.int64())
    ends = pc.min_max(integers).as_py()
    for end in (ends["min"], ends["max"]):
        if end is not None and not first <= end <= last:
            raise DataError(
                f"column {column} has the {values.type} {end}, which DuckDB shows as another value",
                hint="leave the column out of the contract, or correct the row at the source",
            )
