"""Frames: how an entry stands in a file, and how a reader tells a whole entry from a torn or damaged one.

Each file begins with a header of 72 bytes, each entry with one of 88. All numbers are little-endian.

    file header   magic 8s · format u16 · kind u16 · reserved u32 · log uuid 16s · epoch u64 · epoch id 8s
                  · file number u64 · created_at u64 (µs since 1970) · checksum u64 (of the bytes before it)
    entry header  magic 4s · kind u8 · flags u8 · format u16 · log uuid 16s · epoch u64 · number u64
                  · first offset u64 · rows u32 · head bytes u32 · body bytes u64 · durable u64
                  · checksum of the body u64 · checksum of the bytes before it u64

`durable` is the length of this file that was known to be on disk when the entry was written. That is what tells a torn
tail (nothing behind it was ever acknowledged) from damage to acknowledged bytes (a later entry counts on them).

The checksum is XXH3 with 64 bits (docs/decisions/0002-checksum.md).
"""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import xxhash

from kadds.api.errors import CorruptLogError

FORMAT = 0
FILE_MAGIC = b"KADDSLOG"
ENTRY_MAGIC = b"KENT"
_FILE = struct.Struct("<8sHHI16sQ8sQQ")
_ENTRY = struct.Struct("<4sBBH16sQQQIIQQQ")
_CHECKSUM = struct.Struct("<Q")
FILE_HEADER_BYTES = _FILE.size + _CHECKSUM.size
ENTRY_HEADER_BYTES = _ENTRY.size + _CHECKSUM.size


class FileKind(IntEnum):
    """What a file of the log holds."""

    MANIFEST = 1
    JOURNAL = 2
    SEGMENT = 3
    FRAGMENTS = 4


class EntryKind(IntEnum):
    """What an entry is."""

    FRAGMENT = 1  # rows of an open transaction; no offsets
    COMMIT = 2  # takes offsets for its own rows and those of its fragments
    ABORT = 3  # the fragments it names are dead
    RECORD = 4  # a record of the manifest
    CLOSED = 5  # the file was closed in order; its durable bytes are all before this entry


def checksum(*parts: Any) -> int:
    """XXH3-64 of the parts, one behind the other; each offers its bytes as a buffer."""
    if len(parts) == 1:
        return int(xxhash.xxh3_64_intdigest(parts[0]))
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return int(state.intdigest())


@dataclass(frozen=True)
class Identity:
    """Which log, and which opening of it, wrote something."""

    log: uuid.UUID
    epoch: int
    epoch_id: bytes  # 8 random bytes: copies of one folder count epochs alike


