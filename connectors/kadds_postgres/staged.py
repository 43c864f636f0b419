"""Rows of a step as columns: unnested from array parameters by a statement, or sent by COPY.

A column goes in its binary form where it has one (`binary`), otherwise as text, which the server parses.

Rows come into SQL under names of our own (`s.c0`, `s.k0`, …), so that no name of theirs meets one of ours. No temporary
table is made: unnesting arrays costs the server as much as reading one, and needs no round trip of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.arrays import byte_count
from kadds.api.change import text_cells
from kadds_postgres.binary import Part, array, cells, copy_rows
from kadds_postgres.copy import array_literal, copy_text
from kadds_postgres.pipeline import BinaryParameter, TextParameter
from kadds_postgres.sink_text import texts
from kadds_postgres.table import Layout, StoredColumn

_PIECE_BYTES = 8 << 20  # of values in one statement or one message of COPY


@dataclass(frozen=True, eq=False)
class StagedColumn:
    """One column under a name of ours; `stored` is None for flags. `given_texts` (null: none) win over values."""

    alias: str
    stored: StoredColumn | None
    values: pa.Array
    given_texts: pa.Array | None = None

    @cached_property
    def texts(self) -> pa.Array:
        """Its text form."""
        if self.stored is None:
            return self.values.cast(pa.string())
        written = texts(self.values, self.stored.name, self.stored.there.type)
        if self.given_texts is None:
            return written
        return pc.coalesce(texts(self.given_texts, self.stored.name, "text"), written)

    @property
    def needs_care(self) -> bool:
        """Whether its text form may hold characters that mean something in a literal."""
        kind = self.values.type
        return self.given_texts is not None or kind in (pa.string(), pa.binary()) or pa.types.is_list(kind)

    @property
    def is_binary(self) -> bool:
        """Whether it goes in its binary form."""
        return self.stored is not None and self.stored.is_binary and self.given_texts is None

    @cached_property
    def cells(self) -> list[Part]:
        """Its binary form, where it has one."""
        stored = cast(StoredColumn, self.stored)
        return cells(self.values, stored.name, stored.there.own_name)

    @property
    def parameter(self) -> TextParameter | BinaryParameter:
        """The column as one array."""
        if self.is_binary and self.stored is not None:
            return BinaryParameter(array(self.cells, self.stored.there.own_name))
        return TextParameter(array_literal(self.texts, self.needs_care))

    @property
    def array_type(self) -> str:
        """What the parameter is cast to."""
        if self.stored is None:
            return "pg_catalog._bool"
        return self.stored.there.base_array or "pg_catalog._text"

    @property
    def value(self) -> str:
        """The SQL expression of the value, in the type of the column without its modifier."""
        if self.stored is None or self.stored.there.base_array:
            return f"s.{self.alias}"
        return f"s.{self.alias}::{self.stored.there.base}"


class Staged:
    """Columns of one length, gathered for one statement."""

    def __init__(self) -> None:
        self.columns: list[StagedColumn] = []

    def add(self, alias: str, column: StoredColumn, values: pa.Array, given_texts: pa.Array | None = None) -> str:
        """Stage the values of a column; the SQL expression of one. `given_texts` (null: none) win over values."""
        return self._added(StagedColumn(alias, column, values, given_texts))

    def add_flags(self, alias: str, flags: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
        """Stage booleans; the SQL expression of one."""
        return self._added(StagedColumn(alias, None, pa.array(flags)))

    def _added(self, column: StagedColumn) -> str:
        self.columns.append(column)
        return column.value

    @property
    def relation(self) -> str:
        """The rows, as an item of FROM that is called `s`; its parameters are `parameters`, from $1 on."""
        arrays = ", ".join(f"${number}::{column.array_type}" for number, column in enumerate(self.columns, start=1))
        return f"unnest({arrays}) AS s({', '.join(column.alias for column in self.columns)})"

    @property
    def parameters(self) -> list[TextParameter | BinaryParameter]:
        """One array for each column."""
        return [column.parameter for column in self.columns]

    def copy_data(self, binary: bool) -> memoryview:
        """The rows for COPY, in its binary format without head and tail, or as text."""
        if binary:
            return copy_rows([column.cells for column in self.columns])
        return copy_text([c.texts for c in self.columns], [c.needs_care for c in self.columns])


def pieces(rows: pa.RecordBatch) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are sent together, by the memory that they take."""
    count = rows.num_rows
    each = max(1, int(count * _PIECE_BYTES / max(byte_count(rows), 1)))
    for start in range(0, count, each):
        yield start, min(start + each, count)


def given_as_text(as_text: pa.Array | None, rows: int) -> dict[int, pa.Array]:
    """Column number → text per row, null where there is none."""
    found = {}
    for number, (places, given) in text_cells(as_text).items():
        indexes = np.full(rows, -1)
        indexes[places] = np.arange(len(places))
        found[number] = given.take(pa.array(indexes, mask=indexes < 0))
    return found


def stage_rows(
    layout: Layout, rows: pa.RecordBatch, given_texts: dict[int, pa.Array], start: int, stop: int
) -> tuple[Staged, dict[StoredColumn, str]]:
    """The rows from `start` to `stop` without what the table computes itself, and the SQL expression of each column."""
    staged, values = Staged(), {}
    for number, column in enumerate(layout.columns):
        if column.written:
            given = given_texts.get(number)
            cells = rows.column(number).slice(start, stop - start)
            values[column] = staged.add(
                f"c{number}", column, cells, None if given is None else given.slice(start, stop - start)
            )
    return staged, values


def stage_keys(staged: Staged, key: Sequence[StoredColumn], keys: pa.RecordBatch, prefix: str) -> list[str]:
    """Stage keys as `prefix`0, `prefix`1, …; their SQL expressions."""
    return [staged.add(f"{prefix}{number}", column, keys.column(number)) for number, column in enumerate(key)]
