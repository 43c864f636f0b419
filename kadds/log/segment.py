"""Segments: sealed, immutable files that hold the changes of closed journal files for good.

    file header (72 bytes) · blocks, each beginning at a multiple of 8 · sections · footer · trailer

Blocks are those of `block`, packed, at most 65,536 rows, sorted by (stream, offset) over all blocks of a
shape; their places count from the segment's first offset. Every range of bytes has its checksum in the footer, and the
footer's stands in the trailer, so that nothing is believed unread.

    sections   extents, transactions, streams: Arrow IPC streams, zstd · controls, layouts, checkpoint: JSON, zlib
    footer     JSON: first_offset, end_offset, rows, next_number, next_stream, min/max committed_at,
               blocks [[position, bytes, checksum, rows, first_offset, end_offset]], sections {name: [position, bytes,
    checksum]} trailer    footer position u64 · footer bytes u64 · footer checksum u64 · magic 8s
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.errors import CorruptLogError
from kadds.log.block import Block
from kadds.log.disk import Disk
from kadds.log.frame import FILE_HEADER_BYTES, FileKind, Identity, checksum
from kadds.log.journal import JournalFile
from kadds.log.layout import Layout
from kadds.log.slice import LOGGED_TRANSACTIONS

SEGMENT_ROWS_MAX = 65_536
_TRAILER = struct.Struct("<QQQ8s")
_MAGIC = b"KADDSEND"
_ZSTD = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))

EXTENTS = pa.schema(
    [
        pa.field("block", pa.int32()),
        pa.field("stream", pa.int64()),
        pa.field("layout", pa.int32()),
        pa.field("start", pa.int32()),
        pa.field("rows", pa.int32()),
        pa.field("first_offset", pa.int64()),
        pa.field("last_offset", pa.int64()),
    ]
)
STREAMS = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("name", pa.string()),
        pa.field("incarnation", pa.int32()),
        pa.field("token", pa.string()),
    ]
)


class SegmentWriter:
    """Writes one segment under a temporary name; `finish` makes it durable under its own."""

    def __init__(self, path: Path, disk: Disk, identity: Identity, number: int, first_offset: int) -> None:
        self._path = path
        self._temporary = path.with_suffix(".new")
        self._disk = disk
        disk.remove(self._temporary)
        self._file = JournalFile.create(self._temporary, disk, FileKind.SEGMENT, identity, number)
        self._position = FILE_HEADER_BYTES
        self._first_offset = first_offset
        self._blocks: list[list[int]] = []
        self._extents: list[pa.RecordBatch] = []

    def add(self, block: Block) -> None:
        """Write a block whose places count from the segment's first offset."""
        places = block.places.to_numpy().astype(np.int64) + self._first_offset
        parts = block.encode(packed=True)
        starts = block.starts()
        self._extents.append(
            pa.RecordBatch.from_arrays(
                [
                    pa.array(np.full(len(block.streams), len(self._blocks), np.int32)),
                    pa.array(block.streams),
                    pa.array(block.layouts.astype(np.int32)),
                    pa.array(starts[:-1].astype(np.int32)),
                    pa.array(block.counts.astype(np.int32)),
                    pa.array(places[starts[:-1]]),
                    pa.array(places[starts[1:] - 1]),
                ],
                schema=EXTENTS,
            )
        )
        position, size = self._position, self._write(parts)
        span = [int(places.min()), int(places.max()) + 1]
        self._blocks.append([position, size, checksum(*parts), block.rows, *span])

    def _write(self, parts: Sequence[Any]) -> int:
        size = self._disk.append(self._file.descriptor, parts)
        self._position += size
        return size

    def finish(
        self,
        *,
        end_offset: int,
        next_number: int,
        next_stream: int,
        transactions: pa.Table,
        streams: pa.RecordBatch,
        controls: Sequence[Any],
        layouts: Sequence[Any],
        checkpoint: Mapping[str, Any],
    ) -> int:
        """Write sections, footer and trailer; the segment is durable when this returns its length in bytes."""
        sections: dict[str, list[int]] = {}

        def section(name: str, data: Any) -> None:
            position = self._position
            sections[name] = [position, self._write([data]), checksum(data)]

        section("extents", _table_bytes(pa.Table.from_batches(self._extents, schema=EXTENTS)))
        section("transactions", _table_bytes(transactions))
        section("streams", _table_bytes(pa.Table.from_batches([streams], schema=STREAMS)))
        for name, plain in (("controls", controls), ("layouts", layouts), ("checkpoint", checkpoint)):
            section(name, zlib.compress(json.dumps(plain, separators=(",", ":")).encode(), 1))
        times = (
            transactions.column("committed_at").cast(pa.int64()) if transactions.num_rows else pa.array([], pa.int64())
        )
        known = times.drop_null().to_numpy() if len(times) else np.zeros(0, np.int64)
        footer = json.dumps(
            {
                "first_offset": self._first_offset,
                "end_offset": end_offset,
                "rows": sum(block[3] for block in self._blocks),
                "next_number": next_number,
                "next_stream": next_stream,
                "committed_at": [int(known.min()), int(known.max())] if len(known) else None,
                "blocks": self._blocks,
                "sections": sections,
            },
            separators=(",", ":"),
        ).encode()
        position = self._position
        self._write([footer, _TRAILER.pack(position, len(footer), checksum(footer), _MAGIC)])
        self._disk.sync(self._file.descriptor, self._temporary)
        self._disk.replace(self._temporary, self._path)
        self._disk.sync_folder(self._path.parent)
        return self._position

    def abandon(self) -> None:
        """Remove what was written."""
        self._disk.remove(self._temporary)


