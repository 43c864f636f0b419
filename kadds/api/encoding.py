"""Transactions as bytes: what crosses from a source's process to the engine's.

One `Encoder` and one `Decoder` are the two ends of one connection, and see the same appends in the same order. A set of
tables is described when it is first used and has a number from then on; the decoder gives the same object for it each
time, because the log knows a set that it has seen by its identity.

Layout of one append: u32 length of the head; the head, JSON; then, each from the next multiple of 64 bytes on, Arrow
IPC messages without their schemas, which both ends know: first the facts, then one a batch, whose columns are those of
`ChangeBatch` in order, without the absent ones, and then the table's. The head has

    lineage   of every position
    forget    true where all numbers given before are void
    new       the sets described here: [number, {columns: lists of columns, tables: [schema, name,
              which of those lists, key, incarnation]}]
    batches   for each batch the number of its set, and which of its arrays are there
    controls  [kind, ordinal, number of a set of one table or null, facts]
    lengths   of the messages, in bytes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from kadds.api.change import (
    AS_TEXT_TYPE,
    NOT_GIVEN_TYPE,
    TRANSACTIONS,
    ChangeBatch,
    Control,
    ControlKind,
    Transactions,
)
from kadds.api.schema import Column, Table, TableSet

_ARRAYS = {
    "ordinals": pa.uint32(),
    "ops": pa.uint8(),
    "table_numbers": pa.int32(),
    "before": pa.bool_(),
    "not_given": NOT_GIVEN_TYPE,
    "as_text": AS_TEXT_TYPE,
}
_ALIGNMENT_BYTES = 64
_SETS_MAX = 10_000
_PADDING = bytes(_ALIGNMENT_BYTES)
_LENGTH = struct.Struct("<I")


class Encoder:
    """The source's end; one thread at a time uses it."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[object, int]] = {}  # by identity; what is kept alive here keeps its identity
        self._schemas = _Schemas()

    def encode(self, transactions: Transactions) -> list[bytes | pa.Buffer]:
        """The bytes, as parts that stand behind one another."""
        if len(self._numbers) > _SETS_MAX:
            self._forget()
        try:
            return self._encode(transactions, forget=not self._numbers)
        except BaseException:
            self._forget()  # what this one described is not going to arrive
            raise

    def _forget(self) -> None:
        self._numbers.clear()
        self._schemas.clear()

    def _encode(self, transactions: Transactions, *, forget: bool) -> list[bytes | pa.Buffer]:
        new: list[tuple[int, Any]] = []
        messages = [transactions.facts.serialize()]
        batches = []
        for batch in transactions.changes:
            present = {name: getattr(batch, name) for name in _ARRAYS if getattr(batch, name) is not None}
            number = self._number(batch.tables, new)
            schema = self._schemas.of(number, tuple(present), batch.tables)
            columns = [*present.values(), *batch.values.columns]
            messages.append(pa.RecordBatch.from_arrays(columns, schema=schema).serialize())
            batches.append((number, list(present)))
        controls = [
            (c.kind, c.ordinal, c.table and self._number(TableSet.of(c.table), new), dict(c.facts))
            for c in transactions.controls
        ]
        head = {
            "lineage": transactions.lineage,
            "forget": forget,
            "new": new,
            "batches": batches,
            "controls": controls,
            "lengths": [message.size for message in messages],
        }
        return _parts(json.dumps(head).encode(), messages)

    def _number(self, tables: TableSet, new: list[tuple[int, Any]]) -> int:
        known_by: object = tables.tables[0] if len(tables.tables) == 1 else tables
        known = self._numbers.get(id(known_by))
        if known is None:
            known = self._numbers[id(known_by)] = (known_by, len(self._numbers) + 1)
            new.append((known[1], _described(tables)))
        return known[1]


class Decoder:
    """The engine's end; one thread at a time uses it."""

    def __init__(self) -> None:
        self._sets: dict[int, TableSet] = {}
        self._schemas = _Schemas()

    def decode(self, data: bytes | pa.Buffer) -> Transactions:
        """What `encode` gave; its columns lie in `data`, which they keep alive."""
        whole = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
        (length,) = _LENGTH.unpack(whole[: _LENGTH.size].to_pybytes())
        head = json.loads(whole[_LENGTH.size : _LENGTH.size + length].to_pybytes())
        if head["forget"]:
            self._sets.clear()
            self._schemas.clear()
        for number, plain in head["new"]:
            self._sets[number] = _made(plain)
        start = _aligned(_LENGTH.size + length)
        messages = []
        for size in head["lengths"]:
            messages.append(whole.slice(start, size))
            start = _aligned(start + size)
        changes = [
            self._batch(number, present, message)
            for (number, present), message in zip(head["batches"], messages[1:], strict=True)
        ]
        controls = [
            Control(ControlKind(kind), ordinal, number and self._sets[number].tables[0], facts)
            for kind, ordinal, number, facts in head["controls"]
        ]
        facts = pa.ipc.read_record_batch(messages[0], TRANSACTIONS)
        return Transactions(facts, tuple(changes), tuple(controls), head["lineage"])

    def _batch(self, number: int, present: Sequence[str], message: pa.Buffer) -> ChangeBatch:
        tables = self._sets[number]
        rows = pa.ipc.read_record_batch(message, self._schemas.of(number, tuple(present), tables))
        arrays = dict(zip(present, rows.columns, strict=False))
        return ChangeBatch(tables, values=rows.select(list(range(len(present), rows.num_columns))), **arrays)


class _Schemas(dict[tuple[int, tuple[str, ...]], pa.Schema]):
    """The schemas of messages, by the number of the set and the arrays that are there."""

    def of(self, number: int, present: tuple[str, ...], tables: TableSet) -> pa.Schema:
        """That of one."""
        found = self.get((number, present))
        if found is None:
            fields = [*((name, _ARRAYS[name]) for name in present), *tables.tables[0].arrow_schema]
            found = self[number, present] = pa.schema(fields)
        return found


def _parts(head: bytes, messages: Sequence[pa.Buffer]) -> list[bytes | pa.Buffer]:
    parts: list[bytes | pa.Buffer] = [_LENGTH.pack(len(head)), head]
    length = _LENGTH.size + len(head)
    for message in messages:
        parts += [_PADDING[: _aligned(length) - length], message]
        length = message.size
    return parts


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _described(tables: TableSet) -> dict[str, Any]:
    """Tables made alike share their columns; so do those that are made of this."""
    alike = {id(table.columns): table.columns for table in tables.tables}
    which = {key: number for number, key in enumerate(alike)}
    return {
        "columns": [[column.to_json() for column in columns] for columns in alike.values()],
        "tables": [
            [table.schema, table.name, which[id(table.columns)], table.key, table.incarnation]
            for table in tables.tables
        ],
    }


def _made(plain: dict[str, Any]) -> TableSet:
    alike = [tuple(Column.from_json(column) for column in columns) for columns in plain["columns"]]
    return TableSet(
        tuple(
            Table(schema, name, alike[which], tuple(key), incarnation)
            for schema, name, which, key, incarnation in plain["tables"]
        )
    )
