"""The server itself: which one it is, what it can do, and where its log ends."""

from __future__ import annotations

from dataclasses import dataclass

from kadds_postgres.channel import Channel, number
from kadds_postgres.position import lsn_number

_SERVER = """
SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       NOT primary_server,
       CASE WHEN primary_server THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END,
       CASE WHEN primary_server THEN pg_catalog.pg_current_wal_insert_lsn() END,
       CASE WHEN primary_server THEN pg_catalog.pg_current_wal_flush_lsn() END,
       pg_catalog.current_setting('server_version_num'),
       pg_catalog.current_setting('server_encoding'),
       pg_catalog.current_setting('wal_level'),
       pg_catalog.current_database(),
       (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size'),
       (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
       (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_writer_delay')
FROM (SELECT NOT pg_catalog.pg_is_in_recovery() AS primary_server) AS known
"""


@dataclass(frozen=True)
class Server:
    """What a connected server says of itself; the LSNs are of that moment, 0 on a standby."""

    system: str
    standby: bool
    timeline: int
    insert_lsn: int
    flush_lsn: int
    version: int  # 150004
    encoding: str
    wal_level: str
    database: str
    segment_bytes: int
    sender_timeout_seconds: float  # 0: none
    wal_writer_delay_seconds: float

    @property
    def lineage(self) -> str:
        """`system identifier/timeline`: LSNs mean something inside of it only."""
        return f"{self.system}/{self.timeline}"

    @classmethod
    def ask(cls, channel: Channel) -> Server:
        """The server at the other end of `channel`."""
        row = channel.only_row(_SERVER)
        return cls(
            row[0] or "",
            row[1] == "t",
            int((row[2] or "0")[:8], 16),
            lsn_number(row[3] or "0/0"),
            lsn_number(row[4] or "0/0"),
            number(row[5]),
            row[6] or "",
            row[7] or "",
            row[8] or "",
            number(row[9]),
            number(row[10]) / 1000,
            number(row[11]) / 1000,
        )
