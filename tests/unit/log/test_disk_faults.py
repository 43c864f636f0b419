"""Disks that fail, fill up, or lose their power (reliability rows 61 to 64): nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kadds.api.errors import CorruptLogError, KaddsError, NoSpaceError
from kadds.log.log import Log
from kadds.testing.faulty_disk import Call, CrashImages, Fault, FaultyDisk
from tests.unit.log.making import ORDERS, ROUNDS, SOURCE, opened, put, rows, sequence
from tests.unit.log.reading import found, numbers

TRANSACTIONS = 5


def _ids(log: Log) -> list[int]:
    return [dict(one.values)["id"] for one in found(log, source=SOURCE) if one.what == "c"]


def _expected(transactions: list[int]) -> list[int]:
    return [1000 * number + at for number in transactions for at in range(3)]


# ---------------------------------------------------------------------------------------------- power cuts


def _live(folder: Path, disk: FaultyDisk) -> list[tuple[int, int, str]]:
    """A busy life: appends, pieces, state, sealing, opening again. (operations done, transaction, state) at each
    acknowledgement."""
    acknowledged = []
    number = 0

    def acknowledge(log: Log) -> None:
        log.state.put("default", "runs", "last", number)
        acknowledged.append((len(disk.operations), number, "kept"))

    for opening in range(3):
        with opened(folder, disk=disk, journal_file_bytes=8192) as log:
            producer = log.producer(SOURCE, "stream")
            for _ in range(4):
                number += 1
                if number in (3, 8):
                    pieces = producer.begin(str(number))
                    pieces.add([rows(ORDERS, range(1000 * number, 1000 * number + 2), size=2_200_000)])
                    if number % 2 == 0:
                        log.seal()
                    pieces.add([rows(ORDERS, [1000 * number + 2])])
                    pieces.commit(sequence(number), b"").result()
                else:
                    put(producer, number).result()
                acknowledged.append((len(disk.operations), number, ""))
                acknowledge(log)
            if opening != 1:
                log.seal()
    return acknowledged


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[FaultyDisk, Path, list[tuple[int, int, str]]]:
    folder = tmp_path_factory.mktemp("life") / "log"
    disk = FaultyDisk(record=True)
    return disk, folder, _live(folder, disk)


@pytest.mark.parametrize("kind", ["nothing unsynced", "everything", "some of it"])
def test_row_61_and_63_no_power_cut_loses_what_was_acknowledged(
    kind: str, life: tuple[FaultyDisk, Path, list[tuple[int, int, str]]], tmp_path: Path
) -> None:
    """After every operation: unsynced bytes and names gone, all there, or some sectors and some names of each."""
    disk, folder, acknowledged = life
    images = CrashImages(folder, disk.operations)
    kinds = ("nothing unsynced", "everything", "some of it")
    step = 1 if ROUNDS > 1 else 11
    for at in range(1, len(disk.operations) + 1):
        images.advance(at)
        if at % step != kinds.index(kind) % step:
            continue
        for seed in range(ROUNDS if kind == "some of it" else 1):
            image = tmp_path / f"{at}-{seed}"
            (image / "journal").mkdir(parents=True)
            (image / "segments").mkdir()
            images.write(
                image, seed=1000 * at + seed if kind == "some of it" else None, everything=kind == "everything"
            )
            if at % 2:
                shutil.copy(folder / "index.duckdb", image)  # of another time: it knows segments that are not there
            _holds_what_was_acknowledged(image, at, acknowledged)
            shutil.rmtree(image)


def _holds_what_was_acknowledged(image: Path, at: int, acknowledged: list[tuple[int, int, str]]) -> None:
    promised = [number for done, number, kept in acknowledged if done <= at and not kept]
    kept = [number for done, number, what in acknowledged if done <= at and what]
    with opened(image) as log:
        held = _ids(log)
        last = len(held) // 3
        assert held == _expected(list(range(1, last + 1))), "whole transactions, in order, each once"
        assert last >= len(promised), f"operation {at}: acknowledged {promised[-1]}, found {last}"
        assert (log.state.get("default", "runs", "last") or 0) in (last, last - 1)
        assert (log.state.get("default", "runs", "last") or 0) >= (kept[-1] if kept else 0)
        producer = log.producer(SOURCE, "stream")
        resume = producer.resume()
        assert (resume.sequence if resume else sequence(0)) == sequence(last)
        for number in range(1, last + 2):
            put(producer, number).result()
        log.seal()
        assert _ids(log) == _expected(list(range(1, last + 2)))
        for stream in log.streams(SOURCE):
            assert [one for one in found(log) if one.stream == stream.label] == found(log, streams=[stream.id])


def test_row_63_the_name_of_the_log_itself_is_durable(tmp_path: Path) -> None:
    disk = FaultyDisk(record=True)
    with opened(tmp_path / "a" / "b" / "log", disk=disk):
        synced = [operation.path for operation in disk.operations if operation.call == Call.SYNC]
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "log"} <= set(synced)


def test_row_61_what_recovery_found_is_synced_before_anybody_acts_on_it(tmp_path: Path) -> None:
    """The last group of a killed process is whole in memory and was never confirmed."""
    with opened(tmp_path / "log") as log:
        put(log.producer(SOURCE, "stream"), 1).result()
        shutil.copytree(tmp_path / "log", tmp_path / "copy")
    disk = FaultyDisk(record=True)
    with opened(tmp_path / "copy", disk=disk) as log:
        synced = {operation.path.name for operation in disk.operations if operation.call == Call.SYNC}
        assert {"MANIFEST", "0000000000000001.journal"} <= synced
        assert numbers(log) == [1]


# ---------------------------------------------------------------------------------------------- calls that fail


def _calls(tmp_path: Path, call: Call) -> int:
    """How often a whole life makes this call."""
    disk = FaultyDisk()
    _until_it_fails(tmp_path / "counted", disk)
    return disk.counts[call]


def _until_it_fails(folder: Path, disk: FaultyDisk) -> tuple[list[int], KaddsError | None, Log | None]:
    """Append, seal and go on; (acknowledged transactions, the error that ended it, the log)."""
    acknowledged: list[int] = []
    log = None
    try:
        log = opened(folder, disk=disk, journal_file_bytes=4096)
        producer = log.producer(SOURCE, "stream")
        for number in range(1, TRANSACTIONS + 1):
            if number == 4:
                log.seal()
            put(producer, number).result()
            acknowledged.append(number)
        log.close()
    except KaddsError as error:
        return acknowledged, error, log
    return acknowledged, None, log


def test_row_62_after_a_sync_that_failed_nothing_is_believed_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    for at in range(1, _calls(tmp_path, Call.SYNC) + 1):
        folder = tmp_path / str(at)
        disk = FaultyDisk(Fault(Call.SYNC, at))
        acknowledged, error, log = _until_it_fails(folder, disk)
        if log is not None and error is not None and log.failure is not None:
            assert isinstance(error, CorruptLogError)
            assert "did not confirm" in str(error)
            with pytest.raises(CorruptLogError):
                put(log.producer(SOURCE, "late"), 1)
            with pytest.raises(CorruptLogError):
                log.state.put("default", "runs", "a", 1)
            assert log.status()["failure"]
        elif error is None:  # while closing or sealing in the background: the journal stays
            assert acknowledged == list(range(1, TRANSACTIONS + 1))
        if log is not None:
            log.close()
        if (folder / "MANIFEST").exists():
            with opened(folder) as log:
                assert _ids(log)[: 3 * len(acknowledged)] == _expected(acknowledged)
                producer = log.producer(SOURCE, "stream")
                for number in range(1, TRANSACTIONS + 1):
                    put(producer, number).result()
                log.seal()
                assert _ids(log) == _expected(list(range(1, TRANSACTIONS + 1)))
        else:
            assert not acknowledged


def test_row_62_a_sync_that_failed_fails_every_future_that_waited(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with opened(tmp_path / "log", disk=disk) as log:
        producers = [log.producer(f"default/s{name}", "stream") for name in range(5)]
        put(producers[0], 1).result()
        disk.faults.append(Fault(Call.SYNC, disk.counts[Call.SYNC] + 1))
        futures = []
        for producer in producers:
            try:
                futures.append(put(producer, 2))
            except CorruptLogError:
                continue  # refused already
        assert futures
        assert all(isinstance(future.exception(), CorruptLogError) for future in futures)
        assert log.wait(log.end().offset(), timeout_seconds=60) == 4, "readers are woken, too"
        assert isinstance(log.failure, CorruptLogError)
        assert numbers(log) == [1], "what is there can still be read"


def test_row_62_a_manifest_record_whose_sync_failed_is_followed_by_no_other(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = opened(tmp_path / "log", disk=disk)
    put(log.producer(SOURCE, "stream"), 1).result()
    counted = disk.counts[Call.SYNC]
    # closing the journal; segment: header, folder, content, folder; then the manifest
    disk.faults.append(Fault(Call.SYNC, counted + 6))
    for _ in range(2):
        with pytest.raises(CorruptLogError, match="MANIFEST"):
            log.seal()
    put(log.producer(SOURCE, "stream"), 2).result()
    log.close()
    with opened(tmp_path / "log") as log:
        assert numbers(log) == [1, 2]
        log.seal()
        assert numbers(log) == [1, 2]


@pytest.mark.parametrize("call", [Call.WRITE, Call.CREATE, Call.RENAME])
def test_row_64_a_disk_that_is_full_at_any_call_loses_nothing_and_goes_on(call: Call, tmp_path: Path) -> None:
    for at in range(1, _calls(tmp_path, call) + 1):
        folder = tmp_path / str(at)
        disk = FaultyDisk(Fault(call, at, errno.ENOSPC, written=33 * (at % 2)))
        acknowledged: list[int] = []
        try:
            log = opened(folder, disk=disk, journal_file_bytes=4096)
        except NoSpaceError:
            assert call == Call.RENAME or at <= 2
            log = opened(folder, disk=disk, journal_file_bytes=4096)  # there is room now
        producer = log.producer(SOURCE, "stream")
        number = 1
        while number <= TRANSACTIONS:
            if number == 4:
                for _ in range(2):
                    try:
                        log.seal()
                    except NoSpaceError:
                        continue  # the journal stays; the next time there is room
            try:
                put(producer, number).result()
            except NoSpaceError:
                resume = producer.resume()
                assert (resume.sequence if resume else sequence(0)) == sequence(number - 1)
            else:
                acknowledged.append(number)
                number += 1
        assert log.failure is None
        assert _ids(log) == _expected(acknowledged)
        log.close()
        with opened(folder) as log:
            assert _ids(log) == _expected(acknowledged)
            log.seal()
            assert _ids(log) == _expected(acknowledged)


def test_row_64_short_writes_are_completed(tmp_path: Path) -> None:
    with opened(tmp_path / "log", disk=FaultyDisk(short_writes=100)) as log:
        for number in range(1, 6):
            put(log.producer(SOURCE, "stream"), number).result()
        log.seal()
        assert numbers(log) == [1, 2, 3, 4, 5]
    with opened(tmp_path / "log") as log:
        assert numbers(log) == [1, 2, 3, 4, 5]


def test_row_64_below_the_floor_intake_stops_by_name_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = Filling()
    with Log.open(tmp_path / "log", disk=disk, free_space_floor_bytes=64 << 20) as log:
        producer = log.producer(SOURCE, "stream")
        put(producer, 1).result()
        disk.free = 63 << 20
        with pytest.raises(NoSpaceError, match="63 MiB are free on the log's disk, the floor is 64 MiB"):
            put(producer, 2).result()
        with pytest.raises(NoSpaceError):
            log.state.put("default", "runs", "a", 1)
        disk.free = 1 << 40
        producer.resume()
        put(producer, 2).result()
        assert numbers(log) == [1, 2]


class Filling(FaultyDisk):
    """A disk with as much room as the test says."""

    free = 1 << 40

    def free_bytes(self, folder: Path) -> int:
        return self.free


@contextmanager
def _small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 32 MB in memory; None where this user may not mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    )
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_row_64_a_real_disk_that_fills_up_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with _small_disk(tmp_path) as place:
        if place is None:
            _run_with_a_limit_on_file_sizes(tmp_path)
            return
        ballast = place / "ballast"
        ballast.write_bytes(bytes(20 << 20))
        with opened(place / "log", journal_file_bytes=4 << 20) as log:
            acknowledged = _append_until_refused(log, 1)
            assert _ids(log) == _expected(acknowledged)
            assert log.failure is None
            ballast.unlink()
            log.seal()
            acknowledged += _append_until_refused(log, acknowledged[-1] + 1, at_most=5)
            assert _ids(log) == _expected(acknowledged)
        with opened(place / "log") as log:
            assert _ids(log) == _expected(acknowledged)
            assert put(log.producer(SOURCE, "stream"), acknowledged[-1]).result().repeated == 1


def _append_until_refused(log: Log, first: int, at_most: int = 10_000) -> list[int]:
    """Transactions of 600 kB that do not compress well, until the disk takes no more."""
    producer = log.producer(SOURCE, "stream")
    producer.resume()
    acknowledged = []
    for number in range(first, first + at_most):
        try:
            put(producer, number, size=200_000).result()
        except NoSpaceError:
            break
        acknowledged.append(number)
    return acknowledged


LIMITED = """
import resource, sys
from pathlib import Path
from tests.unit.log.making import opened
from tests.unit.log.test_disk_faults import _append_until_refused, _expected, _ids

resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, resource.RLIM_INFINITY))
with opened(Path(sys.argv[1])) as log:
    acknowledged = _append_until_refused(log, 1)
    assert acknowledged and _ids(log) == _expected(acknowledged) and log.failure is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    acknowledged += _append_until_refused(log, acknowledged[-1] + 1, at_most=5)
    assert _ids(log) == _expected(acknowledged)
print(len(acknowledged))
"""


def _run_with_a_limit_on_file_sizes(tmp_path: Path) -> None:
    """The operating system refuses what is over a file's size: as a full disk does, for a user who may not mount."""
    folder = tmp_path / "limited"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with opened(folder) as log:
        assert _ids(log) == _expected(list(range(1, int(done.stdout) + 1)))


def test_row_64_an_operating_system_that_refuses_larger_files_is_a_full_disk(tmp_path: Path) -> None:
    _run_with_a_limit_on_file_sizes(tmp_path)


# ---------------------------------------------------------------------------------------------- kill -9

WRITER = """
import sys
from pathlib import Path
from tests.unit.log.making import SOURCE, opened, put

log = opened(Path(sys.argv[1]), journal_file_bytes=20_000)
producer = log.producer(SOURCE, "stream")
resume = producer.resume()
number = int.from_bytes(resume.sequence, "big") if resume else 0
print("last", number, flush=True)
while True:
    number += 1
    put(producer, number).result()
    print(number, flush=True)
"""


def test_what_a_killed_process_had_acknowledged_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    acknowledged = 0
    for round_number in range(3 * ROUNDS):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert int(next(lines).split()[1]) >= acknowledged, "the new process goes on from what was acknowledged"
        for _ in range(30 + 7 * round_number):
            acknowledged = int(next(lines))
        process.send_signal(signal.SIGKILL)
        rest = [int(line) for line in lines if line.endswith("\n")]
        acknowledged = rest[-1] if rest else acknowledged
        process.wait(60)
        process.stdout.close()
    with opened(folder) as log:
        held = numbers(log)
        assert held == list(range(1, len(held) + 1))
        assert len(held) in (acknowledged, acknowledged + 1)
