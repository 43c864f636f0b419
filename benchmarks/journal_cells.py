"""Measure what a journal cell should be, before the format of the log is frozen.

The journal holds blocks; a block is the rows of one shape (a list of columns and types) of one group commit. Four
ways to hold the cells of a block are compared:

    typed     Arrow columns of the column's own type
    strings   every value as an Arrow `string` column
    payload   one binary column: per row, per cell an int32 length and the text, -1 for NULL; typed when read
    shared    as `payload`, but one block for the rows of all shapes of the group commit, with the shape as a column

All are Arrow IPC messages without a schema, each behind a header of 32 bytes, and carry the same system columns.

There are two sources. `text` is what a decoder of pgoutput has: received bytes and where each row starts and ends in
them, tables mixed in order of arrival; finding the cells and casting them counts where a kind does it. `typed` is a
source that has typed Arrow columns per table already (a binlog, polling); there all kinds but `typed` first make text.

Three phases are timed:

    journal   from the source's form to bytes on disk: encode, checksum, write, one fdatasync per group commit (<= 8 MB)
    read      from the file to typed record batches per shape and group commit, as a reader at the head of the log wants
              them: read, verify, decode, cast
    seal      the same for all group commits of the file at once, as sealing wants them: one typed batch per shape

Cells are typed by pooling all cells of one type over all blocks: one cast per type, then slices.
What each kind reads back is compared with the input in the first round, before anything is timed.

Run:  python benchmarks/journal_cells.py [--quick] [--rounds 3] [--directory DIRECTORY_ON_THE_DISK_OF_THE_LOG]
      python benchmarks/journal_cells.py --case 100 6 100   (100 tables, 6 columns, 100 rows each in a group commit)

Prints one JSON object a line: medians over the rounds. The kinds take turns within a round; on a shared machine only
the ratios of one run count. `journal_and_read_*` and `journal_and_seal_*` are sums of two phases; `*_ratio` is that sum
in elapsed time over the best kind of the same case and source. The last lines compare checksums.

One simplification: `payload` stores a row's cells as they were received, in the form above; pgoutput's own cells have
one byte more, which says NULL, unchanged or text.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

BLOCK_HEADER = struct.Struct("<4sBBHIIQQ")  # magic, cell kind, two reserved fields, shape, rows, length, checksum
MAGIC = b"KADB"
GROUP_COMMIT_BYTES = 8 << 20
WIRE_HEADER = b"w" + bytes(24) + b"I" + bytes(4) + b"N" + bytes(2)  # what pgoutput sends before the cells of an insert

TYPES: tuple[pa.DataType, ...] = (
    pa.int64(),
    pa.int32(),
    pa.decimal128(12, 2),
    pa.string(),
    pa.timestamp("us", "UTC"),
)
YARDSTICK = (0, 1, 2, 3, 4, 3)  # bigint key, int, numeric(12,2), text, timestamptz, text: indices into TYPES
SYSTEM_FIELDS = [
    pa.field("stream", pa.int64()),
    pa.field("ordinal", pa.uint32()),
    pa.field("operation", pa.uint8()),
    pa.field("before", pa.bool_()),
    pa.field("not_given", pa.binary()),
    pa.field("as_text", pa.binary()),
]
PAYLOAD_SCHEMA = pa.schema([*SYSTEM_FIELDS, pa.field("cells", pa.binary())])
SHARED_SCHEMA = pa.schema([*SYSTEM_FIELDS, pa.field("shape", pa.uint32()), pa.field("cells", pa.binary())])

CHECKSUMS: dict[str, Callable[[object], int]] = {
    "zlib.crc32": zlib.crc32,
    "google_crc32c": google_crc32c.value,
    "xxhash.xxh3_64": xxhash.xxh3_64_intdigest,
}

Columns = list[list[pa.Array]]  # per block, per column


@dataclass(frozen=True)
class Case:
    tables: int
    columns: int
    rows_per_table: int
    group_commits: int

    @property
    def name(self) -> str:
        return f"tables {self.tables:,}, rows {self.rows_per_table:,}, columns {self.columns}"

    @property
    def rows(self) -> int:
        """Of one group commit."""
        return self.tables * self.rows_per_table


@dataclass(frozen=True)
class Catalog:
    """The shapes of a case; a shape's number is its index here."""

    type_codes: np.ndarray  # (shapes, columns), indices into TYPES
    typed_schemas: list[pa.Schema]
    string_schemas: list[pa.Schema]


