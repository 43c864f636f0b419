#!/usr/bin/env python3
"""What the rows of a segment are: packed columns, Arrow IPC messages, Parquet (docs/decisions/0008-packed-blocks.md).

    python benchmarks/segment_blocks.py [--rows 1000000]

The yardstick row as inserts, with `place` and `op`, in blocks of so many rows: spread over streams by Zipf 1.3 and
sorted by (stream, offset), as sealing writes them, or of one stream. All with zstd level 1; Parquet with the encodings
that suit each column best. Each line is a JSON object: `figure`, `value` in bytes a row, `peer` and `ratio` (packed ÷
it), and `cpu_seconds_per_million` rows to write and to read. What was read is compared with what was written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.log import yardstick_rows
from kadds.log.packing import pack, unpack

_ZSTD = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))
_ENCODINGS = {
    "place": "DELTA_BINARY_PACKED",
    "id": "DELTA_BINARY_PACKED",
    "created_at": "DELTA_BINARY_PACKED",
    "customer_id": "BYTE_STREAM_SPLIT",
    "amount": "BYTE_STREAM_SPLIT",
    "note": "DELTA_BYTE_ARRAY",
}


def _packed(batch: pa.RecordBatch) -> pa.Buffer:
    return pa.py_buffer(b"".join(pack(batch.columns)))


def _unpacked(data: pa.Buffer, like: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(unpack(data, like.schema.types, like.num_rows, ""), schema=like.schema)


def _ipc(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_ZSTD) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _from_ipc(data: pa.Buffer, like: pa.RecordBatch) -> pa.RecordBatch:
    return pa.ipc.open_stream(data).read_next_batch()


def _parquet(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_batches([batch]),
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=["status", "op"],
        column_encoding=_ENCODINGS,
    )
    return sink.getvalue()


def _from_parquet(data: pa.Buffer, like: pa.RecordBatch) -> pa.RecordBatch:
    return pq.read_table(pa.BufferReader(data), use_threads=False).combine_chunks().to_batches()[0]


WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Arrow IPC": (_ipc, _from_ipc),
    "Parquet": (_parquet, _from_parquet),
    "packed": (_packed, _unpacked),
}


def _measured(way: str, blocks: Sequence[pa.RecordBatch]) -> tuple[float, float, float]:
    """Bytes a row, and CPU microseconds a row to write and to read."""
    write, read = WAYS[way]
    start = time.process_time()
    written = [write(block) for block in blocks]
    between = time.process_time()
    again = [read(data, block) for data, block in zip(written, blocks, strict=True)]
    end = time.process_time()
    if any(not one.equals(block) for one, block in zip(again, blocks, strict=True)):
        raise AssertionError(f"{way} does not give back what was written")
    rows = sum(map(len, blocks))
    return sum(data.size for data in written) / rows, 1e6 * (between - start) / rows, 1e6 * (end - between) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows: int = parser.parse_args().rows
    streams = np.minimum(np.random.default_rng(1).zipf(1.3, rows), 1_000_000)
    plain = yardstick_rows(0, rows)
    of_one = pa.record_batch(
        [pa.array(np.arange(rows, dtype=np.uint32)), pa.array(np.full(rows, ord("c"), np.uint8)), *plain.columns],
        names=["place", "op", *plain.schema.names],
    )
    of_many = of_one.take(pa.array(np.argsort(streams, kind="stable")))
    for name, batch, size in (
        ("many streams", of_many, 65_536),
        ("one stream", of_one, 65_536),
        ("many streams", of_many, 1_000),
        ("many streams", of_many, 100),
    ):
        some = batch.slice(0, min(rows, size * 256))
        blocks = [some.slice(start, size) for start in range(0, len(some), size)]
        figures = {way: _measured(way, blocks) for way in WAYS}
        packed = figures.pop("packed")
        for way, (bytes_a_row, write, read) in figures.items():
            line = {
                "figure": f"segment_blocks.{name}",
                "rows_per_block": size,
                "value": round(packed[0], 2),
                "unit": "bytes/row",
                "peer": way,
                "peer_value": round(bytes_a_row, 2),
                "ratio": round(packed[0] / bytes_a_row, 3),
                "cpu_seconds_per_million": {"write": round(packed[1], 3), "read": round(packed[2], 3)},
                "peer_cpu_seconds_per_million": {"write": round(write, 3), "read": round(read, 3)},
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
