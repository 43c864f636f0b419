"""What a capture keeps in the log in order to go on: written before what it speaks of is done on the server.

`StreamState` goes with every append of the producer `stream` and is small. `TablesState` (the producer `tables`) is as
large as the tables' columns and is written only when it changes. The tables belong to the stream's generation; those of
an earlier one mean nothing any more.

A change of columns is recorded by an append of the stream, whose state carries the changed table until the other
producer has noted it: a kill between the two neither loses nor repeats the record.
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
    SNAPSHOT = "snapshot"  # a slot may have been made; one that begins behind `lsn` is ours, and is made again
    STREAMING = "streaming"  # the slot holds what is missing behind `lsn`
    COPIED = "copied"  # `snapshot: only`: the rows are in the log, and there is no slot


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
class StreamState:
    """Where the stream stands. Everything whose commit ended at or below `lsn` is in the log.

    `generation` rises with each new slot; in the phase `snapshot` it begins behind `lsn`. `reader` names the session
    that wrote this, as its connection is called. `changed` are the tables that have become something else since the
    note `tables_number` of `TablesState`.
    """

    phase: Phase
    generation: int
    slot: str
    publication: str
    lineage: str
    lsn: int = 0
    reader: str = ""
    tables_number: int = 0
    changed: tuple[Captured, ...] = ()

    def at(self, lsn: int) -> bytes:
        """The bytes to keep with an append that ends at `lsn`."""
        return replace(self, lsn=lsn).encode()

    def encode(self) -> bytes:
        """JSON; the LSN as text, for people."""
        plain = {**self.__dict__, "lsn": lsn_text(self.lsn), "changed": [one.to_json() for one in self.changed]}
        return json.dumps(plain, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> StreamState:
        """What `encode` wrote."""
        plain = json.loads(data)
        changed = tuple(map(Captured.from_json, plain["changed"]))
        return cls(**{**plain, "phase": Phase(plain["phase"]), "lsn": lsn_number(plain["lsn"]), "changed": changed})


@dataclass(frozen=True)
class TablesState:
    """The captured tables by oid, of one generation; `number` rises with each writing.

    `uncopied`: some have been captured without a copy, so the log may have rows of a table that was never copied.
    """

    generation: int
    number: int = 0
    tables: Mapping[int, Captured] = field(default_factory=dict)
    uncopied: bool = False

    def with_changes(self, stream: StreamState) -> TablesState:
        """With what the stream has recorded since this was written, and this lacks."""
        if (self.generation, self.number) != (stream.generation, stream.tables_number):
            return self
        return replace(self, tables={**self.tables, **{one.oid: one for one in stream.changed}})

    def encode(self) -> bytes:
        """JSON."""
        tables = [captured.to_json() for captured in self.tables.values()]
        plain = [self.generation, self.number, tables, self.uncopied]
        return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> TablesState:
        """What `encode` wrote."""
        generation, number, tables, uncopied = json.loads(data)
        captured = map(Captured.from_json, tables)
        return cls(generation, number, {one.oid: one for one in captured}, uncopied)
