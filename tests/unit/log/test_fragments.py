"""Transactions that come in pieces: seen by nobody before their commit, gone without a trace otherwise."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from kadds.api.change import Control, ControlKind, Transactions
from kadds.api.errors import CorruptLogError, NoSpaceError
from kadds.log.log import Log
from kadds.testing.faulty_disk import Call, Fault, FaultyDisk
from tests.unit.log.making import LINES, ORDERS, SOURCE, opened, put, rows, sequence
from tests.unit.log.reading import found, numbers, slices


def _ids(log: Log) -> list[int]:
    return [dict(one.values)["id"] for one in found(log) if one.what == "c"]


def _fragment_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "journal").glob("*.fragments"))


def test_an_open_transaction_is_seen_by_nobody_before_its_commit(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer, other = log.producer(SOURCE, "stream"), log.producer(SOURCE, "other")
        pieces = producer.begin("1")
        for start in range(0, 30, 10):
            pieces.add([rows(ORDERS, range(start, start + 10), size=500_000)])
            put(other, start + 1, 1).result()
            assert ORDERS.qualified_name not in {one.stream for one in found(log) if one.transaction[2] == "1"}
            assert log.end().offset() == 2 * (start // 10 + 1)
        assert pieces.commit(sequence(1), b"").result().first_offset == 6
        mine = [one for one in found(log) if one.transaction[2] == "1"]
        assert [one.offset for one in mine] == list(range(6, 36))
        assert [dict(one.values)["id"] for one in mine] == list(range(30))


@pytest.mark.parametrize("end", ["abort", "crash", "claim", "close"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_transaction_that_did_not_commit_leaves_no_trace(end: str, sealed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = opened(folder)
    producer = log.producer(SOURCE, "stream")
    put(producer, 1).result()
    pieces = producer.begin("2")
    pieces.add([rows(LINES, range(10), size=1_000_000)])
    put(log.producer(SOURCE, "other"), 50).result()
    if sealed:
        log.seal()
        assert len(_fragment_files(folder)) == 1
    if end == "abort":
        pieces.abort()
    elif end == "claim":
        log.producer(SOURCE, "stream")
    elif end == "crash":
        shutil.copytree(folder, tmp_path / "copy")
    log.close()
    if end == "crash":
        folder = tmp_path / "copy"
    with opened(folder) as log:
        assert numbers(log) == [1, 50]
        assert all("lines" not in stream.name for stream in log.streams())
        put(log.producer(SOURCE, "stream"), 2).result()
        log.seal()
        assert numbers(log) == [1, 50, 2]
        assert _fragment_files(folder) == []


@pytest.mark.parametrize("how", ["append", "one add", "many adds", "two tables in one add"])
def test_a_transaction_over_the_size_of_an_entry_goes_through_whole(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        producer = log.producer(SOURCE, "stream")
        size, count = 100_000, 240
        if how == "append":
            last = Control(ControlKind.PROGRESS, count)
            one = Transactions.one(sequence(1), [rows(ORDERS, range(count), size=size)], [last])
            producer.append(one, b"1").result()
        else:
            pieces = producer.begin("1")
            if how == "one add":
                pieces.add([rows(ORDERS, range(count), size=size)], [Control(ControlKind.PROGRESS, count)])
            elif how == "many adds":
                for start in range(0, count, 5):
                    pieces.add([rows(ORDERS, range(start, start + 5), size=size)])
                pieces.add([], [Control(ControlKind.PROGRESS, 0)])
            else:
                half = count // 2
                second = rows(LINES, range(half, count), first_ordinal=half, size=size)
                progress = [Control(ControlKind.PROGRESS, count)]
                pieces.add([rows(ORDERS, range(half), size=size), second], progress)
            pieces.commit(sequence(1), b"1").result()
        largest = max(place.length for place in log._tail._moved.values()) if log._tail._moved else 0
        assert largest == 0
        for again in range(2):
            assert _ids(log) == list(range(count))
            assert found(log)[-1].what == "progress"
            assert [piece.whole for piece in slices(log, max_rows=10)][-1]
            if again == 0:
                sizes = [header.entry_bytes for file in log._tail.files() for _, header in file.scan().entries]
                assert max(sizes) < 8 << 20
                log.seal()
    with opened(folder) as log:
        assert _ids(log) == list(range(count))


@pytest.mark.parametrize("crash", [False, True])
def test_fragments_move_when_their_commit_comes_in_a_later_file(crash: bool, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = opened(folder)
    producer, other = log.producer(SOURCE, "stream"), log.producer(SOURCE, "other")
    pieces = producer.begin("1")
    for start in range(0, 30, 10):
        pieces.add([rows(ORDERS, range(start, start + 10), size=500_000)])
        put(other, 100 + start, 1).result()
        log.seal()
    assert log.status()["segments"] == 3
    assert len(_fragment_files(folder)) == 3
    pieces.commit(sequence(1), b"").result()
    expected = found(log)
    assert [dict(one.values)["id"] for one in expected if one.transaction[2] == "1"] == list(range(30))
    if crash:
        shutil.copytree(folder, tmp_path / "copy")
        log.close()
        folder = tmp_path / "copy"
        log = opened(folder)
    (orders,) = (stream.id for stream in log.streams() if stream.name.endswith("public.orders"))
    only = [one for one in expected if one.stream.endswith("orders")]
    assert found(log) == expected
    assert found(log, streams=[orders]) == only
    log.seal()
    assert _fragment_files(folder) == []
    assert found(log) == expected
    log.close()
    with opened(folder) as log:
        assert found(log) == expected
        assert found(log, streams=[orders]) == only


@pytest.mark.parametrize("damage", ["removed", "flipped"])
def test_a_missing_or_damaged_file_of_fragments_is_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        pieces = log.producer(SOURCE, "stream").begin("1")
        pieces.add([rows(ORDERS, range(10), size=500_000)])
        log.seal()
        pieces.commit(sequence(1), b"").result()
    (path,) = (folder / "journal").glob("*.fragments")
    if damage == "removed":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CorruptLogError, match="fragment"):
        opened(folder)


def test_fragments_that_could_not_be_moved_for_want_of_room_are_read_where_they_were(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with opened(tmp_path / "log", disk=disk) as log:
        producer = log.producer(SOURCE, "stream")
        pieces = producer.begin("1")
        for start in range(0, 30, 10):
            pieces.add([rows(ORDERS, range(start, start + 10), size=500_000)])
        put(log.producer(SOURCE, "other"), 50).result()
        # the entry that closes the journal, the header of the file of fragments, the first of them, the second
        disk.faults.append(Fault(Call.WRITE, disk.counts[Call.WRITE] + 4, errno.ENOSPC, written=100))
        with pytest.raises(NoSpaceError):
            log.seal()
        pieces.commit(sequence(1), b"").result()
        expected = [50_000, 50_001, 50_002, *range(30)]
        assert _ids(log) == expected
        log.seal()
        assert _ids(log) == expected
    with opened(tmp_path / "log") as log:
        assert _ids(log) == expected


def test_half_written_fragments_leave_no_trace(tmp_path: Path) -> None:
    """Row 59 for entries that nobody ever acknowledges: the journal is cut inside them."""
    folder = tmp_path / "log"
    log = opened(folder)
    producer = log.producer(SOURCE, "stream")
    put(producer, 1).result()
    (journal,) = (folder / "journal").glob("*.journal")
    before = journal.stat().st_size
    pieces = producer.begin("2")
    pieces.add([rows(ORDERS, range(10), size=500_000)])
    pieces.add([rows(ORDERS, [11], size=5_000_000)])
    put(log.producer(SOURCE, "other"), 3).result()
    whole = journal.read_bytes()
    for cut in range(before, len(whole), len(whole) // 12):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "journal" / journal.name).write_bytes(whole[:cut])
        with opened(tmp_path / "copy") as copy:
            assert numbers(copy) == [1]
            put(copy.producer(SOURCE, "stream"), 2).result()
            assert numbers(copy) == [1, 2]
    log.close()
