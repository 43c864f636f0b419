"""One session of a source: from what the log remembers, over the snapshots that are missing, into the stream.

What is made on the server is in the log before. A session that is killed at any place leaves the log in a state from
which the next one knows what on the server is its own, and what has to be done again.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import psycopg

from kadds.api.change import Control, ControlKind, Transactions
from kadds.api.connector import Appended, Inlet, OpenTransaction, Producer
from kadds.api.errors import GapError, KaddsError, RefusedError, RetryableError, UnknownInputError
from kadds.api.schema import Table
from kadds_postgres import publication, slot
from kadds_postgres.catalog import Catalog, CatalogTable
from kadds_postgres.channel import Channel, Channels
from kadds_postgres.errors import as_ours
from kadds_postgres.names import quoted
from kadds_postgres.pgoutput import Decoder, Ended, Event, Opened, Piece
from kadds_postgres.position import NOWHERE, lsn_text, sequence, sort_key, split_sequence
from kadds_postgres.publication import Publication, literal
from kadds_postgres.receiver import Receiver
from kadds_postgres.relations import CapturedRelations
from kadds_postgres.resume import Captured, Phase, StreamState, TablesState
from kadds_postgres.server import Server
from kadds_postgres.settings import PostgresSourceSettings
from kadds_postgres.settings import Snapshot as When
from kadds_postgres.slot import Slot
from kadds_postgres.snapshot import Snapshot, settle

_NOTHING = StreamState(Phase.NOTHING, 0, "", "", "")
PIECE_BYTES = 16 << 20  # from here on a transaction goes into the log piece by piece
_LOOK_SECONDS = 0.05  # a StopSignal cannot wake the wait for a message


class Asked:
    """The highest position that somebody waits for; set by any thread."""

    lsn: int = 0


class Session:
    """What one call of `stream` does; `run` returns or raises `Stopping` when asked to stop."""

    def __init__(
        self,
        settings: PostgresSourceSettings,
        channels: Channels,
        tables: Sequence[Table],
        inlet: Inlet,
        asked: Asked,
        names: tuple[str, str],
    ) -> None:
        self._settings = settings
        self._channels = channels
        self._wanted = tables
        self._inlet = inlet
        self._asked = asked
        self._slot, self._publication = names
        self._via_root = settings.publish_via_partition_root
        self._reader = f"kadds {secrets.token_hex(8)}"
        self._stopping = inlet.stopping
        self._stream: Producer = inlet.producer("stream")
        self._notes: Producer = inlet.producer("tables")
        self._load()

    def _load(self) -> None:
        """Where the log stands; FencedError where a newer session has taken over."""
        resume = self._stream.resume()
        self._state = _NOTHING if resume is None else StreamState.decode(resume.state)
        kept = self._notes.resume()
        tables = TablesState(0) if kept is None else TablesState.decode(kept.state)
        self._tables = tables.with_changes(self._state)

    def run(self) -> None:
        """Capture; a gap is repaired by a new generation where the settings say so, and raised otherwise."""
        gap: GapError | None = None
        while not self._stopping.is_set():
            try:
                self._run(gap)
                gap = None
            except slot.ForeignSlotError:
                raise
            except GapError as found:
                if self._settings.snapshot is not When.WHEN_NEEDED or gap is not None:
                    raise
                gap = found
            self._load()

    def _run(self, gap: GapError | None) -> None:
        with self._channels.open(self._stopping) as sql:
            server = Server.ask(sql)
            if self._settings.snapshot is When.ONLY:
                self._copy_only(sql, server)
                return
            if server.standby or server.wal_level != "logical":
                state = "is a standby" if server.standby else f"has wal_level {server.wal_level}"
                raise RefusedError(
                    f"the server {state}", hint="capture from a primary with `wal_level = logical` (needs a restart)"
                )
            with self._channels.open(
                self._stopping, replication="database", application_name=self._reader
            ) as replication:
                if self._state.phase is not Phase.STREAMING or gap is not None:
                    self._begin(sql, replication, server, gap)
                else:
                    self._go_on(sql, replication, server)
                sql.close()
                self._follow(replication, server)

    # ------------------------------------------------------------------------------------------ generations

    def _begin(self, sql: Channel, replication: Channel, server: Server, gap: GapError | None) -> None:
        """A new slot and a snapshot of every table."""
        before = self._state
        found = Slot.find(sql, self._slot)
        if found is not None and before.slot != self._slot:
            raise slot.foreign(found)
        self._drop_slot(sql, server)
        self._intend(server, gap)
        catalog = Catalog(sql, via_root=self._via_root)
        publication.ensure(sql, self._publication, self._current(catalog), server.version, via_root=self._via_root)
        copying = self._settings.snapshot is not When.NEVER
        lsn, exported = self._create_slot(sql, replication, export=copying)
        if copying:
            self._copy(catalog, exported, lsn, server, self._wanted, captured_from=0)
        else:
            self._captured({table.oid: _captured(table, 0) for table in self._current(catalog)})
        self._state = self._made(Phase.STREAMING, server, lsn)
        self._note_progress(lsn, {"phase": "streaming"})

    def _intend(self, server: Server, gap: GapError | None) -> None:
        """Say in the log, before anything is made on the server, that a generation begins."""
        before = self._state
        generation = before.generation + 1
        controls = [Control(ControlKind.PROGRESS, 0, None, {"phase": "snapshot", "generation": generation})]
        if gap is not None:
            facts = {"reason": gap.message, "from": lsn_text(before.lsn), "lineage": before.lineage, "copied": True}
            controls.append(Control(ControlKind.GAP, 1, None, facts))
        self._state = StreamState(
            Phase.SNAPSHOT, generation, self._slot, self._publication, server.lineage, server.insert_lsn, self._reader
        )
        self._say(0, controls)

    def _say(self, number: int, controls: Sequence[Control]) -> None:
        """Append the state before the stream of its generation begins, and wait until it is on disk."""
        transaction = Transactions.one(
            sequence(self._state.generation, number),
            (),
            controls,
            lineage=self._state.lineage,
            sort_key=NOWHERE,
            token=lsn_text(0),
        )
        settle(self._stream.append(transaction, self._state.encode()), self._stopping)

    def _drop_slot(self, sql: Channel, server: Server) -> None:
        """Drop the slot of the generation before; what somebody else has made under its name stays."""
        before = self._state
        if not before.slot:
            return
        slot.let_go(sql, before.slot, before.reader, self._stopping)
        found = Slot.find(sql, before.slot)
        if found is None:
            return
        if slot.is_ours(found, before, server):
            self._stream.resume()  # FencedError, where a newer session of this log has made it
            slot.drop(sql, before.slot)
        elif before.slot == self._slot:
            raise slot.foreign(found)

    def _create_slot(self, sql: Channel, replication: Channel, *, export: bool) -> tuple[int, str]:
        """See `slot.create`; where somebody has made one of this name meanwhile, the intention is withdrawn."""
        try:
            return slot.create(replication, self._slot, export=export)
        except RefusedError as error:
            found = Slot.find(sql, self._slot)
            if found is None or not isinstance(error.__cause__, psycopg.errors.DuplicateObject):
                raise
            self._state = replace(self._state, phase=Phase.NOTHING, slot="")
            self._say(1, [Control(ControlKind.PROGRESS, 0, None, {"phase": "nothing"})])
            raise slot.foreign(found) from error

    def _made(self, phase: Phase, server: Server, lsn: int) -> StreamState:
        return StreamState(
            phase, self._state.generation, self._slot, self._publication, server.lineage, lsn, self._reader
        )

    def _go_on(self, sql: Channel, replication: Channel, server: Server) -> None:
        """Check that nothing is missing, and copy tables that are new."""
        state = self._state
        if (state.slot, state.publication) != (self._slot, self._publication):
            raise RefusedError(
                f"this log reads from slot {state.slot} and publication {state.publication}; now {self._slot} and "
                f"{self._publication} are configured",
                hint="put the names back, or begin anew: `kadds source remove --drop-slot`",
            )
        slot.verify(Slot.find(sql, self._slot), state, server)
        published = Publication.find(sql, self._publication, server.version)
        if published is None:
            raise _no_publication(self._publication)
        self._state = self._made(Phase.STREAMING, server, state.lsn)
        catalog = Catalog(sql, via_root=self._via_root)
        current = self._current(catalog)
        known = self._tables.tables if self._tables.generation == state.generation else {}
        going_on = [table for table in current if _goes_on(known, table)]
        kept = {table.oid: _up_to_date(known[table.oid], table) for table in going_on if table.oid in published.whole}
        if kept != known or state.changed:
            lost = [table.table for table in going_on if table.oid not in kept]
            self._captured(kept, [self._unpublished(table, state.lsn) for table in lost])
        publication.ensure(sql, self._publication, current, server.version, via_root=self._via_root)
        slot.let_go(sql, self._slot, state.reader, self._stopping)
        missing = [table.table for table in current if table.oid not in kept]
        if missing and self._settings.snapshot is When.NEVER:
            self._captured(kept | {table.oid: _captured(table, 0) for table in current if table.oid not in kept})
        elif missing:
            name = f"kadds_copy_{secrets.token_hex(8)}"
            lsn, exported = slot.create(replication, name, export=True, temporary=True)
            self._copy(catalog, exported, lsn, server, missing, captured_from=lsn)
            replication.rows(f"DROP_REPLICATION_SLOT {quoted(name)}")

    def _unpublished(self, table: Table, lsn: int) -> Control:
        reason = f"publication {self._publication} was altered, and has left out changes of the table for some time"
        facts = {"reason": reason, "from": lsn_text(lsn), "lineage": self._state.lineage, "copied": True}
        return Control(ControlKind.GAP, 0, table, facts)

    def _current(self, catalog: Catalog) -> list[CatalogTable]:
        """The wanted tables as they are now."""
        found = catalog.of(int(table.incarnation) for table in self._wanted)
        for table in self._wanted:
            there = found.get(int(table.incarnation))
            if there is None or there.table.qualified_name != table.qualified_name:
                raise RetryableError(
                    "the table has been dropped or renamed; what there is now is looked for again",
                    where=table.qualified_name,
                )
        return [found[int(table.incarnation)] for table in self._wanted]

    # ------------------------------------------------------------------------------------------ copies

    def _copy(
        self,
        now: Catalog,
        exported: str | None,
        lsn: int,
        server: Server,
        tables: Sequence[Table],
        *,
        captured_from: int,
    ) -> None:
        """Copy `tables` as they were at `lsn`, and note what has been copied."""
        generation = self._state.generation
        with self._channels.open(self._stopping) as channel:
            snapshot = Snapshot(
                channel,
                exported,
                now,
                via_root=self._via_root,
                lineage=server.lineage,
                lsn=lsn,
                inlet=self._inlet,
            )
            found = snapshot.tables(tables)
            for table in found:
                snapshot.copy(table, emptied=generation > 1 or self._tables.uncopied)
        kept = self._tables.tables if self._tables.generation == generation and captured_from else {}
        self._captured({**kept, **{table.oid: _captured(table, captured_from) for table in found}})

    def _captured(self, tables: dict[int, Captured], gaps: Sequence[Control] = ()) -> None:
        """Note which tables are captured, and wait until that is on disk."""
        settle(self._note_tables(tables, gaps), self._stopping)

    def _note_tables(self, tables: dict[int, Captured], gaps: Sequence[Control] = ()) -> Future[Appended]:
        uncopied = self._tables.uncopied or self._settings.snapshot is When.NEVER
        self._tables = TablesState(self._state.generation, self._tables.number + 1, tables, uncopied)
        noted = Control(ControlKind.PROGRESS, 0, None, {"tables": len(tables)})
        transaction = Transactions.one(
            sequence(0, self._tables.number),
            (),
            [replace(control, ordinal=ordinal) for ordinal, control in enumerate([noted, *gaps])],
            lineage=self._state.lineage,
            sort_key=NOWHERE,
            token=lsn_text(0),
        )
        return self._notes.append(transaction, self._tables.encode())

    def _copy_only(self, sql: Channel, server: Server) -> None:
        """`snapshot: only`: the rows that are there, and then nothing but progress."""
        state = self._state
        if state.phase is Phase.STREAMING:
            raise RefusedError(
                f"this log streams from slot {state.slot}, which would hold write-ahead log for ever",
                hint="`snapshot: only` needs a source that has not streamed: `kadds source remove --drop-slot`",
            )
        if state.phase is not Phase.COPIED:
            self._slot = self._publication = ""
            self._drop_slot(sql, server)
            self._intend(server, None)
        same = self._tables.generation == self._state.generation
        known = self._tables.tables if same else {}
        missing = [table for table in self._wanted if not table.incarnation or int(table.incarnation) not in known]
        lsn = server.insert_lsn
        if missing:
            self._copy(Catalog(sql, via_root=self._via_root), None, lsn, server, missing, captured_from=lsn)
        self._state = self._made(Phase.COPIED, server, max(lsn, self._state.lsn))
        sql.close()
        self._note_progress(self._state.lsn, {"phase": "copied"})
        while not self._stopping.wait(_LOOK_SECONDS):
            if self._asked.lsn > self._state.lsn:
                self._state = self._made(Phase.COPIED, server, self._asked.lsn)
                self._note_progress(self._state.lsn, {"phase": "copied"})

    # ------------------------------------------------------------------------------------------ the stream

    def _note_progress(self, lsn: int, facts: dict[str, Any]) -> None:
        """Say that everything up to `lsn` has been read, and wait until that is on disk."""
        settle(self._append_progress(lsn, facts, self._state), self._stopping)

    def _append_progress(self, lsn: int, facts: dict[str, Any], state: StreamState) -> Future[Appended]:
        transaction = Transactions.one(
            sequence(state.generation, lsn),
            (),
            [Control(ControlKind.PROGRESS, 0, None, facts)],
            lineage=state.lineage,
            sort_key=sort_key(lsn),
            token=lsn_text(lsn),
        )
        return self._stream.append(transaction, state.at(lsn))

    def _follow(self, replication: Channel, server: Server) -> None:
        """Stream until asked to stop, or until the log is where the copies of added tables ended."""
        name = literal(replication, quoted(self._publication))
        lsn = self._state.lsn
        try:
            replication.begin_copy(
                f"START_REPLICATION SLOT {quoted(self._slot)} LOGICAL {lsn_text(lsn)} "
                f"(proto_version '1', publication_names {name})"
            )
            receiver = Receiver(replication, server.sender_timeout_seconds, lsn)
            try:
                _Stream(self, receiver, server, lsn).run()
            finally:
                receiver.stop()
        except (psycopg.Error, OSError, KaddsError) as error:
            cause = error.__cause__ if isinstance(error, KaddsError) else error
            if not isinstance(cause, (psycopg.Error, OSError)):
                raise
            self._stream.resume()  # FencedError, where a newer session of this log has taken the slot over
            raise self._translated(cause) from cause

    def _translated(self, error: psycopg.Error | OSError) -> KaddsError:
        """An error of the connection that streams, as a gap where it is one."""
        state, text = getattr(error, "sqlstate", None), str(error)
        if state == "42704" and "publication" in text:
            return _no_publication(self._publication)
        if state in ("42704", "55000", "58P01") and ("replication slot" in text or "WAL segment" in text):
            return GapError(
                f"replication slot {self._slot} does not have what follows {lsn_text(self._state.lsn)} any more: "
                f"{text.splitlines()[0]}",
                where=str(self._settings.url),
                hint=slot.NEW_SNAPSHOT,
            )
        return as_ours(error, self._settings.url)

    def look(self, question: Callable[[Catalog], Any]) -> Any:
        """Ask the catalog while the stream runs."""
        with self._channels.open(self._stopping) as sql:
            return question(Catalog(sql, via_root=self._via_root))


class _Stream:
    """The decoding side: messages become appends, and what is on disk is acknowledged, in order.

    It ends where the copies of added tables end. A server before 13.21, 14.18, 15.13, 16.9 or 17.5 may remember that
    such a table is not published, because of a transaction that had written to it before it was; it forgets that when a
    stream begins, and what begins behind the copy has no such transaction any more.
    """

    def __init__(self, session: Session, receiver: Receiver, server: Server, lsn: int) -> None:
        self._session = session
        self._receiver = receiver
        self._state = state = replace(session._state, tables_number=session._tables.number, changed=())
        self._producer = session._stream
        self._relations = CapturedRelations(session._tables.tables, lsn, session.look)
        self._until = max((one.captured_from for one in self._relations.captured.values()), default=0)
        self._decoder = Decoder(
            self._relations, lineage=server.lineage, generation=state.generation, piece_bytes=PIECE_BYTES
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
        stopping = self._session._stopping
        self._progress(self._appended)  # a repeat, which tells whoever waits how far the log is
        try:
            while not stopping.is_set() and not 0 < self._until <= self._durable:
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
                self._appending(lsn, self._producer.append(event, self._state.at(lsn)))
            case Opened():
                self._open = self._producer.begin(event.xid)
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
            settle(self._tables_future, self._session._stopping)
            self._noted()
        changed = {one.oid: one for one in (*self._state.changed, *map(self._relations.recorded, tables))}
        self._state = replace(self._state, changed=tuple(changed.values()))
        self._schema_at = lsn

    def _noted(self) -> None:
        self._tables_future = None
        self._state = replace(self._state, tables_number=self._session._tables.number, changed=())

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
            self._tables_future = self._session._note_tables(self._relations.captured)

    def _progress_if_due(self) -> None:
        """Note how far the server's log has been read where nothing of it is captured."""
        if self._decoder.in_transaction:
            return
        asked = max(self._session._asked.lsn, self._until)
        if asked > self._appended and self._read < asked:
            self._receiver.ask()
        waited = time.monotonic() - self._appended_at
        is_due = waited >= self._session._settings.progress_interval_seconds
        if self._read > self._appended and (is_due or self._appended < asked <= self._read):
            self._progress(self._read)

    def _progress(self, lsn: int) -> None:
        self._appending(lsn, self._session._append_progress(lsn, {}, self._state))

    def _end(self) -> None:
        """Wait for what is on its way, so that the server can be told of it."""
        for _, future in self._waiting:
            future.result()
        self._settle()
        if self._tables_future is not None:
            self._tables_future.result()


def _captured(table: CatalogTable, captured_from: int) -> Captured:
    return Captured(table.oid, table.table, table.described, captured_from)


def _goes_on(known: dict[int, Captured] | Any, table: CatalogTable) -> bool:
    """Whether the stream continues what the log has of `table`.

    Not where it was renamed, which makes another stream, and not where a column was dropped and made again alike: no
    message of the stream would show that.
    """
    before = known.get(table.oid)
    if before is None or before.table.qualified_name != table.table.qualified_name:
        return False
    if before.described != table.described:
        return True
    return all(
        one.attribute is None or one.attribute == other.attribute
        for one, other in zip(before.table.columns, table.table.columns, strict=True)
    )


def _up_to_date(known: Captured, table: CatalogTable) -> Captured:
    """What the log has, with what no message of the stream says: whether a column may be NULL."""
    same = known.described == table.described and known.table.key == table.table.key
    return Captured(known.oid, table.table, known.described, known.captured_from) if same else known


def _no_publication(name: str) -> GapError:
    return GapError(
        f"publication {name} does not exist in a part of the server's log that has not been read: it was dropped, and "
        "the changes of that part cannot be decoded any more, even after it is made again",
        hint=slot.NEW_SNAPSHOT,
    )
