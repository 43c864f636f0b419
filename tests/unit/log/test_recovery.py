"""Opening after a crash or after damage (reliability rows 59, 60, 66): the acknowledged prefix, or a named refusal.

What cannot be told apart: the last group of a journal that was not closed in order, damaged, from one that was never
acknowledged and is torn. Everything before it, and everything in a file that was closed in order, is.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadds.api.errors import CorruptLogError
from kadds.log.disk import Disk
from kadds.log.frame import ENTRY_HEADER_BYTES, FILE_HEADER_BYTES, EntryHeader, EntryKind
from kadds.log.journal import JournalFile
from kadds.log.log import Log
from kadds.log.manifest import Manifest
from kadds.log.segment import Segment
from tests.unit.log.making import ORDERS, SOURCE, opened, put, rows, sequence
from tests.unit.log.reading import digest, found, numbers


@dataclass(frozen=True)
class Folder:
    """A folder with a journal, and where each transaction's entry ends in it."""

    path: Path
    journal: Path
    whole: bytes
    ends: dict[int, int]

    def reachable(self, cut: int) -> list[int]:
        """The transactions that stand whole before byte `cut`."""
        return [number for number, end in self.ends.items() if end <= cut]


def _journal(folder: Path) -> Path:
    return max((folder / "journal").glob("*.journal"))


def _folder(tmp_path: Path, *, closed: bool, transactions: int = 4) -> Folder:
    """A log of small groups, one transaction each; not closed in order means: as it was while it was open."""
    log = opened(tmp_path / "log")
    producer = log.producer(SOURCE, "stream")
    ends = {}
    for number in range(1, transactions + 1):
        put(producer, number, 1).result()
        ends[number] = _journal(log.path).stat().st_size
    if not closed:
        shutil.copytree(log.path, tmp_path / "copy")
    log.close()
    path = log.path if closed else tmp_path / "copy"
    return Folder(path, _journal(path), _journal(path).read_bytes(), ends)


def _flips(data: bytes, *, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """`data` with one bit flipped, at every byte; which bit follows from the place."""
    for at in range(0, len(data), step):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at * 5 % 8)
        yield at, bytes(flipped)


# ---------------------------------------------------------------------------------------------- row 59


def test_row_59_journal_cut_at_every_byte_reopens_as_the_acknowledged_prefix(tmp_path: Path) -> None:
    folder = _folder(tmp_path, closed=False)
    last_entries = range(folder.ends[2], len(folder.whole) + 1)
    for cut in (*range(0, folder.ends[2], 53), *last_entries):
        folder.journal.write_bytes(folder.whole[:cut])
        with opened(folder.path, writable=False) as log:
            assert numbers(log) == folder.reachable(cut), cut
        assert folder.journal.stat().st_size == cut, "reading only cuts nothing"


@pytest.mark.parametrize("closed", [False, True])
def test_row_59_a_cut_log_goes_on_from_its_prefix_with_the_producers_as_they_were_then(
    closed: bool, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, closed=closed)
    boundaries = [cut for end in (FILE_HEADER_BYTES, *folder.ends.values()) for cut in (end - 1, end, end + 1)]
    for cut in {*boundaries, *range(0, len(folder.whole), 397), len(folder.whole) - 1}:
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(folder.path, copy)
        _journal(copy).write_bytes(folder.whole[:cut])
        reachable = folder.reachable(cut)
        with opened(copy) as log:
            assert numbers(log) == reachable
            producer = log.producer(SOURCE, "stream")
            resume = producer.resume()
            assert (resume and resume.sequence) == (sequence(reachable[-1]) if reachable else None)
            for number in range(1, 6):
                put(producer, number, 1).result()
            assert numbers(log) == [1, 2, 3, 4, 5]
        with opened(copy) as log:
            assert numbers(log) == [1, 2, 3, 4, 5]
        shutil.rmtree(copy)


def test_row_59_bytes_of_zeros_behind_the_last_entry_are_a_torn_tail(tmp_path: Path) -> None:
    folder = _folder(tmp_path, closed=False)
    for tail in (bytes(1), bytes(4096), b"KENT" + bytes(200), folder.whole[-300:]):
        folder.journal.write_bytes(folder.whole + tail)
        with opened(folder.path) as log:
            assert numbers(log) == [1, 2, 3, 4]
        assert folder.journal.read_bytes()[: len(folder.whole)] == folder.whole