@dataclass(frozen=True)
class Layout:
    """Which rows of a group commit, sorted by shape, belong to which block."""

    shapes: np.ndarray
    counts: np.ndarray
    firsts: np.ndarray
    type_codes: np.ndarray  # (blocks, columns)

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    def bounds(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.shapes.tolist(), self.firsts.tolist(), self.counts.tolist(), strict=True)


@dataclass(frozen=True)
class TextInput:
    received: np.ndarray  # uint8
    starts: np.ndarray  # of each row's cells, in order of arrival
    ends: np.ndarray
    shapes: np.ndarray
    system: list[pa.Array]


@dataclass(frozen=True)
class TypedInput:
    layout: Layout
    columns: Columns
    system: list[pa.Array]  # of all rows, sorted by shape


@dataclass(frozen=True)
class Block:
    kind: int
    shape: int
    batch: pa.RecordBatch


# ---- input ----------------------------------------------------------------------------------------------------------


def make_catalog(case: Case) -> Catalog:
    base = np.resize(np.array(YARDSTICK), case.columns)
    codes = np.array([np.roll(base, shape) for shape in range(case.tables)])
    typed, strings = [], []
    for shape, row in enumerate(codes.tolist()):
        names = [f"column_{shape}_{column}" for column in range(case.columns)]
        typed.append(pa.schema([*SYSTEM_FIELDS, *(pa.field(n, TYPES[c]) for n, c in zip(names, row, strict=True))]))
        strings.append(pa.schema([*SYSTEM_FIELDS, *(pa.field(n, pa.string()) for n in names)]))
    return Catalog(codes, typed, strings)


def make_layout(catalog: Catalog, shapes: np.ndarray, counts: np.ndarray) -> Layout:
    return Layout(shapes, counts, np.cumsum(counts) - counts, catalog.type_codes[shapes])


