"""One session of a source: from what the log remembers, over the snapshots that are missing, into the stream.

What is made on the server is in the log before. A session that is killed at any place leaves the log in a state from
which the next one knows what on the server is its own, and what has to be done again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psycopg

from kadds.api.change import Control, ControlKind
from kadds.api.connector import Inlet
from kadds.api.errors import GapError, KaddsError, RefusedError, RetryableError
from kadds.api.schema import Table
from kadds_postgres import publication, slot
from kadds_postgres.catalog import Catalog, CatalogTable
from kadds_postgres.channel import Channel, Channels
from kadds_postgres.errors import as_ours
from kadds_postgres.names import quoted
from kadds_postgres.position import lsn_text
from kadds_postgres.publication import Publication, literal
from kadds_postgres.receiver import Receiver
from kadds_postgres.remembered import Remembered
from kadds_postgres.resume import Captured, Phase, StreamState
from kadds_postgres.server import Server
from kadds_postgres.settings import PostgresSourceSettings
from kadds_postgres.settings import Snapshot as When
from kadds_postgres.slot import Slot
from kadds_postgres.snapshot import Snapshot, settle
from kadds_postgres.stream import Asked, Stream

_LOOK_SECONDS = 0.05  # a StopSignal cannot wake the wait for a message


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
        self._log = Remembered(inlet)

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
            self._log.load()

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
                if self._log.state.phase is not Phase.STREAMING or gap is not None:
                    self._begin(sql, replication, server, gap)
                else:
                    self._go_on(sql, replication, server)
                sql.close()
                self._follow(replication, server)

    # ------------------------------------------------------------------------------------------ generations

    def _begin(self, sql: Channel, replication: Channel, server: Server, gap: GapError | None) -> None:
        """A new slot and a snapshot of every table."""
        before = self._log.state
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
        self._log.state = self._made(Phase.STREAMING, server, lsn)
        self._note_progress(lsn, {"phase": "streaming"})

    def _intend(self, server: Server, gap: GapError | None) -> None:
        """Say in the log, before anything is made on the server, that a generation begins."""
        before = self._log.state
        generation = before.generation + 1
        controls = [Control(ControlKind.PROGRESS, 0, None, {"phase": "snapshot", "generation": generation})]
        if gap is not None:
            facts = {"reason": gap.message, "from": lsn_text(before.lsn), "lineage": before.lineage, "copied": True}
            controls.append(Control(ControlKind.GAP, 1, None, facts))
        self._log.state = StreamState(
            Phase.SNAPSHOT, generation, self._slot, self._publication, server.lineage, server.insert_lsn, self._reader
        )
        settle(self._log.say(0, controls), self._stopping)

    def _drop_slot(self, sql: Channel, server: Server) -> None:
        """Drop the slot of the generation before; what somebody else has made under its name stays."""
        before = self._log.state
        if not before.slot:
            return
        slot.let_go(sql, before.slot, before.reader, self._stopping)
        found = Slot.find(sql, before.slot)
        if found is None:
            return
        if slot.is_ours(found, before, server):
            self._log.stream.resume()  # FencedError, where a newer session of this log has made it
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
            self._log.state = replace(self._log.state, phase=Phase.NOTHING, slot="")
            settle(self._log.say(1, [Control(ControlKind.PROGRESS, 0, None, {"phase": "nothing"})]), self._stopping)
            raise slot.foreign(found) from error

    def _made(self, phase: Phase, server: Server, lsn: int) -> StreamState:
        return StreamState(
            phase, self._log.state.generation, self._slot, self._publication, server.lineage, lsn, self._reader
        )

    def _go_on(self, sql: Channel, replication: Channel, server: Server) -> None:
        """Check that nothing is missing, and copy tables that are new."""
        state = self._log.state
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
        self._log.state = self._made(Phase.STREAMING, server, state.lsn)
        catalog = Catalog(sql, via_root=self._via_root)
        current = self._current(catalog)
        known = self._log.tables.tables if self._log.tables.generation == state.generation else {}
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
        facts = {"reason": reason, "from": lsn_text(lsn), "lineage": self._log.state.lineage, "copied": True}
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
        generation = self._log.state.generation
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
                snapshot.copy(table, emptied=generation > 1 or self._log.tables.uncopied)
        kept = self._log.tables.tables if self._log.tables.generation == generation and captured_from else {}
        self._captured({**kept, **{table.oid: _captured(table, captured_from) for table in found}})

    def _captured(self, tables: dict[int, Captured], gaps: Sequence[Control] = ()) -> None:
        """Note which tables are captured, and wait until that is on disk."""
        uncopied = self._log.tables.uncopied or self._settings.snapshot is When.NEVER
        settle(self._log.note_tables(tables, gaps, uncopied=uncopied), self._stopping)

    def _copy_only(self, sql: Channel, server: Server) -> None:
        """`snapshot: only`: the rows that are there, and then nothing but progress."""
        state = self._log.state
        if state.phase is Phase.STREAMING:
            raise RefusedError(
                f"this log streams from slot {state.slot}, which would hold write-ahead log for ever",
                hint="`snapshot: only` needs a source that has not streamed: `kadds source remove --drop-slot`",
            )
        if state.phase is not Phase.COPIED:
            self._slot = self._publication = ""
            self._drop_slot(sql, server)
            self._intend(server, None)
        same = self._log.tables.generation == self._log.state.generation
        known = self._log.tables.tables if same else {}
        missing = [table for table in self._wanted if not table.incarnation or int(table.incarnation) not in known]
        lsn = server.insert_lsn
        if missing:
            self._copy(Catalog(sql, via_root=self._via_root), None, lsn, server, missing, captured_from=lsn)
        self._log.state = self._made(Phase.COPIED, server, max(lsn, self._log.state.lsn))
        sql.close()
        self._note_progress(self._log.state.lsn, {"phase": "copied"})
        while not self._stopping.wait(_LOOK_SECONDS):
            if self._asked.lsn > self._log.state.lsn:
                self._log.state = self._made(Phase.COPIED, server, self._asked.lsn)
                self._note_progress(self._log.state.lsn, {"phase": "copied"})

    # ------------------------------------------------------------------------------------------ the stream

    def _note_progress(self, lsn: int, facts: dict[str, Any]) -> None:
        """Say that everything up to `lsn` has been read, and wait until that is on disk."""
        settle(self._log.append_progress(lsn, facts, self._log.state), self._stopping)

    def _follow(self, replication: Channel, server: Server) -> None:
        """Stream until asked to stop, or until the log is where the copies of added tables ended."""
        name = literal(replication, quoted(self._publication))
        lsn = self._log.state.lsn
        try:
            replication.begin_copy(
                f"START_REPLICATION SLOT {quoted(self._slot)} LOGICAL {lsn_text(lsn)} "
                f"(proto_version '1', publication_names {name})"
            )
            receiver = Receiver(replication, server.sender_timeout_seconds, lsn)
            try:
                Stream(
                    self._log,
                    receiver,
                    lsn,
                    look=self.look,
                    asked=self._asked,
                    stopping=self._stopping,
                    progress_interval_seconds=self._settings.progress_interval_seconds,
                ).run()
            finally:
                receiver.stop()
        except (psycopg.Error, OSError, KaddsError) as error:
            cause = error.__cause__ if isinstance(error, KaddsError) else error
            if not isinstance(cause, (psycopg.Error, OSError)):
                raise
            self._log.stream.resume()  # FencedError, where a newer session of this log has taken the slot over
            raise self._translated(cause) from cause

    def _translated(self, error: psycopg.Error | OSError) -> KaddsError:
        """An error of the connection that streams, as a gap where it is one."""
        state, text = getattr(error, "sqlstate", None), str(error)
        if state == "42704" and "publication" in text:
            return _no_publication(self._publication)
        if state in ("42704", "55000", "58P01") and ("replication slot" in text or "WAL segment" in text):
            return GapError(
                f"replication slot {self._slot} does not have what follows {lsn_text(self._log.state.lsn)} any more: "
                f"{text.splitlines()[0]}",
                where=str(self._settings.url),
                hint=slot.NEW_SNAPSHOT,
            )
        return as_ours(error, self._settings.url)

    def look(self, question: Callable[[Catalog], Any]) -> Any:
        """Ask the catalog while the stream runs."""
        with self._channels.open(self._stopping) as sql:
            return question(Catalog(sql, via_root=self._via_root))


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
