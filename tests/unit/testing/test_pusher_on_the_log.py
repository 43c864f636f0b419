"""The suite of pushers over the real log: its promises with a journal, an fsync and a folder to open again."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from kadds.api.change import Transactions
from kadds.api.connector import Appended, OpenTransaction, Producer, Resume
from kadds.log.disk import Disk
from kadds.log.log import Log
from kadds.testing.fake_pusher import FakePusher
from kadds.testing.pusher_contract import SOURCE, TIMEOUT_SECONDS, Pusher, PusherContract


class _HeldDisk(Disk):
    """Confirms nothing while it is held; once broken it says that it could not."""

    def __init__(self) -> None:
        self.confirms = threading.Event()
        self.confirms.set()
        self.broken = False

    def _flush(self, descriptor: int) -> None:
        assert self.confirms.wait(TIMEOUT_SECONDS)
        if self.broken:
            raise OSError(errno.EIO, "the disk is gone")
        super()._flush(descriptor)


class _Counting:
    """A producer that counts the appends that the log has taken into its queue."""

    def __init__(self, producer: Producer, taken: threading.Condition, count: list[int]) -> None:
        self._producer, self._taken, self._count = producer, taken, count

    @property
    def name(self) -> str:
        return self._producer.name

    def resume(self) -> Resume | None:
        return self._producer.resume()

    def begin(self, xid: str) -> OpenTransaction:
        return self._producer.begin(xid)

    def append(self, transactions: Transactions, resume: bytes) -> Future[Appended]:
        future = self._producer.append(transactions, resume)
        with self._taken:
            self._count[0] += 1
            self._taken.notify_all()
        return future


class TestAFakePusherKeepsTheContractOverTheRealLog(PusherContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.folders = (tmp_path / f"log{number}" for number in itertools.count())
        self.disk, self.taken, self.count = _HeldDisk(), threading.Condition(), [0]
        self.logs: list[Log] = []
        yield
        self.disk.confirms.set()
        for log in self.logs:
            log.close()

    def make_pusher(self, producer: Producer) -> Pusher:
        return FakePusher(_Counting(producer, self.taken, self.count), most_waiting=self.most_waiting)

    def make_log(self) -> Log:
        return self._opened(next(self.folders))

    def make_held_log(self) -> Log:
        log = self.make_log()
        self.disk.confirms.clear()
        return log

    def _opened(self, folder: Path) -> Log:
        log = Log.open(folder, disk=self.disk, free_space_floor_bytes=0)
        self.logs.append(log)
        return log

    def release(self, log: Any) -> None:
        self.disk.confirms.set()

    def crash(self, log: Log) -> Log:
        """The disk ends first, so that nothing more is confirmed; what had been written may be found again or not."""
        self.disk.broken = True
        self.disk.confirms.set()
        log.close()
        self.disk = _HeldDisk()
        return self._opened(log.path)

    def wait_until_held(self, log: Any, pushes: int) -> None:
        with self.taken:
            assert self.taken.wait_for(lambda: self.count[0] >= pushes, TIMEOUT_SECONDS)

    def logged(self, log: Any, name: str) -> list[int]:
        ids: list[int] = []
        for piece in log.read(log.begin(), source=SOURCE):
            producers = piece.transactions.column("producer").to_pylist()
            for changes in piece.changes:
                whose = [producers[number] for number in changes.transactions.to_pylist()]
                found = zip(changes.values.column("id").to_pylist(), whose, strict=True)
                ids += [number for number, producer in found if producer.endswith(f"/{name}")]
        return ids
