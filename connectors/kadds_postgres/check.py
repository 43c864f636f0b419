"""What a source would lose, break or be refused, found before anything is made on the server."""

from __future__ import annotations

from collections.abc import Sequence

from kadds.api.connector import Finding, Level
from kadds.api.schema import Table
from kadds_postgres import publication
from kadds_postgres.catalog import Catalog, CatalogTable
from kadds_postgres.channel import Channel, number
from kadds_postgres.names import quoted
from kadds_postgres.publication import Publication
from kadds_postgres.server import Server
from kadds_postgres.settings import PostgresSourceSettings, Snapshot
from kadds_postgres.slot import Slot

OLDEST_VERSION = 130000  # publish_via_partition_root

_LIMITS = """
SELECT pg_catalog.current_setting('max_replication_slots'), (SELECT count(*) FROM pg_catalog.pg_replication_slots),
       pg_catalog.current_setting('max_wal_senders'), (SELECT count(*) FROM pg_catalog.pg_stat_replication),
       current_user,
       (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
       OR EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication'
                  AND pg_catalog.pg_has_role(oid, 'MEMBER')),
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
"""


_SEQUENCES = """
SELECT count(*), pg_catalog.min(c.oid::pg_catalog.regclass::text)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'
"""


def check(
    channel: Channel, settings: PostgresSourceSettings, names: tuple[str, str], tables: Sequence[Table]
) -> list[Finding]:
    """Findings about the server (`where` is its URL) and about tables (`where` is the qualified name)."""
    url, server = str(settings.url), Server.ask(channel)
    catalog = Catalog(channel, via_root=settings.publish_via_partition_root)
    oids = [int(table.incarnation) for table in tables if table.incarnation]
    found = list(catalog.of(oids).values()) if oids else []
    wrong: list[Finding] = []
    if server.version < OLDEST_VERSION:
        wrong.append(Finding(Level.ERROR, url, f"the server is version {server.version // 10000}; 13 is the oldest"))
    if server.encoding == "SQL_ASCII":
        wrong.append(
            Finding(
                Level.ERROR,
                url,
                "the database's encoding is SQL_ASCII: its text is in no known encoding",
                "move it into a database WITH ENCODING 'UTF8'",
            )
        )
    wrong += [one for table in found for one in _unreadable(table, channel)]
    if settings.snapshot is not Snapshot.ONLY:
        wrong += _server(channel, server, url, names[0])
        wrong += _published(channel, server, settings, names[1], found)
        wrong += [one for table in found for one in _table(table)]
        wrong += _sequences(channel, url)
    return wrong


def _sequences(channel: Channel, url: str) -> list[Finding]:
    count, first = channel.only_row(_SEQUENCES)
    if count == "0":
        return []
    return [
        Finding(
            Level.NOTE,
            url,
            f"the values of sequences are not captured ({count}, the first is {first})",
            "set them with setval() where a target takes over",
        )
    ]


def _server(channel: Channel, server: Server, url: str, slot_name: str) -> list[Finding]:
    wrong: list[Finding] = []

    def error(message: str, hint: str) -> None:
        wrong.append(Finding(Level.ERROR, url, message, hint))

    if server.standby:
        error("the server is a standby", "capture from the primary")
    if server.wal_level != "logical":
        error(
            f"wal_level is {server.wal_level}: the server's log has no rows to decode",
            "ALTER SYSTEM SET wal_level = 'logical', then restart the server",
        )
    row = channel.only_row(_LIMITS)
    slots_max, slots, senders_max, senders, user, replicates, _ = row
    if replicates != "t":
        error(f"user {user} may not replicate", f"ALTER ROLE {quoted(user or '')} REPLICATION")
    found = Slot.find(channel, slot_name)
    if found is None and number(slots) >= number(slots_max):
        error(
            f"all {slots_max} replication slots are taken",
            f"ALTER SYSTEM SET max_replication_slots = {number(slots_max) + 5}, then restart the server; "
            "or drop one that nobody needs: SELECT * FROM pg_replication_slots",
        )
    if (found is None or not found.reader_pid) and number(senders) >= number(senders_max):
        error(
            f"all {senders_max} replication connections are taken",
            f"ALTER SYSTEM SET max_wal_senders = {number(senders_max) + 5}, then restart the server",
        )
    if found is not None and found.wal_status == "unreserved":
        wrong.append(
            Finding(
                Level.WARNING,
                url,
                f"replication slot {slot_name} is about to lose write-ahead log that has not been read",
                "raise max_slot_wal_keep_size, or see why the source does not get on",
            )
        )
    return wrong


