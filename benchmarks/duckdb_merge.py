"""How a batch is best merged into a DuckDB table: with or without a primary key, by which statement.

Each way merges batches (half of the rows known keys, half new ones) into a table in a file, one committed transaction
per batch, in a process of its own. Prints one JSON object a line: `figure`, `value`, `unit`, `peer` (the way that
docs/decisions/0003-duckdb-merge.md chose) and `ratio` to it.

    python benchmarks/duckdb_merge.py [--rows 1000000] [--batch 20000] [--batches 50]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

COLUMNS = "id, customer, status, total, paid, note, created, changed"
SET = ", ".join(f"{name} = s.{name}" for name in COLUMNS.split(", ")[1:])
VALUES = ", ".join(f"s.{name}" for name in COLUMNS.split(", "))
MERGE = (
    "MERGE INTO t USING s ON t.id = s.id "
    f"WHEN MATCHED THEN UPDATE SET {SET} WHEN NOT MATCHED THEN INSERT ({COLUMNS}) VALUES ({VALUES})"
)
DELETE_INSERT = ("DELETE FROM t USING s WHERE t.id = s.id", "INSERT INTO t SELECT * FROM s")
WAYS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "plain: delete, insert": (False, DELETE_INSERT),
    "plain: merge into": (False, (MERGE,)),
    "plain: update, insert": (
        False,
        (
            f"UPDATE t SET {SET} FROM s WHERE t.id = s.id",
            "INSERT INTO t SELECT s.* FROM s ANTI JOIN t ON t.id = s.id",
        ),
    ),
    "primary key: delete, insert": (True, DELETE_INSERT),
    "primary key: merge into": (True, (MERGE,)),
    "primary key: insert or replace": (True, ("INSERT OR REPLACE INTO t SELECT * FROM s",)),
}
CHOSEN = "plain: merge into"


def rows(ids: np.ndarray) -> pa.Table:
    """Rows as an order table has them, about 120 bytes each."""
    count = len(ids)
    cents = (ids * 7919) % 1_000_000
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "customer": pa.array((ids * 31) % 50_000, pa.int32()),
            "status": pa.array(np.array(["draft", "open", "paid", "sent"])[ids % 4]),
            "total": pa.array(cents, pa.int64()).cast(pa.decimal128(21, 2)),
            "paid": pa.array(ids % 2 == 0),
            "note": pa.array([f"order {number} of somebody, as it was written down" for number in ids]),
            "created": pa.array(1_700_000_000_000_000 + ids, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "changed": pa.array(np.full(count, 1_750_000_000_000_000), pa.int64()).cast(pa.timestamp("us", "UTC")),
        }
    )


def measure(way: str, spread: str, row_count: int, batch_rows: int, batches: int) -> dict[str, float]:
    """Figures of one way; `spread` says whether known keys lie all over the table or among its newest rows."""
    keyed, statements = WAYS[way]
    random = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.duckdb"
        connection = duckdb.connect(str(path), config={"threads": "2"})
        connection.register("s", rows(np.arange(row_count)))
        connection.execute("CREATE TABLE t AS SELECT * FROM s")
        if keyed:
            connection.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
        connection.close()
        start = time.perf_counter()
        connection = duckdb.connect(str(path), config={"threads": "2"})
        opening = time.perf_counter() - start
        seconds, known_end = [], row_count
        for _ in range(batches):
            half = batch_rows // 2
            first = 0 if spread == "all over" else known_end - 5 * half
            known = first + random.choice(known_end - first, half, replace=False)
            connection.register("s", rows(np.concatenate([known, np.arange(known_end, known_end + half)])))
            known_end += half
            start = time.perf_counter()
            connection.execute("BEGIN")
            for statement in statements:
                connection.execute(statement)
            connection.execute("COMMIT")
            seconds.append(time.perf_counter() - start)
        found = connection.execute("SELECT count(*), count(DISTINCT id) FROM t").fetchone()
        assert found == (known_end, known_end), found
        start = time.perf_counter()
        connection.close()
        return {
            "mean_milliseconds": 1000 * statistics.mean(seconds),
            "median_milliseconds": 1000 * statistics.median(seconds),
            "worst_milliseconds": 1000 * max(seconds),
            "open_milliseconds": 1000 * opening,
            "close_milliseconds": 1000 * (time.perf_counter() - start),
            "file_megabytes": path.stat().st_size / 1e6,
        }


def main() -> None:
    """Measure each way in a process of its own and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--way", choices=WAYS, help="measure only this one, in this process")
    parser.add_argument("--spread", choices=["all over", "newest"])
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.spread, options.rows, options.batch, options.batches)))
        return
    for spread in ("all over", "newest"):
        peers: dict[str, float] = {}
        for way in sorted(WAYS, key=lambda name: name != CHOSEN):
            sizes = [f"--rows={options.rows}", f"--batch={options.batch}", f"--batches={options.batches}"]
            command = [sys.executable, __file__, f"--way={way}", f"--spread={spread}", *sizes]
            for figure, value in json.loads(subprocess.check_output(command)).items():
                peer = peers.setdefault(figure, value)
                line = {"figure": f"duckdb merge, keys {spread}, {way}: {figure}", "value": round(value, 2)}
                print(json.dumps({**line, "peer": CHOSEN, "ratio": round(value / peer, 2)}), flush=True)


if __name__ == "__main__":
    main()
