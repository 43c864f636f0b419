"""Decoding pgoutput (protocol version 1, values as text) into changes, a column at a time over everything received.

Formats: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html

Order. Each message takes as many ordinals as it has rows, in the order of messages, which is that of commits. A row is
decoded together with all rows of its table's shape, and finds its place again by its ordinal.

A transaction is named by the LSN behind its commit record: unique, rising, and where START_REPLICATION goes on with
what follows it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kadds.api.change import ChangeBatch, Control, Transactions
from kadds.api.errors import UnknownInputError
from kadds_postgres.facts import (
    commit_lsns,
    committed_at,
    end_lsns,
    facts_of_few,
    lsn_key,
    lsn_text,
    transaction_facts,
    xids,
)
from kadds_postgres.few import Few
from kadds_postgres.messages import BEGIN, COMMIT, MessageDecoder
from kadds_postgres.relation import Relation, RelationColumn, RelationMessage, Relations
from kadds_postgres.wire import Block

__all__ = [
    "Decoder",
    "Ended",
    "Event",
    "Opened",
    "Piece",
    "Relation",
    "RelationColumn",
    "RelationMessage",
    "Relations",
]

#: A block's places are 32-bit in Arrow: 2 GiB, of which one message may take half.
_BLOCK_BYTES_MAX = 256 << 20
_PIECE_BYTES_MAX = 512 << 20


@dataclass(frozen=True)
class Opened:
    """A transaction too large to wait for begins; its pieces follow."""

    xid: str


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of the opened transaction; the ordinals count from 0 in each piece."""

    changes: tuple[ChangeBatch, ...]
    controls: tuple[Control, ...]


@dataclass(frozen=True)
class Ended:
    """The opened transaction has been committed; the fields are those of `Transactions.one`."""

    sequence: bytes
    sort_key: bytes
    token: str
    committed_at: int  # microseconds since 1970 UTC
    origin: str | None


Event = Transactions | Opened | Piece | Ended


@dataclass
class _Large:
    """The transaction that comes in pieces."""

    xid: str
    commit_lsn: int
    opened: bool = False  # whether any row of it was captured yet
    origin: str | None = None


