"""The sparse facts about cells, as arrays: which are not given, and which are given as text.

The interface carries them compactly (a bitmap or a list per row, mostly null). Whoever reorders or drops columns, or
merges rows, needs them as whole arrays; here is the only place that converts. Nothing here loops over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import AS_TEXT_TYPE, NOT_GIVEN_TYPE
from kadds.api.errors import UnknownInputError

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


def missing_cells(not_given: pa.Array | None, columns: int) -> Bools | None:
    """A matrix rows × columns that is true where a cell is not given; None where every cell is given.

    Raises UnknownInputError for bitmaps of another length than the columns need.
    """
    if not_given is None or not_given.null_count == len(not_given):
        return None
    rows = len(not_given)
    width = (columns + 7) // 8
    present = np.flatnonzero(not_given.is_valid().to_numpy(zero_copy_only=False))
    offsets = np.frombuffer(not_given.buffers()[1], np.int32, rows + 1, not_given.offset * 4)
    lengths = np.diff(offsets)[present]
    if np.any(lengths != width):
        raise UnknownInputError(
            f"a bitmap of cells not given has {int(lengths[lengths != width][0])} bytes where {columns} columns "
            f"need {width}"
        )
    data = np.frombuffer(not_given.buffers()[2], np.uint8)
    packed = data[offsets[present][:, None] + np.arange(width)]
    matrix = np.zeros((rows, columns), np.bool_)
    matrix[present] = np.unpackbits(packed, axis=1, bitorder="little")[:, :columns].astype(np.bool_)
    return matrix if matrix.any() else None


def not_given_array(missing: Bools | None) -> pa.Array | None:
    """The array of bitmaps of a matrix: the opposite of `missing_cells`."""
    if missing is None or not missing.any():
        return None
    rows, columns = missing.shape
    width = (columns + 7) // 8
    some = missing.any(axis=1)
    packed = np.packbits(missing[some], axis=1, bitorder="little")
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(some * width, out=offsets[1:])
    validity = pa.array(some).buffers()[1]
    return pa.Array.from_buffers(
        NOT_GIVEN_TYPE, rows, [validity, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(packed))]
    )


@dataclass(frozen=True, eq=False)
class Texts:
    """The cells given as text, one entry each, sorted by row: `rows[i]`, `columns[i]` has `texts[i]`."""

    rows: Integers
    columns: Integers
    texts: pa.Array  # string

    @classmethod
    def of(cls, as_text: pa.Array | None) -> Texts | None:
        """The entries of an `as_text` array; None where it has none."""
        if as_text is None or as_text.null_count == len(as_text):
            return None
        entries = as_text.flatten()
        if len(entries) == 0:
            return None
        rows = pc.list_parent_indices(as_text).to_numpy(zero_copy_only=False).astype(np.int64)
        columns = entries.field("column").to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(rows, columns, entries.field("text"))

    def keep(self, chosen: Bools) -> Texts | None:
        """The entries for which `chosen` is true."""
        if not chosen.any():
            return None
        return Texts(self.rows[chosen], self.columns[chosen], self.texts.filter(pa.array(chosen)))

    def at(self, rows: Integers, columns: Integers) -> Texts:
        """The same texts in other places, sorted by row again."""
        order = np.argsort(rows, kind="stable")
        return Texts(rows[order], columns[order], self.texts.take(pa.array(order)))

    def array(self, rows: int) -> pa.Array:
        """The `as_text` array for `rows` rows."""
        counts = np.bincount(self.rows, minlength=rows)
        offsets = np.zeros(rows + 1, np.int32)
        np.cumsum(counts, out=offsets[1:])
        entries = pa.StructArray.from_arrays(
            [pa.array(self.columns.astype(np.int16)), self.texts.cast(pa.string())],
            fields=list(AS_TEXT_TYPE.value_type),
        )
        return pa.ListArray.from_arrays(pa.array(offsets), entries, type=AS_TEXT_TYPE, mask=pa.array(counts == 0))


def text_array(texts: Texts | None, rows: int) -> pa.Array | None:
    """The `as_text` array, None where there are no entries."""
    return None if texts is None or len(texts.rows) == 0 else texts.array(rows)


def take_texts(texts: Texts | None, indices: Integers, rows: int) -> Texts | None:
    """The entries of the rows `indices` (out of `rows`), each of which stands at most once, under their new numbers."""
    if texts is None:
        return None
    new = np.full(rows, -1, np.int64)
    new[indices] = np.arange(len(indices))
    kept = texts.keep(new[texts.rows] >= 0)
    return None if kept is None else kept.at(new[kept.rows], kept.columns)


def concat_texts(parts: list[tuple[Texts | None, int]]) -> Texts | None:
    """The entries of parts (entries, how many rows the part has) put one behind the other."""
    base = 0
    found: list[Texts] = []
    for texts, rows in parts:
        if texts is not None:
            found.append(Texts(texts.rows + base, texts.columns, texts.texts))
        base += rows
    if not found:
        return None
    return Texts(
        np.concatenate([texts.rows for texts in found]),
        np.concatenate([texts.columns for texts in found]),
        pa.concat_arrays([texts.texts for texts in found]),
    )


def bools(array: pa.Array | None, rows: int) -> Bools:
    """A boolean Arrow array as NumPy; all false where there is none, and where it is null."""
    if array is None:
        return np.zeros(rows, np.bool_)
    filled: Any = array.fill_null(False) if array.null_count else array
    return np.asarray(filled.to_numpy(zero_copy_only=False), np.bool_)
