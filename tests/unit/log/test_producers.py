"""Into the log exactly once: repeats, fencing, refusals, and many threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from kadds.api.connector import Appended
from kadds.api.errors import DataError, FencedError, KaddsError, NoSpaceError, UnknownInputError
from kadds.log.disk import Disk
from kadds.testing.faulty_disk import Call, Fault, FaultyDisk
from tests.unit.log.making import ORDERS, SOURCE, opened, put, rows, sequence, several, transaction
from tests.unit.log.reading import found, numbers


@pytest.mark.parametrize("between", ["nothing", "reopen", "seal", "seal and reopen"])
def test_what_is_not_above_the_last_sequence_is_dropped(between: str, tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    producer = log.producer(SOURCE, "stream")
    assert producer.resume() is None
    producer.append(several([1, 2, 3]), b"three").result()
    if "seal" in between:
        log.seal()
    if "reopen" in between:
        log.close()
        log = opened(tmp_path / "log")
        producer = log.producer(SOURCE, "stream")
    assert put(producer, 3).result() == Appended(6, 6, 1) or between != "nothing"
    assert producer.append(several([1, 2]), b"two").result().repeated == 2
    appended = producer.append(several([2, 3, 4, 5]), b"five").result()
    assert appended == Appended(6, 10, 2)
    resume = producer.resume()
    assert resume is not None
    assert (resume.sequence, resume.state) == (sequence(5), b"five")
    assert [one.values[0][1] for one in found(log)] == [1000, 1001, 2000, 2001, 3000, 3001, 4000, 4001, 5000, 5001]
    log.close()


def test_a_partly_repeated_append_over_the_size_of_an_entry_keeps_what_is_new(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        put(producer, 1, 10, size=200_000).result()
        for reach in (3, 9):
            facts = several(range(1, reach), 10)
            ids = [1000 * number + at for number in range(1, reach) for at in range(10)]
            large = type(facts)(facts.facts, (rows(ORDERS, ids, size=200_000),))
            appended = producer.append(large, b"").result()
        assert appended.repeated == 2
        changes = [dict(one.values)["id"] for one in found(log) if one.what == "c"]
        assert changes == [1000 * number + at for number in range(1, 9) for at in range(10)]
        for piece in log.read(log.begin(), max_rows=10):
            assert piece.whole, "transactions that fit are not cut because they came in one append"


def test_a_repeat_is_done_only_when_what_it_repeats_is_on_disk(tmp_path: Path) -> None:
    disk = HeldDisk()
    log = opened(tmp_path / "log", disk=disk)
    producer = log.producer(SOURCE, "stream")
    put(producer, 1).result()
    disk.hold()
    first, again = put(producer, 2), put(producer, 2)
    assert disk.reached.wait(30)
    assert not first.done()
    assert not again.done()
    disk.release()
    assert (first.result().repeated, again.result().repeated) == (0, 1)
    log.close()


def test_an_older_holder_is_fenced_and_what_it_had_queued_is_not_repeated(tmp_path: Path) -> None:
    disk = HeldDisk()
    log = opened(tmp_path / "log", disk=disk)
    old = log.producer(SOURCE, "stream")
    put(old, 1).result()
    disk.hold()
    queued = [put(old, number) for number in range(2, 20)]
    assert disk.reached.wait(30)
    with ThreadPoolExecutor() as threads:
        claims = [threads.submit(log.producer, SOURCE, "stream") for _ in range(3)]
        disk.release()
        holders = [claim.result(30) for claim in claims if not isinstance(claim.exception(30), FencedError)]
    newest = max(holders, key=lambda holder: holder.epoch)
    for holder in (old, *(holder for holder in holders if holder is not newest)):
        for call in (lambda: put(holder, 99), holder.resume, lambda: holder.begin("1")):  # noqa: B023 - called at once
            with pytest.raises(FencedError, match="claimed anew"):
                call()
    assert [future.result().repeated for future in queued] == [0] * 18
    resume = newest.resume()
    assert resume is not None
    assert resume.sequence == sequence(19)
    assert put(newest, 19).result().repeated == 1
    put(newest, 20).result()
    assert numbers(log) == list(range(1, 21))
    log.close()


def test_a_fenced_holders_open_transaction_leaves_no_trace(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        old = log.producer(SOURCE, "stream")
        pieces = old.begin("1")
        pieces.add([rows(ORDERS, range(20), size=300_000)])
        new = log.producer(SOURCE, "stream")
        for call in (lambda: pieces.add([rows(ORDERS, [1])]), lambda: pieces.commit(sequence(1), b"")):
            with pytest.raises(FencedError):
                call()
        put(new, 1).result()
        log.seal()
        assert numbers(log) == [1]
        assert not list((tmp_path / "log" / "journal").glob("*.fragments"))


def test_two_producers_of_a_source_have_sequences_of_their_own(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        one, two = log.producer(SOURCE, "stream"), log.producer(SOURCE, "table:public.orders")
        put(one, 5).result()
        assert put(two, 1).result().repeated == 0
        assert log.producer("other/shop", "stream").resume() is None


def test_a_refused_append_leaves_no_hole(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with opened(tmp_path / "log", disk=disk) as log:
        producer, other = log.producer(SOURCE, "stream"), log.producer(SOURCE, "other")
        put(producer, 1).result()
        disk.faults.append(Fault(Call.WRITE, disk.counts[Call.WRITE] + 1, 28, written=30))
        assert isinstance(put(producer, 2).exception(), NoSpaceError)
        for _ in range(3):
            with pytest.raises(NoSpaceError):
                put(producer, 3)
        put(other, 1).result()
        resume = producer.resume()
        assert resume is not None
        assert resume.sequence == sequence(1)
        put(producer, 2).result()
        put(producer, 3).result()
        assert log.failure is None
        assert [one.offset for one in found(log)] == list(range(16))
        everything = found(log)
    with opened(tmp_path / "log") as log:
        assert found(log) == everything


def test_a_refusal_in_the_middle_of_a_transaction_ends_it(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with opened(tmp_path / "log", disk=disk) as log:
        producer = log.producer(SOURCE, "stream")
        pieces = producer.begin("1")
        pieces.add([rows(ORDERS, [1], size=5_000_000)])
        put(log.producer(SOURCE, "other"), 1).result()
        disk.faults.append(Fault(Call.WRITE, disk.counts[Call.WRITE] + 1, 28))
        pieces.add([rows(ORDERS, [2], size=5_000_000)])
        with pytest.raises(NoSpaceError):
            pieces.commit(sequence(1), b"").result()
        producer.resume()
        with pytest.raises(UnknownInputError, match="ended"):
            pieces.commit(sequence(1), b"")
        pieces = producer.begin("1")
        pieces.add([rows(ORDERS, [3])])
        pieces.commit(sequence(1), b"").result()
        assert [dict(one.values)["id"] for one in found(log) if one.transaction[2] == "1"] == [3]


def test_a_value_over_the_limit_stops_its_table_by_name_and_nobody_else(tmp_path: Path) -> None:
    with opened(tmp_path / "log", max_value_bytes=1000) as log:
        producer = log.producer(SOURCE, "stream")
        with pytest.raises(DataError, match="column note") as raised:
            put(producer, 1, size=1001)
        assert "public.orders" in str(raised.value)
        put(producer, 1, size=900).result()
        assert numbers(log) == [1]


def test_an_append_beside_an_open_transaction_of_the_same_producer_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        pieces = producer.begin("1")
        with pytest.raises(UnknownInputError, match="open transaction"):
            put(producer, 1)
        with pytest.raises(UnknownInputError, match="open transaction"):
            producer.begin("2")
        pieces.abort()
        put(producer, 1).result()


def test_sixteen_producers_at_once_keep_their_own_order_and_leave_no_hole(tmp_path: Path) -> None:
    count = 150
    with opened(tmp_path / "log", journal_file_bytes=200_000, memory_bytes=64 << 20) as log:

        def produce(name: int) -> list[tuple[int, int]]:
            producer = log.producer(f"default/s{name}", "stream")
            futures: list[Future[Appended]] = []
            durable: list[tuple[int, int]] = []
            for number in range(1, count + 1):
                future = put(producer, number, 1 + number % 4)
                future.add_done_callback(
                    lambda done: durable.append((done.result().end_offset, log.end().offset()))  # what is readable now
                )
                futures.append(future)
            places = [(f.result().first_offset, f.result().end_offset) for f in futures]
            assert all(end <= readable for end, readable in durable)
            assert len(durable) == count
            return places

        with ThreadPoolExecutor(16) as threads:
            places = list(threads.map(produce, range(16)))
        for own in places:
            assert own == sorted(own)
        taken = sorted(place for own in places for place in own)
        assert [first for first, _ in taken] == [0, *(end for _, end in taken[:-1])]
        everything = found(log)
        assert [one.offset for one in everything] == list(range(taken[-1][1]))
        for name in range(16):
            own = [one.transaction[1] for one in everything if one.transaction[0] == f"default/s{name}/stream"]
            assert list(dict.fromkeys(own)) == [sequence(number) for number in range(1, count + 1)]
    with opened(tmp_path / "log") as log:
        assert found(log) == everything


def test_callers_wait_while_the_queue_is_full(tmp_path: Path) -> None:
    disk = HeldDisk()
    log = opened(tmp_path / "log", disk=disk, memory_bytes=64 << 20)  # a queue of 16 MiB
    producer = log.producer(SOURCE, "stream")
    put(producer, 1).result()
    disk.hold()
    done = threading.Event()

    def fill() -> None:
        for number in range(2, 12):
            put(producer, number, 1, size=4 << 20)
        done.set()

    thread = threading.Thread(target=fill)
    thread.start()
    assert disk.reached.wait(30)
    assert not done.wait(0.3)
    disk.release()
    assert done.wait(60)
    thread.join()
    producer.resume()
    assert numbers(log) == list(range(1, 12))
    log.close()


def test_a_log_that_is_closed_writes_what_is_queued_and_then_takes_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    producer = log.producer(SOURCE, "stream")
    futures = [put(producer, number) for number in range(1, 30)]
    log.close()
    assert all(future.result() for future in futures)
    with pytest.raises(KaddsError, match="closed"):
        put(producer, 30)
    with opened(tmp_path / "log") as log:
        assert numbers(log) == list(range(1, 30))
    assert transaction(1).rows == 4


class HeldDisk(Disk):
    """A disk whose next sync waits until it is released."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._go.set()
        self.reached = threading.Event()

    def hold(self) -> None:
        """From now on, every sync waits."""
        self.reached.clear()
        self._go.clear()

    def release(self) -> None:
        """Let them go on."""
        self._go.set()

    def _flush(self, descriptor: int) -> None:
        if not self._go.is_set():
            self.reached.set()
            assert self._go.wait(60)
        super()._flush(descriptor)
