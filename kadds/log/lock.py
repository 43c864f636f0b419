"""The lock on a log's folder: one process at a time, and where to reach it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from kadds.api.errors import LockedError

LOCK_NAME = "LOCK"


class FolderLock:
    """An exclusive lock that the operating system gives back when the process ends, however it ends."""

    def __init__(self, folder: Path, *, writable: bool = True) -> None:
        """Take it; LockedError if another process has it. `writable=False` changes no byte of the folder."""
        self._path = folder / LOCK_NAME
        self._writable = writable
        self._descriptor: int | None = None
        if writable:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        elif self._path.exists():
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            return  # a copy of a folder: nobody has ever held it
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            holder = read_holder(folder)
            raise LockedError(
                f"the log is held by process {holder.get('pid', 'unknown')}",
                where=str(folder),
                hint="`kadds status` asks that process; only one process may hold a log folder",
            ) from None
        if writable:
            self.describe()

    def describe(self, **facts: Any) -> None:
        """Write who holds the lock, and where it listens, for those who find it locked."""
        if self._descriptor is None or not self._writable:
            return
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def release(self) -> None:
        """Give it back."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._writable:
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def read_holder(folder: Path) -> dict[str, Any]:
    """What the holder wrote into the lock file (`pid`, `socket`); empty if nobody did."""
    try:
        holder: dict[str, Any] = json.loads((folder / LOCK_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return holder
