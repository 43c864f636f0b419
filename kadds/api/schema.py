"""Tables, columns, and the closed set of Arrow types that the log holds.

A value whose type Arrow has no name for travels as text with its declared type beside it (`Column.declared`). A type
outside `type_text` is refused by name, so that nothing reaches the log that a later version could not read back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.errors import UnknownInputError

_SIMPLE_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date32": pa.date32(),
    "time64[us]": pa.time64("us"),
    "timestamp[us]": pa.timestamp("us"),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
    "timestamp[ns]": pa.timestamp("ns"),
    "timestamp[ns, UTC]": pa.timestamp("ns", "UTC"),
    "null": pa.null(),
}
_NAMES = {arrow: text for text, arrow in _SIMPLE_TYPES.items()}
_DECIMAL = re.compile(r"^decimal(128|256)\((\d+), (-?\d+)\)$")


def type_text(arrow: pa.DataType) -> str:
    """The log's name of an Arrow type, such as `int64` or `decimal128(12, 2)`.

    Raises UnknownInputError for a type that the log does not hold.
    """
    if pa.types.is_decimal128(arrow) or pa.types.is_decimal256(arrow):
        return f"decimal{arrow.bit_width}({arrow.precision}, {arrow.scale})"
    if arrow in _NAMES:
        return _NAMES[arrow]
    raise UnknownInputError(
        f"the log holds no values of Arrow type {arrow}",
        hint="let the connector carry it as text, with the declared type in Column.declared",
    )


def type_from_text(text: str) -> pa.DataType:
    """The Arrow type that `type_text` wrote as `text`; UnknownInputError for any other text."""
    if text in _SIMPLE_TYPES:
        return _SIMPLE_TYPES[text]
    if match := _DECIMAL.match(text):
        make = pa.decimal128 if match[1] == "128" else pa.decimal256
        return make(int(match[2]), int(match[3]))
    raise UnknownInputError(f"{text!r} is not a type of the log")


def decimal_text(values: pa.Array) -> pa.Array:
    """The exact text of decimals with every digit of their scale: `0.0000000001`, where Arrow itself says `1E-10`."""
    kind = values.type
    if kind.scale <= 0:
        return values.cast(pa.decimal256(min(kind.precision - kind.scale, 76), 0)).cast(pa.string())
    make = pa.decimal128 if kind.bit_width == 128 else pa.decimal256
    unscaled = values.view(make(kind.precision, 0)).cast(pa.string())
    magnitude = pc.utf8_lpad(pc.utf8_ltrim(unscaled, "-"), kind.scale + 1, "0")
    signed = pc.if_else(pc.starts_with(unscaled, "-"), pc.binary_join_element_wise("-", magnitude, ""), magnitude)
    whole = pc.utf8_slice_codeunits(signed, 0, -kind.scale)
    return pc.binary_join_element_wise(whole, pc.utf8_slice_codeunits(signed, -kind.scale), ".")


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, and how the source itself declares it.

    `attribute` is the number by which the source knows the column through renames, where it has one. `generated`
    columns are computed by the source and are not written by a sink that computes them too.
    """

    name: str
    type: pa.DataType
    declared: str = ""
    nullable: bool = True
    generated: bool = False
    attribute: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the fields that have their default."""
        plain: dict[str, Any] = {"name": self.name, "type": type_text(self.type)}
        if self.declared:
            plain["declared"] = self.declared
        if not self.nullable:
            plain["nullable"] = False
        if self.generated:
            plain["generated"] = True
        if self.attribute is not None:
            plain["attribute"] = self.attribute
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Column:
        """What `to_json` wrote."""
        return cls(**{**plain, "type": type_from_text(plain["type"])})


@dataclass(frozen=True)
class Table:
    """One table as the source has it now: where it is, its columns in order, its key.

    `incarnation` changes when a table is dropped and made again under its old name (an object id, say); it is empty
    where the source cannot tell. `key` names the columns that identify a row, and is empty for a table without
    identity."""

    schema: str | None
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    incarnation: str = ""

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise UnknownInputError(f"table {self.qualified_name} names a column twice: {names}")
        if missing := [name for name in self.key if name not in names]:
            raise UnknownInputError(f"table {self.qualified_name} has key columns that it does not have: {missing}")

    @property
    def qualified_name(self) -> str:
        """`schema.table`, or `table` where the source has no schemas."""
        return f"{self.schema}.{self.name}" if self.schema else self.name

    @cached_property
    def shape(self) -> tuple[tuple[str, str], ...]:
        """Names and types in order: tables of one shape share blocks of the log."""
        return tuple((column.name, type_text(column.type)) for column in self.columns)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of the values of a row."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])

    @cached_property
    def key_indexes(self) -> tuple[int, ...]:
        """Where the key's columns stand among the columns."""
        names = [column.name for column in self.columns]
        return tuple(names.index(name) for name in self.key)

    def column(self, name: str) -> Column:
        """The column called `name`; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same table."""
        return {
            "schema": self.schema,
            "name": self.name,
            "columns": [column.to_json() for column in self.columns],
            "key": list(self.key),
            "incarnation": self.incarnation,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Table:
        """What `to_json` wrote."""
        return cls(
            schema=plain["schema"],
            name=plain["name"],
            columns=tuple(Column.from_json(column) for column in plain["columns"]),
            key=tuple(plain["key"]),
            incarnation=plain["incarnation"],
        )


@dataclass(frozen=True, eq=False)
class TableSet:
    """Tables of one shape whose rows travel together; compared by identity, so that the log can cache its streams."""

    tables: tuple[Table, ...]
    shape: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        one_each = {id(table.columns): table for table in self.tables}  # tables made alike share their columns
        shapes = {table.shape for table in one_each.values()}
        if len(shapes) != 1:
            raise UnknownInputError(
                f"a set of tables has one shape, these {len(self.tables)} tables have {len(shapes)}"
            )
        object.__setattr__(self, "shape", shapes.pop())

    @classmethod
    def of(cls, tables: Table | Sequence[Table]) -> TableSet:
        """A set of one table, or of several."""
        return cls((tables,) if isinstance(tables, Table) else tuple(tables))
