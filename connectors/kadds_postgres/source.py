"""PostgreSQL's write-ahead log as a source: what the engine calls."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from psycopg import conninfo

from kadds.api.connector import Finding, Inlet
from kadds.api.errors import RefusedError, RetryableError, Stopping
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds_postgres import check, publication, slot
from kadds_postgres.catalog import Catalog
from kadds_postgres.channel import Channels
from kadds_postgres.errors import translated
from kadds_postgres.names import quoted
from kadds_postgres.position import position, reachable
from kadds_postgres.publication import Publication
from kadds_postgres.server import Server
from kadds_postgres.session import Session
from kadds_postgres.settings import PostgresSourceSettings
from kadds_postgres.slot import Slot
from kadds_postgres.stream import Asked

_LOOK_SECONDS = 0.01
_FLUSH_ROUNDS = 3  # of the server's WAL writer: after these every commit that was visible is on its disk
_NAME_BYTES_MAX = 63


class PostgresSource:
    """A `StreamSource`; the calls may come from several threads."""

    def __init__(self, settings: PostgresSourceSettings) -> None:
        self._settings = settings
        self._channels = Channels(settings)
        self._asked = Asked()
        self._closed = threading.Event()

    @property
    def _names(self) -> tuple[str, str]:
        """The slot and the publication."""
        name = self._settings.slot
        if name is None:
            database = conninfo.conninfo_to_dict(self._settings.url.reveal()).get("dbname") or "postgres"
            name = f"kadds_{re.sub('[^a-z0-9_]', '_', str(database).lower())}"[:_NAME_BYTES_MAX]
        return name, self._settings.publication or name

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        """The wanted tables, in the order of their names; a partitioned one as its root or as its leaves."""
        with self._channels.open() as channel:
            catalog = Catalog(channel, via_root=self._settings.publish_via_partition_root)
            return [found.table for found in catalog.wanted(wanted)]

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        """See `check`; changes nothing."""
        with self._channels.open() as channel:
            return check.check(channel, self._settings, self._names, tables)

    def head(self) -> Position:
        """A position at or past every commit visible now, which the stream comes to without another commit.

        Not every record behind the last commit is on the server's disk, and only those are streamed. A commit that is
        visible is there after three rounds of its WAL writer at the latest (`synchronous_commit = off`).
        """
        with self._channels.open() as channel:
            server = Server.ask(channel)
            if server.standby:
                raise RefusedError("the server is a standby", where=str(self._settings.url))
            wanted = reachable(server.insert_lsn, server.segment_bytes)
            until = time.monotonic() + _FLUSH_ROUNDS * server.wal_writer_delay_seconds
            while server.flush_lsn < wanted and time.monotonic() < until:
                if self._closed.wait(_LOOK_SECONDS):
                    raise RetryableError("the source is closed", where=str(self._settings.url))
                server = Server.ask(channel)
        lsn = min(wanted, reachable(server.flush_lsn, server.segment_bytes))
        self._asked.lsn = max(self._asked.lsn, lsn)
        return position(server.lineage, lsn)

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        """Capture until `inlet.stopping`."""
        with translated(self._settings.url):
            try:
                Session(self._settings, self._channels, tables, inlet, self._asked, self._names).run()
            except Stopping:
                return

    def close(self) -> None:
        """Cut every connection; calls under way fail soon."""
        self._closed.set()
        self._channels.close()

    def remove(self, *, drop_slot: bool) -> Sequence[str]:
        """Take down what was made on the server, if `drop_slot`; sentences of what was done and of what remains."""
        slot_name, publication_name = self._names
        said = []
        with self._channels.open() as channel:
            server = Server.ask(channel)
            found = Slot.find(channel, slot_name)
            published = Publication.find(channel, publication_name, server.version)
            if drop_slot and found is not None and (found.plugin, found.database) != (slot.PLUGIN, server.database):
                raise slot.foreign(found)
            if drop_slot and found is not None and found.reader_pid:
                raise RefusedError(
                    f"replication slot {slot_name} is being read, by process {found.reader_pid} of the server",
                    where=str(self._settings.url),
                    hint="stop what reads it, then remove the source again",
                )
            if found is not None and drop_slot:
                slot.drop(channel, slot_name)
                said.append(f"dropped replication slot {slot_name}")
            elif found is not None:
                said.append(
                    f"replication slot {slot_name} remains and holds the server's log; to drop it: "
                    f"SELECT pg_drop_replication_slot('{slot_name}')"
                )
            if published is not None and published.ours and drop_slot:
                publication.drop(channel, publication_name)
                said.append(f"dropped publication {publication_name}")
            elif published is not None:
                whose = "" if published.ours else ", which Kadds did not make,"
                said.append(
                    f"publication {publication_name}{whose} remains; to drop it: "
                    f"DROP PUBLICATION {quoted(publication_name)}"
                )
        return said
