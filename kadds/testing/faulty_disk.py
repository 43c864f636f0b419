"""A disk that fails when it is told to, and remembers all that was done to it.

From what it remembers a crash image can be made: the files as they may be after the power was cut behind any
operation, where what had not been synced is there, or gone, or there in part. A name (a new file, a rename, a removal)
is certain once its folder has been synced, bytes once their file has been.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kadds.log.disk import Disk, write_error

SECTOR_BYTES = 512  # what a disk writes whole or not at all


class Call(StrEnum):
    """What may be told to fail; each is counted by itself."""

    CREATE = "create"
    WRITE = "write"
    SYNC = "sync"  # of files and folders
    TRUNCATE = "truncate"
    RENAME = "rename"
    REMOVE = "remove"


@dataclass(frozen=True)
class Operation:
    """Something that was done: to which file (its number, through renames) or folder, and with what."""

    call: Call
    path: Path
    file: int = 0
    position: int = 0
    data: bytes = b""
    target: Path | None = None


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th call (counted from 1) of its kind, and at the `more` calls behind it.

    `written`: so many bytes of a failing write are written before it fails.
    """

    call: Call
    at: int
    error: int = errno.EIO
    more: int = 0
    written: int = 0


class FaultyDisk(Disk):
    """The real disk with faults; thread-safe. `short_writes`: no write takes more than this many bytes."""

    def __init__(self, *faults: Fault, short_writes: int = 0, record: bool = False) -> None:
        self.faults = list(faults)
        self.operations: list[Operation] = []
        self.counts = dict.fromkeys(Call, 0)
        self._short_writes = short_writes
        self._record = record
        self._files: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def _meet(self, call: Call) -> Fault | None:
        with self._lock:
            self.counts[call] += 1
            count = self.counts[call]
            return next((f for f in self.faults if f.call == call and f.at <= count <= f.at + f.more), None)

    def _remember(self, operation: Operation) -> None:
        if self._record:
            with self._lock:
                self.operations.append(operation)

    def _file(self, descriptor: int, *, new: bool = False) -> tuple[int, Path]:
        facts = os.fstat(descriptor)
        key = (facts.st_dev, facts.st_ino)
        with self._lock:
            if new or key not in self._files:
                self._files[key] = max(self._files.values(), default=0) + 1
            return self._files[key], Path(os.readlink(f"/proc/self/fd/{descriptor}"))

    # ------------------------------------------------------------------ the calls

    def create(self, path: Path) -> int:
        """See `Disk`."""
        if fault := self._meet(Call.CREATE):
            raise write_error(OSError(fault.error, os.strerror(fault.error)), path)
        descriptor = super().create(path)
        self._remember(Operation(Call.CREATE, path, self._file(descriptor, new=True)[0]))
        return descriptor

    def _write(self, descriptor: int, views: Sequence[memoryview]) -> int:
        fault = self._meet(Call.WRITE)
        limit = fault.written if fault else self._short_writes
        if fault and not limit:
            raise OSError(fault.error, os.strerror(fault.error))
        if limit:
            views = [memoryview(b"".join(views)[:limit])]
        position = os.fstat(descriptor).st_size
        written = super()._write(descriptor, views)
        if self._record:
            number, path = self._file(descriptor)
            self._remember(Operation(Call.WRITE, path, number, position, b"".join(views)[:written]))
        if fault:
            raise OSError(fault.error, os.strerror(fault.error))
        return written

    def _flush(self, descriptor: int) -> None:
        if fault := self._meet(Call.SYNC):
            raise OSError(fault.error, os.strerror(fault.error))
        super()._flush(descriptor)
        number, path = self._file(descriptor)
        self._remember(Operation(Call.SYNC, path, number))

    def truncate(self, descriptor: int, length: int) -> None:
        """See `Disk`."""
        if fault := self._meet(Call.TRUNCATE):
            raise write_error(OSError(fault.error, os.strerror(fault.error)))
        super().truncate(descriptor, length)
        number, path = self._file(descriptor)
        self._remember(Operation(Call.TRUNCATE, path, number, length))

    def replace(self, source: Path, target: Path) -> None:
        """See `Disk`."""
        if fault := self._meet(Call.RENAME):
            raise write_error(OSError(fault.error, os.strerror(fault.error)), target)
        super().replace(source, target)
        self._remember(Operation(Call.RENAME, source, target=target))

    def remove(self, path: Path) -> None:
        """See `Disk`."""
        if fault := self._meet(Call.REMOVE):
            raise write_error(OSError(fault.error, os.strerror(fault.error)), path)
        super().remove(path)
        self._remember(Operation(Call.REMOVE, path))