def make_cell(code: int, number: int) -> bytes | None:
    """The text PostgreSQL would send for a value of TYPES[code]; one text in twenty is NULL."""
    scattered = number * 2654435761 % (1 << 32)
    if code == 0:
        return b"%d" % (10_000_000 + number)
    if code == 1:
        return b"%d" % (scattered % 100_000)
    if code == 2:
        return b"%d.%02d" % (scattered % 1_000_000, number % 100)
    if code == 3:
        return None if scattered % 20 == 0 else b"some text %d" % scattered
    seconds = scattered % 86_400
    clock = (seconds // 3600, seconds // 60 % 60, seconds % 60, scattered % 1_000_000)
    return b"2026-03-%02d %02d:%02d:%02d.%06d+00" % (1 + number % 28, *clock)


def make_system(streams: np.ndarray, ordinals: np.ndarray) -> list[pa.Array]:
    rows = len(streams)
    return [
        pa.array(streams, pa.int64()),
        pa.array(ordinals, pa.uint32()),
        pa.array(np.ones(rows, np.uint8)),
        pa.array(np.zeros(rows, bool)),
        pa.nulls(rows, pa.binary()),
        pa.nulls(rows, pa.binary()),
    ]


def make_text_input(case: Case, catalog: Catalog) -> TextInput:
    """Rows of all tables in turn, as they would arrive."""
    received, starts, ends = bytearray(), [], []
    shapes = np.tile(np.arange(case.tables), case.rows_per_table)
    for row, shape in enumerate(shapes.tolist()):
        received += WIRE_HEADER
        starts.append(len(received))
        for column, code in enumerate(catalog.type_codes[shape].tolist()):
            cell = make_cell(code, row * case.columns + column)
            received += struct.pack("<i", -1) if cell is None else struct.pack("<i", len(cell)) + cell
        ends.append(len(received))
    system = make_system(shapes, np.arange(case.rows))
    received += bytes(4)  # so that an int32 can be looked at from any byte
    return TextInput(np.frombuffer(bytes(received), np.uint8), np.array(starts), np.array(ends), shapes, system)


def make_typed_input(source: TextInput, catalog: Catalog) -> TypedInput:
    order, layout = sort_by_shape(source.shapes, catalog)
    columns = cut_columns(find_cells(source.received, source.starts[order], layout), layout, typed=True)
    own_memory = [[pa.concat_arrays([column, column[:0]]) for column in block] for block in columns]
    return TypedInput(layout, own_memory, [column.take(pa.array(order)) for column in source.system])


# ---- cells ----------------------------------------------------------------------------------------------------------


def sort_by_shape(shapes: np.ndarray, catalog: Catalog) -> tuple[np.ndarray, Layout]:
    order = np.argsort(shapes, kind="stable")
    present, counts = np.unique(shapes, return_counts=True)
    return order, make_layout(catalog, present, counts)


def take_ranges(data: np.ndarray, bounds: np.ndarray, indices: pa.Array, kind: pa.DataType) -> pa.Array:
    """Copy byte ranges out of `data`: range k is bounds[2k] to bounds[2k + 1]."""
    offsets = pa.py_buffer(bounds.astype(np.int32, copy=False))
    return pa.Array.from_buffers(kind, len(bounds) - 1, [None, offsets, pa.py_buffer(data)]).take(indices)


def find_cells(data: np.ndarray, starts: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the cells of all rows a column at a time; returns data, bounds and which are NULL, column by column."""
    columns = layout.type_codes.shape[1]
    int32_at = np.ndarray(shape=(data.size - 3,), dtype="<i4", buffer=data, strides=(1,))
    bounds = np.empty((columns, len(starts), 2), np.int32)
    nulls = np.empty((columns, len(starts)), bool)
    position = starts.astype(np.int64)
    for column in range(columns):
        lengths = int32_at[position]
        nulls[column] = lengths < 0
        position = position + 4
        bounds[column, :, 0] = position
        position = position + np.maximum(lengths, 0)
        bounds[column, :, 1] = position
    return data, bounds.reshape(-1), nulls.reshape(-1)


def pool_runs(layout: Layout, code: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The (block, column) pairs of one type, how many rows each has, and where each starts in the pool of that type."""
    blocks, columns = np.nonzero(layout.type_codes == code)
    counts = layout.counts[blocks]
    return blocks, columns, counts, np.cumsum(counts) - counts


def pool_cells(layout: Layout, code: int) -> np.ndarray:
    """The numbers (column * rows + row) of the cells in the pool of one type."""
    blocks, columns, counts, starts = pool_runs(layout, code)
    return np.repeat(columns * layout.rows + layout.firsts[blocks] - starts, counts) + np.arange(counts.sum())


def cut_pool(pool: pa.Array, layout: Layout, code: int, result: Columns) -> None:
    blocks, columns, counts, starts = pool_runs(layout, code)
    runs = zip(blocks.tolist(), columns.tolist(), starts.tolist(), counts.tolist(), strict=True)
    for block, column, start, count in runs:
        result[block][column] = pool.slice(start, count)


def empty_columns(layout: Layout) -> Columns:
    return [[None] * layout.type_codes.shape[1] for _ in range(len(layout.shapes))]


def cut_columns(cells: tuple[np.ndarray, np.ndarray, np.ndarray], layout: Layout, typed: bool) -> Columns:
    """Copy found cells into Arrow columns per block, as their types or as strings."""
    data, bounds, nulls = cells
    result = empty_columns(layout)
    for code, kind in enumerate(TYPES):
        numbers = pool_cells(layout, code)
        mask = nulls[numbers]
        indices = pa.array(numbers * 2, mask=mask) if mask.any() else pa.array(numbers * 2)
        pool = take_ranges(data, bounds, indices, pa.string())
        cut_pool(pool.cast(kind) if typed else pool, layout, code, result)
    return result


def gather_pool(columns: Columns, layout: Layout, code: int) -> pa.Array:
    blocks, numbers, _, _ = pool_runs(layout, code)
    parts = [columns[block][column] for block, column in zip(blocks.tolist(), numbers.tolist(), strict=True)]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts) if parts else pa.nulls(0, TYPES[code])


def cast_columns(columns: Columns, layout: Layout, to_text: bool) -> Columns:
    result = empty_columns(layout)
    for code, kind in enumerate(TYPES):
        pool = gather_pool(columns, layout, code)
        cut_pool(pool.cast(pa.string() if to_text else kind), layout, code, result)
    return result


def join_cells(columns: Columns, layout: Layout) -> pa.Array:
    """Turn typed columns into payloads: lengths and texts side by side, then one take that interleaves them by row."""
    width, rows = layout.type_codes.shape[1], layout.rows
    place = np.empty(width * rows, np.int64)
    pools, used = [], 0
    for code in range(len(TYPES)):
        pool = gather_pool(columns, layout, code).cast(pa.string())
        place[pool_cells(layout, code)] = np.arange(used, used + len(pool))
        pools.append(pool)
        used += len(pool)
    texts = pa.concat_arrays(pools)
    lengths = pc.binary_length(texts).fill_null(-1).to_numpy(zero_copy_only=False).astype("<i4")
    length_bounds = pa.py_buffer(np.arange(0, 4 * used + 1, 4, dtype=np.int32))
    prefixes = pa.Array.from_buffers(pa.string(), used, [None, length_bounds, pa.py_buffer(lengths)])
    by_row = place.reshape(width, rows).T
    indices = np.stack([by_row, by_row + used], axis=2).reshape(-1)
    joined = pa.concat_arrays([prefixes, texts.fill_null("")]).take(pa.array(indices))
    _, offsets, data = joined.buffers()
    row_offsets = np.frombuffer(offsets, np.int32)[: len(joined) + 1 : 2 * width].copy()
    return pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(row_offsets), data])


