"""The replication slot: it holds the write-ahead log that has not been read yet, and is the only thing that does.

What is not as this log left it (dropped, lost, made again, moved ahead, somebody else's, of another server) is a gap by
name, because the server itself would go on silently from wherever the slot stands.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kadds.api.connector import StopSignal
from kadds.api.errors import GapError, RetryableError, Stopping
from kadds_postgres.channel import Channel, number
from kadds_postgres.names import quoted
from kadds_postgres.position import lsn_number, lsn_text
from kadds_postgres.resume import Phase, StreamState
from kadds_postgres.server import Server

PLUGIN = "pgoutput"
_RELEASE_SECONDS = 5.0  # how long the server may take to notice that a reader is gone
_LOOK_SECONDS = 0.05

_SLOT = """
SELECT slot_name, plugin, database, active_pid, confirmed_flush_lsn, wal_status
FROM pg_catalog.pg_replication_slots WHERE slot_name = $1
"""

NEW_SNAPSHOT = "`snapshot: when_needed` lets the source record the gap and take a new snapshot of every table by itself"


class ForeignSlotError(GapError):
    """The slot was never ours; it is never dropped by us."""


@dataclass(frozen=True)
class Slot:
    """A slot as the server shows it."""

    name: str
    plugin: str | None
    database: str | None
    reader_pid: int  # 0: nobody reads it now
    confirmed_lsn: int
    wal_status: str | None

    @classmethod
    def find(cls, channel: Channel, name: str) -> Slot | None:
        """The slot called `name`, if there is one."""
        row = channel.row(_SLOT, name)
        if row is None:
            return None
        return cls(row[0] or "", row[1], row[2], number(row[3]), lsn_number(row[4] or "0/0"), row[5])


def verify(slot: Slot | None, state: StreamState, server: Server) -> None:
    """GapError unless `slot` still has everything behind `state`."""
    if state.lineage != server.lineage:
        raise GapError(
            f"this is another server, or another history of it: the log has changes of {state.lineage} "
            f"(system identifier/timeline), this is {server.lineage}",
            hint=NEW_SNAPSHOT,
        )
    read = lsn_text(state.lsn)
    if server.insert_lsn < state.lsn:
        raise GapError(
            f"the server's log ends at {lsn_text(server.insert_lsn)}, before {read}, up to which it was read: "
            "it was restored from a copy",
            hint=NEW_SNAPSHOT,
        )
    if slot is None:
        raise GapError(
            f"replication slot {state.slot} is gone, and with it what was written behind {read}", hint=NEW_SNAPSHOT
        )
    if slot.plugin != PLUGIN or slot.database != server.database:
        raise foreign(slot)
    if slot.wal_status == "lost":
        raise GapError(
            f"the server has removed write-ahead log that replication slot {slot.name} still needed behind {read}",
            hint=f"raise max_slot_wal_keep_size; {NEW_SNAPSHOT}",
        )
    if slot.confirmed_lsn > state.lsn:
        raise GapError(
            f"replication slot {slot.name} stands at {lsn_text(slot.confirmed_lsn)}, ahead of {read}, up to which "
            "it was read: it was made again or moved, or another log reads it too",
            hint=NEW_SNAPSHOT,
        )


def is_ours(slot: Slot, state: StreamState, server: Server) -> bool:
    """Whether a slot that bears the name of this log's is this log's, which `state` speaks of last.

    One that was only intended is, if it begins behind that: nobody had one of this name at that moment, and making one
    writes to the server's log.
    """
    if (slot.name, slot.plugin, slot.database) != (state.slot, PLUGIN, server.database):
        return False
    if state.lineage.partition("/")[0] != server.system:
        return False
    return state.phase is Phase.STREAMING or slot.confirmed_lsn > state.lsn


def foreign(slot: Slot) -> ForeignSlotError:
    """The error for a slot that this log has not made."""
    return ForeignSlotError(
        f"replication slot {slot.name} (plugin {slot.plugin}, database {slot.database}) exists, and this log has not "
        "made it",
        hint=f"give the source another `slot:`, or drop it if nobody needs it: "
        f"SELECT pg_drop_replication_slot('{slot.name}')",
    )


def let_go(channel: Channel, name: str, reader: str, stopping: StopSignal) -> None:
    """Wait until nobody reads the slot; RetryableError with the reader's name when that does not come soon.

    `reader` is the session that read it for this log before. It has been fenced there, so it is ended if it lingers.
    """
    until = time.monotonic() + _RELEASE_SECONDS
    while (slot := Slot.find(channel, name)) is not None and slot.reader_pid:
        if reader:
            channel.rows(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
                "WHERE pid = $1::int AND application_name = $2",
                str(slot.reader_pid),
                reader,
            )
        if time.monotonic() >= until:
            raise RetryableError(
                f"replication slot {name} is read by somebody else: {_who(channel, slot.reader_pid)}",
                hint="a slot has one reader; stop that one, or give this source another `slot:`",
            )
        if stopping.wait(_LOOK_SECONDS):
            raise Stopping


def _who(channel: Channel, pid: int) -> str:
    row = channel.row(
        "SELECT usename, application_name, coalesce(client_addr::text, 'a local socket') "
        "FROM pg_catalog.pg_stat_activity WHERE pid = $1::int",
        str(pid),
    )
    if row is None:
        return f"process {pid} of the server"
    return f"process {pid} of the server, user {row[0]}, application {row[1]!r}, from {row[2]}"


def create(channel: Channel, name: str, *, export: bool, temporary: bool = False) -> tuple[int, str]:
    """Make a slot on a replication connection: its consistent point, and the name of its exported snapshot.

    Waits for the transactions that write now to end. The snapshot lives until the connection's next command.
    """
    row = channel.only_row(
        f"CREATE_REPLICATION_SLOT {quoted(name)} {'TEMPORARY ' if temporary else ''}LOGICAL {PLUGIN} "
        f"{'EXPORT_SNAPSHOT' if export else 'NOEXPORT_SNAPSHOT'}"
    )
    return lsn_number(row[1] or "0/0"), row[2] or ""


def drop(channel: Channel, name: str) -> None:
    """Drop it, if it is there."""
    channel.rows(
        "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots "
        "WHERE slot_name = $1",
        name,
    )
