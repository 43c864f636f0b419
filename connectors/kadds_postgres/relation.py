"""Relation messages of pgoutput, and what the source makes of them.

Format: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html, "Relation".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kadds.api.errors import UnknownInputError
from kadds.api.schema import Table


@dataclass(frozen=True)
class RelationColumn:
    """One column as the stream declares it; generated columns are not among them."""

    in_key: bool  # part of the replica identity; with FULL every column is
    name: str
    type_oid: int
    type_modifier: int


@dataclass(frozen=True)
class RelationMessage:
    """A table as its next rows come: sent before its first row of a session and after each change."""

    oid: int
    schema: str
    name: str
    replica_identity: str  # d(efault), n(othing), f(ull), i(ndex)
    columns: tuple[RelationColumn, ...]

    @classmethod
    def parse(cls, message: bytes) -> RelationMessage:
        """From the bytes of the message, its kind `R` included; UnknownInputError where they end too early."""
        try:
            (oid,) = struct.unpack_from(">I", message, 1)
            schema, at = _name(message, 5)
            name, at = _name(message, at)
            identity, count = struct.unpack_from(">cH", message, at)
            at += 3
            columns = []
            for _ in range(count):
                column, end = _name(message, at + 1)
                columns.append(RelationColumn(bool(message[at] & 1), column, *struct.unpack_from(">Ii", message, end)))
                at = end + 8
        except (struct.error, ValueError, IndexError) as error:
            raise UnknownInputError(
                f"a Relation message cannot be read ({error}): {message[:200]!r}", where="pgoutput"
            ) from error
        return cls(oid, schema or "pg_catalog", name, identity.decode("latin-1"), tuple(columns))


def _name(message: bytes, start: int) -> tuple[str, int]:
    end = message.index(b"\0", start)
    return message[start:end].decode(), end + 1


@dataclass(frozen=True)
class Relation:
    """One version of a captured table, as rows of the stream come.

    `table` has the columns of the Relation message, in its order. Rows of transactions whose commit record starts below
    the LSN `captured_from` are in the table's snapshot already, and are left out.
    """

    oid: int
    table: Table
    captured_from: int = 0


class Relations(Protocol):
    """Who knows the captured tables."""

    def described(self, message: RelationMessage, commit_lsn: int) -> tuple[Relation | None, Mapping[str, Any] | None]:
        """What to do with the table's rows from here on: called for each message that differs from the table's last.

        `commit_lsn` is where the commit record of the message's transaction starts. None: the table is not captured,
        its rows are left out. The second: the facts of a SCHEMA control record, where the table differs from what the
        log has; never where the rows are left out.
        """
        ...
