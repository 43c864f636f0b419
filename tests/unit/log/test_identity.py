"""The log knows itself (promise 4): a cursor of another history is a named gap; one process holds a folder (row 72)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from kadds.api.errors import ConfigurationError, GapError, LockedError
from kadds.api.position import Cursor
from tests.support.waiting import wait_until
from tests.unit.log.making import ORDERS, SOURCE, opened, put, rows, sequence
from tests.unit.log.reading import digest, found, numbers, slices


def _written(folder: Path, first: int, last: int, *, seal: bool = False) -> Cursor:
    """Append transactions `first` to `last` in one opening; the cursor behind them."""
    with opened(folder) as log:
        for number in range(first, last + 1):
            put(log.producer(SOURCE, "stream"), number).result()
        if seal:
            log.seal()
        return Cursor.parse(str(log.end()))


@pytest.mark.parametrize("seal", [False, True])
def test_a_cursor_of_any_offset_is_known_by_every_later_opening(seal: bool, tmp_path: Path) -> None:
    cursors = [_written(tmp_path / "log", 3 * part + 1, 3 * part + 3, seal=seal) for part in range(3)]
    with opened(tmp_path / "log") as log:
        for cursor in (log.begin(), *cursors, *(piece.cursor for piece in slices(log, max_rows=1))):
            log.check(cursor)
            assert found(log, cursor) == found(log)[cursor.offset() :]


def test_a_cursor_of_a_wiped_folder_is_a_gap(tmp_path: Path) -> None:
    cursor = _written(tmp_path / "log", 1, 3)
    shutil.rmtree(tmp_path / "log")
    _written(tmp_path / "log", 1, 3)
    with opened(tmp_path / "log") as log:
        for old in (cursor, replace(cursor, offsets={0: 0}, epoch=0, epoch_id="")):
            with pytest.raises(GapError, match="belongs to log") as raised:
                log.check(old)
            assert "resync" in str(raised.value)
            with pytest.raises(GapError):
                log.read(old)


def test_a_cursor_past_the_end_of_an_older_copy_is_a_gap(tmp_path: Path) -> None:
    _written(tmp_path / "log", 1, 2)
    shutil.copytree(tmp_path / "log", tmp_path / "older")
    cursor = _written(tmp_path / "log", 3, 4)
    with opened(tmp_path / "older") as log, pytest.raises(GapError, match="behind the end of this log at 8"):
        log.check(cursor)


def test_a_cursor_of_an_opening_that_the_log_does_not_have_is_a_gap(tmp_path: Path) -> None:
    """An older copy that has been written since, so that the offset exists again, in another history."""
    _written(tmp_path / "log", 1, 2)
    shutil.copytree(tmp_path / "log", tmp_path / "older")
    _written(tmp_path / "log", 3, 3)
    cursor = _written(tmp_path / "log", 4, 4)
    _written(tmp_path / "older", 3, 9)
    with opened(tmp_path / "older") as log, pytest.raises(GapError, match="the histories differ"):
        log.check(cursor)


def test_two_copies_that_were_both_written_know_each_others_cursors_from_their_own(tmp_path: Path) -> None:
    common = _written(tmp_path / "one", 1, 2)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = _written(tmp_path / "one", 3, 4)
    second = _written(tmp_path / "two", 3, 4)
    assert (first.log, first.epoch, first.offsets) == (second.log, second.epoch, second.offsets)
    for folder, own, others in (("one", first, second), ("two", second, first)):
        with opened(tmp_path / folder) as log:
            log.check(common)
            log.check(own)
            with pytest.raises(GapError, match="the histories differ"):
                log.check(others)


def test_a_copy_of_an_open_log_that_went_on_is_another_history(tmp_path: Path) -> None:
    """The original goes on in the same opening; the copy has to open anew and so differs from there on."""
    log = opened(tmp_path / "log")
    put(log.producer(SOURCE, "stream"), 1).result()
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    put(log.producer(SOURCE, "stream"), 2).result()
    cursor = log.end()
    log.close()
    with opened(tmp_path / "copy") as copy:
        put(copy.producer(SOURCE, "stream"), 2).result()
        assert copy.end().offset() == cursor.offset()
        with pytest.raises(GapError, match="the histories differ"):
            copy.check(cursor)


@pytest.mark.parametrize("change", [{"epoch": 9}, {"epoch_id": "00" * 8}, {"log": uuid.uuid4()}, {"offsets": {0: 99}}])
def test_a_cursor_with_any_part_changed_is_a_gap(change: dict[str, object], tmp_path: Path) -> None:
    cursor = _written(tmp_path / "log", 1, 2)
    with opened(tmp_path / "log") as log, pytest.raises(GapError):
        log.check(replace(cursor, **change))  # type: ignore[arg-type]


def test_an_opening_that_wrote_nothing_leaves_no_epoch(tmp_path: Path) -> None:
    cursor = _written(tmp_path / "log", 1, 1)
    before = (tmp_path / "log" / "MANIFEST").read_bytes()
    for _ in range(3):
        with opened(tmp_path / "log") as log:
            assert log.epoch == 1
            log.check(cursor)
    assert (tmp_path / "log" / "MANIFEST").read_bytes() == before


# ---------------------------------------------------------------------------------------------- reading only


@pytest.mark.parametrize("state", ["closed", "sealed", "killed", "killed with a torn tail", "without LOCK and index"])
def test_opening_for_reading_changes_no_byte_of_the_folder(state: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = opened(folder)
    put(log.producer(SOURCE, "stream"), 1).result()
    if state in ("sealed", "without LOCK and index"):
        log.seal()
        put(log.producer(SOURCE, "stream"), 2).result()
    if "killed" in state:
        shutil.copytree(folder, tmp_path / "copy")
    log.close()
    if "killed" in state:
        folder = tmp_path / "copy"
    if "torn" in state:
        (journal,) = (folder / "journal").iterdir()
        journal.write_bytes(journal.read_bytes() + b"KENT half an entry")
    if "without" in state:
        (folder / "LOCK").unlink()
        (folder / "index.duckdb").unlink()
    folder.chmod(0o755)
    before = digest(folder)
    for _ in range(2):
        with opened(folder, writable=False) as log:
            assert numbers(log) == ([1, 2] if log.status()["segments"] else [1])
            assert [found(log, streams=[stream.id]) for stream in log.streams()]
            log.status()
            with pytest.raises(ConfigurationError, match="reading only"):
                log.producer(SOURCE, "stream")
            with pytest.raises(ConfigurationError, match="reading only"):
                log.state.put("default", "runs", "a", 1)
            with pytest.raises(ConfigurationError, match="reading only"):
                log.seal()
    assert digest(folder) == before
    assert folder.stat().st_mode & 0o777 == 0o755


def test_opening_for_reading_makes_no_log(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigurationError, match="no log"):
            opened(folder, writable=False)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- row 72

HOLDER = """
import sys
from pathlib import Path
from tests.unit.log.making import SOURCE, opened, put

