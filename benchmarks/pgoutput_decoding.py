"""Measure the decoder of pgoutput alone: messages in memory to changes, without a server, a log or a disk.

    decode    the yardstick row (bigint, int, numeric(12,2), text, timestamptz, text) in transactions of at most 1,000
              rows, `batch` messages a call, of 1 table and of 1,000 tables in turn; as inserts, and as a mix of 45 %
              updates (half of them with the old row), 37 % inserts and 18 % deletes
    texts     the two ways of making string arrays of cells, typed: `take` copies the cells out of the received buffer,
              `view` points into it with string_view; for the yardstick row, and with texts of 2,000 bytes
    few       one transaction of so many rows: message by message, and a column at a time (decision 0005)

Run:  python benchmarks/pgoutput_decoding.py [--quick]

Prints one JSON object a line; each figure is the best of its rounds, and what is compared takes turns in one run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from kadds.api.schema import Column, Table
from kadds_postgres import few, tuples
from kadds_postgres.cells import typed_columns
from kadds_postgres.pgoutput import Decoder, Relation, RelationMessage
from kadds_postgres.types import arrow_type
from kadds_postgres.wire import Block
from tests.support import pgoutput_messages as wire

DECLARED = ("bigint", "integer", "numeric(12,2)", "text", "timestamp with time zone", "text")
NAMES = ("id", "customer", "amount", "name", "at", "note")
COLUMNS = tuple(Column(n, arrow_type(d), d) for n, d in zip(NAMES, DECLARED, strict=True))


class Tables:
    """Every table has the columns of the yardstick row."""

    def described(self, message: RelationMessage, commit_lsn: int) -> tuple[Relation, None]:
        """A relation with shared columns, as a catalog makes them."""
        return Relation(message.oid, Table(message.schema, message.name, COLUMNS, ("id",))), None


def cells(number: int, text: str = "a note of some words, as people write them") -> list[wire.Cell]:
    """A yardstick row."""
    moment = f"2026-11-22 12:57:26.{number % 1_000_000:06}+00"
    return [str(number), str(number % 10_007), f"{number % 99_991}.{number % 100:02}", f"name {number}", moment, text]


def insert(number: int, oid: int) -> bytes:
    """A new row."""
    return wire.insert(oid, cells(number))


def mix(number: int, oid: int) -> bytes:
    """45 updates, 37 inserts, 18 deletes of a hundred."""
    kind = number * 37 % 100
    if kind < 22:
        return wire.update(oid, cells(number), cells(number), "O")
    if kind < 45:
        return wire.update(oid, cells(number))
    return wire.insert(oid, cells(number)) if kind < 82 else wire.delete(oid, [str(number), *[None] * 5])


def relations(tables: int) -> list[bytes]:
    """A transaction that announces the tables 1 to `tables`."""
    keyed = [(name, name == "id") for name in NAMES]
    return [
        wire.begin(1, 1),
        *[wire.relation(1 + n, "public", f"t{n}", keyed) for n in range(tables)],
        wire.commit(1, 2),
    ]


def batches(rows: int, batch: int, tables: int, make: Callable[[int, int], bytes]) -> Iterator[list[bytes]]:
    """Messages of `rows` rows, one call each."""
    numbers, lsn = itertools.count(), 10
    for _ in range(rows // batch):
        messages: list[bytes] = []
        for start in range(0, batch, 1_000):
            messages.append(wire.begin(lsn, lsn))
            messages += [make(n, n % tables + 1) for n in itertools.islice(numbers, min(1_000, batch - start))]
            messages.append(wire.commit(lsn, lsn + 5))
            lsn += 10
        yield messages


def decoder(tables: int) -> Decoder:
    """One that knows its tables."""
    made = Decoder(Tables(), lineage="1/1", generation=1)
    made.decode(relations(tables))
    return made


def best(runs: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """The shortest time of each, taken in turn, in seconds."""
    found = [float("inf")] * len(runs)
    for _ in range(rounds):
        for at, run in enumerate(runs):
            start = clock()
            run()
            found[at] = min(found[at], clock() - start)
    return found


def show(figure: str, value: float, unit: str, **more: Any) -> None:
    """One line."""
    print(json.dumps({"figure": figure, "value": round(value, 2), "unit": unit, **more}), flush=True)


def decode(rounds: int) -> None:
    """Rows a second by batch, tables and kind."""
    for kind, make in (("inserts", insert), ("mix", mix)):
        for tables, (batch, rows) in itertools.product((1, 1_000), ((20_000, 100_000), (1_000, 50_000), (10, 5_000))):
            messages = list(batches(rows, batch, tables, make))
            ours = decoder(tables)

            def run(ours: Decoder = ours, messages: list[list[bytes]] = messages) -> None:
                for part in messages:
                    ours.decode(part)

            [seconds], [cpu] = best([run], rounds), best([run], rounds, time.process_time)
            show(
                f"decode {kind}",
                rows / seconds,
                "rows/s",
                batch=batch,
                tables=tables,
                cpu_seconds_per_million=round(cpu / rows * 1e6, 2),
            )


def texts(rounds: int) -> None:
    """Two ways of making string arrays, with the casts that follow."""
    for label, text, rows in (
        ("yardstick row", "a note of some words", 20_000),
        ("texts of 2,000 bytes", "x" * 2_000, 5_000),
    ):
        block = Block.of([wire.insert(1, cells(number, text)) for number in range(rows)])
        found, _ = tuples.walk(block, block.starts + 6, len(COLUMNS))

        def take(block: Block = block, found: tuples.Cells = found) -> list[pa.Array]:
            return typed_columns(COLUMNS, found.texts(block.data), str)[0]

        def view(block: Block = block, found: tuples.Cells = found) -> list[pa.Array]:
            # Arrow casts no string_view to a timestamp, and the log holds strings: both are copied after all.
            made = [string_views(block.data, *column) for column in zip(found.starts, found.lengths, strict=True)]
            return [
                views.cast(pa.string()).cast(column.type)
                if column.type in (pa.string(), COLUMNS[4].type)
                else views.cast(column.type)
                for views, column in zip(made, COLUMNS, strict=True)
            ]

        assert all(one.equals(other) for one, other in zip(take(), view(), strict=True))
        seconds = best([take, view], rounds)
        for name, value in zip(("take", "view"), seconds, strict=True):
            show(
                f"texts by {name}",
                value / rows * 1e9,
                "ns a row",
                row=label,
                ratio_to_take=round(value / seconds[0], 2),
            )


def string_views(data: bytes, starts: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> pa.Array:
    """Cells as string_view over the received bytes: up to 12 bytes stand in the view itself."""
    windows = np.ndarray((len(data) - 11, 12), np.uint8, data, 0, (1, 1))[np.minimum(starts, len(data) - 12)]
    views = np.zeros((len(starts), 16), np.uint8)
    numbers = views.view(np.int32)
    numbers[:, 0] = lengths
    views[:, 4:] = np.where(np.arange(12) < lengths[:, None], windows, 0)
    far = np.flatnonzero(lengths > 12)
    numbers[far, 2], numbers[far, 3] = 0, starts[far]
    return pa.Array.from_buffers(pa.string_view(), len(starts), [None, pa.py_buffer(views), pa.py_buffer(data)])


def by_rows(rounds: int) -> None:
    """One transaction, message by message and a column at a time."""
    for rows in (1, 4, 10, 30, 100):
        [messages] = batches(rows, rows, 1, insert)
        ours = decoder(1)

        def one_by_one(ours: Decoder = ours, messages: list[bytes] = messages) -> None:
            with patch.object(few, "_MESSAGES_MAX", 1_000):
                ours.decode(messages)

        def columns(ours: Decoder = ours, messages: list[bytes] = messages) -> None:
            with patch.object(few, "_MESSAGES_MAX", 0):
                ours.decode(messages)

        def nothing() -> None:
            with patch.object(few, "_MESSAGES_MAX", 0):
                pass

        first, second, patching = best([one_by_one, columns, nothing], rounds * 100)
        show("few: message by message", (first - patching) * 1e6, "us a transaction", rows=rows)
        show("few: a column at a time", (second - patching) * 1e6, "us a transaction", rows=rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 2 if parser.parse_args().quick else 7
    decode(rounds)
    texts(rounds * 3)
    by_rows(rounds)
