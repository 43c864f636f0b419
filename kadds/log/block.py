"""Blocks: the rows of one (tenant, shape) inside an entry or a segment.

A block is a header, the extents, and the rows. All numbers are little-endian; a block begins at a multiple of 8 bytes.

    header    cell kind u8 · columns u8 · mac bytes u8 · nonce bytes u8 · key id u32 · layout u32 · extents u32
              · rows u64 · payload bytes u64                                                              (32 bytes)
    extents   stream id i64 × n · layout u32 × n · rows u32 × n, padded to 8
    nonce, payload, mac

The columns are `place` (uint32), `op` (uint8), then those of `before` (bool), `not_given`, `as_text` whose bit is set
in `columns`, then the values as the layout declares them. Cell kind 0, that of the journal, is one Arrow IPC record
batch message of them without its schema (docs/decisions/0001-journal-cells.md); cell kind 1, that of segments, is
`packing`. `place` is the row's offset less the first offset of what
it belongs to: the commit (a fragment's, too, though it does not know that offset yet), or the segment. Key id, nonce
and mac are zero until blocks are encrypted.

Rows are sorted by stream and, inside one, by place; an extent is a run of rows of one stream under one layout.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.change import AS_TEXT_TYPE, NOT_GIVEN_TYPE
from kadds.api.errors import CorruptLogError
from kadds.log.layout import Layout
from kadds.log.packing import pack, unpack

_HEADER = struct.Struct("<BBBBIIIQQ")
_BEFORE, _NOT_GIVEN, _AS_TEXT = 1, 2, 4
CELL_KIND_TYPED, CELL_KIND_PACKED = 0, 1


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one shape in columns; the extents are parallel arrays of stream id, layout number and row count."""

    layouts_used: tuple[Layout, ...]  # those that `layouts` names; their names and types are the same in all
    streams: npt.NDArray[np.int64]
    layouts: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]
    places: pa.Array
    ops: pa.Array
    values: pa.RecordBatch
    before: pa.Array | None = None
    not_given: pa.Array | None = None
    as_text: pa.Array | None = None

    @property
    def layout(self) -> Layout:
        """One of the layouts, for what they share: names and types."""
        return self.layouts_used[0]

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.values.num_rows)

    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each extent, and behind the last the number of rows."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def rows_between(self, start: int, stop: int) -> Block:
        """Rows from `start` up to `stop`, without copying; the extents are cut to them."""
        if len(self.streams) == 1:
            return self._rows(start, stop, slice(0, 1), np.array([stop - start], np.uint32))
        starts = self.starts()
        low = int(np.searchsorted(starts, start, "right")) - 1
        high = int(np.searchsorted(starts, stop, "left"))
        counts = np.minimum(starts[low + 1 : high + 1], stop) - np.maximum(starts[low:high], start)
        return self._rows(start, stop, slice(low, high), counts.astype(np.uint32))

    def _rows(self, start: int, stop: int, extents: slice, counts: npt.NDArray[np.uint32]) -> Block:
        def cut(array: pa.Array | None) -> pa.Array | None:
            return None if array is None else array.slice(start, stop - start)

        return Block(
            self.layouts_used,
            self.streams[extents],
            self.layouts[extents],
            counts,
            self.places.slice(start, stop - start),
            self.ops.slice(start, stop - start),
            self.values.slice(start, stop - start),
            cut(self.before),
            cut(self.not_given),
            cut(self.as_text),
        )

    def pieces(self, rows_max: int) -> Iterator[Block]:
        """The same rows in blocks of at most `rows_max`; an extent may be cut."""
        for start in range(0, self.rows, rows_max):
            yield self.rows_between(start, min(start + rows_max, self.rows))

    def merged_extents(self) -> Block:
        """The same rows, neighbouring extents of one stream and layout as one."""
        change = (self.streams[1:] != self.streams[:-1]) | (self.layouts[1:] != self.layouts[:-1])
        first = np.concatenate([[0], np.flatnonzero(change) + 1])
        if len(first) == len(self.streams):
            return self
        counts = np.add.reduceat(self.counts, first).astype(np.uint32)
        return replace(self, streams=self.streams[first], layouts=self.layouts[first], counts=counts)

    def take(self, order: npt.NDArray[np.int64]) -> Block:
        """The rows in another order; the extents are counted anew from `streams` and `layouts` of each row."""
        streams = np.repeat(self.streams, self.counts)[order]
        layouts = np.repeat(self.layouts, self.counts)[order]
        indices = pa.array(order)

        def pick(array: pa.Array | None) -> pa.Array | None:
            return None if array is None else array.take(indices)

        ids, numbers, counts = runs(streams, layouts)
        return replace(
            self,
            streams=ids,
            layouts=numbers,
            counts=counts,
            places=pick(self.places),
            ops=pick(self.ops),
            values=self.values.take(indices),
            before=pick(self.before),
            not_given=pick(self.not_given),
            as_text=pick(self.as_text),
        )

    def encode(self, *, packed: bool = False) -> list[Any]:
        """The block's bytes as buffers to be written one behind the other; their length is a multiple of 8."""
        columns, arrays, names = 0, [self.places, self.ops], ["place", "op"]
        for bit, name in ((_BEFORE, "before"), (_NOT_GIVEN, "not_given"), (_AS_TEXT, "as_text")):
            array = getattr(self, name)
            if array is not None and (bit == _BEFORE or array.null_count < len(array)):
                columns |= bit
                arrays.append(array)
                names.append(name)
        arrays += self.values.columns
        if packed:
            kind, payload = CELL_KIND_PACKED, pack(arrays)
        else:
            batch = pa.RecordBatch.from_arrays(arrays, names=[*names, *self.values.schema.names])
            kind, payload = CELL_KIND_TYPED, [batch.serialize()]
        size = sum(map(len, payload))
        extents = b"".join([self.streams.tobytes(), self.layouts.tobytes(), self.counts.tobytes()])
        header = _HEADER.pack(kind, columns, 0, 0, 0, self.layout.number, len(self.streams), self.rows, size)
        return [header, extents, bytes(-len(extents) % 8), *payload, bytes(-size % 8)]

    @classmethod
    def decode(
        cls, data: pa.Buffer, position: int, layout_of: Callable[[int], Layout], where: str
    ) -> tuple[Block, int]:
        """The block at `position` and the position behind it."""
        kind, columns, mac, nonce, key, layout_number, count, rows, size = _HEADER.unpack_from(data, position)
        if kind not in (CELL_KIND_TYPED, CELL_KIND_PACKED) or mac or nonce or key:
            raise CorruptLogError(
                f"a block has cells of kind {kind} with key {key}, which this version does not know", where=where
            )
        position += _HEADER.size
        streams = np.frombuffer(data, np.int64, count, position)
        layouts = np.frombuffer(data, np.uint32, count, position + 8 * count)
        counts = np.frombuffer(data, np.uint32, count, position + 12 * count)
        position += 16 * count
        layout = layout_of(layout_number)
        used = (layout,) if (layouts == layout_number).all() else tuple(map(layout_of, np.unique(layouts).tolist()))
        fields = [pa.field("place", pa.uint32()), pa.field("op", pa.uint8())]
        if columns & _BEFORE:
            fields.append(pa.field("before", pa.bool_()))
        if columns & _NOT_GIVEN:
            fields.append(pa.field("not_given", NOT_GIVEN_TYPE))
        if columns & _AS_TEXT:
            fields.append(pa.field("as_text", AS_TEXT_TYPE))
        payload = data.slice(position, size)
        schema = pa.schema([*fields, *layout.arrow_schema])
        if kind == CELL_KIND_PACKED:
            columns_read = unpack(payload, schema.types, rows, where)
        else:
            columns_read = pa.ipc.read_record_batch(pa.ipc.read_message(payload), schema).columns
        if len(columns_read[0]) != rows:
            raise CorruptLogError(f"a block announces {rows} rows and holds {len(columns_read[0])}", where=where)
        named = {field.name: column for field, column in zip(fields, columns_read, strict=False)}
        values = pa.RecordBatch.from_arrays(columns_read[len(fields) :], schema=layout.arrow_schema)
        block = cls(
            used,
            streams,
            layouts,
            counts,
            named["place"],
            named["op"],
            values,
            named.get("before"),
            named.get("not_given"),
            named.get("as_text"),
        )
        return block, position + size + (-size % 8)