def _published(
    channel: Channel, server: Server, settings: PostgresSourceSettings, name: str, tables: Sequence[CatalogTable]
) -> list[Finding]:
    """Whether the publication is as needed, or can be made so."""
    url, via_root = str(settings.url), settings.publish_via_partition_root
    found = Publication.find(channel, name, server.version)
    if found is not None and not found.ours:
        return publication.findings(found, tables, url, via_root=via_root)
    row = channel.only_row(_LIMITS)
    user, wrong = quoted(row[4] or ""), []
    if found is None and row[6] != "t":
        wrong.append(
            Finding(
                Level.ERROR,
                url,
                f"publication {name} does not exist, and user {user} may not make it",
                f"GRANT CREATE ON DATABASE {quoted(server.database)} TO {user}; or as its owner: "
                f"CREATE PUBLICATION {quoted(name)} FOR TABLE … "
                f"WITH (publish_via_partition_root = {'true' if via_root else 'false'})",
            )
        )
    unpublished = [table for table in tables if found is None or table.oid not in found.tables]
    return wrong + [
        Finding(
            Level.ERROR,
            table.table.qualified_name,
            f"user {user} does not own it, and so cannot publish it",
            f"ALTER TABLE {_sql(table)} OWNER TO {user}; or let its owner make the publication {quoted(name)}",
        )
        for table in unpublished
        if not table.owned
    ]


def _unreadable(table: CatalogTable, channel: Channel) -> list[Finding]:
    if table.readable:
        return []
    return [
        Finding(
            Level.ERROR,
            table.table.qualified_name,
            "the user may not read it",
            f"GRANT USAGE ON SCHEMA {quoted(table.table.schema or '')} TO …; GRANT SELECT ON {_sql(table)} TO …",
        )
    ]


def _table(table: CatalogTable) -> list[Finding]:
    where, wrong = table.table.qualified_name, []
    if table.unlogged:
        wrong.append(
            Finding(
                Level.ERROR,
                where,
                "it is unlogged: its changes are not in the server's log",
                f'ALTER TABLE {_sql(table)} SET LOGGED, or leave it out: `"!{where}"`',
            )
        )
    if not table.identity:
        wrong.append(
            Finding(
                Level.ERROR,
                where,
                "it has no primary key and no replica identity: once published, its own UPDATE and DELETE would fail",
                f"ALTER TABLE {_sql(table)} ADD PRIMARY KEY (…); or ALTER TABLE {_sql(table)} REPLICA IDENTITY FULL",
            )
        )
    if table.bad_leaves:
        wrong.append(
            Finding(
                Level.ERROR,
                where,
                f"of its partitions {', '.join(table.bad_leaves[:5])} cannot be published: without identity, unlogged, "
                "or foreign",
                f"ALTER TABLE {table.bad_leaves[0]} REPLICA IDENTITY FULL, or give it a primary key",
            )
        )
    if table.generated:
        wrong.append(
            Finding(
                Level.NOTE,
                where,
                f"generated columns are not in the server's log and are left out: {', '.join(table.generated)}",
                "compute them in the target",
            )
        )
    if table.partitioned:
        wrong.append(
            Finding(
                Level.NOTE,
                where,
                "rows that come or go by ATTACH, DETACH or TRUNCATE of one partition are not in the server's log as "
                "changes of this table",
                "`publish_via_partition_root: false` makes each partition a stream of its own",
            )
        )
    return wrong


def _sql(table: CatalogTable) -> str:
    return quoted(table.table.schema or "", table.table.name)
