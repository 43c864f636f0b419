"""Which column of PostgreSQL holds the values of which of ours: exactly, or not at all.

`made_type` decides the type of a column that we make, `holds` whether one that is there can take our values, and
`widens` whether one that we made may be changed in place. PostgreSQL itself pads character(n), rounds numeric(p,s) and
cuts the digits of timestamp(p) without a word; that is why a narrower type is refused before any value moves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from kadds.api.schema import Column
from kadds_postgres.types import arrow_type

_GENERIC: dict[pa.DataType, str] = {
    pa.bool_(): "boolean",
    pa.int8(): "smallint",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.uint8(): "smallint",
    pa.uint16(): "integer",
    pa.uint32(): "bigint",
    pa.uint64(): "numeric(20,0)",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.string(): "text",
    pa.null(): "text",
    pa.binary(): "bytea",
    pa.date32(): "date",
    pa.time64("us"): "time without time zone",
    pa.timestamp("us"): "timestamp without time zone",
    pa.timestamp("us", "UTC"): "timestamp with time zone",
    pa.timestamp("ns"): "text",
    pa.timestamp("ns", "UTC"): "text",
    pa.list_(pa.string()): "text[]",  # only _kadds_not_given
}

#: Types of the server's own that a made column has again, as `format_type` writes them without their modifier.
# fmt: off
_BUILT_IN = frozenset((
    "boolean", "smallint", "integer", "bigint", "real", "double precision", "numeric", "money", "text",
    "character varying", "character", "name", "bytea", '"char"', "date", "time without time zone",
    "time with time zone", "timestamp without time zone", "timestamp with time zone", "interval", "uuid", "json",
    "jsonb", "xml", "inet", "cidr", "macaddr", "macaddr8", "bit", "bit varying", "tsvector", "tsquery", "oid",
    "pg_lsn", "point", "line", "lseg", "box", "path", "polygon", "circle", "int4range", "int8range", "numrange",
    "tsrange", "tstzrange", "daterange", "int4multirange", "int8multirange", "nummultirange", "tsmultirange",
    "tstzmultirange", "datemultirange",
))
# fmt: on
_DECLARED = re.compile(
    r'(?P<name>["a-z][a-z0-9_" ]*?)(?P<modifier>\((?P<one>\d+)(,(?P<two>-?\d+))?\))?(?P<rest> with(out)? time zone)?'
    r"(?P<array>\[\])?"
)
_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}
_ANY_TEXT = ("text", "character varying")


@dataclass(frozen=True)
class Declared:
    """A type as `format_type` writes it, taken apart: `numeric(12,2)` is numeric with the modifiers 12 and 2."""

    name: str
    modifiers: tuple[int, ...] = ()
    array: bool = False

    @classmethod
    def of(cls, text: str) -> Declared | None:
        """What `text` says; None where it is not written so."""
        match = _DECLARED.fullmatch(text)
        if match is None:
            return None
        modifiers = tuple(int(part) for part in (match["one"], match["two"]) if part is not None)
        return cls(match["name"] + (match["rest"] or ""), modifiers, bool(match["array"]))

    def within(self, wider: Declared) -> bool:
        """Whether every value of this type is one of `wider`, of the same name, unchanged."""
        if (self.name, self.array) != (wider.name, wider.array):
            return False
        if not wider.modifiers or self.modifiers == wider.modifiers:
            return self.name not in ("character", "bit") or self.modifiers == wider.modifiers
        if not self.modifiers:
            return False
        if self.name == "numeric":
            (digits, scale), (wider_digits, wider_scale) = _numeric(self), _numeric(wider)
            return wider_scale >= scale and wider_digits - wider_scale >= digits - scale
        return self.name not in ("character", "bit") and self.modifiers[0] <= wider.modifiers[0]


def _numeric(declared: Declared) -> tuple[int, int]:
    digits, scale = (*declared.modifiers, 0)[:2]
    return digits, scale


def made_type(column: Column) -> str:
    """The type, as SQL, of a column that we make: as the source declares it where that is the server's own type."""
    return column.declared if _is_restored(column) else generic_type(column.type)


def _is_restored(column: Column) -> bool:
    declared = Declared.of(column.declared) if column.declared else None
    return declared is not None and declared.name in _BUILT_IN and arrow_type(column.declared) == column.type


def generic_type(arrow: pa.DataType) -> str:
    """The type that holds every value of `arrow`; every type of the log has one."""
    if not pa.types.is_decimal(arrow):
        return _GENERIC[arrow]
    scale = max(arrow.scale, 0)
    return f"numeric({max(arrow.precision - arrow.scale + scale, scale)},{scale})"


def note(column: Column) -> str | None:
    """Why a column that we make has another type than a reader may expect."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns" and not _is_restored(column):
        return f"column {column.name} is kept as text: PostgreSQL has no nanoseconds"
    return None


def holds(there: str, column: Column) -> bool:
    """Whether a column of type `there` (as `format_type` writes it, domains resolved) keeps the values of `column`."""
    if column.declared and there == column.declared and _reads(column):
        return True
    if column.type == pa.null():
        return True
    existing, own = Declared.of(there), Declared.of(generic_type(column.type))
    if existing is None or own is None:
        return False
    declared = Declared.of(column.declared) if column.declared and _reads(column) else None
    if declared is not None and declared.within(existing):
        return True
    if column.type == pa.string():
        return there in _ANY_TEXT
    if there in _ANY_TEXT:
        return own.name != "bytea" and not own.array
    return _fits(own, existing, column.type)


def _reads(column: Column) -> bool:
    """Whether the declared type is one of PostgreSQL whose values the column has, and not another system's word."""
    return bool(column.type == pa.string() or arrow_type(column.declared) == column.type)


def _fits(own: Declared, existing: Declared, arrow: pa.DataType) -> bool:
    if existing.array or own.array:
        return own == existing
    if own.name in _INTEGER_BITS:
        if existing.name in _INTEGER_BITS:
            return _INTEGER_BITS[existing.name] >= _INTEGER_BITS[own.name]
        own = Declared("numeric", (len(str(2**arrow.bit_width)), 0))
    if (own.name, existing.name) == ("real", "double precision"):
        return True
    if own.within(existing):
        return True
    return own.name == existing.name and existing.modifiers == (6,)  # times: six digits are all there are


def widens(there: str, wanted: str) -> bool:
    """Whether a column of type `there` may become `wanted` with every value that it has unchanged."""
    before, after = Declared.of(there), Declared.of(wanted)
    if before is None or after is None or before.array or after.array:
        return False
    if before.name in _INTEGER_BITS:
        if after.name in _INTEGER_BITS:
            return _INTEGER_BITS[after.name] > _INTEGER_BITS[before.name]
        return Declared("numeric", (len(str(2 ** _INTEGER_BITS[before.name])), 0)).within(after)
    if (before.name, after.name) == ("real", "double precision"):
        return True
    if before.name == "character varying" and after == Declared("text"):
        return True
    return before != after and before.within(after)
