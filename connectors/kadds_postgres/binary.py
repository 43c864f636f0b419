"""Values in PostgreSQL's binary format, a column at a time: of COPY's rows and of array parameters alike.

A cell is its length (four bytes, big endian; -1 for NULL) and its bytes. Fixed widths are built by NumPy, texts stay in
Arrow, and `rows` joins both; nothing is per row. The formats are those of the server's `…_send` and `…_recv` functions
(src/backend/utils/adt); what has none here goes as text, which is told by `writes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.arrays import offsets_of, values_of
from kadds_postgres.sink_text import refuse_nul, refuse_out_of_range

_EPOCH_DAYS = 10_957  # 2000-01-01, from which PostgreSQL counts
_EPOCH_US = _EPOCH_DAYS * 86_400_000_000
_NUMERIC_DIGITS_MAX, _NUMERIC_SCALE_MAX = 18, 15  # what 64 bits hold while they are split
_NEGATIVE = 0x4000
_FEW = 64  # up to so many rows Python joins them sooner than Arrow begins
#: What begins and ends the binary format of COPY.
COPY_HEAD, COPY_TAIL = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"

#: Type → its oid, fixed for the server's own types, and the NumPy type of a value of fixed width.
_FIXED: dict[str, tuple[int, str]] = {
    "bool": (16, "u1"),
    "int8": (20, ">i8"),
    "int2": (21, ">i2"),
    "int4": (23, ">i4"),
    "float4": (700, ">f4"),
    "float8": (701, ">f8"),
    "date": (1082, ">i4"),
    "time": (1083, ">i8"),
    "timestamp": (1114, ">i8"),
    "timestamptz": (1184, ">i8"),
}
_OF_BYTES = {"bytea": 17, "text": 25, "json": 114, "bpchar": 1042, "varchar": 1043}
_NUMERIC_OID = 1700

_Block = np.ndarray[Any, np.dtype[np.uint8]]  # one row of bytes for each row
Part = Any  #: a block of bytes with a row each, or an Arrow array of bytes


def writes(arrow: pa.DataType, there: str) -> bool:
    """Whether values of `arrow` have a binary form for a column of type `there`, one of pg_catalog's names."""
    if pa.types.is_decimal128(arrow):
        few = arrow.precision <= _NUMERIC_DIGITS_MAX and 0 <= arrow.scale <= min(arrow.precision, _NUMERIC_SCALE_MAX)
        return few and there == "numeric"
    if arrow == pa.string():
        return there in _OF_BYTES and there != "bytea"
    if arrow == pa.binary():
        return there == "bytea"
    if pa.types.is_integer(arrow):
        return there in ("int2", "int4", "int8")
    return (str(arrow), there) in {
        ("bool", "bool"),
        ("float", "float4"),
        ("float", "float8"),
        ("double", "float8"),
        ("date32[day]", "date"),
        ("time64[us]", "time"),
        ("timestamp[us]", "timestamp"),
        ("timestamp[us, tz=UTC]", "timestamptz"),
    }


def cells(values: pa.Array, column: str, there: str) -> list[Part]:
    """The cells of a column, whose parts stand beside one another; DataError for a value that is out of range."""
    if values.type in (pa.string(), pa.binary()):
        if values.type == pa.string():
            refuse_nul(values, column)
        lengths = np.diff(offsets_of(values)).astype(">i4")
        if values.null_count:
            lengths[values.is_null().to_numpy(zero_copy_only=False)] = -1
        return [_bytes_of(lengths), values.view(pa.binary())]
    return [_with_length(_numbers(values, column, there), values)]


def _numbers(values: pa.Array, column: str, there: str) -> _Block:
    refuse_out_of_range(values, column)
    kind = values.type
    if pa.types.is_decimal(kind):
        return _numeric(values)
    if pa.types.is_temporal(kind):
        whole = values_of(values, np.int32 if kind.bit_width == 32 else np.int64)
        epoch = _EPOCH_DAYS if kind == pa.date32() else _EPOCH_US if pa.types.is_timestamp(kind) else 0
        return _bytes_of((whole - epoch).astype(_FIXED[there][1]))
    if kind == pa.bool_():
        filled = pc.fill_null(values, False) if values.null_count else values
        return _bytes_of(filled.to_numpy(zero_copy_only=False).astype(_FIXED[there][1]))
    return _bytes_of(values_of(values, kind.to_pandas_dtype()).astype(_FIXED[there][1]))


