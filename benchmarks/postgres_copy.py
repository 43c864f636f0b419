"""How rows get from Arrow into PostgreSQL: which form they are sent in, and how known rows are merged.

The row is the yardstick (bigint key, integer, numeric(12,2), text, timestamptz, text). Starts a server of its own.
Prints one JSON object a line: `figure`, `value`, `unit`, `peer` (the way that docs/decisions/0006-postgres-sink.md
chose) and `ratio` to it.

    python -m benchmarks.postgres_copy [--rows 50000] [--rounds 5]
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from kadds.api.schema import decimal_text
from kadds_postgres.binary import COPY_HEAD, COPY_TAIL, array, cells, copy_rows
from kadds_postgres.copy import array_literal, copy_text
from kadds_postgres.sink_text import texts
from kadds_postgres.staged import BinaryParameter, TextParameter, register
from tests.support.servers import PostgresServer

TYPES = ("bigint", "integer", "numeric(12,2)", "text", "timestamp with time zone", "text")
COLUMNS = "a, b, c, d, e, f"
SET = ", ".join(f"{name} = excluded.{name}" for name in "bcdef")
BINARY_TYPES = ("int8", "int4", "numeric", "text", "timestamptz", "text")
CARE = (False, False, False, True, False, True)
ARRAYS = "$1::int8[], $2::int4[], $3::numeric[], $4::text[], $5::timestamptz[], $6::text[]"


def batch(first: int, count: int) -> pa.RecordBatch:
    """Rows as an order table has them."""
    ids = np.arange(first, first + count)
    cents = pa.array(ids * 7919 % 1_000_000_000).cast(pa.string()).cast(pa.decimal128(12, 0)).view(pa.decimal128(12, 2))
    customer = pc.binary_join_element_wise("customer ", pa.array(ids).cast(pa.string()), "")
    moment = pa.array(1_750_000_000_000_000 + ids * 1_000_003, pa.timestamp("us", "UTC"))
    note = pa.array(["an order of somebody, as it was written down in words"] * count)
    return pa.RecordBatch.from_arrays(
        [pa.array(ids), pa.array((ids * 31 % 50_000).astype(np.int32)), cents, customer, moment, note],
        names=list("abcdef"),
    )


def as_texts(rows: pa.RecordBatch) -> list[pa.Array]:
    """Every column as text."""
    return [texts(column, name, kind) for column, name, kind in zip(rows.columns, "abcdef", TYPES, strict=True)]


def as_cells(rows: pa.RecordBatch) -> list[list[Any]]:
    """Every column in its binary form."""
    return [cells(column, name, kind) for column, name, kind in zip(rows.columns, "abcdef", BINARY_TYPES, strict=True)]


def text_format(rows: pa.RecordBatch) -> memoryview:
    """COPY's text format, as the sink makes it where a column has no binary form."""
    return copy_text(as_texts(rows), CARE)


def csv_format(rows: pa.RecordBatch) -> memoryview:
    """CSV by Arrow's writer, which quotes every text."""
    table = pa.table([rows[0], rows[1], decimal_text(rows[2]), rows[3], rows[4], rows[5]], names=list("abcdef"))
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False))
    return memoryview(sink.getvalue())


def binary_format(rows: pa.RecordBatch) -> memoryview:
    """COPY's binary format, as the sink makes it."""
    return memoryview(b"".join([COPY_HEAD, copy_rows(as_cells(rows)), COPY_TAIL]))


FORMATS: dict[str, tuple[Callable[[pa.RecordBatch], memoryview], str]] = {
    "binary": (binary_format, "binary"),
    "text": (text_format, "text"),
    "csv": (csv_format, "csv"),
}


class Ways:
    """The ways to be compared, on one connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        ddl = "(a bigint PRIMARY KEY, b integer, c numeric(12,2), d text, e timestamptz, f text)"
        connection.execute(f"CREATE TABLE t {ddl}")
        connection.execute("CREATE TEMP TABLE s (LIKE t) ON COMMIT DELETE ROWS")

    def copy(self, rows: pa.RecordBatch, form: str, into: str = "t") -> None:
        """COPY in one form."""
        encode, name = FORMATS[form]
        with self._connection.cursor().copy(f"COPY {into} ({COLUMNS}) FROM STDIN (FORMAT {name})") as copy:
            copy.write(encode(rows))

    def merge_staged(self, rows: pa.RecordBatch) -> None:
        """COPY into a temporary table, and merge from there."""
        self.copy(rows, "binary", "s")
        self._connection.execute(
            f"INSERT INTO t ({COLUMNS}) SELECT {COLUMNS} FROM s ON CONFLICT (a) DO UPDATE SET {SET}"
        )

    def merge_unnested(self, rows: pa.RecordBatch, binary: bool) -> None:
        """Merge from arrays that the statement unnests."""
        arrays: list[TextParameter | BinaryParameter]
        if binary:
            both = zip(as_cells(rows), BINARY_TYPES, strict=True)
            arrays = [BinaryParameter(array(column, kind)) for column, kind in both]
        else:
            arrays = [TextParameter(array_literal(text, care)) for text, care in zip(as_texts(rows), CARE, strict=True)]
        psycopg.RawCursor(self._connection).execute(
            f"INSERT INTO t ({COLUMNS}) SELECT * FROM unnest({ARRAYS}) ON CONFLICT (a) DO UPDATE SET {SET}", arrays
        )


def main() -> None:
    """Measure every way in turn, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows, first = batch(0, options.rows), {"n": 10**9}

    def new() -> pa.RecordBatch:
        first["n"] += options.rows
        return batch(first["n"], options.rows)

    with PostgresServer({"shared_buffers": "256MB", "max_wal_size": "4GB"}) as server:
        url = server.admin_url.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True, options="-c timezone=UTC") as connection:
            ways = Ways(connection)
            ways.copy(rows, "binary")
            same = connection.execute("SELECT md5(string_agg(t::text, '' ORDER BY a)) FROM t").fetchone()
            connection.execute("TRUNCATE t")
            ways.copy(rows, "text")
            assert same == connection.execute("SELECT md5(string_agg(t::text, '' ORDER BY a)) FROM t").fetchone()
            register(connection)
            merges: dict[str, Callable[[pa.RecordBatch], None]] = {
                "unnested, binary": lambda rows: ways.merge_unnested(rows, True),
                "unnested, text": lambda rows: ways.merge_unnested(rows, False),
                "staged, binary": ways.merge_staged,
            }
            timed: dict[str, dict[str, Callable[[pa.RecordBatch], None]]] = {
                "encode": {form: (lambda rows, form=form: FORMATS[form][0](rows)) for form in FORMATS},
                "copy new rows": {form: (lambda rows, form=form: ways.copy(rows, form)) for form in FORMATS},
                "merge new rows": merges,
                "merge known rows": merges,
            }
            for name, candidates in timed.items():
                best = dict.fromkeys(candidates, float("inf"))
                for _ in range(options.rounds):
                    for way, run in candidates.items():
                        given = rows if name in ("encode", "merge known rows") else new()
                        with connection.transaction():
                            start = time.perf_counter()
                            run(given)
                            seconds = time.perf_counter() - start
                        best[way] = min(best[way], seconds)
                    connection.execute("VACUUM t")
                chosen = next(iter(candidates))
                for way, seconds in best.items():
                    figure = {"figure": f"{name}: {way}", "value": round(options.rows / seconds), "unit": "rows/s"}
                    print(json.dumps({**figure, "peer": chosen, "ratio": round(best[chosen] / seconds, 2)}), flush=True)


if __name__ == "__main__":
    main()
