"""The catalog: what tables there are, their columns and keys, in a few queries whatever their number.

Columns are those that pgoutput sends: not the dropped ones, not the generated ones. Domains are resolved to their base
types. A table's incarnation is its oid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kadds.api.schema import Column, Table
from kadds_postgres.channel import Channel, number, numbers
from kadds_postgres.resume import Described
from kadds_postgres.types import arrow_type

#: The tables as `publish_via_partition_root` sees them: roots without their leaves ($1 is true), or the leaves alone.
#: Those in which a sink keeps its epochs and cursors (see `claim`), in a database that is a target too, are left out.
_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', c.relpersistence = 'u', c.relreplident,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       pg_catalog.pg_has_role(c.relowner, 'USAGE')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence IN ('p', 'u')
  AND CASE WHEN $1::boolean THEN NOT c.relispartition ELSE c.relkind = 'r' END
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND ($2::oid[] IS NULL OR c.oid = ANY($2::oid[]))
  AND NOT (c.relname IN ('subscriptions', 'cursors') AND (
      SELECT pg_catalog.string_agg(attname, ' ' ORDER BY attnum) FROM pg_catalog.pg_attribute
      WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
  ) IN ('subscription epoch claimed_at', 'subscription stream cursor'))
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""

_BASE_TYPES = """
WITH RECURSIVE domain(id, base, modifier) AS (
    SELECT oid, typbasetype, typtypmod FROM pg_catalog.pg_type WHERE typtype = 'd'
    UNION ALL
    SELECT d.id, t.typbasetype, CASE WHEN d.modifier >= 0 THEN d.modifier ELSE t.typtypmod END
    FROM domain d JOIN pg_catalog.pg_type t ON t.oid = d.base WHERE t.typtype = 'd'
), resolved AS (
    SELECT d.* FROM domain d JOIN pg_catalog.pg_type t ON t.oid = d.base WHERE t.typtype <> 'd'
)
"""

_COLUMNS = f"""
{_BASE_TYPES}
SELECT a.attrelid, a.attnum, a.attname,
       pg_catalog.format_type(coalesce(r.base, a.atttypid), coalesce(r.modifier, a.atttypmod)),
       a.attnotnull, a.attgenerated <> '', a.atttypid, a.atttypmod,
       a.atthasdef OR a.atthasmissing OR a.attidentity <> ''
FROM pg_catalog.pg_attribute a LEFT JOIN resolved r ON r.id = a.atttypid
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_TYPES = f"""
{_BASE_TYPES}
SELECT given.place, pg_catalog.format_type(coalesce(r.base, given.id), coalesce(r.modifier, given.modifier))
FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS given(id, modifier, place) LEFT JOIN resolved r ON r.id = given.id
ORDER BY given.place
"""

_INDEXES = """
SELECT indrelid, indisprimary, indisreplident, indimmediate AND indisvalid, indkey::text, indnkeyatts
FROM pg_catalog.pg_index
WHERE indrelid = ANY($1::oid[]) AND (indisprimary OR indisreplident)
"""

#: Leaves of partitioned tables that could not be updated once their root is published, or that have no changes.
_BAD_LEAVES = """
SELECT r.oid, leaf.oid::pg_catalog.regclass::text
FROM unnest($1::oid[]) AS r(oid), LATERAL pg_catalog.pg_partition_tree(r.oid) part,
     LATERAL (SELECT * FROM pg_catalog.pg_class WHERE oid = part.relid) leaf
WHERE part.isleaf AND part.relid <> r.oid AND (
    leaf.relkind <> 'r' OR leaf.relpersistence <> 'p' OR CASE leaf.relreplident
        WHEN 'f' THEN false
        WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = leaf.oid
            AND i.indisprimary AND i.indimmediate AND i.indisvalid)
        WHEN 'i' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = leaf.oid AND i.indisreplident)
        ELSE true END)
"""


@dataclass(frozen=True)
class CatalogTable:
    """A table as it is now, and what `check` asks about it."""

    oid: int
    table: Table
    described: tuple[Described, ...]
    partitioned: bool
    unlogged: bool
    identity: bool  # whether an update says which row it changed
    readable: bool
    owned: bool
    generated: tuple[str, ...]
    with_default: frozenset[str]
    bad_leaves: tuple[str, ...] = ()


