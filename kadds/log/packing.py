"""Columns packed for segments: bytes of like meaning side by side, then zstd (docs/decisions/0008-packed-blocks.md).

    payload   slots u32 · slot × slots · the stored bytes of each slot, in order
    slot      column u16 · part u8 · form u8 · width u8 · codec u8 · 0 u16 · raw bytes u32 · stored bytes u32

A column has the parts that its type needs: `values` for fixed widths, `lengths` and `data` for string and binary, a
`message` (an Arrow IPC record batch message of that column alone) for what is nested, none for the type null; and
`validity`, a bitmap as Arrow has it, where there is a null. What a value is under a null is not kept.

Numbers are rearranged before they are compressed. A plane is the byte at one place of every value, the lowest first;
planes above `width` are zero. ZIGZAG: n becomes (n << 1) ^ (n >> all bits but one), so that small numbers of either
sign have few bytes; DELTA: of the first value and then of each difference to the value before, modulo the width. A
decimal of up to 18 digits is its lower 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.arrays import offsets_of
from kadds.api.errors import CorruptLogError

_COUNT = struct.Struct("<I")
_SLOT = struct.Struct("<HBBBBHII")
_LEVEL = 1
_AS_IT_IS_BYTES = 48  # a smaller buffer is not worth a frame of zstd
_PLANES_ADDED = 6
_SAMPLE = 512  # of so many values it is judged which form is the smaller one

Bytes = npt.NDArray[np.uint8]


class Part(IntEnum):
    """What the bytes of a slot are to their column."""

    VALIDITY = 0
    VALUES = 1
    LENGTHS = 2
    DATA = 3
    MESSAGE = 4


class Form(IntEnum):
    """How they were rearranged."""

    AS_IT_IS = 0
    PLANES = 1
    ZIGZAG = 2
    DELTA = 3


class _Slot(NamedTuple):
    column: int
    part: int
    form: int
    width: int
    codec: int
    reserved: int
    raw_bytes: int
    stored_bytes: int


def pack(columns: Sequence[pa.Array]) -> list[Any]:
    """The payload of columns of one length, as buffers to be written one behind the other."""
    codec = pa.Codec("zstd", _LEVEL)
    slots, buffers = [], []
    for number, column in enumerate(columns):
        for part, form, width, data in _parts(column):
            raw = len(data)
            stored, how = data, 0
            if raw > _AS_IT_IS_BYTES:
                compressed = codec.compress(data)
                if compressed.size < raw:
                    stored, how = compressed, 1
            slots.append(_SLOT.pack(number, part, form, width, how, 0, raw, len(stored)))
            buffers.append(stored)
    return [_COUNT.pack(len(slots)), *slots, *buffers]


def unpack(payload: pa.Buffer, kinds: Sequence[pa.DataType], rows: int, where: str) -> list[pa.Array]:
    """The columns of a payload; CorruptLogError for a slot that this version does not know or that does not fit."""
    try:
        return _unpacked(payload, kinds, rows)
    except (KeyError, IndexError, ValueError, OSError, struct.error) as error:  # Arrow's own are among them
        raise CorruptLogError(f"a block of {rows} packed rows cannot be read: {error!r}", where=where) from error


def _unpacked(payload: pa.Buffer, kinds: Sequence[pa.DataType], rows: int) -> list[pa.Array]:
    codec = pa.Codec("zstd", _LEVEL)
    (count,) = _COUNT.unpack_from(payload)
    position = _COUNT.size + count * _SLOT.size
    found: list[dict[int, tuple[_Slot, pa.Buffer]]] = [{} for _ in kinds]
    for fields in _SLOT.iter_unpack(memoryview(payload)[_COUNT.size : position]):
        slot = _Slot(*fields)
        data = payload.slice(position, slot.stored_bytes)
        position += slot.stored_bytes
        if slot.codec not in (0, 1):
            raise ValueError(f"this version does not know the codec of {slot}")
        found[slot.column][slot.part] = slot, codec.decompress(data, slot.raw_bytes) if slot.codec else data
    if position != payload.size:
        raise ValueError(f"its payload has {payload.size} bytes, its slots {position}")
    return [_column(kind, rows, parts) for kind, parts in zip(kinds, found, strict=True)]


# -------------------------------------------------------------------------------------------------------- packing


def _parts(column: pa.Array) -> Iterator[tuple[Part, Form, int, Any]]:
    """Part, form, width and bytes of each slot that a column needs."""
    kind, count = column.type, len(column)
    if kind == pa.null():
        return
    if pa.types.is_nested(kind):
        batch = pa.RecordBatch.from_arrays([column], names=[""])
        yield Part.MESSAGE, Form.AS_IT_IS, 0, batch.serialize()
        return
    if column.null_count:
        yield Part.VALIDITY, Form.AS_IT_IS, 0, _bits(column.buffers()[0], column.offset, count)
    if kind in (pa.string(), pa.binary()):
        offsets = offsets_of(column)
        yield Part.LENGTHS, *_numbers(np.diff(offsets))
        data = column.buffers()[2]
        if data is not None and offsets[-1] > offsets[0]:
            yield Part.DATA, Form.AS_IT_IS, 0, data.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    elif kind == pa.bool_():
        yield Part.VALUES, Form.AS_IT_IS, 0, _bits(column.buffers()[1], column.offset, count)
    else:
        width = kind.bit_width // 8
        octets = np.frombuffer(column.buffers()[1] or b"", np.uint8, count * width, column.offset * width)
        if _is_short_decimal(kind):
            yield Part.VALUES, *_numbers(octets.view(np.int64)[::2])
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            yield Part.VALUES, Form.PLANES, width, np.ascontiguousarray(octets.reshape(count, width).T).reshape(-1)
        elif width == 1:
            yield Part.VALUES, Form.AS_IT_IS, 0, octets
        else:
            yield Part.VALUES, *_numbers(octets.view(f"i{width}"))


def _numbers(values: npt.NDArray[Any]) -> tuple[Form, int, Bytes]:
    """The smaller form of integers: of themselves, or of their differences."""
    if len(values) == 0:
        return Form.AS_IT_IS, 0, np.empty(0, np.uint8)
    values = np.ascontiguousarray(values)
    differences = values.copy()
    np.subtract(values[1:], values[:-1], out=differences[1:])
    delta = _zigzag(differences)
    itself = _zigzag(values)
    step = -(-len(values) // _SAMPLE)
    form, chosen = (Form.DELTA, delta) if _bits_of(delta[::step]) < _bits_of(itself[::step]) else (Form.ZIGZAG, itself)
    width = max(1, -(-int(chosen.max()).bit_length() // 8))
    planes = np.empty((width, len(chosen)), np.uint8)
    for place in range(width):
        np.copyto(planes[place], chosen >> chosen.dtype.type(8 * place), casting="unsafe")
    return form, width, planes.reshape(-1)


def _zigzag(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    bits = values.dtype.itemsize * 8 - 1
    return ((values << 1) ^ (values >> bits)).view(f"u{values.dtype.itemsize}")


def _bits_of(values: npt.NDArray[Any]) -> float:
    """How many bits the values have together."""
    return float(np.add.reduce(np.log2(values + 1.0)))


def _bits(bitmap: pa.Buffer, offset: int, count: int) -> Bytes:
    """A bitmap from bit `offset` on."""
    octets = np.frombuffer(bitmap, np.uint8)
    if offset % 8 == 0:
        return octets[offset // 8 : offset // 8 + -(-count // 8)]
    first = offset // 8
    bits = np.unpackbits(octets[first : first + -(-(offset % 8 + count) // 8)], bitorder="little")
    return np.packbits(bits[offset % 8 : offset % 8 + count], bitorder="little")


def _is_short_decimal(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal128(kind) and kind.precision <= 18)


# ------------------------------------------------------------------------------------------------------ unpacking


def _column(kind: pa.DataType, rows: int, parts: dict[int, tuple[_Slot, pa.Buffer]]) -> pa.Array:
    if kind == pa.null():
        return pa.nulls(rows)
    if pa.types.is_nested(kind):
        message = pa.ipc.read_message(parts[Part.MESSAGE][1])
        return pa.ipc.read_record_batch(message, pa.schema([pa.field("", kind)])).column(0)
    validity = parts[Part.VALIDITY][1] if Part.VALIDITY in parts else None
    nulls = -1 if validity is not None else 0
    if kind in (pa.string(), pa.binary()):
        offsets = np.zeros(rows + 1, np.int32)
        np.cumsum(_restored(*parts[Part.LENGTHS], rows, 4).view(np.int32), out=offsets[1:])
        data = parts[Part.DATA][1] if Part.DATA in parts else pa.py_buffer(b"")
        return pa.Array.from_buffers(kind, rows, [validity, pa.py_buffer(offsets), data], nulls)
    slot, data = parts[Part.VALUES]
    if kind == pa.bool_():
        values = data
    elif _is_short_decimal(kind):
        halves = np.empty((rows, 2), np.int64)
        halves[:, 0] = _restored(slot, data, rows, 8).view(np.int64)
        halves[:, 1] = halves[:, 0] >> 63
        values = pa.py_buffer(halves)
    else:
        values = pa.py_buffer(_restored(slot, data, rows, kind.bit_width // 8))
    return pa.Array.from_buffers(kind, rows, [validity, values], nulls)


def _widened(planes: npt.NDArray[np.uint8], width: int) -> Bytes:
    values = np.zeros((planes.shape[1], width), np.uint8)
    values[:, : len(planes)] = planes.T
    return values.reshape(-1)


def _joined(planes: npt.NDArray[np.uint8], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """The numbers whose bytes the planes are; adding up a few planes is faster than turning them."""
    if len(planes) > _PLANES_ADDED:
        return _widened(planes, kind.itemsize).view(kind)
    numbers: npt.NDArray[Any] = planes[0].astype(kind)
    for place in range(1, len(planes)):
        numbers |= planes[place].astype(kind) << kind.type(8 * place)
    return numbers


def _restored(slot: _Slot, data: pa.Buffer, rows: int, width: int) -> Bytes:
    """The bytes of `rows` values of `width` bytes, as they lay in memory."""
    octets = np.frombuffer(data, np.uint8)
    if slot.form == Form.AS_IT_IS:
        return octets[: rows * width]
    if slot.form not in (Form.PLANES, Form.ZIGZAG, Form.DELTA) or not 0 < slot.width <= width:
        raise ValueError(f"this version does not know the form of {slot}")
    planes = octets.reshape(slot.width, rows)
    if slot.form == Form.PLANES:
        return _widened(planes, width)
    zigzag = _joined(planes, np.dtype(f"u{width}"))
    numbers = (zigzag >> 1).view(f"i{width}") ^ -(zigzag & 1).view(f"i{width}")
    if slot.form == Form.DELTA:
        numbers = np.cumsum(numbers, dtype=numbers.dtype)
    restored: Bytes = numbers.view(np.uint8)
    return restored
