"""Layouts: the columns and key that tables have, each written once and known by a number in this log.

Many tables share a layout, and layouts whose columns have the same names and types share a shape, and so blocks. A new
version of a table is the same stream under another layout.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from kadds.api.errors import CorruptLogError
from kadds.api.position import canonical_json
from kadds.api.schema import Column, Table
from kadds.log.stream import Stream, table_names

_TABLES_MAX = 10_000


@dataclass(frozen=True, eq=False)
class Layout:
    """Columns and key, without the table's name."""

    number: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]

    @cached_property
    def shape(self) -> tuple[tuple[str, str], ...]:
        """Names and types."""
        return Table(None, "", self.columns).shape

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of the values."""
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])

    def table_of(self, stream: Stream) -> Table:
        """The table that `stream` is under this layout; the same object for the same stream, mostly."""
        table = self._tables.get(stream.id)
        if table is None:
            if len(self._tables) >= _TABLES_MAX:
                self._tables.clear()
            schema, name = table_names(stream.name)
            table = self._tables[stream.id] = Table(schema, name, self.columns, self.key, stream.token)
        return table

    @cached_property
    def _tables(self) -> dict[int, Table]:
        return {}

    @cached_property
    def text(self) -> str:
        """What two equal layouts share."""
        return layout_text(self.columns, self.key)


def layout_text(columns: Iterable[Column], key: Iterable[str]) -> str:
    """The canonical JSON of columns and key."""
    return canonical_json({"columns": [column.to_json() for column in columns], "key": list(key)})


class Layouts:
    """All layouts of the log. Numbers are given here and become true with the entry that defines them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_text: dict[str, Layout] = {}
        self._by_number: dict[int, Layout] = {}

    def get(self, number: int) -> Layout:
        """The layout of that number; CorruptLogError if nothing has defined it."""
        try:
            return self._by_number[number]
        except KeyError:
            raise CorruptLogError(f"layout {number} is used and defined nowhere") from None

    def of(self, table: Table) -> tuple[Layout, bool]:
        """The layout of `table`, and whether it was made now."""
        text = layout_text(table.columns, table.key)
        with self._lock:
            layout = self._by_text.get(text)
            if layout is not None:
                return layout, False
            # Not their count: a number may be missing, whose only entry was refused or torn off.
            number = max(self._by_number, default=0) + 1
            return self._keep(Layout(number, table.columns, table.key)), True

    def define(self, number: int, text: str) -> None:
        """Take a definition that was read from a file."""
        plain = json.loads(text)
        columns = tuple(Column.from_json(column) for column in plain["columns"])
        with self._lock:
            known = self._by_number.get(number)
            if known is not None and known.text != text:
                raise CorruptLogError(f"layout {number} is defined twice, differently")
            if known is None:
                self._keep(Layout(number, columns, tuple(plain["key"])))

    def _keep(self, layout: Layout) -> Layout:
        self._by_text[layout.text] = layout
        self._by_number[layout.number] = layout
        return layout

    def definitions(self, numbers: Iterable[int]) -> list[tuple[int, str]]:
        """(number, text) of the layouts with these numbers."""
        return [(number, self.get(number).text) for number in sorted(set(numbers))]

    def all(self) -> list[Any]:
        """(number, text) of every layout."""
        with self._lock:
            return [[number, layout.text] for number, layout in sorted(self._by_number.items())]