@dataclass(frozen=True)
class FileHeader:
    """The first bytes of every file of the log."""

    kind: FileKind
    identity: Identity
    number: int
    created_at: int  # µs since 1970

    @classmethod
    def new(cls, kind: FileKind, identity: Identity, number: int) -> Self:
        """A header made now."""
        return cls(kind, identity, number, time.time_ns() // 1000)

    def pack(self) -> bytes:
        """Its 72 bytes."""
        who = self.identity
        plain = _FILE.pack(
            FILE_MAGIC, FORMAT, self.kind, 0, who.log.bytes, who.epoch, who.epoch_id, self.number, self.created_at
        )
        return plain + _CHECKSUM.pack(checksum(plain))

    @classmethod
    def unpack(cls, data: bytes, where: str) -> Self:
        """The header that `data` begins with; CorruptLogError if it is not one of this format."""
        if len(data) < FILE_HEADER_BYTES or data[:8] != FILE_MAGIC:
            raise CorruptLogError("the file does not begin as a file of a Kadds log", where=where)
        _, version, kind, _, log, epoch, epoch_id, number, created = _FILE.unpack_from(data)
        if version != FORMAT:
            raise CorruptLogError(
                f"the file has format {version}, this version reads format {FORMAT}",
                where=where,
                hint="format 0 may change between versions: read it with the version that wrote it "
                "(`kadds log read --json`), and start a new log",
            )
        if checksum(data[: _FILE.size]) != _CHECKSUM.unpack_from(data, _FILE.size)[0]:
            raise CorruptLogError("the checksum of the file's header does not hold", where=where)
        return cls(FileKind(kind), Identity(uuid.UUID(bytes=log), epoch, epoch_id), number, created)


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """What stands before each entry."""

    kind: EntryKind
    epoch: int
    number: int
    first_offset: int
    rows: int
    head_bytes: int
    body_bytes: int
    durable: int
    body_checksum: int

    @property
    def entry_bytes(self) -> int:
        """The length of the whole entry, with this header."""
        return ENTRY_HEADER_BYTES + self.head_bytes + self.body_bytes

    def pack(self, log: uuid.UUID) -> bytes:
        """Its 88 bytes."""
        plain = _ENTRY.pack(
            ENTRY_MAGIC,
            self.kind,
            0,
            FORMAT,
            log.bytes,
            self.epoch,
            self.number,
            self.first_offset,
            self.rows,
            self.head_bytes,
            self.body_bytes,
            self.durable,
            self.body_checksum,
        )
        return plain + _CHECKSUM.pack(checksum(plain))

    @classmethod
    def unpack(cls, data: Any, position: int, log: uuid.UUID) -> EntryHeader | None:
        """The header at `position`, None if no whole header of this log stands there.

        CorruptLogError for a whole header that says what this version does not know.
        """
        if position + ENTRY_HEADER_BYTES > len(data) or bytes(data[position : position + 4]) != ENTRY_MAGIC:
            return None
        (stored,) = _CHECKSUM.unpack_from(data, position + _ENTRY.size)
        if checksum(data[position : position + _ENTRY.size]) != stored:
            return None
        _, kind, flags, version, uuid_bytes, *numbers = _ENTRY.unpack_from(data, position)
        if uuid_bytes != log.bytes:
            return None
        if version != FORMAT or flags or kind not in set(EntryKind):
            raise CorruptLogError(
                f"the entry at byte {position} has kind {kind}, flags {flags}, format {version}, "
                "which this version does not know",
                hint="read it with the version that wrote it",
            )
        epoch, number, first_offset, rows, head_bytes, body_bytes, durable, body = numbers
        return cls(EntryKind(kind), epoch, number, first_offset, rows, head_bytes, body_bytes, durable, body)


@dataclass(frozen=True)
class Scanned:
    """What a scan of a file found: its whole entries, and where they end.

    `damage` is set where bytes that a later entry counts on do not hold; then nothing behind `end` is served.
    """

    entries: Sequence[tuple[int, EntryHeader]]  # (position, header)
    end: int
    damage: str | None


def body_holds(data: Any, position: int, header: EntryHeader) -> bool:
    """Whether the bytes behind the header at `position` are all there and what was written."""
    start, stop = position + ENTRY_HEADER_BYTES, position + header.entry_bytes
    return stop <= len(data) and checksum(data[start:stop]) == header.body_checksum


def scan(data: Any, log: uuid.UUID) -> Scanned:
    """Walk the entries of a file's bytes from its header on, to the first place where no whole entry stands."""
    entries: list[tuple[int, EntryHeader]] = []
    position = FILE_HEADER_BYTES
    while position < len(data):
        header = EntryHeader.unpack(data, position, log)
        if header is None or not body_holds(data, position, header):
            return Scanned(entries, position, _damage(data, position, log))
        entries.append((position, header))
        position += header.entry_bytes
    return Scanned(entries, position, None)


def _damage(data: Any, end: int, log: uuid.UUID) -> str | None:
    """Why the bytes at `end` are damage and not a torn tail; None for a torn tail."""
    raw = bytes(data[end:])
    found = raw.find(ENTRY_MAGIC, 1)
    while found != -1:
        header = EntryHeader.unpack(data, end + found, log)
        if header is not None and header.durable > end and body_holds(data, end + found, header):
            return f"the bytes at {end} were on disk when entry {header.number} was written, and do not hold now"
        found = raw.find(ENTRY_MAGIC, found + 1)
    return None
