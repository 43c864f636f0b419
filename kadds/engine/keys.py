"""Keys as small numbers: equal keys of a batch get equal numbers, so that rows are grouped without touching them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kadds.api.errors import DataError
from kadds.engine.cells import Bools, Integers
from kadds.engine.rows import Rows

NO_KEY = -1
_LARGEST = 1 << 62


def key_codes(rows: Rows) -> tuple[Integers, int]:
    """For each row the number of its key, and how many numbers there are; NO_KEY where a part is NULL or not given."""
    codes = np.zeros(len(rows), np.int64)
    absent = np.zeros(len(rows), np.bool_)
    if len(rows) == 1:
        keys = [rows.values.column(index) for index in rows.table.key_indexes]
        absent[0] = any(key.null_count for key in keys)
        if rows.missing is not None:
            absent |= rows.missing[:, rows.table.key_indexes].any(axis=1)
        codes[absent] = NO_KEY
        return codes, 1
    count = 1
    for index in rows.table.key_indexes:
        encoded = rows.values.column(index).dictionary_encode()
        part = encoded.indices.fill_null(NO_KEY).to_numpy(zero_copy_only=False).astype(np.int64)
        absent |= part < 0
        if rows.missing is not None:
            absent |= rows.missing[:, index]
        codes, count = _combined(codes, count, part, max(1, len(encoded.dictionary)))
    if len(rows.table.key_indexes) > 1:
        codes, count = _dense(codes)
    codes[absent] = NO_KEY
    return codes, count


def _combined(codes: Integers, count: int, part: Integers, part_count: int) -> tuple[Integers, int]:
    if count > _LARGEST // part_count:
        codes, count = _dense(codes)
    return codes * part_count + part, count * part_count


def _dense(codes: Integers) -> tuple[Integers, int]:
    found, inverse = np.unique(codes, return_inverse=True)
    return inverse.astype(np.int64), max(1, len(found))


def check_keys(rows: Rows, codes: Integers, needed: Bools) -> None:
    """DataError naming the column where a row that is applied by its key has none."""
    lacking = np.flatnonzero(needed & (codes == NO_KEY))
    if len(lacking) == 0:
        return
    row = int(lacking[0])
    for name, index in zip(rows.table.key, rows.table.key_indexes, strict=True):
        texts = rows.texts
        if texts is not None and bool(np.any((texts.rows == row) & (texts.columns == index))):
            why = "has a value there that the column's type cannot hold"
        elif rows.missing is not None and rows.missing[row, index]:
            why = "does not give that cell"
        elif not rows.values.column(index)[row].is_valid:
            why = "has NULL there"
        else:
            continue
        raise DataError(
            f"column {name!r} is part of the key, and the change at offset {int(rows.offsets[row])} {why}",
            where=rows.table.qualified_name,
            hint="name a key whose columns are never NULL and always given, or use mode: append",
        )


def key_rows(rows: Rows, indices: Integers) -> pa.RecordBatch:
    """The key's columns, in the key's order, of the rows `indices`."""
    arrow = pa.array(indices, pa.int64())
    columns = [rows.values.column(index).take(arrow) for index in rows.table.key_indexes]
    fields = [rows.table.arrow_schema.field(index) for index in rows.table.key_indexes]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