# ---- kinds: to blocks -----------------------------------------------------------------------------------------------


def cut_blocks(
    kind: int, layout: Layout, system: list[pa.Array], columns: Columns, schemas: list[pa.Schema]
) -> list[Block]:
    blocks = []
    for (shape, first, count), cells in zip(layout.bounds(), columns, strict=True):
        arrays = [column.slice(first, count) for column in system] + cells
        blocks.append(Block(kind, shape, pa.RecordBatch.from_arrays(arrays, schema=schemas[shape])))
    return blocks


def payload_blocks(layout: Layout, system: list[pa.Array], payload: pa.Array) -> list[Block]:
    batch = pa.RecordBatch.from_arrays([*system, payload], schema=PAYLOAD_SCHEMA)
    return [Block(2, shape, batch.slice(first, count)) for shape, first, count in layout.bounds()]


def shared_blocks(layout: Layout, system: list[pa.Array], payload: pa.Array) -> list[Block]:
    shapes = pa.array(np.repeat(layout.shapes, layout.counts).astype(np.uint32))
    return [Block(3, 0, pa.RecordBatch.from_arrays([*system, shapes, payload], schema=SHARED_SCHEMA))]


def encode_text(kind: str, source: TextInput, catalog: Catalog) -> list[Block]:
    order, layout = sort_by_shape(source.shapes, catalog)
    system = [column.take(pa.array(order)) for column in source.system]
    if kind in ("payload", "shared"):
        bounds = np.stack([source.starts[order], source.ends[order]], axis=1).reshape(-1)
        payload = take_ranges(source.received, bounds, pa.array(np.arange(0, len(bounds), 2)), pa.binary())
        return (payload_blocks if kind == "payload" else shared_blocks)(layout, system, payload)
    cells = find_cells(source.received, source.starts[order], layout)
    columns = cut_columns(cells, layout, typed=kind == "typed")
    schemas = catalog.typed_schemas if kind == "typed" else catalog.string_schemas
    return cut_blocks(KINDS.index(kind), layout, system, columns, schemas)


