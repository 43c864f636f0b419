"""What is at the target already, read from the catalog: columns, keys, and what may change or hide rows.

`Existing.fingerprint` sums up all of it that decides how rows are written. A delivery compares it in its own
transaction behind its statements, whose locks keep the table as they found it: so no change by the owner goes unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from kadds_postgres.connection import Connection
from kadds_postgres.names import TableName, quoted

_KINDS = {"v": "view", "m": "materialized view", "f": "foreign table", "S": "sequence", "c": "type", "i": "index"}

#: One text of the attributes and flags on which a layout rests; `$1` is the quoted name. NULL where there is no table.
FINGERPRINT = """
SELECT c.oid::text || c.relkind::text || c.relrowsecurity || c.relhasrules || c.relhastriggers || (
    SELECT pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(',', a.attnum, a.attname, a.atttypid, a.atttypmod,
        a.attnotnull, a.atthasdef, a.attidentity, a.attgenerated, a.attcollation), ';' ORDER BY a.attnum))
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)
"""

#: The columns of a table that hold values, the owner's among them.
OWN_COLUMNS = """
SELECT attname FROM pg_catalog.pg_attribute
WHERE attrelid = $1::pg_catalog.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""

_TABLE = """
SELECT c.oid, c.relkind::text, pg_catalog.obj_description(c.oid, 'pg_class'), c.relhasrules,
       pg_catalog.row_security_active(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""

_COLUMNS = """
WITH RECURSIVE base AS (
    SELECT a.attnum, a.atttypid AS type, a.atttypmod AS modifier FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT base.attnum, t.typbasetype, t.typtypmod
    FROM base JOIN pg_catalog.pg_type t ON t.oid = base.type WHERE t.typtype = 'd')
SELECT a.attname, pg_catalog.format_type(t.oid, base.modifier), n.nspname, t.typname, e.typname,
       t.typcategory = 'A' OR t.typdelim <> ',',
       a.attnotnull, a.atthasdef, a.attidentity::text, a.attgenerated::text <> '',
       coalesce(l.collisdeterministic, true)
FROM pg_catalog.pg_attribute a JOIN base USING (attnum)
JOIN pg_catalog.pg_type t ON t.oid = base.type AND t.typtype <> 'd'
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typarray
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_INDEXES = """
SELECT c.relname, i.indisprimary, i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL,
       ARRAY(SELECT a.attname::text
             FROM pg_catalog.unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %s AND i.indisunique ORDER BY i.indisprimary DESC, c.relname
"""

_TRIGGERS = """
SELECT tgname FROM pg_catalog.pg_trigger
WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 3 = 3 ORDER BY tgname
"""

_REFERENCES = """
SELECT conname, confdeltype IN ('c', 'n', 'd') FROM pg_catalog.pg_constraint
WHERE contype = 'f' AND confrelid = %s ORDER BY conname
"""


@dataclass(frozen=True)
class ExistingColumn:
    """A column that the table has; a domain is taken for the type that it rests on."""

    name: str
    type: str  # as format_type writes it, with its modifier
    base: str  # the same without, quoted, to cast to
    own_name: str  # its name where it is the server's own type, otherwise ""
    base_array: str | None  # the array type of it, where a literal of it is written with commas
    required: bool  # a row without a value for it is refused
    identity: str  # "a" (always), "d" (by default) or ""
    computed: bool
    deterministic: bool  # its collation takes only equal texts for equal


@dataclass(frozen=True)
class UniqueIndex:
    """A unique index; `usable` where it can decide a conflict: complete, plain and checked at once."""

    name: str
    primary: bool
    usable: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Existing:
    """A table, or what stands under its name instead."""

    oid: int
    relation_kind: str
    comment: str | None
    has_rules: bool
    hides_rows: bool
    columns: dict[str, ExistingColumn]
    indexes: tuple[UniqueIndex, ...]
    triggers_before_rows: tuple[str, ...]
    cascades: tuple[str, ...]  # foreign keys elsewhere that act when a row here is deleted
    referenced: bool
    fingerprint: str

    @property
    def is_table(self) -> bool:
        """Whether rows can be kept in it."""
        return self.relation_kind in "rp"

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return _KINDS.get(self.relation_kind, "relation of another kind")

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The columns of its primary key."""
        return next((index.columns for index in self.indexes if index.primary), ())

    def is_unique(self, key: Sequence[str]) -> bool:
        """Whether an index that can decide a conflict stands on exactly these columns."""
        return any(index.usable and set(index.columns) == set(key) for index in self.indexes)


def find(connection: Connection, name: TableName) -> Existing | None:
    """What stands under `name`, None if there is nothing; in the caller's transaction, if any."""
    row = connection.execute(_TABLE, [name.schema, name.table]).fetchone()
    if row is None:
        return None
    oid, kind, comment, rules, hides = row
    with connection.pipeline():
        columns = connection.execute(_COLUMNS, {"oid": oid})
        indexes = connection.execute(_INDEXES, [oid])
        triggers = connection.execute(_TRIGGERS, [oid])
        references = connection.execute(_REFERENCES, [oid])
        fingerprint = psycopg.RawCursor(connection).execute(FINGERPRINT, [name.sql])
    foreign_keys = references.fetchall()
    stamp = fingerprint.fetchone()
    return Existing(
        oid=oid,
        relation_kind=kind,
        comment=comment,
        has_rules=rules,
        hides_rows=hides,
        columns={row[0]: _column(*row) for row in columns.fetchall()},
        indexes=tuple(
            UniqueIndex(index, primary, usable, tuple(names)) for index, primary, usable, names in indexes.fetchall()
        ),
        triggers_before_rows=tuple(trigger for (trigger,) in triggers.fetchall()),
        cascades=tuple(name for name, acts in foreign_keys if acts),
        referenced=bool(foreign_keys),
        fingerprint=stamp[0] if stamp else "",
    )


def _column(
    name: str,
    formatted: str,
    schema: str,
    base: str,
    array: str | None,
    by_text: bool,
    not_null: bool,
    has_default: bool,
    identity: str,
    computed: bool,
    deterministic: bool,
) -> ExistingColumn:
    return ExistingColumn(
        name=name,
        type=formatted,
        base=quoted(schema, base),
        own_name=base if schema == "pg_catalog" else "",
        base_array=None if by_text or array is None else quoted(schema, array),
        required=not_null and not has_default and not identity and not computed,
        identity=identity,
        computed=computed,
        deterministic=deterministic,
    )
