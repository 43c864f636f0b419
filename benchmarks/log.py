#!/usr/bin/env python3
"""The log beside its yardsticks: how fast it takes changes, how soon they are durable, how fast they are read again.

    python benchmarks/log.py [--quick] [--folder DIR] [--only FIGURE ...]

Each line is a JSON object: `figure`, `value` with its `unit`, the `peer` it is compared with (or null), `peer_value`,
`ratio` (value ÷ peer for rates, so that more is better; value ÷ peer for times, where less is better),
`cpu_seconds_per_million` of this process and its children, and what the figure was measured on (`rows`, `batch`,
`streams`). Peers run beside it in the same run: `dd conv=fdatasync` for bytes, write + fdatasync of 8 KiB for latency,
DuckDB's `read_parquet` for reading.

The row is the yardstick: bigint key, int, numeric(12,2), text, timestamptz, text (docs/decisions/0001).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kadds.api.change import ChangeBatch, Op, Transactions
from kadds.api.connector import Appended
from kadds.api.schema import Column, Table, TableSet
from kadds.log.log import Log

COLUMNS = (
    Column("id", pa.int64(), "bigint", nullable=False),
    Column("customer_id", pa.int32(), "integer"),
    Column("amount", pa.decimal128(12, 2), "numeric(12,2)"),
    Column("status", pa.string(), "text"),
    Column("created_at", pa.timestamp("us", "UTC"), "timestamptz"),
    Column("note", pa.string(), "text"),
)
SOURCE = "default/bench"


def yardstick_rows(first: int, count: int) -> pa.RecordBatch:
    """Rows of the yardstick table with keys from `first`."""
    numbers = np.arange(first, first + count)
    status = pa.array(["new", "paid", "shipped", "done"]).take(pa.array(numbers % 4))
    cents = pa.array(numbers * 7919 % 10_000_000).cast(pa.decimal128(19, 0))
    amount = pc.multiply(cents, pa.scalar(Decimal("0.01"))).cast(pa.decimal128(12, 2), False)
    return pa.record_batch(
        [
            pa.array(numbers),
            pa.array((numbers * 7919 % 100_000).astype(np.int32)),
            amount,
            status,
            pa.array(1_700_000_000_000_000 + numbers * 1000, pa.timestamp("us", "UTC")),
            pc.binary_join_element_wise("note ", pa.array(numbers).cast(pa.string()), ""),
        ],
        names=[column.name for column in COLUMNS],
    )


def wide_rows(first: int, count: int, columns: int) -> pa.RecordBatch:
    """Rows of `columns` columns: a key, then the yardstick's types in turn."""
    plain = yardstick_rows(first, count)
    arrays = [plain.column(i % len(COLUMNS)) for i in range(columns)]
    return pa.record_batch(arrays, names=[f"c{i}" for i in range(columns)])


def cpu_seconds() -> float:
    """User and system time of this process and its finished children."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Report:
    """Prints figures, and measures the peers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def line(
        self, figure: str, value: float, unit: str, *, peer: str = "", peer_value: float = 0.0, **more: Any
    ) -> None:
        """One figure; what it does not have is null."""
        plain = {
            "figure": figure,
            "value": round(value, 3),
            "unit": unit,
            "peer": peer or None,
            "peer_value": round(peer_value, 3) if peer else None,
            "ratio": round(value / peer_value, 3) if peer_value else None,
            "cpu_seconds_per_million": None,
        }
        print(json.dumps(plain | more), flush=True)

    def dd_bytes_per_second(self, size: int) -> float:
        """What `dd conv=fdatasync` writes to the same disk, of `size` bytes."""
        target = self._folder / "dd"
        start = time.perf_counter()
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={size >> 20}", "conv=fdatasync"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        target.unlink()
        return size / seconds

    def sync_milliseconds(self, count: int) -> np.ndarray:
        """The times of `count` writes of 8 KiB with fdatasync."""
        target = self._folder / "sync"
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
        times = []
        for _ in range(count):
            start = time.perf_counter()
            os.write(descriptor, bytes(8192))
            os.fdatasync(descriptor)
            times.append(1000 * (time.perf_counter() - start))
        os.close(descriptor)
        target.unlink()
        return np.array(times)


