"""Changes for the tests of the engine, written as short tuples."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kadds.api.change import AS_TEXT_TYPE, Op, not_given_bitmap
from kadds.api.schema import Column, Table, type_from_text
from kadds.engine.rows import Rows
from kadds.log.slice import LOGGED_TRANSACTIONS, StreamChanges
from kadds.log.stream import Stream

NOT_GIVEN = object()  # a cell that is not given
COMMITTED_AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


class Text(str):
    """A cell given as text."""


def table(*columns: str, key: Sequence[str] = ("id",), name: str = "orders") -> Table:
    """A table; a column is `name` (int64), `name:string` or `name:type` in the log's words."""
    made = []
    for column in columns:
        label, _, kind = column.partition(":")
        made.append(Column(label, type_from_text(kind or "int64")))
    return Table("public", name, tuple(made), tuple(key))


def stream(number: int = 1, name: str = "default/shop/public.orders") -> Stream:
    """A stream."""
    return Stream(number, name)


Change = tuple[Any, ...]  # (op, cells) or (op, cells, transaction); `b` stands for the before image of an update


def changes(of: Table, *rows: Change, first_offset: int = 100) -> tuple[StreamChanges, pa.RecordBatch]:
    """The changes of one stream, and the transactions of their slice."""
    columns = len(of.columns)
    values: list[list[Any]] = [[] for _ in range(columns)]
    ops, before, not_given, as_text, transactions = [], [], [], [], []
    for row in rows:
        letter, cells = row[0], row[1]
        transactions.append(row[2] if len(row) > 2 else 0)
        ops.append(ord("u" if letter == "b" else letter))
        before.append(letter in "bd")
        missing = [n for n, cell in enumerate(cells) if cell is NOT_GIVEN]
        not_given.append(not_given_bitmap(missing, columns) if missing else None)
        texts = [{"column": n, "text": str(cell)} for n, cell in enumerate(cells) if isinstance(cell, Text)]
        as_text.append(texts or None)
        for n, cell in enumerate(cells):
            values[n].append(None if cell is NOT_GIVEN or isinstance(cell, Text) else cell)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(column, of.columns[n].type) for n, column in enumerate(values)], schema=of.arrow_schema
    )
    count = (max(transactions) + 1) if transactions else 1
    facts = pa.RecordBatch.from_pylist(
        [
            {
                "first_offset": first_offset + number,
                "producer": "default/shop/stream",
                "lineage": "one",
                "sequence": b"1",
                "rows": 1,
                "sort_key": b"1",
                "token": f"0/{number}",
                "xid": f"x{number}",
                "committed_at": COMMITTED_AT,
                "origin": None,
            }
            for number in range(count)
        ],
        schema=LOGGED_TRANSACTIONS,
    )
    made = StreamChanges(
        stream(),
        of,
        pa.array(np.arange(first_offset, first_offset + len(rows), dtype=np.int64)),
        pa.array(ops, pa.uint8()),
        batch,
        pa.array(transactions, pa.int32()),
        pa.array(before) if any(before) else None,
        pa.array(not_given, pa.binary()) if any(not_given) else None,
        pa.array(as_text, AS_TEXT_TYPE) if any(as_text) else None,
    )
    return made, facts


def rows(of: Table, *given: Change, facts: bool = False) -> Rows:
    """The same as `Rows`."""
    made, transactions = changes(of, *given)
    return Rows.of(made, transactions, facts=facts)


def letters(of: Rows) -> str:
    """The ops of rows; a before image in capitals."""
    return "".join(
        Op(op).letter.upper() if before else Op(op).letter
        for op, before in zip(of.ops.tolist(), of.before.tolist(), strict=True)
    )