def runs(
    streams: npt.NDArray[np.int64], layouts: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The runs of equal (stream, layout) among rows: their streams, layouts and lengths."""
    if not len(streams):
        return streams, layouts, np.zeros(0, np.uint32)
    change = (streams[1:] != streams[:-1]) | (layouts[1:] != layouts[:-1])
    first = np.concatenate([[0], np.flatnonzero(change) + 1])
    counts = np.diff(np.append(first, len(streams))).astype(np.uint32)
    return streams[first], layouts[first], counts


def concatenate(blocks: Sequence[Block]) -> Block:
    """Blocks of one shape as one, rows in the given order; absent columns are filled in."""
    if len(blocks) == 1:
        return blocks[0]

    def column(name: str, kind: pa.DataType, default: Any) -> pa.Array | None:
        arrays = [getattr(block, name) for block in blocks]
        if all(array is None for array in arrays):
            return None
        filled = [
            pa.repeat(pa.scalar(default, kind), block.rows) if array is None else array
            for block, array in zip(blocks, arrays, strict=True)
        ]
        return pa.concat_arrays(filled)

    used = {layout.number: layout for block in blocks for layout in block.layouts_used}
    return Block(
        tuple(used.values()),
        np.concatenate([block.streams for block in blocks]),
        np.concatenate([block.layouts for block in blocks]),
        np.concatenate([block.counts for block in blocks]),
        pa.concat_arrays([block.places for block in blocks]),
        pa.concat_arrays([block.ops for block in blocks]),
        pa.concat_batches([block.values for block in blocks]),
        column("before", pa.bool_(), False),
        column("not_given", NOT_GIVEN_TYPE, None),
        column("as_text", AS_TEXT_TYPE, None),
    )