def encode_typed(kind: str, source: TypedInput, catalog: Catalog) -> list[Block]:
    if kind in ("payload", "shared"):
        payload = join_cells(source.columns, source.layout)
        return (payload_blocks if kind == "payload" else shared_blocks)(source.layout, source.system, payload)
    if kind == "typed":
        return cut_blocks(0, source.layout, source.system, source.columns, catalog.typed_schemas)
    columns = cast_columns(source.columns, source.layout, to_text=True)
    return cut_blocks(1, source.layout, source.system, columns, catalog.string_schemas)


# ---- kinds: from blocks ---------------------------------------------------------------------------------------------


def stored_schema(kind: int, shape: int, catalog: Catalog) -> pa.Schema:
    if kind == 0:
        return catalog.typed_schemas[shape]
    if kind == 1:
        return catalog.string_schemas[shape]
    return PAYLOAD_SCHEMA if kind == 2 else SHARED_SCHEMA


def merge_by_shape(blocks: list[Block]) -> dict[int, pa.RecordBatch]:
    batches: dict[int, list[pa.RecordBatch]] = {}
    for block in blocks:
        batches.setdefault(block.shape, []).append(block.batch)
    return {s: b[0] if len(b) == 1 else pa.concat_batches(b) for s, b in sorted(batches.items())}


def decode_strings(blocks: list[Block], catalog: Catalog) -> list[pa.RecordBatch]:
    merged = merge_by_shape(blocks)
    counts = np.array([batch.num_rows for batch in merged.values()])
    layout = make_layout(catalog, np.array(list(merged)), counts)
    stored = [batch.columns for batch in merged.values()]
    columns = cast_columns([arrays[6:] for arrays in stored], layout, to_text=False)
    return [
        pa.RecordBatch.from_arrays(arrays[:6] + cells, schema=catalog.typed_schemas[shape])
        for shape, arrays, cells in zip(merged, stored, columns, strict=True)
    ]


def merge_payloads(blocks: list[Block]) -> tuple[pa.RecordBatch, np.ndarray]:
    """All rows sorted by shape, and the shape of each."""
    if blocks[0].kind == 2:
        blocks = sorted(blocks, key=lambda block: block.shape)
        shapes = np.repeat([block.shape for block in blocks], [block.batch.num_rows for block in blocks])
        return pa.concat_batches([block.batch for block in blocks]), shapes
    batch = pa.concat_batches([block.batch for block in blocks])
    shapes = batch.column(6).to_numpy()
    if len(blocks) == 1:
        return batch, shapes
    order = np.argsort(shapes, kind="stable")
    return batch.take(pa.array(order)), shapes[order]


def decode_payloads(blocks: list[Block], catalog: Catalog) -> list[pa.RecordBatch]:
    batch, row_shapes = merge_payloads(blocks)
    shapes, counts = np.unique(row_shapes, return_counts=True)
    layout = make_layout(catalog, shapes, counts)
    payload = batch.column(batch.num_columns - 1)
    _, offsets, data = payload.buffers()
    starts = np.frombuffer(offsets, np.int32)[payload.offset : payload.offset + len(payload)]
    columns = cut_columns(find_cells(np.frombuffer(data, np.uint8), starts, layout), layout, typed=True)
    return [block.batch for block in cut_blocks(0, layout, batch.columns[:6], columns, catalog.typed_schemas)]


def decode(blocks: list[Block], catalog: Catalog) -> list[pa.RecordBatch]:
    """Blocks of one or more group commits to one typed record batch per shape."""
    kind = blocks[0].kind
    if kind == 0:
        return list(merge_by_shape(blocks).values())
    return (decode_strings if kind == 1 else decode_payloads)(blocks, catalog)


