"""What the tests of the log append: small tables whose rows can be told from one another, and whole transactions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, ControlKind, Op, Transactions
from kadds.api.connector import Appended, Producer
from kadds.api.schema import Column, Table
from kadds.log.log import Log

ROUNDS = int(os.environ.get("KADDS_LOG_ROUNDS", "1"))
SOURCE = "default/shop"

ORDERS = Table("public", "orders", (Column("id", pa.int64()), Column("note", pa.string())), ("id",))
LINES = Table("public", "lines", (Column("id", pa.int64()), Column("note", pa.string())), ("id",))
WIDE = Table("public", "wide", (Column("id", pa.int64()), Column("a", pa.float64()), Column("b", pa.binary())), ("id",))
TABLES = (ORDERS, LINES, WIDE)


def opened(folder: Path, **settings: Any) -> Log:
    """A log without the floor, which depends on the machine, unless it is asked for."""
    return Log.open(folder, **{"free_space_floor_bytes": 0, **settings})


def rows(table: Table, ids: Sequence[int], *, first_ordinal: int = 0, op: Op = Op.CREATE, size: int = 0) -> ChangeBatch:
    """Rows of one of the three tables; everything in a row follows from its id, and `size` bytes are added."""
    padding = "x" * size
    arrays: list[Any] = [pa.array(ids, pa.int64())]
    if table is WIDE:
        arrays += [pa.array([i / 2 for i in ids], pa.float64()), pa.array([f"b{i}{padding}".encode() for i in ids])]
    else:
        arrays += [pa.array([f"{table.name} {i}{padding}" for i in ids], pa.string())]
    values = pa.RecordBatch.from_arrays(arrays, schema=table.arrow_schema)
    return ChangeBatch.of(table, op, values, first_ordinal=first_ordinal)


def sequence(number: int) -> bytes:
    """The sequence of the `number`-th transaction of a producer."""
    return number.to_bytes(8, "big")


def transaction(number: int, count: int = 3, *, table: Table = ORDERS, size: int = 0) -> Transactions:
    """Transaction `number`, whose rows have the ids 1000 * number and on; a progress record is its last."""
    batch = rows(table, range(1000 * number, 1000 * number + count), size=size)
    progress = Control(ControlKind.PROGRESS, count, None, {"number": number})
    return Transactions.one(sequence(number), [batch], [progress], lineage="l", token=str(number), xid=f"x{number}")


def put(producer: Producer, number: int, count: int = 3, *, table: Table = ORDERS, size: int = 0) -> Future[Appended]:
    """Append transaction `number`; the resume state says its number."""
    return producer.append(transaction(number, count, table=table, size=size), str(number).encode())


def several(numbers: Sequence[int], count: int = 2, *, table: Table = ORDERS) -> Transactions:
    """Several transactions in one append."""
    parts = [Transactions.one(sequence(number), [rows(table, range(count))]).facts for number in numbers]
    facts = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    ids = np.concatenate([np.arange(1000 * number, 1000 * number + count) for number in numbers])
    return Transactions(facts, (rows(table, ids.tolist()),))
