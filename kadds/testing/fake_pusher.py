"""A pusher without a network: what a route does with a request, as a function call.

The caller numbers its pushes 1, 2, 3, … and repeats one under its number until it is answered 2xx. The invariant: 2xx
means that the rows are in the log, on disk, once. A number that leaves one out is refused, for the log would drop the
one that comes after it as a repeat.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import pyarrow as pa

from kadds.api.change import ChangeBatch, Op, Transactions
from kadds.api.connector import Appended, Producer
from kadds.api.errors import DataError, FencedError, KaddsError
from kadds.api.schema import Column, Table
from kadds.testing.pusher_contract import PushAnswer

TABLE = Table("public", "pushed", (Column("id", pa.int64(), nullable=False), Column("label", pa.string())), ("id",))
_RETRY_AFTER_SECONDS = 1.0


@dataclass
class _Numbers:
    """The last number that was handed to the log; None after a failure, until the log has been asked."""

    last: int | None = None


class FakePusher:
    """Appends what it is given; at most `most_waiting` calls wait for the log at a time. Thread-safe."""

    def __init__(self, producer: Producer, *, most_waiting: int = 4) -> None:
        self._producer = producer
        self._places = threading.BoundedSemaphore(most_waiting)
        self._lock = threading.Lock()
        self._numbers = _Numbers()

    def push(self, number: int, rows: Sequence[tuple[object, object]]) -> PushAnswer:
        """Take rows (id, label) under `number`; returns when their fate is known."""
        if not self._places.acquire(blocking=False):
            return PushAnswer(429, "the log is full", _RETRY_AFTER_SECONDS)
        try:
            return self._push(number, rows)
        except FencedError as error:
            return PushAnswer(409, error.message)
        except DataError as error:
            return PushAnswer(422, error.message)
        except KaddsError as error:
            return PushAnswer(503, error.message, _RETRY_AFTER_SECONDS)
        finally:
            self._places.release()

    def _push(self, number: int, rows: Sequence[tuple[object, object]]) -> PushAnswer:
        transactions = Transactions.one(struct.pack(">Q", number), [_batch(rows)], lineage="pushed")
        with self._lock:
            last = self._last()
            if number > last + 1:
                return PushAnswer(409, f"push {last + 1} has not come yet")
            future = self._append(transactions, max(last, number))
        try:
            appended = future.result()
        except BaseException:
            with self._lock:
                self._numbers.last = None
            raise
        return PushAnswer(200, "repeated" if appended.repeated else "logged")

    def _append(self, transactions: Transactions, last: int) -> Future[Appended]:
        try:
            future = self._producer.append(transactions, b"")
        except BaseException:
            self._numbers.last = None
            raise
        self._numbers.last = last
        return future

    def _last(self) -> int:
        if self._numbers.last is None:
            resume = self._producer.resume()
            self._numbers.last = 0 if resume is None else struct.unpack(">Q", resume.sequence)[0]
        return self._numbers.last or 0


def _batch(rows: Sequence[tuple[object, object]]) -> ChangeBatch:
    try:
        columns = [list(column) for column in zip(*rows, strict=True)]
        values = pa.RecordBatch.from_arrays(
            [pa.array(column, kind.type) for column, kind in zip(columns, TABLE.columns, strict=True)],
            schema=TABLE.arrow_schema,
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise DataError(f"the rows do not fit {TABLE.qualified_name}: {error}", where=TABLE.qualified_name) from None
    return ChangeBatch.of(TABLE, Op.CREATE, values)