log = opened(Path(sys.argv[1]))
put(log.producer(SOURCE, "stream"), 1).result()
print("held", flush=True)
sys.stdin.read()
"""


def test_row_72_a_second_process_on_a_folder_is_refused_with_the_pid_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "held\n"
        for writable in (True, False):
            with pytest.raises(LockedError, match=f"held by process {holder.pid}"):
                opened(folder, writable=writable)
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        with opened(folder) as log:
            assert numbers(log) == [1]
    finally:
        holder.kill()
        holder.wait(60)
        holder.stdin.close()
        holder.stdout.close()


def test_row_72_a_lock_is_given_back_when_opening_fails_and_when_closing(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    _written(folder, 1, 1)
    with opened(folder), pytest.raises(LockedError):
        opened(folder)
    manifest = (folder / "MANIFEST").read_bytes()
    (folder / "MANIFEST").write_bytes(b"garbage")
    for _ in range(2):
        with pytest.raises(Exception, match="does not begin as a file"):
            opened(folder)
    (folder / "MANIFEST").write_bytes(manifest)
    log = opened(folder)
    log.close()
    log.close()
    wait_until(lambda: (folder / "LOCK").read_bytes() == b"")
    with opened(folder) as log:
        assert numbers(log) == [1]


def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    _written(tmp_path / "log", 1, 1, seal=True)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "log").rglob("*"):
        if path.name != "index.duckdb":
            assert path.stat().st_mode & 0o077 == 0, path


# ---------------------------------------------------------------------------------------------- row 71


@pytest.mark.parametrize("start", [2**31, 2**32, 2**53, 2**62])
def test_row_71_offsets_pass_the_limits_of_smaller_numbers(start: int, tmp_path: Path) -> None:
    """The log is made to begin short of the limit, as if so many changes had come before."""
    folder = tmp_path / "log"
    with opened(folder) as log:
        log._writer._next_offset = log._end_offset = start - 10  # type: ignore[union-attr]
        producer = log.producer(SOURCE, "stream")
        for number in range(1, 5):
            put(producer, number).result()
        pieces = producer.begin("5")
        pieces.add([rows(ORDERS, range(5000, 5010), size=1_000_000)])
        pieces.commit(sequence(5), b"").result()
        expected = found(log)
        assert [one.offset for one in expected] == list(range(start - 10, start + 16))
    for seal in (False, True, False):
        with opened(folder) as log:
            if seal:
                log.seal()
            assert found(log) == expected
            assert found(log, max_rows=1) == expected
            for stream in log.streams():
                assert found(log, streams=[stream.id]) == [one for one in expected if one.stream == stream.label]
            for piece in slices(log, max_rows=1):
                cursor = Cursor.parse(str(piece.cursor))
                assert found(log, cursor) == [one for one in expected if one.offset >= cursor.offset()]
            assert log.touched(start)[1]
    with opened(folder) as log:
        assert put(log.producer(SOURCE, "stream"), 6).result().first_offset == start + 16
