"""Journal files: the open tail of the log, appended by one thread, read by any."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Self

import pyarrow as pa

from kadds.api.errors import CorruptLogError
from kadds.log.disk import Disk
from kadds.log.frame import FILE_HEADER_BYTES, EntryHeader, FileHeader, FileKind, Identity, Scanned, body_holds, scan


class JournalFile:
    """One file of entries, open for reading; for appending too where it was made by this process.

    The descriptor lives as long as the object, so a reader may go on while the file is unlinked.
    """

    def __init__(self, path: Path, descriptor: int, header: FileHeader, size: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.header = header
        self.size = size  # durable bytes
        self._closer = weakref.finalize(self, os.close, descriptor)

    @property
    def number(self) -> int:
        """Its place among the files of its kind."""
        return self.header.number

    @classmethod
    def create(cls, path: Path, disk: Disk, kind: FileKind, identity: Identity, number: int) -> Self:
        """A new file with its header, durable with its name."""
        descriptor = disk.create(path)
        header = FileHeader.new(kind, identity, number)
        file = cls(path, descriptor, header, 0)
        try:
            file.size = disk.append(descriptor, [header.pack()])
            disk.sync(descriptor, path)
            disk.sync_folder(path.parent)
        except BaseException:
            disk.remove(path)
            raise
        return file

    @classmethod
    def open(cls, path: Path, identity_log: bytes | None = None) -> Self:
        """A file that exists, read-only; CorruptLogError if its header is not one of this log."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = FileHeader.unpack(os.pread(descriptor, FILE_HEADER_BYTES, 0), str(path))
            if identity_log is not None and header.identity.log.bytes != identity_log:
                raise CorruptLogError(f"the file belongs to log {header.identity.log}", where=str(path))
            return cls(path, descriptor, header, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def settle(self, disk: Disk) -> None:
        """Make what a crashed process may have left in memory durable, and read from now on what the disk has.

        A crash leaves whole entries that no fdatasync has confirmed. Whoever acts on them (a sink's cursor, a source's
        acknowledgement) must not lose them at the next power cut. The pages are dropped from memory behind the sync,
        since after one that failed they may look like what the disk does not have.
        """
        disk.sync(self.descriptor, self.path)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def reopen_for_append(self, end: int, disk: Disk) -> None:
        """Open it for writing behind byte `end`; what stands there now (a torn tail) is cut off for good."""
        self._closer.detach()
        os.close(self.descriptor)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._closer = weakref.finalize(self, os.close, self.descriptor)
        if end < self.size:
            disk.truncate(self.descriptor, end)
            disk.sync(self.descriptor, self.path)
            self.size = end

    def mapped(self) -> memoryview:
        """All its bytes, without reading them yet; the view keeps the mapping alive."""
        if self.size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(self.descriptor, self.size, prot=mmap.PROT_READ))

    def scan(self) -> Scanned:
        """Its whole entries, and where they end."""
        return scan(self.mapped(), self.header.identity.log)

    def read(self, position: int, length: int) -> tuple[EntryHeader, pa.Buffer]:
        """The entry at `position`, its checksums verified; CorruptLogError if they do not hold."""
        data = os.pread(self.descriptor, length, position)
        header = EntryHeader.unpack(data, 0, self.header.identity.log)
        if header is None or header.entry_bytes != length or not body_holds(data, 0, header):
            raise CorruptLogError(
                f"the entry at byte {position} is not what was written",
                where=str(self.path),
                hint="the bytes on disk have changed since; nothing of this entry is served",
            )
        return header, pa.py_buffer(data)
