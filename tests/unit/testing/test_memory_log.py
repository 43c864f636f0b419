"""The log in memory means what the real one means."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest

from kadds.api.change import ChangeBatch, Control, ControlKind, Op, Transactions
from kadds.api.errors import FencedError, RetryableError, UnknownInputError
from kadds.api.schema import Column, Table
from kadds.testing.memory_log import Killed, MemoryLog

TABLE = Table("public", "orders", (Column("id", pa.int64()), Column("label", pa.string())), ("id",))


def _batch(*ids: int, first_ordinal: int = 0) -> ChangeBatch:
    values = pa.RecordBatch.from_pydict({"id": list(ids), "label": ["x"] * len(ids)}, schema=TABLE.arrow_schema)
    return ChangeBatch.of(TABLE, Op.CREATE, values, first_ordinal=first_ordinal)


def _ids(log: MemoryLog) -> list[int]:
    return [row.values["id"] for row in log.rows("public.orders")]


def test_a_repeat_is_dropped_and_counted() -> None:
    log = MemoryLog()
    producer = log.producer("default/shop", "stream")
    assert producer.append(Transactions.one(b"1", [_batch(1)]), b"one").result().repeated == 0
    appended = producer.append(Transactions.one(b"1", [_batch(1)]), b"one").result()
    assert (appended.repeated, appended.end_offset - appended.first_offset) == (1, 0)
    assert _ids(log) == [1]
    resume = producer.resume()
    assert resume is not None
    assert (resume.sequence, resume.state) == (b"1", b"one")


def test_offsets_follow_the_ordinals_of_changes_and_controls() -> None:
    log = MemoryLog()
    producer = log.producer("default/shop", "stream")
    control = Control(ControlKind.PROGRESS, 1, TABLE, {"a": 1})
    appended = producer.append(Transactions.one(b"1", [_batch(1), _batch(2, first_ordinal=2)], [control]), b"").result()
    assert (appended.first_offset, appended.end_offset) == (0, 3)
    assert [row.offset for row in log.rows()] == [0, 2]


def test_an_ordinal_left_out_is_refused() -> None:
    producer = MemoryLog().producer("default/shop", "stream")
    with pytest.raises(UnknownInputError, match="hole"):
        producer.append(Transactions.one(b"1", [_batch(1, first_ordinal=1)]), b"")


def test_a_newer_claim_fences_the_older_holder_also_inside_a_transaction() -> None:
    log = MemoryLog()
    older = log.producer("default/shop", "stream")
    transaction = older.begin("x")
    transaction.add([_batch(1)])
    newer = log.producer("default/shop", "stream")
    with pytest.raises(FencedError):
        transaction.commit(b"1", b"")
    with pytest.raises(FencedError):
        older.append(Transactions.one(b"1", [_batch(1)]), b"")
    newer.append(Transactions.one(b"1", [_batch(2)]), b"").result()
    assert _ids(log) == [2]


def test_nobody_sees_an_open_transaction() -> None:
    log = MemoryLog()
    producer = log.producer("default/shop", "table:orders")
    transaction = producer.begin("x")
    transaction.add([_batch(1)])
    transaction.add([_batch(2)])
    assert _ids(log) == []
    assert producer.resume() is None
    transaction.commit(b"1", b"state").result()
    assert _ids(log) == [1, 2]


def test_an_aborted_transaction_leaves_no_trace() -> None:
    log = MemoryLog()
    producer = log.producer("default/shop", "table:orders")
    transaction = producer.begin("x")
    transaction.add([_batch(1)])
    transaction.abort()
    producer.begin("y").commit(b"1", b"").result()
    assert _ids(log) == []


def test_what_was_not_flushed_is_gone_after_a_crash_and_may_come_again() -> None:
    log = MemoryLog(automatic=False)
    producer = log.producer("default/shop", "stream")
    future = producer.append(Transactions.one(b"1", [_batch(1)]), b"")
    assert not future.done()
    log.crash()
    with pytest.raises(RetryableError):
        future.result(0)
    with pytest.raises(FencedError):
        producer.resume()
    again = log.producer("default/shop", "stream")
    assert again.resume() is None
    again.append(Transactions.one(b"1", [_batch(1)]), b"")
    log.flush()
    assert _ids(log) == [1]


def test_a_full_queue_makes_the_caller_wait_until_there_is_room() -> None:
    log = MemoryLog(automatic=False, queue_bytes=1)
    producer = log.producer("default/shop", "stream")
    producer.append(Transactions.one(b"1", [_batch(1)]), b"")
    caller = threading.Thread(target=lambda: producer.append(Transactions.one(b"2", [_batch(2)]), b""), daemon=True)
    caller.start()
    log.wait(lambda: log.waiting == 1)
    assert log.queued == 1
    log.flush()
    caller.join(30)
    log.flush()
    assert _ids(log) == [1, 2]


def test_it_is_killed_at_the_step_that_was_named() -> None:
    log = MemoryLog()
    log.kill_at = 2
    producer = log.producer("default/shop", "stream")
    with pytest.raises(Killed):
        producer.append(Transactions.one(b"1", [_batch(1)]), b"")
    assert _ids(log) == [1], "step two is behind the disk"