def test_row_59_a_checkpoint_never_claims_what_a_cut_journal_lost(tmp_path: Path) -> None:
    """The producers come from the segment's checkpoint and from the journal: neither may be ahead of the changes."""
    with opened(tmp_path / "log", journal_file_bytes=3000) as log:
        producer = log.producer(SOURCE, "stream")
        for number in range(1, 30):
            put(producer, number, 1).result()
            log.state.put("default", "runs", "last", number)
        log._sealer.wake()  # type: ignore[union-attr]
    journals = sorted((tmp_path / "log" / "journal").glob("*.journal"))
    for path in journals:
        path.unlink()
    with opened(tmp_path / "log") as log:
        held = numbers(log)
        held.remove(0)  # the control state's own entries
        resume = log.producer(SOURCE, "stream").resume()
        assert resume is not None
        assert resume.sequence == sequence(held[-1])
        assert log.state.get("default", "runs", "last") in (held[-1], held[-1] - 1)


# ---------------------------------------------------------------------------------------------- row 60


def test_row_60_a_flipped_bit_in_a_journal_closed_in_order_is_named_wherever_it_is(tmp_path: Path) -> None:
    folder = _folder(tmp_path, closed=True, transactions=2)
    closing = max(folder.ends.values())
    with opened(folder.path, writable=False) as log:
        expected = found(log)
    for at, flipped in _flips(folder.whole):
        folder.journal.write_bytes(flipped)
        if at >= closing:  # the entry that says that the file was closed: it holds no change, and may go
            with opened(folder.path, writable=False) as log:
                assert found(log) == expected, at
        else:
            with pytest.raises(CorruptLogError, match=folder.journal.name):
                opened(folder.path, writable=False)


def test_row_60_a_flipped_bit_before_the_last_group_is_named_and_nothing_is_cut(tmp_path: Path) -> None:
    folder = _folder(tmp_path, closed=False, transactions=3)
    last = folder.ends[2]
    for at, flipped in _flips(folder.whole):
        folder.journal.write_bytes(flipped)
        if at >= last:
            with opened(folder.path, writable=False) as log:
                assert numbers(log) == [1, 2], "the last group is taken for a torn one; see the module's docstring"
        else:
            with pytest.raises(CorruptLogError, match=folder.journal.name):
                opened(folder.path, writable=False)
    for at in (10, FILE_HEADER_BYTES + 5, folder.ends[1] + 30, folder.ends[1] + 500, last - 1):
        flipped = bytearray(folder.whole)
        flipped[at] ^= 4
        folder.journal.write_bytes(flipped)
        with pytest.raises(CorruptLogError, match=folder.journal.name):
            opened(folder.path)
        assert folder.journal.read_bytes() == flipped


def test_row_60_damage_while_the_log_is_open_is_named_by_the_read_that_meets_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, closed=True)
    with opened(folder.path) as log:
        flipped = bytearray(folder.whole)
        flipped[folder.ends[2] + ENTRY_HEADER_BYTES + 10] ^= 1
        folder.journal.write_bytes(flipped)
        with pytest.raises(CorruptLogError, match="not what was written"):
            found(log)
        log._writer.rotate()  # type: ignore[union-attr]
        with pytest.raises(CorruptLogError, match="nothing was removed"):
            log.seal()
        assert folder.journal.exists()


def test_row_60_a_journal_file_that_is_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        for number in range(1, 4):
            put(log.producer(SOURCE, "stream"), number).result()
            log._writer.rotate()  # type: ignore[union-attr]
    for path in sorted((tmp_path / "log" / "journal").glob("*.journal"))[:2]:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(CorruptLogError, match="a journal file before this one is missing"):
            opened(tmp_path / "log")
        path.write_bytes(content)
    with opened(tmp_path / "log") as log:
        assert numbers(log) == [1, 2, 3]


def test_row_60_a_flipped_bit_in_a_segment_is_named_and_never_served(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        put(log.producer(SOURCE, "stream"), 1).result()
        log.seal()
        log_id, layouts = log.uuid.bytes, log._dictionary.layouts
    (tmp_path / "log" / "index.duckdb").unlink()
    (path,) = (tmp_path / "log" / "segments").iterdir()
    whole = path.read_bytes()

    def read_all() -> None:
        segment = Segment.open(path, log_id)
        for number in range(len(segment.footer["blocks"])):
            segment.block(number, layouts.get)
        _ = segment.extents, segment.transactions, segment.controls
        segment.streams(), segment.layouts(), segment.checkpoint()

    read_all()
    for at, flipped in _flips(whole):
        path.write_bytes(flipped)
        with pytest.raises(CorruptLogError, match=path.name):
            read_all()
        if at % 509 == 0:
            before = digest(tmp_path / "log")
            with pytest.raises(CorruptLogError, match=path.name):
                _read_without_index(tmp_path / "log")
            assert digest(tmp_path / "log") == before


def _read_without_index(folder: Path) -> None:
    """All that there is, the index made again from the segments, which may otherwise know what they lost."""
    (folder / "index.duckdb").unlink(missing_ok=True)
    with opened(folder, writable=False) as log:
        found(log)


@pytest.mark.parametrize("cut", [0, 10, 72, 500, -1])
def test_row_60_a_segment_cut_short_or_gone_is_named(cut: int, tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        put(log.producer(SOURCE, "stream"), 1).result()
        log.seal()
    (path,) = (tmp_path / "log" / "segments").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptLogError, match=path.name):
        opened(tmp_path / "log")
    path.unlink()
    with pytest.raises(CorruptLogError, match="offsets 0 to 4"):
        opened(tmp_path / "log")


def _sealed_at_the_end(folder: Path) -> None:
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 1).result()
        put(log.producer(SOURCE, "stream"), 2).result()
        log.seal()