# ---- journal --------------------------------------------------------------------------------------------------------


def frame(block: Block, checksum: Callable[[object], int]) -> tuple[bytes, pa.Buffer]:
    body = block.batch.serialize()
    fields = (MAGIC, block.kind, 0, 0, block.shape, block.batch.num_rows, body.size, checksum(body))
    return BLOCK_HEADER.pack(*fields), body


def commit(descriptor: int, parts: list[bytes | pa.Buffer]) -> None:
    if parts:
        os.write(descriptor, b"".join(parts))
        os.fdatasync(descriptor)


def write_group(descriptor: int, blocks: list[Block], checksum: Callable[[object], int]) -> None:
    parts: list[bytes | pa.Buffer] = []
    size = 0
    for block in blocks:
        header, body = frame(block, checksum)
        if size + len(header) + body.size > GROUP_COMMIT_BYTES:
            commit(descriptor, parts)
            parts, size = [], 0
        parts += (header, body)
        size += len(header) + body.size
    commit(descriptor, parts)


def read_group(
    data: pa.Buffer, position: int, rows: int, catalog: Catalog, checksum: Callable
) -> tuple[int, list[Block]]:
    blocks: list[Block] = []
    while rows > 0:
        _, kind, _, _, shape, count, length, expected = BLOCK_HEADER.unpack_from(data, position)
        body = data.slice(position + BLOCK_HEADER.size, length)
        if checksum(body) != expected:
            raise ValueError(f"damaged block at {position}")
        blocks.append(Block(kind, shape, pa.ipc.read_record_batch(body, stored_schema(kind, shape, catalog))))
        position += BLOCK_HEADER.size + length
        rows -= count
    return position, blocks


def read_groups(path: Path, case: Case, catalog: Catalog, checksum: Callable) -> Iterator[list[Block]]:
    data = pa.py_buffer(path.read_bytes())
    position = 0
    while position < data.size:
        position, blocks = read_group(data, position, case.rows, catalog, checksum)
        yield blocks


# ---- measuring ------------------------------------------------------------------------------------------------------

KINDS = ("typed", "strings", "payload", "shared")
PHASES = ("journal", "read", "seal")
PHASE_FIELDS = ("journal_seconds", "journal_cpu", "read_seconds", "read_cpu", "seal_seconds", "seal_cpu", "bytes")


