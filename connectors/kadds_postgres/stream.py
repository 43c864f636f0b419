"""The decoding side of a session: messages become appends, and what is on disk is acknowledged, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from kadds.api.change import Control, ControlKind, Transactions
from kadds.api.connector import Appended, OpenTransaction, StopSignal
from kadds.api.errors import UnknownInputError
from kadds_postgres.catalog import Catalog
from kadds_postgres.pgoutput import Decoder, Ended, Event, Opened, Piece
from kadds_postgres.position import split_sequence
from kadds_postgres.receiver import Receiver
from kadds_postgres.relations import CapturedRelations
from kadds_postgres.remembered import Remembered
from kadds_postgres.snapshot import settle

PIECE_BYTES = 16 << 20  # from here on a transaction goes into the log piece by piece
_LOOK_SECONDS = 0.05  # a StopSignal cannot wake the wait for a message


class Asked:
    """The highest position that somebody waits for; set by any thread."""

    lsn: int = 0


class Stream:
    """One stream from `lsn` on, over a receiver that has begun it; `look` asks the catalog while it runs.

    It ends where the copies of added tables end. A server before 13.21, 14.18, 15.13, 16.9 or 17.5 may remember that
    such a table is not published, because of a transaction that had written to it before it was; it forgets that when a
    stream begins, and what begins behind the copy has no such transaction any more.
    """

    def __init__(
        self,
        log: Remembered,
        receiver: Receiver,
        lsn: int,
        *,
        look: Callable[[Callable[[Catalog], Any]], Any],
        asked: Asked,
        stopping: StopSignal,
        progress_interval_seconds: float,
    ) -> None:
        self._log = log
        self._receiver = receiver
        self._asked = asked
        self._stopping = stopping
        self._progress_interval_seconds = progress_interval_seconds
        self._state = state = replace(log.state, tables_number=log.tables.number, changed=())
        self._relations = CapturedRelations(log.tables.tables, lsn, look)
        self._until = max((one.captured_from for one in self._relations.captured.values()), default=0)
        self._decoder = Decoder(
            self._relations, lineage=state.lineage, generation=state.generation, piece_bytes=PIECE_BYTES
        )
        self._waiting: deque[tuple[int, Future[Appended]]] = deque()
        self._open: OpenTransaction | None = None
        self._appended = lsn
        self._durable = lsn
        self._appended_at = time.monotonic()
        self._read = lsn  # everything up to here has been decoded, captured or not
        self._schema_at: int | None = None  # the tables are to be noted once this is on disk
        self._tables_future: Future[Appended] | None = None

    def run(self) -> None:
        """Until asked to stop, or to the end named above; raises what ended the connection, or what the log says."""
        self._progress(self._appended)  # a repeat, which tells whoever waits how far the log is
        try:
            while not self._stopping.is_set() and not 0 < self._until <= self._durable:
                received = self._receiver.take(_LOOK_SECONDS)
                if received.messages:
                    for event in self._decoder.decode(received.messages):
                        self._append(event)
                if not self._decoder.in_transaction:
                    self._read = max(self._read, received.idle_lsn, self._decoder.position)
                self._settle()
                self._progress_if_due()
            self._end()
        finally:
            if self._open is not None:
                self._open.abort()

    def _append(self, event: Event) -> None:
        match event:
            case Transactions():
                (last,) = event.facts.column("sequence")[-1:]
                lsn = split_sequence(last.as_py())[1]
                self._note_schemas(event.controls, lsn)
                self._appending(lsn, self._log.stream.append(event, self._state.at(lsn)))
            case Opened():
                self._open = self._log.stream.begin(event.xid)
            case Piece():
                self._note_schemas(event.controls, self._decoder.position + 1)
                self._large().add(event.changes, event.controls)
            case Ended():
                lsn = split_sequence(event.sequence)[1]
                future = self._large().commit(
                    event.sequence,
                    self._state.at(lsn),
                    lineage=self._state.lineage,
                    sort_key=event.sort_key,
                    token=event.token,
                    committed_at=event.committed_at,
                    origin=event.origin,
                )
                self._open = None
                self._appending(lsn, future)

    def _large(self) -> OpenTransaction:
        if self._open is None:
            raise UnknownInputError("a piece of a transaction came before its beginning")
        return self._open

    def _appending(self, lsn: int, future: Future[Appended]) -> None:
        self._waiting.append((lsn, future))
        self._appended = max(self._appended, lsn)
        self._appended_at = time.monotonic()

    def _note_schemas(self, controls: Sequence[Control], lsn: int) -> None:
        """Let the state carry the tables that `controls` change, until they are noted."""
        tables = [one.table for one in controls if one.kind is ControlKind.SCHEMA and one.table is not None]
        if not tables:
            return
        if self._tables_future is not None:
            settle(self._tables_future, self._stopping)
            self._noted()
        changed = {one.oid: one for one in (*self._state.changed, *map(self._relations.recorded, tables))}
        self._state = replace(self._state, changed=tuple(changed.values()))
        self._schema_at = lsn

    def _noted(self) -> None:
        self._tables_future = None
        self._state = replace(self._state, tables_number=self._log.tables.number, changed=())

    def _settle(self) -> None:
        """Acknowledge what is on disk; an append that failed is raised."""
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            lsn, future = waiting.popleft()
            future.result()
            self._durable = max(self._durable, lsn)
            self._receiver.acknowledge(self._durable)
        if self._tables_future is not None and self._tables_future.done():
            self._tables_future.result()
            self._noted()
        if self._schema_at is not None and self._durable >= self._schema_at:
            self._schema_at = None
            self._tables_future = self._log.note_tables(self._relations.captured)

    def _progress_if_due(self) -> None:
        """Note how far the server's log has been read where nothing of it is captured."""
        if self._decoder.in_transaction:
            return
        asked = max(self._asked.lsn, self._until)
        if asked > self._appended and self._read < asked:
            self._receiver.ask()
        waited = time.monotonic() - self._appended_at
        is_due = waited >= self._progress_interval_seconds
        if self._read > self._appended and (is_due or self._appended < asked <= self._read):
            self._progress(self._read)

    def _progress(self, lsn: int) -> None:
        self._appending(lsn, self._log.append_progress(lsn, {}, self._state))

    def _end(self) -> None:
        """Wait for what is on its way, so that the server can be told of it."""
        for _, future in self._waiting:
            future.result()
        self._settle()
        if self._tables_future is not None:
            self._tables_future.result()