def _opened_at_the_end(folder: Path) -> None:
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 1).result()
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 2).result()


@pytest.mark.parametrize("make", [_sealed_at_the_end, _opened_at_the_end])
def test_row_60_a_flipped_bit_in_the_manifest_is_named_and_nothing_is_cut(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """The last record too: that it is missed shows in the files that need it, so it is not taken for a torn one."""
    folder = tmp_path / "log"
    make(folder)
    path = folder / "MANIFEST"
    whole = path.read_bytes()
    manifest = Manifest.open(folder, Disk(), writable=False)
    last = JournalFile.open(path).scan().entries[-1][0]
    for at, flipped in _flips(whole):
        path.write_bytes(flipped)
        if at < last:
            with pytest.raises(CorruptLogError, match="MANIFEST"):
                Manifest.open(folder, Disk(), writable=False)
        else:
            assert Manifest.open(folder, Disk(), writable=False).cut_bytes == len(whole) - last
        if at % 61 == 0 or at in (last, len(whole) - 1):
            with pytest.raises(CorruptLogError):
                opened(folder)
            assert path.read_bytes() == flipped
    path.write_bytes(whole)
    with opened(folder) as log:
        assert numbers(log) == [1, 2]
        assert log.uuid == manifest.log


def test_row_66_a_torn_record_of_the_manifest_is_cut_where_nothing_needs_it(tmp_path: Path) -> None:
    _sealed_at_the_end(tmp_path / "log")
    path = tmp_path / "log" / "MANIFEST"
    whole = path.read_bytes()
    for tail in (b"K", whole[-150:-3], bytes(77)):
        path.write_bytes(whole + tail)
        with opened(tmp_path / "log") as log:
            assert numbers(log) == [1, 2]
        assert path.read_bytes() == whole
        with opened(tmp_path / "log") as log:
            put(log.producer(SOURCE, "stream"), 3).result()
        with opened(tmp_path / "log") as log:
            assert numbers(log) == [1, 2, 3]
        shutil.rmtree(tmp_path / "log")
        _sealed_at_the_end(tmp_path / "log")
        whole = path.read_bytes()


def test_row_66_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    _sealed_at_the_end(tmp_path / "log")
    (path,) = (tmp_path / "log" / "segments").iterdir()
    position, size, _ = Segment.open(path, JournalFile.open(path).header.identity.log.bytes).footer["sections"][
        "checkpoint"
    ]
    whole = path.read_bytes()
    for damaged in (
        whole[:position] + bytes(size) + whole[position + size :],
        whole[: position + 3] + bytes([whole[position + 3] ^ 64]) + whole[position + 4 :],
    ):
        path.write_bytes(damaged)
        for writable in (True, False):
            with pytest.raises(CorruptLogError, match="section checkpoint"):
                opened(tmp_path / "log", writable=writable)


def test_row_66_an_older_segment_of_the_same_number_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 1).result()
    shutil.copytree(folder, tmp_path / "older")
    with opened(tmp_path / "older") as log:
        log.seal()
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 2).result()
        log.seal()
    (path,) = (folder / "segments").iterdir()
    shutil.copy(tmp_path / "older" / "segments" / path.name, path)
    with pytest.raises(CorruptLogError, match="another one than the manifest says"):
        opened(folder)


# ---------------------------------------------------------------------------------------------- what a crash leaves


def test_a_crash_between_a_segment_and_its_record_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 1).result()
    shutil.copytree(folder, tmp_path / "sealed")
    with opened(tmp_path / "sealed") as log:
        log.seal()
    (segment,) = (tmp_path / "sealed" / "segments").iterdir()
    shutil.copy(segment, folder / "segments" / segment.name)
    (folder / "segments" / "0000000000000007.new").write_bytes(b"half")
    with opened(folder) as log:
        assert numbers(log) == [1]
        assert list((folder / "segments").iterdir()) == []
        log.seal()
        assert numbers(log) == [1]