class Catalog:
    """Reads the catalog through a channel, in whatever transaction that is in."""

    def __init__(self, channel: Channel, *, via_root: bool) -> None:
        self._channel = channel
        self._root = "t" if via_root else "f"

    def wanted(self, wanted: Callable[[str], bool]) -> list[CatalogTable]:
        """The tables for whose qualified name `wanted` is true, in the order of their names."""
        rows = self._channel.rows(_TABLES, self._root, None)
        return self._tables([row for row in rows if wanted(f"{row[1]}.{row[2]}")])

    def of(self, oids: Iterable[int]) -> dict[int, CatalogTable]:
        """The tables with these oids, as far as they are there."""
        rows = self._channel.rows(_TABLES, self._root, numbers(list(oids)))
        return {table.oid: table for table in self._tables(rows)}

    def declared(self, types: Sequence[tuple[int, int]]) -> list[str]:
        """The declared base types of (type's oid, modifier)."""
        if not types:
            return []
        ids, modifiers = zip(*types, strict=True)
        return [text or "" for _, text in self._channel.rows(_TYPES, numbers(ids), numbers(modifiers))]

    def _tables(self, rows: Sequence[tuple[str | None, ...]]) -> list[CatalogTable]:
        oids = numbers([number(row[0]) for row in rows])
        if not rows:
            return []
        columns: dict[int, list[tuple[str | None, ...]]] = {}
        for column in self._channel.rows(_COLUMNS, oids):
            columns.setdefault(number(column[0]), []).append(column)
        indexes: dict[int, list[tuple[str | None, ...]]] = {}
        for index in self._channel.rows(_INDEXES, oids):
            indexes.setdefault(number(index[0]), []).append(index)
        bad_leaves: dict[int, list[str]] = {}
        roots = numbers([number(row[0]) for row in rows if row[3] == "t"])
        if roots != "{}":
            for oid, leaf in self._channel.rows(_BAD_LEAVES, roots):
                bad_leaves.setdefault(number(oid), []).append(leaf or "")
        return [
            _table(row, columns.get(number(row[0]), []), indexes.get(number(row[0]), []), bad_leaves) for row in rows
        ]


def _table(
    row: tuple[str | None, ...],
    columns: Sequence[tuple[str | None, ...]],
    indexes: Sequence[tuple[str | None, ...]],
    bad_leaves: Mapping[int, Sequence[str]],
) -> CatalogTable:
    oid, schema, name = number(row[0]), row[1], row[2] or ""
    names = {number(column[1]): column[2] or "" for column in columns}
    generated = {column[2] or "" for column in columns if column[5] == "t"}
    sent = [column for column in columns if column[5] == "f"]
    key, identity = _key(row[5] or "", indexes, names, generated)
    return CatalogTable(
        oid,
        Table(
            schema,
            name,
            tuple(column_of(column[2] or "", column[3] or "", column[4] == "f", number(column[1])) for column in sent),
            key,
            str(oid),
        ),
        tuple((column[2] or "", number(column[6]), number(column[7])) for column in sent),
        row[3] == "t",
        row[4] == "t",
        identity,
        row[6] == "t",
        row[7] == "t",
        tuple(sorted(generated)),
        frozenset(column[2] or "" for column in sent if column[8] == "t"),
        tuple(bad_leaves.get(oid, ())),
    )


def column_of(name: str, declared: str, nullable: bool, attribute: int | None) -> Column:
    """A column of the declared type."""
    return Column(name, arrow_type(declared), declared, nullable=nullable, attribute=attribute)


def _key(
    identity: str, indexes: Sequence[tuple[str | None, ...]], names: Mapping[int, str], generated: set[str]
) -> tuple[tuple[str, ...], bool]:
    """The columns that identify a row, and whether there is an identity at all."""
    primary = replica = None
    for _, is_primary, is_replica, is_usable, places, count in indexes:
        columns = tuple(names[int(place)] for place in (places or "").split()[: number(count)])
        if not generated.isdisjoint(columns):
            continue
        if is_primary == "t":
            primary = (columns, is_usable == "t")
        if is_replica == "t":
            replica = (columns, is_usable == "t")
    if identity == "f":
        return (primary[0] if primary else ()), True
    used = {"d": primary, "i": replica}.get(identity)
    return used if used is not None and used[1] else ((), False)
