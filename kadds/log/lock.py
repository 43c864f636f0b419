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

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        self.describe()

    def describe(self, **facts: Any) -> None:
        """Write who holds the lock, and where it listens, for those who find it locked."""
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Give it back."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def read_holder(folder: Path) -> dict[str, Any]:
    """What the holder wrote into the lock file (`pid`, `socket`); empty if nobody did."""
    try:
        holder: dict[str, Any] = json.loads((folder / LOCK_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return holder