def test_a_crash_between_a_record_and_the_removal_of_its_journal_serves_nothing_twice(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 1).result()
    journal = _journal(folder)
    content = journal.read_bytes()
    with opened(folder) as log:
        log.seal()
    journal.write_bytes(content)
    with opened(folder) as log:
        assert numbers(log) == [1]
        assert not journal.exists()


def test_a_journal_file_without_its_header_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        put(log.producer(SOURCE, "stream"), 1).result()
    unborn = folder / "journal" / "0000000000000002.journal"
    for content in (b"", b"KADDS", _journal(folder).read_bytes()[:FILE_HEADER_BYTES]):
        unborn.write_bytes(content)
        with opened(folder) as log:
            assert numbers(log) == [1]
            assert not unborn.exists()


def test_a_folder_without_its_manifest_is_refused(tmp_path: Path) -> None:
    _sealed_at_the_end(tmp_path / "log")
    (tmp_path / "log" / "MANIFEST").unlink()
    with pytest.raises(CorruptLogError, match="no manifest"):
        opened(tmp_path / "log")


def test_a_file_of_another_log_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with opened(tmp_path / name) as log:
            put(log.producer(SOURCE, "stream"), 1).result()
    shutil.copy(_journal(tmp_path / "one"), _journal(tmp_path / "two"))
    with pytest.raises(CorruptLogError, match="belongs to log"):
        opened(tmp_path / "two")


@pytest.mark.parametrize(("at", "value"), [(4, 77), (5, 1), (6, 9)], ids=["kind", "flags", "format"])
def test_an_entry_that_a_later_version_wrote_stops_by_name(at: int, value: int, tmp_path: Path) -> None:
    """Whole, with a checksum that holds, and not understood: neither a torn tail nor skipped."""
    folder = _folder(tmp_path, closed=False)
    journal = JournalFile.open(folder.journal)
    position, header = journal.scan().entries[-1]
    plain = bytearray(folder.whole)
    packed = bytearray(header.pack(journal.header.identity.log))
    packed[at] = value
    from kadds.log.frame import checksum

    packed[-8:] = checksum(bytes(packed[:-8])).to_bytes(8, "little")
    plain[position : position + ENTRY_HEADER_BYTES] = packed
    folder.journal.write_bytes(plain)
    with pytest.raises(CorruptLogError, match="does not know"):
        opened(folder.path)
    assert folder.journal.read_bytes() == plain


def test_an_entry_header_of_another_log_is_no_entry_of_this_one() -> None:
    header = EntryHeader(EntryKind.COMMIT, 1, 2, 3, 4, 5, 6, 7, 8)
    mine, other = uuid.uuid4(), uuid.uuid4()
    assert EntryHeader.unpack(header.pack(mine), 0, mine) == header
    assert EntryHeader.unpack(header.pack(other), 0, mine) is None


def test_the_passes_of_an_opening_are_told_in_words(tmp_path: Path) -> None:
    folder = _folder(tmp_path, closed=False)
    folder.journal.write_bytes(folder.whole[:-5])
    told: list[str] = []
    with Log.open(folder.path, narrate=told.append):
        pass
    assert [line.split(":")[0] for line in told] == [
        "first pass", "second pass", "third pass", "fourth pass", "fourth pass"
    ]  # fmt: skip
    assert "torn tail" in told[3]
    assert "3 entries" in told[4]


def test_layout_numbers_are_not_given_twice_where_one_was_lost(tmp_path: Path) -> None:
    """A layout whose only entry was refused leaves a hole in the numbers, which a count would fill twice."""
    from kadds.testing.faulty_disk import Call, Fault, FaultyDisk
    from tests.unit.log.making import WIDE

    disk = FaultyDisk()
    with opened(tmp_path / "log", disk=disk) as log:
        producer = log.producer(SOURCE, "stream")
        disk.faults.append(Fault(Call.WRITE, disk.counts[Call.WRITE] + 3, 28))
        assert put(producer, 1, table=WIDE).exception() is not None
        producer.resume()
        put(producer, 1, table=ORDERS).result()
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        put(producer, 2, table=WIDE).result()
        put(producer, 3, table=ORDERS).result()
        expected = found(log)
    with opened(tmp_path / "log") as log:
        assert found(log) == expected
        assert [len(one.values) for one in expected if one.what == "c"] == [2] * 3 + [3] * 3 + [2] * 3
    assert len(rows(ORDERS, [1])) == 1
