"""The publication: which tables' changes the slot's decoder hands out.

One that Kadds has made bears a comment that says so; it follows the configured tables. Anybody else's is used as it is
and never changed. The decoder reads the publication as it was at each change's place in the log: so it has to be there
before the slot, and dropping it makes the changes of the time without it undecodable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import pq

from kadds.api.connector import Finding, Level
from kadds.api.errors import RefusedError
from kadds_postgres.catalog import CatalogTable
from kadds_postgres.channel import Channel, number
from kadds_postgres.names import quoted

MADE_BY_US = "made by Kadds"
_TABLES_AT_ONCE = 500

_PUBLICATION = """
SELECT p.puballtables, p.pubviaroot, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
       coalesce(pg_catalog.obj_description(p.oid, 'pg_publication') = $2, false)
FROM pg_catalog.pg_publication p WHERE p.pubname = $1
"""

_EFFECTIVE = """
SELECT c.oid FROM pg_catalog.pg_publication_tables t
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = $1
"""

_EXPLICIT = """
SELECT r.prrelid, n.nspname, c.relname, {narrowed}
FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = $1
"""
_NARROWED_FROM_VERSION = 150000  # row filters and column lists


@dataclass(frozen=True)
class Publication:
    """A publication as it is on the server."""

    name: str
    all_tables: bool
    via_root: bool
    all_events: bool
    ours: bool
    tables: frozenset[int]  # by oid, those whose changes it hands out
    explicit: dict[int, tuple[str, str]]  # by oid, schema and name of those that were added one by one
    narrowed: frozenset[int]  # those with a row filter or a column list

    @property
    def whole(self) -> frozenset[int]:
        """The tables of which it hands out every change."""
        return self.tables - self.narrowed if self.all_events else frozenset()

    @classmethod
    def find(cls, channel: Channel, name: str, version: int) -> Publication | None:
        """The publication called `name`, if there is one."""
        row = channel.row(_PUBLICATION, name, MADE_BY_US)
        if row is None:
            return None
        narrowed = "r.prqual IS NOT NULL OR r.prattrs IS NOT NULL" if version >= _NARROWED_FROM_VERSION else "false"
        explicit = channel.rows(_EXPLICIT.format(narrowed=narrowed), name)
        return cls(
            name,
            row[0] == "t",
            row[1] == "t",
            row[2] == "t",
            row[3] == "t",
            frozenset(number(oid) for (oid,) in channel.rows(_EFFECTIVE, name)),
            {number(oid): (schema or "", table or "") for oid, schema, table, _ in explicit},
            frozenset(number(oid) for oid, _, _, narrow in explicit if narrow == "t"),
        )


def create(channel: Channel, name: str, *, via_root: bool) -> None:
    """Make an empty publication that bears our mark, in one transaction."""
    channel.rows(
        f"CREATE PUBLICATION {quoted(name)} WITH (publish_via_partition_root = {'true' if via_root else 'false'});"
        f" COMMENT ON PUBLICATION {quoted(name)} IS '{MADE_BY_US}'"
    )


def ensure(channel: Channel, name: str, tables: Sequence[CatalogTable], version: int, *, via_root: bool) -> None:
    """Let the publication hand out exactly `tables` if it is ours; RefusedError where somebody else's does not."""
    found = Publication.find(channel, name, version)
    if found is None:
        create(channel, name, via_root=via_root)
        found = Publication(name, False, via_root, True, True, frozenset(), {}, frozenset())
    if not found.ours:
        refuse_first(findings(found, tables, "", via_root=via_root))
        return
    if found.via_root != via_root or not found.all_events:
        channel.rows(
            f"ALTER PUBLICATION {quoted(name)} SET (publish = 'insert, update, delete, truncate', "
            f"publish_via_partition_root = {'true' if via_root else 'false'})"
        )
    wanted = {table.oid for table in tables}
    right = (found.tables | found.explicit.keys()) - found.narrowed
    surplus = [names for oid, names in found.explicit.items() if oid not in wanted & right]
    _alter(channel, name, "DROP", surplus)
    missing = [(table.table.schema or "", table.table.name) for table in tables if table.oid not in right]
    _alter(channel, name, "ADD", missing)


def _alter(channel: Channel, name: str, verb: str, tables: Sequence[tuple[str, str]]) -> None:
    for start in range(0, len(tables), _TABLES_AT_ONCE):
        some = ", ".join(f"ONLY {quoted(*names)}" for names in tables[start : start + _TABLES_AT_ONCE])
        channel.rows(f"ALTER PUBLICATION {quoted(name)} {verb} TABLE {some}")


def drop(channel: Channel, name: str) -> None:
    """Drop it if it is there."""
    channel.rows(f"DROP PUBLICATION IF EXISTS {quoted(name)}")


def findings(found: Publication, tables: Iterable[CatalogTable], url: str, *, via_root: bool) -> list[Finding]:
    """What is wrong with a publication that is not ours to change."""
    name = quoted(found.name)
    wrong: list[Finding] = []
    if not found.all_events:
        wrong.append(
            Finding(
                Level.ERROR,
                url,
                f"publication {found.name} does not publish all of insert, update, delete and truncate",
                f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')",
            )
        )
    if found.via_root != via_root:
        wanted = "true" if via_root else "false"
        wrong.append(
            Finding(
                Level.ERROR,
                url,
                f"publication {found.name} has publish_via_partition_root = {'true' if found.via_root else 'false'}, "
                f"the source is configured with {wanted}",
                f"ALTER PUBLICATION {name} SET (publish_via_partition_root = {wanted}), or change the setting",
            )
        )
    for table in tables:
        where = table.table.qualified_name
        sql_name = quoted(table.table.schema or "", table.table.name)
        if table.oid not in found.tables:
            wrong.append(
                Finding(
                    Level.ERROR,
                    where,
                    f"publication {found.name}, which Kadds did not make, does not publish it",
                    f"ALTER PUBLICATION {name} ADD TABLE {sql_name}",
                )
            )
        elif table.oid in found.narrowed:
            wrong.append(
                Finding(
                    Level.ERROR,
                    where,
                    f"publication {found.name} has a row filter or a column list on it: changes would be missing",
                    f"ALTER PUBLICATION {name} DROP TABLE {sql_name}; "
                    f"ALTER PUBLICATION {name} ADD TABLE {sql_name}; filter in the subscription instead",
                )
            )
    return wrong


def refuse_first(found: Sequence[Finding]) -> None:
    """RefusedError for the first of `found`."""
    for one in found:
        raise RefusedError(one.message, where=one.where or None, hint=one.hint)


def literal(channel: Channel, text: str) -> str:
    """`text` as a literal of SQL, for commands that take no parameters."""
    return bytes(pq.Escaping(channel.pgconn).escape_literal(text.encode())).decode()
