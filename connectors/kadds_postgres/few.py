"""A handful of plain messages, one at a time: what a quiet database sends, decoded soon.

Steps that are each for all rows cost the same for one row as for a hundred; below some dozens of messages it is faster
to take them one by one. Only Begin, Commit and rows are read here, in whole transactions; anything else goes the way of
all messages, and the cells are typed by the same code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from kadds.api.arrays import fixed, variable
from kadds.api.change import NOT_GIVEN_TYPE, ChangeBatch, Op, not_given_bitmap
from kadds.api.errors import UnknownInputError
from kadds.api.schema import Column
from kadds_postgres.cells import Given, gathered, typed
from kadds_postgres.facts import EPOCH_MICROSECONDS, Committed
from kadds_postgres.few_cells import typed_few
from kadds_postgres.versions import NOT_CAPTURED, Versions
from kadds_postgres.wire import HEADER_BYTES

_MESSAGES_MAX = 64
_BYTES_MAX = 1 << 20

_BEGIN, _COMMIT, _INSERT, _UPDATE, _DELETE = b"BCIUD"
_NEW, _KEY, _OLD = b"NKO"
_NULL, _NOT_GIVEN, _TEXT = b"nut"
_PLAIN = frozenset(b"BCIUD")
_BEGIN_FIELDS = struct.Struct(">Q8xI")  # LSN of the commit record, time, xid
_COMMIT_FIELDS = struct.Struct(">9xQq")  # flags, LSN of the commit record, LSN behind it, time
_LENGTH = struct.Struct(">I")
_COUNT = struct.Struct(">H")
_AFTER_HEADER = HEADER_BYTES + 1

_Cells: TypeAlias = list[bytes | EllipsisType | None]  # Ellipsis: not given


@dataclass(frozen=True, eq=False)
class Few:
    """Whole transactions; `commits` has one entry for each, also for those without captured rows."""

    changes: tuple[ChangeBatch, ...]
    commits: list[Committed]


@dataclass(eq=False)
class _Row:
    version: int
    ordinal: int
    op: Op
    before: bool
    cells: _Cells


def decode_few(messages: Sequence[bytes], versions: Versions) -> Few | None:
    """The changes of `messages`, None where they are not few, plain and whole transactions."""
    if len(messages) > _MESSAGES_MAX or sum(map(len, messages)) > _BYTES_MAX or min(map(len, messages)) < _AFTER_HEADER:
        return None
    kinds = [message[HEADER_BYTES] for message in messages]
    if kinds[0] != _BEGIN or kinds[-1] != _COMMIT or not _PLAIN.issuperset(kinds):
        return None
    rows: list[_Row] = []
    commits: list[Committed] = []
    first, commit_lsn, xid = 0, None, 0
    for kind, message in zip(kinds, messages, strict=True):
        if message[0] != ord("w") or (kind == _BEGIN) != (commit_lsn is None):
            return None  # an error, which the other way finds and names
        if kind == _BEGIN:
            commit_lsn, xid = _BEGIN_FIELDS.unpack_from(message, _AFTER_HEADER)
            first = len(rows)
        elif kind == _COMMIT:
            end, time = _COMMIT_FIELDS.unpack_from(message, _AFTER_HEADER)
            commits.append(Committed(end, len(rows) - first, xid, time + EPOCH_MICROSECONDS))
            commit_lsn = None
        else:
            (oid,) = _LENGTH.unpack_from(message, _AFTER_HEADER)
            version = versions.latest_of(oid)
            if versions.shapes[version] != NOT_CAPTURED and commit_lsn >= versions.captured_from[version]:
                _read(message, kind, version, versions, rows)
    by_shape: dict[int, list[_Row]] = {}
    for row in rows:
        by_shape.setdefault(int(versions.shapes[row.version]), []).append(row)
    return Few(tuple(_batch(part, versions) for part in by_shape.values()), commits)


def _read(message: bytes, kind: int, version: int, versions: Versions, rows: list[_Row]) -> None:
    """Adds the one or two rows of an Insert, Update or Delete."""
    in_key = versions.all[version].in_key
    tag = message[HEADER_BYTES + 5]
    cells, at = _cells(message, HEADER_BYTES + 6, len(in_key))
    if kind == _INSERT and tag == _NEW:
        rows.append(_Row(version, len(rows), Op.CREATE, False, cells))
    elif kind == _UPDATE and tag == _NEW:
        rows.append(_Row(version, len(rows), Op.UPDATE, False, cells))
    elif kind in (_UPDATE, _DELETE) and tag in (_KEY, _OLD):
        if tag == _KEY:
            cells = [cell if is_key else ... for cell, is_key in zip(cells, in_key.tolist(), strict=True)]
        rows.append(_Row(version, len(rows), Op.UPDATE if kind == _UPDATE else Op.DELETE, True, cells))
        if kind == _UPDATE:
            if message[at] != _NEW:
                raise UnknownInputError("an update has no new row behind the old one", where="pgoutput")
            new, at = _cells(message, at + 1, len(in_key))
            if tag == _OLD:
                new = [old if cell is ... else cell for cell, old in zip(new, cells, strict=True)]
            rows.append(_Row(version, len(rows), Op.UPDATE, False, new))
    else:
        raise UnknownInputError(f"a message {chr(kind)!r} has a row of kind {chr(tag)!r}", where="pgoutput")
    if at != len(message):
        raise UnknownInputError("a row does not end where its message ends", where="pgoutput")


def _cells(message: bytes, at: int, columns: int) -> tuple[_Cells, int]:
    """The cells of the TupleData that begins at `at`, and where it ends."""
    (count,) = _COUNT.unpack_from(message, at)
    if count != columns:
        raise UnknownInputError(f"a row has {count} columns where its Relation message has {columns}", where="pgoutput")
    at += 2
    cells: _Cells = []
    for _ in range(columns):
        kind = message[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _LENGTH.unpack_from(message, at + 1)[0]
            cells.append(message[start:at])
        elif kind == _NULL:
            at += 1
            cells.append(None)
        elif kind == _NOT_GIVEN:
            at += 1
            cells.append(...)
        else:
            raise UnknownInputError(f"a cell of unknown kind {chr(kind)!r}", where="pgoutput")
    return cells, at


def _batch(rows: list[_Row], versions: Versions) -> ChangeBatch:
    """Rows of one shape."""
    columns = len(rows[0].cells)
    not_given = None
    if any(... in row.cells for row in rows):
        missing = [[column for column, cell in enumerate(row.cells) if cell is ...] for row in rows]
        not_given = pa.array([not_given_bitmap(those, columns) if those else None for those in missing], NOT_GIVEN_TYPE)
    tables, table_numbers = versions.tables_of(np.array([row.version for row in rows]))
    table = tables.tables[0]
    values, as_text = gathered(
        _typed(column, [row.cells[number] for row in rows], lambda row: versions.name(rows[row].version))
        for number, column in enumerate(table.columns)
    )
    return ChangeBatch(
        tables,
        fixed(pa.uint32(), np.array([row.ordinal for row in rows], np.uint32)),
        fixed(pa.uint8(), np.array([row.op for row in rows], np.uint8)),
        pa.RecordBatch.from_arrays(values, schema=table.arrow_schema),
        table_numbers,
        pa.array([row.before for row in rows]) if any(row.before for row in rows) else None,
        not_given,
        as_text,
    )


def _typed(column: Column, cells: _Cells, where: Callable[[int], str]) -> tuple[pa.Array, Given | None]:
    given = [None if cell is ... else cell for cell in cells]
    plain = typed_few(column.type, given)
    return typed(column, variable(pa.string(), given), where) if plain is None else (plain, None)