# ---------------------------------------------------------------------------------------------- crash images


@dataclass
class _File:
    durable: bytes = b""
    unsynced: list[Operation] = field(default_factory=list)

    def image(self, keep: random.Random | None, *, everything: bool = False) -> bytes:
        content = bytearray(self.durable)
        for operation in self.unsynced:
            if operation.call == Call.TRUNCATE:
                if everything or (keep and keep.random() < 0.5):
                    del content[operation.position :]
                continue
            for start in range(0, len(operation.data), SECTOR_BYTES):
                if everything or (keep and keep.random() < 0.5):
                    sector = operation.data[start : start + SECTOR_BYTES]
                    position = operation.position + start
                    content.extend(bytes(max(0, position + len(sector) - len(content))))
                    content[position : position + len(sector)] = sector
        return bytes(content)


class CrashImages:
    """The states in which a power cut may leave the folder, going forward through recorded operations."""

    def __init__(self, folder: Path, operations: Sequence[Operation]) -> None:
        self._folder = folder
        self._operations = operations
        self._done = 0
        self._files: dict[int, _File] = {}
        self._durable: dict[Path, int] = {}  # names that are certain
        self._names: list[Operation] = []  # and what happened to names since
        self._now: dict[Path, int] = {}

    def advance(self, count: int) -> None:
        """Go on to behind the first `count` operations."""
        for operation in self._operations[self._done : count]:
            self._apply(operation)
        self._done = max(self._done, count)

    def _apply(self, operation: Operation) -> None:
        match operation.call:
            case Call.WRITE | Call.TRUNCATE:
                self._files[operation.file].unsynced.append(operation)
            case Call.SYNC if operation.file in self._files:
                file = self._files[operation.file]
                file.durable, file.unsynced = file.image(None, everything=True), []
            case Call.SYNC:
                folder = operation.path
                self._names_through(self._durable, [o for o in self._names if o.path.parent == folder])
                self._names = [o for o in self._names if o.path.parent != folder]
            case _:
                if operation.call == Call.CREATE:
                    self._files[operation.file] = _File()
                if operation.call == Call.RENAME:
                    operation = Operation(
                        Call.RENAME, operation.path, self._now[operation.path], 0, b"", operation.target
                    )
                self._names.append(operation)
                self._names_through(self._now, [operation])

    @staticmethod
    def _names_through(names: dict[Path, int], operations: Sequence[Operation]) -> None:
        for operation in operations:
            if operation.call == Call.CREATE:
                names[operation.path] = operation.file
            elif operation.call == Call.REMOVE:
                names.pop(operation.path, None)
            elif operation.target is not None:
                names.pop(operation.path, None)
                names[operation.target] = operation.file

    def write(self, target: Path, *, seed: int | None = None, everything: bool = False) -> None:
        """Write one image into the empty folder `target`: nothing that is not synced, all of it, or some by `seed`."""
        keep = None if seed is None else random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        names = dict(self._durable)
        self._names_through(names, [o for o in self._names if everything or (keep and keep.random() < 0.5)])
        for path, number in names.items():
            place = target / path.relative_to(self._folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self._files[number].image(keep, everything=everything))
