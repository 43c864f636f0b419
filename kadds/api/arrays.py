"""Small Arrow arrays, made and measured without giving up the interpreter's lock.

Most calls into Arrow let go of the lock. For many rows that is what one wants; for one row, taking the lock back from a
thread that is busy costs a hundred times what the call does. These go by buffers, which hold on to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def fixed(kind: pa.DataType, values: npt.NDArray[Any]) -> pa.Array:
    """An array without nulls of a type of fixed width; `values` have the memory layout of `kind`."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))], 0)


def variable(kind: pa.DataType, cells: Sequence[bytes | None]) -> pa.Array:
    """An array of `string` or `binary`; whether a string is UTF-8 is not looked at."""
    ends = [0, *accumulate(0 if cell is None else len(cell) for cell in cells)]
    data = pa.py_buffer(b"".join(cell for cell in cells if cell is not None))
    return pa.Array.from_buffers(kind, len(cells), [validity(cells), pa.py_buffer(np.array(ends, np.int32)), data])


def repeated(text: str, count: int) -> pa.Array:
    """The same text, `count` times."""
    data = text.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(data * count)], 0)


def validity(cells: Sequence[Any]) -> pa.Buffer | None:
    """The bitmap of cells that are not None; None where all are there."""
    if None not in cells:
        return None
    return pa.py_buffer(np.packbits([cell is not None for cell in cells], bitorder="little"))


def values_of(array: pa.Array, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of an array of fixed width as numbers of its memory layout; where it is null, anything."""
    width = np.dtype(kind).itemsize
    return np.frombuffer(array.buffers()[1] or b"", kind, len(array), array.offset * width)


def offsets_of(array: pa.Array) -> npt.NDArray[np.int32]:
    """Where in its buffer each value of a `string` or `binary` array begins, and where the last one ends."""
    return np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)


def byte_count(batch: pa.RecordBatch) -> int:
    """About how many bytes the values take in memory, for budgets."""
    return sum(map(_bytes_in, batch.columns))


def _bytes_in(array: pa.Array) -> int:
    number = array.type.id
    width = _BIT_WIDTHS.get(number)
    if width is not None:
        return len(array) * width // 8 + 1
    if number in _VARIABLE and len(array):
        offsets = offsets_of(array)
        return int(offsets[-1] - offsets[0]) + 4 * len(array)
    return int(array.nbytes)


_VARIABLE = frozenset((pa.string().id, pa.binary().id))
_BIT_WIDTHS: dict[int, int] = {
    kind.id: kind.bit_width
    for kind in (
        pa.bool_(),
        *(pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
        pa.float32(),
        pa.float64(),
        pa.date32(),
        pa.time64("us"),
        pa.timestamp("us"),
        pa.decimal128(1),
        pa.decimal256(1),
    )
}