def _table_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_ZSTD) as writer:
        writer.write_table(table)
    return sink.getvalue()


@dataclass(frozen=True, eq=False)
class Segment:
    """An open segment. Sections are read, and their checksums verified, when they are first needed."""

    file: JournalFile
    footer: Mapping[str, Any]
    fingerprint: str  # the footer's checksum: another segment of the same number has another

    @classmethod
    def open(cls, path: Path, log: bytes) -> Self:
        """Open and verify header, trailer and footer."""
        file = JournalFile.open(path, log)
        data = file.mapped()
        if len(data) < FILE_HEADER_BYTES + _TRAILER.size:
            raise CorruptLogError("the segment is too short to have a trailer", where=str(path))
        position, size, stored, magic = _TRAILER.unpack_from(data, len(data) - _TRAILER.size)
        if magic != _MAGIC or position + size + _TRAILER.size != len(data):
            raise CorruptLogError("the segment has no whole trailer", where=str(path))
        footer = bytes(data[position : position + size])
        if checksum(footer) != stored:
            raise CorruptLogError("the checksum of the segment's footer does not hold", where=str(path))
        return cls(file, json.loads(footer), f"{stored:016x}")

    @property
    def number(self) -> int:
        """Its number."""
        return self.file.number

    @property
    def first_offset(self) -> int:
        """The first offset it may hold."""
        return int(self.footer["first_offset"])

    @property
    def end_offset(self) -> int:
        """The offset behind its last."""
        return int(self.footer["end_offset"])

    @cached_property
    def _data(self) -> memoryview:
        return self.file.mapped()

    def _range(self, position: int, size: int, stored: int, what: str) -> pa.Buffer:
        data = self._data[position : position + size]
        if len(data) != size or checksum(data) != stored:
            raise CorruptLogError(
                f"the {what} at byte {position} is not what was written",
                where=str(self.file.path),
                hint="the bytes on disk have changed since; nothing of it is served",
            )
        return pa.py_buffer(data)

    def _section(self, name: str) -> pa.Buffer:
        position, size, stored = self.footer["sections"][name]
        return self._range(position, size, stored, f"section {name}")

    def _table(self, name: str) -> pa.Table:
        with pa.ipc.open_stream(self._section(name)) as reader:
            return reader.read_all()

    def _json(self, name: str) -> Any:
        return json.loads(zlib.decompress(memoryview(self._section(name))))

    @cached_property
    def extents(self) -> pa.Table:
        """Which rows of which block belong to which stream."""
        return self._table("extents")

    @cached_property
    def transactions(self) -> pa.RecordBatch:
        """The facts of its transactions, in offset order."""
        return _one_batch(self._table("transactions"), LOGGED_TRANSACTIONS)

    @cached_property
    def controls(self) -> list[list[Any]]:
        """Its control records, in offset order: [offset, stream, kind, layout, facts]."""
        controls: list[list[Any]] = self._json("controls")
        return controls

    def streams(self) -> pa.Table:
        """The streams that it uses."""
        return self._table("streams")

    def layouts(self) -> list[Any]:
        """The layouts that it uses: [number, text]."""
        layouts: list[Any] = self._json("layouts")
        return layouts

    def checkpoint(self) -> dict[str, Any]:
        """The control state and the producers as of its end."""
        checkpoint: dict[str, Any] = self._json("checkpoint")
        return checkpoint

    def block(self, number: int, layout_of: Callable[[int], Layout]) -> Block:
        """One block, its checksum verified."""
        position, size, stored, *_ = self.footer["blocks"][number]
        data = self._range(position, size, stored, f"block {number}")
        return Block.decode(data, 0, layout_of, str(self.file.path))[0]

    def blocks_between(self, first: int, end: int) -> Iterator[int]:
        """The numbers of the blocks that may hold offsets in [first, end)."""
        for number, (*_, low, high) in enumerate(self.footer["blocks"]):
            if low < end and high > first:
                yield number

    def bytes_behind(self, offset: int) -> int:
        """The bytes of its blocks that hold anything behind `offset`."""
        return sum(size for _, size, _, _, _, end in self.footer["blocks"] if end > offset)

    def extents_of(self, streams: npt.NDArray[np.int64]) -> pa.Table:
        """The extents of these streams."""
        mask = np.isin(self.extents.column("stream").to_numpy(), streams)
        return self.extents.filter(pa.array(mask))


def _one_batch(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    combined = table.combine_chunks().to_batches()
    return combined[0] if combined else pa.RecordBatch.from_pylist([], schema=schema)


def streams_batch(streams: Iterable[Any]) -> pa.RecordBatch:
    """Streams as the section of a segment has them."""
    rows = list(streams)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([s.id for s in rows], pa.int64()),
            pa.array([s.name for s in rows], pa.string()),
            pa.array([s.incarnation for s in rows], pa.int32()),
            pa.array([s.token for s in rows], pa.string()),
        ],
        schema=STREAMS,
    )