@contextmanager
def new_log(folder: Path, **settings: Any) -> Iterator[Log]:
    """A log in an empty folder, removed afterwards."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "log"
    try:
        with Log.open(path, memory_bytes=1 << 30, **settings) as log:
            yield log
    finally:
        shutil.rmtree(path.parent)


def sequence(number: int) -> bytes:
    """A rising sequence."""
    return number.to_bytes(8, "big")


def append_all(log: Log, producers: int, appends: list[list[tuple[ChangeBatch, ...]]], in_flight: int) -> list[float]:
    """Each producer in a thread of its own, `in_flight` appends not yet durable; the milliseconds of each."""
    times: list[list[float]] = [[] for _ in range(producers)]
    ready = threading.Barrier(producers)
    given = [[Transactions.one(sequence(at), batches) for at, batches in enumerate(one)] for one in appends]

    def run(number: int) -> None:
        producer = log.producer(SOURCE, f"p{number}")
        ready.wait()
        waiting: list[tuple[float, Future[Appended]]] = []
        for transactions in given[number]:
            start = time.perf_counter()
            future = producer.append(transactions, b"")
            future.add_done_callback(lambda _, start=start: times[number].append(1000 * (time.perf_counter() - start)))
            waiting.append((start, future))
            if len(waiting) >= in_flight:
                waiting.pop(0)[1].result()
        for _, future in waiting:
            future.result()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for one in times for value in one]


def size_of(appends: list[list[tuple[ChangeBatch, ...]]]) -> tuple[int, int]:
    """Rows and bytes of values."""
    batches = [batch for one in appends for group in one for batch in group]
    return sum(map(len, batches)), sum(batch.values.nbytes for batch in batches)


def measure_append(
    report: Report, folder: Path, figure: str, appends: list[list[tuple[ChangeBatch, ...]]], **more: Any
) -> None:
    """Throughput beside dd, with the times from append to durable."""
    rows, size = size_of(appends)
    with new_log(folder) as log:
        before, start = cpu_seconds(), time.perf_counter()
        times = append_all(log, len(appends), appends, 4)
        seconds = time.perf_counter() - start
        cpu = (cpu_seconds() - before) * 1e6 / rows
        journal = log.status()["journal_bytes"] + log.status()["segment_bytes"]
    dd = report.dd_bytes_per_second(max(size, 64 << 20))
    more |= {"rows": rows, "cpu_seconds_per_million": round(cpu, 3)}
    more["journal_bytes_per_row"] = round(journal / rows, 1)
    report.line(f"{figure}.changes", rows / seconds, "changes/s", **more)
    report.line(f"{figure}.bytes", size / seconds / 1e6, "MB/s", peer="dd conv=fdatasync", peer_value=dd / 1e6, **more)
    report.line(f"{figure}.p50", float(np.percentile(times, 50)), "ms", in_flight=4, **more)
    report.line(f"{figure}.p99", float(np.percentile(times, 99)), "ms", in_flight=4, **more)


def one_table(report: Report, folder: Path, scale: float) -> None:
    """Batches of the yardstick row by 1, 16 and 256 producers."""
    for producers, batch, count in ((1, 20_000, 50), (16, 2_000, 32), (256, 100, 40)):
        count = max(2, int(count * scale))
        tables = [Table("public", f"t{number}", COLUMNS, ("id",)) for number in range(producers)]
        appends = [
            [(ChangeBatch.of(table, Op.CREATE, yardstick_rows(at * batch, batch)),) for at in range(count)]
            for table in tables
        ]
        measure_append(report, folder, f"append.{producers}_producers", appends, batch=batch, streams=producers)


def latency(report: Report, folder: Path, scale: float) -> None:
    """One row a transaction, each producer waits for it to be durable."""
    peer = report.sync_milliseconds(int(500 * scale) + 50)
    for producers, count in ((1, 1000), (16, 200), (256, 20)):
        count = max(5, int(count * scale))
        table = Table("public", "t", COLUMNS, ("id",))
        row = yardstick_rows(1, 1)
        appends = [[(ChangeBatch.of(table, Op.CREATE, row),)] * count for _ in range(producers)]
        with new_log(folder) as log:
            append_all(log, 1, [appends[0][:20]], 1)
            before, start = cpu_seconds(), time.perf_counter()
            times = append_all(log, producers, appends, 1)
            seconds = time.perf_counter() - start
            cpu = (cpu_seconds() - before) * 1e6 / (producers * count)
        for name in (50, 99):
            report.line(
                f"append_one_row.{producers}_producers.p{name}",
                float(np.percentile(times, name)),
                "ms",
                peer="write + fdatasync of 8 KiB",
                peer_value=float(np.percentile(peer, name)),
                rows=producers * count,
                commits_per_second=round(producers * count / seconds),
                cpu_seconds_per_million=round(cpu, 1),
            )


def many_shapes(report: Report, folder: Path, scale: float) -> None:
    """1,000 tables of different shapes, 30 columns, 10 and 100 rows of each in an append."""
    shapes = int(1000 * max(scale, 0.1))
    tables = [
        Table(
            "public",
            f"t{number}",
            tuple(Column(f"c{i}_{number}" if i == 29 else f"c{i}", COLUMNS[i % 6].type) for i in range(30)),
            ("c0",),
        )
        for number in range(shapes)
    ]
    for rows in (10, 100):
        values = wide_rows(1, rows, 30)
        batches = []
        for number, table in enumerate(tables):
            named = pa.RecordBatch.from_arrays(values.columns, schema=table.arrow_schema)
            batches.append(ChangeBatch.of(table, Op.CREATE, named, first_ordinal=number * rows))
        count = max(2, int((20 if rows == 10 else 4) * scale))
        measure_append(
            report, folder, f"append.1000_shapes.{rows}_rows", [[tuple(batches)] * count], batch=rows, streams=shapes
        )


def zipf_numbers(count: int, streams: int, seed: int) -> pa.Array:
    """Which stream each row belongs to, Zipf 1.3."""
    return pa.array((np.random.default_rng(seed).zipf(1.3, count) % streams).astype(np.int32))


def million_streams(report: Report, folder: Path, scale: float) -> None:
    """1,000,000 streams of one shape, Zipf 1.3, 65,536 rows an append; then single streams read again."""
    streams, batch, count = max(10_000, int(1_000_000 * scale)), 65_536, max(2, int(40 * scale))
    tables = TableSet(tuple(Table("public", f"t{number}", COLUMNS, ("id",)) for number in range(streams)))
    ordinals = pa.array(np.arange(batch, dtype=np.uint32))
    ops = pa.array(np.full(batch, int(Op.CREATE), np.uint8))
    appends = [
        (ChangeBatch(tables, ordinals, ops, yardstick_rows(at * batch, batch), zipf_numbers(batch, streams, at)),)
        for at in range(count)
    ]
    rows, size = size_of([appends])
    with new_log(folder) as log:
        producer = log.producer(SOURCE, "p0")
        start = time.perf_counter()
        producer.append(Transactions.one(sequence(0), appends[0]), b"").result()
        report.line("append.1000000_streams.first", time.perf_counter() - start, "s", streams=streams, rows=batch)
        before, start = cpu_seconds(), time.perf_counter()
        futures = [producer.append(Transactions.one(sequence(n + 1), one), b"") for n, one in enumerate(appends)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
        cpu = (cpu_seconds() - before) * 1e6 / rows
        dd = report.dd_bytes_per_second(size)
        report.line(
            "append.1000000_streams.changes",
            rows / seconds,
            "changes/s",
            rows=rows,
            batch=batch,
            streams=streams,
            cpu_seconds_per_million=round(cpu, 3),
            journal_bytes_per_row=round(log.status()["journal_bytes"] / (rows + batch), 1),
        )
        report.line(
            "append.1000000_streams.bytes",
            size / seconds / 1e6,
            "MB/s",
            peer="dd conv=fdatasync",
            peer_value=dd / 1e6,
            cpu_seconds_per_million=round(cpu, 3),
        )
        quiet = log.named(f"{SOURCE}/public.t{streams // 3 + 7}") or log.streams()[-1:]
        busy = log.named(f"{SOURCE}/public.t1")
        timed_read(report, log, "read_tail.quiet_stream_of_1000000", quiet[0].id)
        timed_read(report, log, "read_tail.busy_stream_of_1000000", busy[0].id)
        before, start = cpu_seconds(), time.perf_counter()
        log.seal()
        seconds = time.perf_counter() - start
        report.line(
            "seal.1000000_streams.changes",
            (rows + batch) / seconds,
            "changes/s",
            rows=rows + batch,
            cpu_seconds_per_million=round((cpu_seconds() - before) * 1e6 / (rows + batch), 3),
            segment_bytes_per_row=round(log.status()["segment_bytes"] / (rows + batch), 1),
        )
        timed_read(report, log, "read_segment.quiet_stream_of_1000000", quiet[0].id)
        timed_read(report, log, "read_segment.busy_stream_of_1000000", busy[0].id)


def timed_read(report: Report, log: Log, figure: str, stream: int) -> None:
    """The median time of reading one stream from its beginning."""
    times = []
    rows, before = 0, cpu_seconds()
    for _ in range(7):
        start = time.perf_counter()
        rows = sum(one.rows for one in log.read(log.begin(), streams=[stream]))
        times.append(1000 * (time.perf_counter() - start))
    cpu = (cpu_seconds() - before) * 1e6 / (7 * max(rows, 1))
    report.line(figure, float(np.median(times)), "ms", rows=rows, cpu_seconds_per_million=round(cpu, 3))


def reading(report: Report, folder: Path, scale: float) -> None:
    """Catch-up of one stream beside DuckDB over Parquet, and of a whole source of 1,000 shapes beside one stream."""
    rows, batch = max(100_000, int(2_000_000 * scale)), 20_000
    table = Table("public", "t", COLUMNS, ("id",))
    with new_log(folder) as log:
        producer = log.producer(SOURCE, "p0")
        for at in range(rows // batch):
            values = yardstick_rows(at * batch, batch)
            producer.append(Transactions.one(sequence(at), [ChangeBatch.of(table, Op.CREATE, values)]), b"")
        producer.resume()
        one_tail, tail_cpu = rate_of_reading(log, streams=[log.streams()[0].id])
        log.seal()
        parquet = folder / "peer.parquet"
        pq.write_table(pa.Table.from_batches([yardstick_rows(0, rows)]), parquet, compression="zstd")
        peer = best_of(
            3, lambda: rows / elapsed(lambda: duckdb.sql(f"FROM read_parquet('{parquet}')").to_arrow_table())
        )
        parquet.unlink()
        one, one_cpu = rate_of_reading(log, streams=[log.streams()[0].id])
        for figure, rate, cpu in (("read_tail", one_tail, tail_cpu), ("read_segment", one, one_cpu)):
            report.line(
                f"{figure}.one_stream",
                rate,
                "changes/s",
                peer="DuckDB read_parquet",
                peer_value=peer,
                rows=rows,
                cpu_seconds_per_million=cpu,
            )
    shapes = int(1000 * max(scale, 0.1))
    tables = [
        Table("public", f"t{number}", (*COLUMNS[:5], Column(f"note{number}", pa.string())), ("id",))
        for number in range(shapes)
    ]
    values = yardstick_rows(0, 100)
    with new_log(folder) as log:
        producer = log.producer(SOURCE, "p0")
        batches = [
            ChangeBatch.of(
                t, Op.CREATE, pa.RecordBatch.from_arrays(values.columns, schema=t.arrow_schema), first_ordinal=n * 100
            )
            for n, t in enumerate(tables)
        ]
        appends = max(2, int(10 * scale))
        for at in range(appends):
            producer.append(Transactions.one(sequence(at), batches), b"")
        producer.resume()
        log.seal()
        whole, whole_cpu = rate_of_reading(log, source=SOURCE)
        report.line(
            "read_segment.whole_source_of_1000_shapes",
            whole,
            "changes/s",
            peer="read_segment.one_stream",
            peer_value=one,
            rows=appends * shapes * 100,
            streams=shapes,
            cpu_seconds_per_million=whole_cpu,
        )


def elapsed(call: Callable[[], Any]) -> float:
    """Seconds that the call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best_of(times: int, measure: Callable[[], float]) -> float:
    """The median of several measurements."""
    return float(np.median([measure() for _ in range(times)]))


def rate_of_reading(log: Log, **what: Any) -> tuple[float, float]:
    """Changes a second of reading from the beginning, median of three; CPU seconds per million changes."""
    rates = []
    rows, before = 0, cpu_seconds()
    for _ in range(3):
        start = time.perf_counter()
        rows = sum(one.rows for one in log.read(log.begin(), **what))
        rates.append(rows / (time.perf_counter() - start))
    return float(np.median(rates)), round((cpu_seconds() - before) * 1e6 / (3 * rows), 3)


FIGURES: dict[str, Callable[[Report, Path, float], None]] = {
    "one_table": one_table,
    "latency": latency,
    "many_shapes": many_shapes,
    "million_streams": million_streams,
    "reading": reading,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows and streams")
    parser.add_argument(
        "--folder", type=Path, help="where to write; the disk that is measured (default: a temporary one)"
    )
    parser.add_argument("--only", nargs="*", choices=sorted(FIGURES), default=list(FIGURES))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for name in arguments.only:
            FIGURES[name](Report(folder), folder, 0.1 if arguments.quick else 1.0)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
