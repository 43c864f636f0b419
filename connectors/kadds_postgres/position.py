"""Places in PostgreSQL's write-ahead log: LSNs as numbers, as text, as sequences, and the lineage they belong to.

A transaction's place is the **end** LSN of its commit record: no two commits share one, and a stream that is started
there sends what begins at or behind it. Everything whose place is at or below a recorded LSN is in the log.
"""

from __future__ import annotations

import struct

from kadds.api.position import Position

PAGE_BYTES = 8192
_PAGE_HEADER_BYTES = 24
_FIRST_PAGE_HEADER_BYTES = 40  # of each segment of the write-ahead log

#: The sort key of what has no place in the stream: rows of a snapshot, notes about the capture itself.
NOWHERE = bytes(8)


def lsn_text(lsn: int) -> str:
    """`16/B374D848`, as administrators write it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """What `lsn_text` wrote, as the server does."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def sort_key(lsn: int) -> bytes:
    """8 bytes, big endian."""
    return struct.pack(">Q", lsn)


def sequence(generation: int, number: int) -> bytes:
    """4 bytes of generation, 8 bytes of an LSN or of a chunk's number, big endian."""
    return struct.pack(">IQ", generation, number)


def split_sequence(data: bytes) -> tuple[int, int]:
    """What `sequence` wrote."""
    generation, number = struct.unpack(">IQ", data)
    return generation, number


def position(lineage: str, lsn: int) -> Position:
    """The place as other parts of Kadds know it."""
    return Position(lineage, sort_key(lsn), lsn_text(lsn))


def reachable(lsn: int, segment_bytes: int) -> int:
    """The place that a reader of everything before `lsn` comes to.

    The next record after a full page begins behind the page's header, while the record before ended at its start.
    """
    if lsn % segment_bytes == _FIRST_PAGE_HEADER_BYTES:
        return lsn - _FIRST_PAGE_HEADER_BYTES
    return lsn - _PAGE_HEADER_BYTES if lsn % PAGE_BYTES == _PAGE_HEADER_BYTES else lsn
