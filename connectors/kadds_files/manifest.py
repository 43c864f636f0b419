"""The manifest of a subscription: which files are complete, and the cursors behind them. docs/FILES_FORMAT.md says how
it is read.

It is a folder of parts, each a file of JSON lines that only grows. A line counts when it ends with a newline and its
checksum holds; it is written after its files and is the commit of a delivery. Only the last line of the last part can
be torn by a crash: `Manifest.open` cuts it off. Damage elsewhere is named and never served.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from kadds.api.errors import CorruptLogError, FencedError, RetryableError
from kadds_files.tree import Folder

FORMAT = 0
PART_BYTES_MAX = 8 << 20
_CHECKSUM = b',"crc32":"'


class Manifest:
    """A subscription's manifest, open for appending. The caller holds the claim's lock."""

    def __init__(self, folder: Folder, subscription: str) -> None:
        self.epoch = 0
        self.cursors: dict[str, str] = {}
        self._folder = folder
        self._subscription = subscription
        self._plans: set[str] = set()
        self._descriptor = -1
        self._size = 0
        self._part = 0
        self._broken = False

    @classmethod
    def open(cls, folder: Folder, subscription: str) -> Manifest:
        """Read the last part, cut off what a crash left behind it; make the first part where there is none."""
        manifest = cls(folder, subscription)
        parts = part_names(folder)
        if parts:
            manifest._part = int(parts[-1].split(".")[0])
            manifest._open_part(parts[-1])
        else:
            manifest._next_part()
        return manifest

    def has_plan(self, plan: str, names_exist: bool) -> bool:
        """Whether the deliveries of `plan` are complete.

        Older parts are read only where files of the plan are there (`names_exist`): a plan is finished before the next
        one begins, so that one without files is in the last part.
        """
        if plan in self._plans:
            return True
        if not names_exist:
            return False
        earlier = part_names(self._folder)[:-1]
        return any(line.get("plan") == plan for part in earlier for line in lines(self._folder.read(part), part))

    def expect_as_left(self) -> None:
        """Raise where nothing may be added: RetryableError after a write of unknown outcome, FencedError where the part
        is not as this process left it."""
        if self._broken:
            raise RetryableError("the outcome of an earlier write is not known", hint="claim the subscription again")
        if os.fstat(self._descriptor).st_size != self._size:
            raise FencedError("another process has written to the manifest", hint="run one Kadds over one folder")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line and wait for the disk; where that fails, nothing more is added until it is opened again."""
        self.expect_as_left()
        data = encoded(line)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
        except OSError:
            self._broken = True
            with suppress(OSError):  # what is left of the line is cut off by the next opening at the latest
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
            raise
        self._size += len(data)
        self._take(line)
        if self._size > PART_BYTES_MAX:
            self._next_part()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _next_part(self) -> None:
        """Begin a part: its first line has all that a claim needs, so that no claim reads the parts before it."""
        self.close()
        self._part += 1
        name = f"{self._part:08d}.jsonl"
        head = {"kind": "part", "format": FORMAT, "subscription": self._subscription, "part": self._part}
        first = encoded({**head, "epoch": self.epoch, "cursors": self.cursors})
        self._folder.write(name, lambda file: file.write(first))
        self._plans.clear()
        self._open_part(name)

    def _open_part(self, name: str) -> None:
        self._descriptor = self._folder.open(name, os.O_RDWR | os.O_APPEND)
        data = self._folder.read(name)
        self._size = 0
        for line, end in lines_with_ends(data, f"{self._folder.path / name}"):
            self._take(line)
            self._size = end
        if self._size == 0:
            raise CorruptLogError("a part of the manifest has no first line", where=str(self._folder.path / name))
        if self._size < len(data):
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)

    def _take(self, line: Mapping[str, Any]) -> None:
        kind = line.get("kind")
        if kind not in ("part", "claim", "cursors", "delivery") or line.get("format", FORMAT) != FORMAT:
            raise CorruptLogError(
                f"the manifest has a line of kind {kind!r}, format {line.get('format')!r}, which is not known here",
                hint="a newer Kadds wrote it; run that version",
            )
        self.epoch = line["epoch"]
        self.cursors.update(line.get("cursors", {}))
        if kind == "delivery":
            self._plans.add(line["plan"])


def part_names(folder: Folder) -> list[str]:
    """The parts, in order."""
    return sorted(name for name in folder.names() if name.endswith(".jsonl") and not name.startswith("."))


def encoded(line: Mapping[str, Any]) -> bytes:
    """A line with its checksum: the CRC-32 of the same JSON without it."""
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()
    return text[:-1] + _CHECKSUM + f'{zlib.crc32(text):08x}"}}\n'.encode()


def decoded(line: bytes) -> dict[str, Any] | None:
    """The line that `encoded` wrote, without its newline; None where it is damaged."""
    body, mark, end = line.rpartition(_CHECKSUM)
    text = body + b"}"
    if not mark or end != f'{zlib.crc32(text):08x}"}}'.encode():
        return None
    found: dict[str, Any] = json.loads(text)
    return found


def lines_with_ends(data: bytes, where: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines that count, each with where it ends; CorruptLogError for damage before the last line."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        line = decoded(data[start:end])
        if line is None:
            if data.find(b"\n", end + 1) >= 0:
                hint = "the disk or a person has changed the file; put back a copy, or deliver anew into another folder"
                raise CorruptLogError(f"line at byte {start} is damaged", where=where, hint=hint)
            return
        yield line, end + 1
        start = end + 1


def lines(data: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The lines that count."""
    for line, _ in lines_with_ends(data, where):
        yield line
