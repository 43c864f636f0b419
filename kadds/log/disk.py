"""The disk: every call by which the log changes files, in one place, so that tests can put faults between.

An fsync that fails is never tried again: after the error the kernel may have dropped the pages and say "done" the next
time (PostgreSQL, 2018). The log stops and a restart reads what is really there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kadds.api.errors import CorruptLogError, NoSpaceError

_VECTOR_MAX = 1000  # buffers in one writev; Linux takes 1024


class Disk:
    """The real disk."""

    def create(self, path: Path) -> int:
        """A new file, open for appending and reading; its name is durable once the folder is synced."""
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(error, path) from error

    def append(self, descriptor: int, parts: Sequence[Any]) -> int:
        """Write all parts at the end of an append-only descriptor; how many bytes.

        Raises NoSpaceError where the disk is full; the caller cuts the file back to what it was.
        """
        total = 0
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        while views:
            try:
                written = self._write(descriptor, views[:_VECTOR_MAX])
            except OSError as error:
                raise write_error(error) from error
            total += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]
        return total

    def sync(self, descriptor: int, path: Path) -> None:
        """Make the file's bytes durable; CorruptLogError if the disk cannot say that they are."""
        try:
            self._flush(descriptor)
        except OSError as error:
            raise CorruptLogError(
                f"the disk did not confirm a write: {error.strerror}",
                where=str(path),
                hint="look at the machine's kernel log and disk; start Kadds again: what was not acknowledged is read "
                "again from its source",
            ) from error

    def _write(self, descriptor: int, views: Sequence[memoryview]) -> int:
        """One call of the operating system; it may write less than it was given."""
        return os.writev(descriptor, views)

    def _flush(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Make new and removed names of a folder durable."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise write_error(error, folder) from error
        try:
            self.sync(descriptor, folder)
        finally:
            os.close(descriptor)

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut a file back to `length` bytes."""
        try:
            os.ftruncate(descriptor, length)
        except OSError as error:
            raise write_error(error) from error

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing; durable once the folder is synced."""
        try:
            source.replace(target)
        except OSError as error:
            raise write_error(error, target) from error

    def remove(self, path: Path) -> None:
        """Remove a file that may be gone already."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, path) from error

    def free_bytes(self, folder: Path) -> int:
        """The room left for this process on the folder's file system."""
        try:
            facts = os.statvfs(folder)
        except OSError as error:
            raise write_error(error, folder) from error
        return facts.f_bavail * facts.f_frsize


def write_error(error: OSError, path: Path | None = None) -> NoSpaceError | CorruptLogError:
    """The error of ours for a failed write."""
    where = str(path) if path else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(
            f"the disk takes no more bytes: {error.strerror}",
            where=where,
            hint="make room on the log's file system; intake goes on by itself",
        )
    return CorruptLogError(
        f"writing failed: {error.strerror}", where=where, hint="look at the machine's kernel log and disk"
    )