def _bytes_of(numbers: np.ndarray[Any, Any]) -> _Block:
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), numbers.dtype.itemsize)


def _numeric(values: pa.Array) -> _Block:
    """Digits of base 10,000; zeros at the ends are taken away by the server."""
    scale, count = values.type.scale, len(values)
    unscaled = np.frombuffer(values.buffers()[1], np.int64, 2 * count, values.offset * 16)[::2]
    magnitude = np.abs(unscaled)
    if values.null_count:
        magnitude = np.where(values.is_valid().to_numpy(zero_copy_only=False), magnitude, 0)
    before, behind = -(-(values.type.precision - scale) // 4), -(-scale // 4)
    whole, fraction = np.divmod(magnitude, 10**scale)
    fraction = fraction * 10 ** (4 * behind - scale)
    head = np.empty((count, 4 + before + behind), ">i2")
    head[:, 0], head[:, 1], head[:, 3] = before + behind, before - 1, scale
    head[:, 2] = np.where(unscaled < 0, _NEGATIVE, 0)
    for part, first, digits in ((whole, 4, before), (fraction, 4 + before, behind)):
        for place in range(first + digits - 1, first - 1, -1):
            part, head[:, place] = np.divmod(part, 10_000)
    return head.view(np.uint8).reshape(count, -1)


def _with_length(block: _Block, values: pa.Array) -> Part:
    """The length before each value; NULL is a length alone."""
    count, width = block.shape
    cell = np.empty((count, 4 + width), np.uint8)
    cell[:, :4] = np.frombuffer(np.array([width], ">i4").tobytes(), np.uint8)
    cell[:, 4:] = block
    if not values.null_count:
        return cell
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    cell[~valid, :4] = 0xFF
    kept = np.ones((count, 4 + width), np.bool_)
    kept[~valid, 4:] = False
    offsets = np.concatenate([[0], np.cumsum(np.where(valid, 4 + width, 4))]).astype(np.int32)
    return _binary_array(offsets, cell[kept])


def _binary_array(offsets: np.ndarray[Any, np.dtype[np.int32]], data: np.ndarray[Any, np.dtype[np.uint8]]) -> pa.Array:
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    )


def _cells_of_few(part: Part) -> list[bytes]:
    if isinstance(part, np.ndarray):
        return [row.tobytes() for row in part]
    return [cell or b"" for cell in part.to_pylist()]


def rows(parts: Sequence[Part]) -> memoryview:
    """The parts of each row one behind the other, row by row."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return memoryview(np.concatenate(parts, axis=1).tobytes())
    if len(parts[0]) <= _FEW:
        return memoryview(b"".join(cell for row in zip(*map(_cells_of_few, parts), strict=True) for cell in row))
    blocks: list[_Block] = []
    arrays: list[pa.Array] = []

    def flush() -> None:
        if blocks:
            together = np.concatenate(blocks, axis=1)
            count, width = together.shape
            arrays.append(_binary_array(np.arange(count + 1, dtype=np.int32) * np.int32(width), together.reshape(-1)))
            blocks.clear()

    for part in parts:
        if isinstance(part, np.ndarray):
            blocks.append(part)
        else:
            flush()
            arrays.append(part)
    flush()
    joined = pc.binary_join_element_wise(*arrays, b"", null_handling="replace", null_replacement=b"")
    end = np.frombuffer(joined.buffers()[1], np.int32)[joined.offset + len(joined)]
    return memoryview(joined.buffers()[2] or b"")[: int(end)]


def copy_rows(columns: Sequence[Sequence[Part]]) -> memoryview:
    """Rows of COPY: how many cells, and the cells."""
    first = columns[0][0]
    count = len(first)
    number = np.tile(np.frombuffer(np.array([len(columns)], ">i2").tobytes(), np.uint8), (count, 1))
    return rows([number, *(part for column in columns for part in column)])


def array(parts: Sequence[Part], there: str) -> bytes:
    """A column as one array of PostgreSQL: one dimension from 1 on."""
    oid = _NUMERIC_OID if there == "numeric" else _OF_BYTES[there] if there in _OF_BYTES else _FIXED[there][0]
    head = np.array([1, 1, oid, len(parts[0]), 1], ">i4").tobytes()
    return b"".join([head, rows(parts)])