def timed(action: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


class Contender:
    """One kind of cell with one source of one case."""

    def __init__(
        self, case: Case, catalog: Catalog, kind: str, source: TextInput | TypedInput, path: Path, checksum: str
    ):
        self.case, self.catalog, self.kind, self.source, self.path = case, catalog, kind, source, path
        self.checksum = CHECKSUMS[checksum]
        self.samples: list[tuple[float, ...]] = []

    def journal(self) -> None:
        encode = encode_text if isinstance(self.source, TextInput) else encode_typed
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            for _ in range(self.case.group_commits):
                write_group(descriptor, encode(self.kind, self.source, self.catalog), self.checksum)
        finally:
            os.close(descriptor)

    def groups(self) -> Iterator[list[Block]]:
        return read_groups(self.path, self.case, self.catalog, self.checksum)

    def read(self) -> list[list[pa.RecordBatch]]:
        return [decode(blocks, self.catalog) for blocks in self.groups()]

    def seal(self) -> list[pa.RecordBatch]:
        return decode([block for blocks in self.groups() for block in blocks], self.catalog)

    def verify(self, expected: TypedInput) -> None:
        """Also the warm-up."""
        self.journal()
        blocks = cut_blocks(0, expected.layout, expected.system, expected.columns, self.catalog.typed_schemas)
        wanted = [block.batch for block in blocks]
        merged = [pa.concat_batches([batch] * self.case.group_commits) for batch in wanted]
        if self.seal() != merged or any(batches != wanted for batches in self.read()):
            raise ValueError(f"{self.kind} does not read back what was written")

    def sample(self) -> None:
        journal = timed(self.journal)
        size = self.path.stat().st_size
        self.samples.append((*journal, *timed(self.read), *timed(self.seal), size))

    def medians(self) -> dict[str, float]:
        rows = self.case.rows * self.case.group_commits
        columns = zip(*self.samples, strict=True)
        return {name: statistics.median(c) / rows for name, c in zip(PHASE_FIELDS, columns, strict=True)}


def sum_phases(medians: list[dict[str, float]], reading: str, clock: str) -> list[float]:
    return [m[f"journal_{clock}"] + m[f"{reading}_{clock}"] for m in medians]


def report(case: Case, source: str, contenders: list[Contender]) -> None:
    medians = [contender.medians() for contender in contenders]
    for index, (contender, m) in enumerate(zip(contenders, medians, strict=True)):
        line: dict[str, object] = {"case": case.name, "source": source, "cells": contender.kind}
        line["bytes_per_row"] = round(m["bytes"])
        for phase in PHASES:
            line[f"{phase}_rows_per_second"] = round(1 / m[f"{phase}_seconds"])
            line[f"{phase}_cpu_seconds_per_million"] = round(m[f"{phase}_cpu"] * 1e6, 2)
        for reading in PHASES[1:]:
            cpu, wall = sum_phases(medians, reading, "cpu"), sum_phases(medians, reading, "seconds")
            line[f"journal_and_{reading}_cpu_seconds_per_million"] = round(cpu[index] * 1e6, 2)
            line[f"journal_and_{reading}_seconds_per_million"] = round(wall[index] * 1e6, 2)
            line[f"journal_and_{reading}_ratio"] = round(wall[index] / min(wall), 2)
        print(json.dumps(line), flush=True)


def measure_case(case: Case, rounds: int, directory: Path, checksum: str) -> None:
    catalog = make_catalog(case)
    text = make_text_input(case, catalog)
    typed = make_typed_input(text, catalog)
    for name, source in (("text", text), ("typed", typed)):
        contenders = [Contender(case, catalog, k, source, directory / f"{k}.journal", checksum) for k in KINDS]
        for contender in contenders:
            contender.verify(typed)
        for _ in range(rounds):
            for contender in contenders:
                contender.sample()
        report(case, name, contenders)


def repeat(checksum: Callable[[object], int], data: bytes, repeats: int) -> None:
    for _ in range(repeats):
        checksum(data)


def measure_checksums(rounds: int) -> None:
    for size, repeats in ((8_000_000, 2), (1_000, 4_000)):
        data = os.urandom(size)
        samples: dict[str, list[float]] = {name: [] for name in CHECKSUMS}
        for _ in range(rounds):
            for name, checksum in CHECKSUMS.items():
                seconds, _ = timed(partial(repeat, checksum, data, repeats))
                samples[name].append(size * repeats / seconds / 1e9)
        for name, rates in samples.items():
            line = {"checksum": name, "bytes": size, "gigabytes_per_second": round(statistics.median(rates), 2)}
            print(json.dumps(line), flush=True)


def make_cases(quick: bool) -> list[Case]:
    tables = 200 if quick else 1_000
    return [
        Case(1, 6, 20_000, 2 if quick else 5),
        Case(tables, 30, 10, 2),
        Case(tables, 6, 1, 4 if quick else 8),
        Case(tables, 30, 1, 4),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tables and rounds, under 15 seconds")
    parser.add_argument("--rounds", type=int, help="rounds to take the median of (default 3, quick 2)")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to write the journals (default: here)")
    parser.add_argument("--checksum", choices=CHECKSUMS, default="zlib.crc32", help="checksum of the blocks")
    parser.add_argument("--case", type=int, nargs=3, metavar=("TABLES", "COLUMNS", "ROWS"), help="only this case")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="journal-cells-", dir=options.directory) as directory:
        for case in [Case(*options.case, 4)] if options.case else make_cases(options.quick):
            measure_case(case, rounds, Path(directory), options.checksum)
    measure_checksums(rounds)


if __name__ == "__main__":
    main()
