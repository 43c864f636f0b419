"""What a capture keeps in the log in order to go on: written before what it speaks of is done on the server.

`StreamState` goes with every append of the producer `stream` and is small. `TablesState` (the producer `tables`) is as
large as the tables' columns and is written only when it changes. The tables belong to the stream's generation; those of
an earlier one mean nothing any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from kadds.api.schema import Table
from kadds_postgres.position import lsn_number, lsn_text


class Phase(StrEnum):
    """How far a generation has come."""

    NOTHING = "nothing"  # no session has come as far as saying what it intends
    SNAPSHOT = "snapshot"  # a slot may have been made; if there is one it is ours, and starts again
    STREAMING = "streaming"  # the slot holds what is missing behind `lsn`
    COPIED = "copied"  # `snapshot: only`: the rows are in the log, and there is no slot


@dataclass(frozen=True)
class StreamState:
    """Where the stream stands. Everything whose commit ended at or below `lsn` is in the log.

    `generation` rises with each new slot. `reader` names the session that wrote this, as its connection is called.
    """

    phase: Phase
    generation: int
    slot: str
    publication: str
    lineage: str
    lsn: int = 0
    reader: str = ""

    def at(self, lsn: int) -> bytes:
        """The bytes to keep with an append that ends at `lsn`."""
        return replace(self, lsn=lsn).encode()

    def encode(self) -> bytes:
        """JSON; the LSN as text, for people."""
        return json.dumps({**self.__dict__, "lsn": lsn_text(self.lsn)}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> StreamState:
        """What `encode` wrote."""
        plain = json.loads(data)
        return cls(**{**plain, "phase": Phase(plain["phase"]), "lsn": lsn_number(plain["lsn"])})


Described = tuple[str, int, int]  # name, type's oid, type's modifier: a column as a Relation message has it


@dataclass(frozen=True)
class Captured:
    """A table that is captured: as the log has it at this place of the stream.

    `captured_from`: rows of transactions whose commit record starts below it are in the table's snapshot.
    """

    oid: int
    table: Table
    described: tuple[Described, ...]
    captured_from: int = 0

    def to_json(self) -> list[Any]:
        """For the log."""
        return [self.oid, self.table.to_json(), self.described, self.captured_from]

    @classmethod
    def from_json(cls, plain: Sequence[Any]) -> Captured:
        """What `to_json` wrote."""
        described = tuple((name, oid, modifier) for name, oid, modifier in plain[2])
        return cls(plain[0], Table.from_json(plain[1]), described, plain[3])


@dataclass(frozen=True)
class TablesState:
    """The captured tables by oid, of one generation; `number` rises with each writing."""

    generation: int
    number: int = 0
    tables: Mapping[int, Captured] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON."""
        tables = [captured.to_json() for captured in self.tables.values()]
        return json.dumps([self.generation, self.number, tables], separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> TablesState:
        """What `encode` wrote."""
        generation, number, tables = json.loads(data)
        captured = map(Captured.from_json, tables)
        return cls(generation, number, {one.oid: one for one in captured})
