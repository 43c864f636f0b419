"""TupleData: where the cells of many rows lie, found a column at a time over all rows, and their texts as Arrow.

TupleData is a 16-bit count of columns, then for each a byte: `n` NULL, `u` unchanged TOAST (not given), or `t`, a
32-bit length and that many bytes of text. Rows differ in length, so that column after column is walked, but each step
is one for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.change import NOT_GIVEN_TYPE
from kadds.api.errors import UnknownInputError
from kadds_postgres.wire import Block, Integers

_NULL, NOT_GIVEN, _TEXT = b"nut"


@dataclass(eq=False)
class Cells:
    """Cells of rows by (column, row): the place of their text, its length, and their kind as on the wire."""

    starts: Integers
    lengths: Integers
    kinds: npt.NDArray[np.uint8]

    @classmethod
    def not_given(cls, columns: int, rows: int) -> Cells:
        """Rows without a single cell."""
        shape = (columns, rows)
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, NOT_GIVEN, np.uint8))

    @classmethod
    def joined(cls, parts: list[Cells], order: Integers) -> Cells:
        """The rows of `parts`, one behind the other, then in `order`."""
        return cls(
            np.concatenate([part.starts for part in parts], 1)[:, order],
            np.concatenate([part.lengths for part in parts], 1)[:, order],
            np.concatenate([part.kinds for part in parts], 1)[:, order],
        )

    def fill_from(self, rows: Integers, old: Cells, old_rows: Integers) -> None:
        """Give each cell of `rows` that is not given the value which it has in the matching row of `old`."""
        columns, places = np.nonzero(self.kinds[:, rows] == NOT_GIVEN)
        ours, theirs = (columns, rows[places]), (columns, old_rows[places])
        self.starts[ours], self.lengths[ours] = old.starts[theirs], old.lengths[theirs]
        self.kinds[ours] = old.kinds[theirs]

    def not_given_array(self) -> pa.Array | None:
        """The `not_given` array of a ChangeBatch; None where every cell is given."""
        missing = self.kinds == NOT_GIVEN
        if not missing.any():
            return None
        bits = np.packbits(missing.T, axis=1, bitorder="little")
        present = missing.any(0)
        offsets = np.zeros(len(present) + 1, np.int32)
        np.cumsum(present * bits.shape[1], out=offsets[1:])
        data = np.ascontiguousarray(bits[present])
        buffers = [_bitmap(present), pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(NOT_GIVEN_TYPE, len(present), buffers)

    def texts(self, data: bytes) -> list[pa.Array]:
        """The texts (string, not validated) of each column, null where there is none.

        In an array over the whole buffer every second element is a cell, those between are gaps. Cells may lie in any
        order (a gap then has a length below 0), since gaps are never taken; Arrow copies the cells out in one call.
        """
        columns, rows = self.starts.shape
        count = columns * rows
        offsets = np.empty(2 * count + 2, np.int32)
        offsets[0], offsets[-1] = 0, len(data)
        offsets[1:-1:2] = self.starts.ravel()
        np.add(self.starts.ravel(), self.lengths.ravel(), out=offsets[2::2][:count], casting="unsafe")
        whole = pa.Array.from_buffers(pa.string(), 2 * count + 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)], 0)
        places = pa.py_buffer(np.arange(1, 2 * count, 2, dtype=np.int64))
        present = self.kinds.ravel() == _TEXT
        validity = None if present.all() else _bitmap(present)
        taken = whole.take(pa.Array.from_buffers(pa.int64(), count, [validity, places]))
        return [taken.slice(column * rows, rows) for column in range(columns)]


def walk(block: Block, at: Integers, columns: int) -> tuple[Cells, Integers]:
    """The cells of the TupleData that begin at `at`, and where each ends.

    UnknownInputError where the count of columns or a cell's kind is not known; IndexError where a length points out of
    the block, which the caller reports together with tuples that do not end where their message ends.
    """
    rows = len(at)
    if (block.unsigned16[at] != columns).any():
        raise UnknownInputError(
            f"a row has another number of columns than the {columns} of its Relation message", where="pgoutput"
        )
    shape = (columns, rows)
    starts, lengths, kinds = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.uint8)
    at = at + 2
    for column in range(columns):
        kind = block.octets[at]
        kinds[column] = kind
        text = kind == _TEXT
        length, start = lengths[column], starts[column]
        length[:] = block.unsigned32[at + 1]
        np.add(at, 5, out=start)
        if text.all():
            at = start + length
            continue
        if not ((kind == _NULL) | (kind == NOT_GIVEN) | text).all():
            unknown = sorted({chr(code) for code in np.unique(kind)} - set("nut"))
            raise UnknownInputError(f"cells of unknown kind {unknown}", where="pgoutput")
        length[~text] = 0
        at = np.where(text, start + length, at + 1)
    return Cells(starts, lengths, kinds), at


def _bitmap(flags: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
