"""The captured tables, as the decoder asks for them: each Relation message is compared with what the log has.

A Relation message has names and types, and no attribute numbers. The catalog has them, but as it is now, which may be
later than the stream; so a number is taken from it only where name and type agree. A rename is one only where numbers
prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kadds.api.schema import Column, Table
from kadds_postgres.catalog import Catalog, CatalogTable, column_of
from kadds_postgres.relation import Relation, RelationMessage
from kadds_postgres.resume import Captured

Look = Callable[[Callable[[Catalog], Any]], Any]
"""Runs a question to the catalog on a connection of its own."""


class CapturedRelations:
    """Implements `relation.Relations` for one session.

    `captured` is what the log has; `recorded` says when it has become something else. Copies that end at or below
    `lsn`, where the session begins, are continued without a look at where they ended.
    """

    def __init__(self, captured: Mapping[int, Captured], lsn: int, look: Look) -> None:
        self.captured = {
            oid: replace(one, captured_from=0) if one.captured_from <= lsn else one for oid, one in captured.items()
        }
        self._look = look
        self._latest: dict[int, Captured] = {}  # as the stream is now, perhaps ahead of the log
        self._changed: dict[Table, Captured] = {}

    def described(self, message: RelationMessage, commit_lsn: int) -> tuple[Relation | None, Mapping[str, Any] | None]:
        """See `relation.Relations`."""
        known = self.captured.get(message.oid)
        if known is None:
            return None, None
        is_copied = commit_lsn < known.captured_from
        base = known if is_copied else self._latest.get(message.oid, known)
        if _same(base, message):
            return Relation(message.oid, base.table, known.captured_from), None
        now, declared = self._look(lambda catalog: _asked(catalog, message))
        described = tuple((column.name, column.type_oid, column.type_modifier) for column in message.columns)
        columns = tuple(_column(one, text, base, now) for one, text in zip(described, declared, strict=True))
        key = _key(message, base.table.key, now)
        table = replace(base.table, columns=columns, key=key)
        relation = Relation(message.oid, table, known.captured_from)
        if is_copied:
            return relation, None
        self._latest[message.oid] = self._changed[table] = replace(known, table=table, described=described)
        return relation, _facts(base.table, table, now)

    def recorded(self, table: Table) -> Captured:
        """A SCHEMA record of `table` is on its way into the log; what the log has of the table with it."""
        changed = self._changed[table]
        self.captured[changed.oid] = changed
        return changed


def _asked(catalog: Catalog, message: RelationMessage) -> tuple[CatalogTable | None, list[str]]:
    declared = catalog.declared([(column.type_oid, column.type_modifier) for column in message.columns])
    return catalog.of([message.oid]).get(message.oid), declared


def _same(known: Captured, message: RelationMessage) -> bool:
    described = tuple((column.name, column.type_oid, column.type_modifier) for column in message.columns)
    return described == known.described and _key(message, known.table.key, None) == known.table.key


def _key(message: RelationMessage, known: tuple[str, ...], now: CatalogTable | None) -> tuple[str, ...]:
    """The key's columns: those of the message, in the catalog's order where it agrees.

    With FULL every column is in the identity, and the key is what it was, or the catalog's.
    """
    names = [column.name for column in message.columns]
    orders = [known] if now is None else [now.table.key, known]
    if message.replica_identity == "f":
        return next((key for key in orders if set(key) <= set(names)), ())
    in_key = tuple(column.name for column in message.columns if column.in_key)
    return next((key for key in orders if set(key) == set(in_key)), in_key)


def _column(described: tuple[str, int, int], declared: str, base: Captured, now: CatalogTable | None) -> Column:
    """One column of the message, with the number and the nullability that are known of it."""
    for table, ours in ((now.table, now.described) if now else None, (base.table, base.described)):  # type: ignore[misc]
        for column, other in zip(table.columns, ours, strict=True):
            if other == described:
                return column_of(described[0], declared, column.nullable, column.attribute)
    return column_of(described[0], declared, True, None)


def _facts(old: Table, new: Table, now: CatalogTable | None) -> dict[str, Any]:
    """What a SCHEMA record says: names of columns, and [old, new] for renames."""
    renamed = _renamed(old.columns, new.columns)
    moved_from, moved_to = {one for one, _ in renamed}, {other for _, other in renamed}
    before, after = {c.name: c for c in old.columns}, {c.name: c for c in new.columns}
    replaced = (
        {name for name in before.keys() & after.keys() if _differ(before[name].attribute, after[name].attribute)}
        - moved_from
        - moved_to
    )
    added = [c.name for c in new.columns if (c.name not in before or c.name in replaced) and c.name not in moved_to]
    dropped = [c.name for c in old.columns if (c.name not in after or c.name in replaced) and c.name not in moved_from]
    retyped = [
        name
        for name in after
        if name in before
        and name not in replaced | moved_to
        and (before[name].type, before[name].declared) != (after[name].type, after[name].declared)
    ]
    retyped += [
        other
        for one, other in renamed
        if (before[one].type, before[one].declared) != (after[other].type, after[other].declared)
    ]
    return {
        "added": added,
        "dropped": dropped,
        "retyped": retyped,
        "renamed": [list(pair) for pair in renamed],
        "suspected_renames": _suspected(before, after, dropped, added),
        "with_default": [name for name in added if now is not None and name in now.with_default],
    }


def _differ(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one != other


def _renamed(old: Sequence[Column], new: Sequence[Column]) -> list[tuple[str, str]]:
    """Columns whose number stayed and whose name did not."""
    before = {column.attribute: column.name for column in old if column.attribute is not None}
    return [
        (before[column.attribute], column.name)
        for column in new
        if column.attribute in before and before[column.attribute] != column.name
    ]


def _suspected(
    before: Mapping[str, Column], after: Mapping[str, Column], dropped: Iterable[str], added: Iterable[str]
) -> list[list[str]]:
    """Pairs that could be one column under two names: one type, and a number that is not known."""
    return [
        [old, new]
        for old in dropped
        for new in added
        if before[old].declared == after[new].declared
        and (before[old].attribute is None or after[new].attribute is None)
    ]