class Decoder:
    """Turns messages into events; one a session, since Relation messages are sent once a session."""

    def __init__(self, relations: Relations, *, lineage: str, generation: int, piece_bytes: int = 16 << 20) -> None:
        self._messages = MessageDecoder(relations)
        self._lineage = lineage
        self._generation = generation.to_bytes(4, "big")
        self._piece_bytes = min(piece_bytes, _PIECE_BYTES_MAX)
        self._waiting: list[Block] = []  # the last transaction, without its Commit; begins with its Begin
        self._waiting_bytes = 0
        self._large: _Large | None = None
        self.position = 0

    @property
    def in_transaction(self) -> bool:
        """Whether a Begin has come without its Commit."""
        return self._large is not None or bool(self._waiting)

    def decode(self, messages: Sequence[bytes]) -> list[Event]:
        """What these messages complete; `messages` are payloads of CopyData: XLogData with a message of pgoutput.

        An incomplete last transaction is kept until its Commit comes, or goes on in pieces once it is large.
        """
        events: list[Event] = []
        try:
            if messages and not self.in_transaction and (few := self._messages.few(messages)):
                return self._few(few)
            for part in _parts(messages):
                events += self._events(Block.of(part))
        except (IndexError, struct.error) as error:
            raise UnknownInputError("a message ends before its last field", where="pgoutput") from error
        return events

    def _few(self, few: Few) -> list[Event]:
        self.position = few.commits[-1].end_lsn
        commits = [commit for commit in few.commits if commit.rows]
        if not commits:
            return []
        return [Transactions(facts_of_few(commits, self._generation), few.changes, (), self._lineage)]

    def _events(self, block: Block) -> Iterator[Event]:
        if self._large is not None:
            commits = np.flatnonzero(block.kinds == COMMIT)
            end = int(commits[0]) + 1 if len(commits) else len(block)
            self._wait(block[:end])
            if len(commits):
                yield from self._rest_of(self._large)
            elif self._waiting_bytes > self._piece_bytes:
                yield from self._piece_of(self._large, self._taken(), inside=True)
            block = block[end:]
        end = self._end_of_whole(block)
        if end:
            self._wait(block[:end])
            yield from self._whole(self._taken())
        if end < len(block):
            self._wait(block[end:])
            if self._waiting_bytes > self._piece_bytes:
                yield from self._first_piece(self._taken())

    def _end_of_whole(self, block: Block) -> int:
        """Up to which message the transactions are whole, those that wait included."""
        marks = np.flatnonzero((block.kinds == BEGIN) | (block.kinds == COMMIT))
        if len(marks) == 0:
            return 0 if self._waiting else len(block)
        last = int(marks[-1])
        return last if block.kinds[last] == BEGIN else len(block)

    def _wait(self, block: Block) -> None:
        self._waiting.append(block)
        self._waiting_bytes += block.nbytes

    def _taken(self) -> Block:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return Block.joined(waiting)

    def _whole(self, block: Block) -> Iterator[Transactions]:
        """Transactions from Begin to Commit, as one event; those without captured rows are left out."""
        decoded = self._messages.decode(block, None)
        begins, commits = np.flatnonzero(block.kinds == BEGIN), np.flatnonzero(block.kinds == COMMIT)
        if len(commits) == 0:
            return
        self.position = int(end_lsns(block, commits[-1:])[0])
        rows = decoded.totals[commits] - decoded.totals[begins]
        present = np.flatnonzero(rows)
        if len(present) == 0:
            return
        origins = [decoded.origins.get(number + 1) for number in present.tolist()] if decoded.origins else []
        facts = transaction_facts(block, begins[present], commits[present], rows[present], origins, self._generation)
        yield Transactions(facts, decoded.changes, decoded.controls, self._lineage)

    def _first_piece(self, block: Block) -> Iterator[Event]:
        begin = np.zeros(1, np.int64)
        if block.kinds[0] != BEGIN:
            raise UnknownInputError("a transaction does not start with Begin", where="pgoutput")
        self._large = _Large(str(int(xids(block, begin)[0])), int(commit_lsns(block, begin)[0]))
        yield from self._piece_of(self._large, block, inside=False)

    def _piece_of(self, large: _Large, block: Block, *, inside: bool) -> Iterator[Event]:
        """Messages of the large transaction; `inside`: its Begin is not among them."""
        decoded = self._messages.decode(block, large.commit_lsn if inside else None)
        large.origin = next(iter(decoded.origins.values()), large.origin)
        if not decoded.changes and not decoded.controls:
            return
        if not large.opened:
            large.opened = True
            yield Opened(large.xid)
        yield Piece(decoded.changes, decoded.controls)

    def _rest_of(self, large: _Large) -> Iterator[Event]:
        """What waits of the large transaction, which ends with its Commit."""
        block = self._taken()
        yield from self._piece_of(large, block, inside=True)
        self._large = None
        commit = np.array([len(block) - 1])
        self.position = int(end_lsns(block, commit)[0])
        if large.opened:
            key = lsn_key(self.position)
            committed = int(committed_at(block, commit)[0])
            yield Ended(self._generation + key, key, lsn_text(self.position), committed, large.origin)


def _parts(messages: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """The messages, cut into parts that are no larger than a block may be."""
    if sum(map(len, messages)) <= _BLOCK_BYTES_MAX:
        if messages:
            yield messages
        return
    first = size = 0
    for number, length in enumerate(map(len, messages)):
        if size and size + length > _BLOCK_BYTES_MAX:
            yield messages[first:number]
            first, size = number, 0
        size += length
    if size:
        yield messages[first:]
