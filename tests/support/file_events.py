"""What happens to files below a folder, as it happens: so that a test can act at a write and not at a second.

Linux' inotify by ctypes, since no installed library has it. A folder that appears is watched from then on; what
happened in it before that is missed, which is good enough for choosing moments.
"""

import ctypes
import os
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_CREATE, _MOVED_TO, _MODIFY, _CLOSED, _DELETE = 0x100, 0x80, 0x2, 0x8, 0x200
_NAMES = {_CREATE: "created", _MOVED_TO: "renamed", _MODIFY: "written", _CLOSED: "closed", _DELETE: "deleted"}
_FOLDER = 0x40000000
_HEAD = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 16


class FileEvents:
    """Watches folders and all below them, from its making on."""

    def __init__(self, *folders: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watched: dict[int, Path] = {}
        for folder in folders:
            self._watch(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _watch(self, folder: Path) -> None:
        for path, _, _ in os.walk(folder):
            watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), sum(_NAMES))
            if watch >= 0:  # else it is gone again
                self._watched[watch] = Path(path)

    def until(self, deadline: float) -> Iterator[tuple[str, Path]]:
        """Whether a file is created, written, closed, renamed or deleted, and which, until the monotonic `deadline`."""
        while (left_seconds := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._descriptor], [], [], left_seconds)
            if ready:
                yield from self._read()

    def _read(self) -> Iterator[tuple[str, Path]]:
        data = os.read(self._descriptor, _BUFFER_BYTES)
        start = 0
        while start < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, start)
            name = os.fsdecode(data[start + _HEAD.size : start + _HEAD.size + length].rstrip(b"\0"))
            start += _HEAD.size + length
            if watch not in self._watched:
                continue
            path = self._watched[watch] / name
            if mask & _FOLDER and mask & (_CREATE | _MOVED_TO):
                self._watch(path)
            what = _NAMES.get(mask & sum(_NAMES))
            if what is not None:
                yield what, path
