"""Messages of pgoutput (protocol version 1) as a server sends them: XLogData around Begin, Relation, Insert, …

Written from https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html alone, so that it can
judge a decoder. A cell is text, bytes as they stand on the wire, None for NULL or `UNCHANGED`.
"""

import struct
from collections.abc import Sequence
from types import EllipsisType
from typing import TypeAlias

UNCHANGED = ...
Cell: TypeAlias = str | bytes | EllipsisType | None
EPOCH_MICROSECONDS = 946_684_800_000_000


def sent(message: bytes, lsn: int = 0) -> bytes:
    """The payload of CopyData: XLogData."""
    return b"w" + struct.pack(">QQq", lsn, lsn, 0) + message


def begin(commit_lsn: int, xid: int, committed_at: int = 0) -> bytes:
    """`committed_at` in microseconds since 1970 UTC, here and below."""
    return sent(b"B" + struct.pack(">QqI", commit_lsn, committed_at - EPOCH_MICROSECONDS, xid))


def commit(commit_lsn: int, end_lsn: int, committed_at: int = 0) -> bytes:
    """The end of a transaction."""
    return sent(b"C" + struct.pack(">BQQq", 0, commit_lsn, end_lsn, committed_at - EPOCH_MICROSECONDS))


def origin(name: str, lsn: int = 0) -> bytes:
    """Where the transaction was first made."""
    return sent(b"O" + struct.pack(">Q", lsn) + name.encode() + b"\0")


def relation(
    oid: int, schema: str, name: str, columns: Sequence[tuple[str, bool]], identity: str = "d", type_oid: int = 25
) -> bytes:
    """`columns`: name, and whether it is part of the replica identity."""
    parts = [b"R", struct.pack(">I", oid), schema.encode(), b"\0", name.encode(), b"\0"]
    parts += [identity.encode(), struct.pack(">H", len(columns))]
    for column, in_key in columns:
        parts += [bytes([in_key]), column.encode(), b"\0", struct.pack(">Ii", type_oid, -1)]
    return sent(b"".join(parts))


def row(cells: Sequence[Cell]) -> bytes:
    """TupleData."""
    parts = [struct.pack(">H", len(cells))]
    for cell in cells:
        if cell is None:
            parts.append(b"n")
        elif isinstance(cell, str | bytes):
            data = cell.encode() if isinstance(cell, str) else cell
            parts += [b"t", struct.pack(">I", len(data)), data]
        else:
            parts.append(b"u")
    return b"".join(parts)


def insert(oid: int, cells: Sequence[Cell]) -> bytes:
    """A new row."""
    return sent(b"I" + struct.pack(">I", oid) + b"N" + row(cells))


def update(oid: int, cells: Sequence[Cell], old: Sequence[Cell] | None = None, tag: str = "O") -> bytes:
    """A changed row; `tag` K: of `old` only the key counts."""
    before = b"" if old is None else tag.encode() + row(old)
    return sent(b"U" + struct.pack(">I", oid) + before + b"N" + row(cells))


def delete(oid: int, old: Sequence[Cell], tag: str = "K") -> bytes:
    """A row that is gone."""
    return sent(b"D" + struct.pack(">I", oid) + tag.encode() + row(old))


def truncate(oids: Sequence[int]) -> bytes:
    """Tables emptied together."""
    return sent(b"T" + struct.pack(f">IB{len(oids)}I", len(oids), 0, *oids))


def logical_message(prefix: str, content: bytes, *, transactional: bool = True) -> bytes:
    """What pg_logical_emit_message writes."""
    head = struct.pack(">BQ", transactional, 0) + prefix.encode() + b"\0" + struct.pack(">I", len(content))
    return sent(b"M" + head + content)


def type_message(oid: int, schema: str, name: str) -> bytes:
    """A type of a user, announced before the Relation that uses it."""
    return sent(b"Y" + struct.pack(">I", oid) + schema.encode() + b"\0" + name.encode() + b"\0")
